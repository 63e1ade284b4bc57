"""Load and its price: wrk for many small requests, raw sockets for a herd, CPU time of a whole process tree."""

import json
import os
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

WRK_REPORT = """
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\n{"requests":%d,"bytes":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\\n',
    summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class Target:
    """A subject of a measurement: the address of one content, and the process whose tree pays for it."""

    name: str
    url: str
    pid: int
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """The result and the cost of a run of requests; ``cpu_seconds`` is user and system time of the server's tree."""

    requests: int
    size_bytes: int
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def requests_per_second(self) -> float:
        """Requests answered in a second."""
        return self.requests / self.seconds

    @property
    def cpu_us_per_request(self) -> float:
        """Server CPU time a request, in microseconds."""
        return self.cpu_seconds / self.requests * 1e6

    @property
    def gib_per_second(self) -> float:
        """Bytes received in a second, in GiB."""
        return self.size_bytes / self.seconds / 2**30

    @property
    def cpu_seconds_per_gib(self) -> float:
        """Server CPU time a GiB."""
        return self.cpu_seconds / (self.size_bytes / 2**30)


@dataclass(frozen=True)
class Herd:
    """The figures of many clients of one cold blob; times in seconds from the common start."""

    last_done: float
    last_first_byte: float
    cpu_seconds: float
    wrong_bodies: int


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and its living children, in seconds."""
    process = psutil.Process(pid)
    total = 0.0
    for member in [process, *process.children(recursive=True)]:
        times = member.cpu_times()
        total += times.user + times.system
    return total


def run_wrk(target: Target, *, connections: int, seconds: int, script: Path) -> Load:
    """Run wrk with one thread against a target; raise when any request failed."""
    script.write_text(WRK_REPORT)
    headers = [option for header in target.headers for option in ("-H", header)]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    before = cpu_seconds(target.pid)
    output = subprocess.run([*command, *headers, target.url], check=True, capture_output=True, text=True).stdout
    spent = cpu_seconds(target.pid) - before
    report = json.loads(output.strip().splitlines()[-1])
    if report["errors"]:
        raise RuntimeError(f"{target.name}: {report['errors']} failed requests of {target.url}\n{output}")
    return Load(
        requests=report["requests"],
        size_bytes=report["bytes"],
        seconds=report["duration_us"] / 1e6,
        cpu_seconds=spent,
        p50_ms=report["p50_us"] / 1e3,
        p99_ms=report["p99_us"] / 1e3,
    )


def _receive(target: Target, start: threading.Barrier, results: list[tuple[float, float, int]]) -> None:
    parts = urlsplit(target.url)
    lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close", *target.headers, "", ""]
    buffer = bytearray(1 << 20)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=120) as connection:
        start.wait()
        began = time.perf_counter()
        connection.sendall("\r\n".join(lines).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        first_byte = time.perf_counter() - began
        received = len(head.partition(b"\r\n\r\n")[2])
        # MSG_TRUNC discards the bytes in the kernel: the client must not be the measured part.
        while count := connection.recv_into(buffer, len(buffer), socket.MSG_TRUNC):
            received += count
    ok = head.startswith(b"HTTP/1.1 200")
    results.append((time.perf_counter() - began, first_byte, received if ok else -1))


def run_herd(target: Target, *, clients: int, size_bytes: int) -> Herd:
    """Send the requests of many clients for one blob at the same moment."""
    start = threading.Barrier(clients)
    results: list[tuple[float, float, int]] = []
    before = cpu_seconds(target.pid)
    threads = [threading.Thread(target=_receive, args=(target, start, results)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Herd(
        last_done=max(done for done, _, _ in results),
        last_first_byte=max(first for _, first, _ in results),
        cpu_seconds=cpu_seconds(target.pid) - before,
        wrong_bodies=clients - sum(1 for _, _, received in results if received == size_bytes),
    )


def describe_machine() -> str:
    """Return one line about the origin of the figures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "unknown processor")
    return f"{os.cpu_count()} cores, {model}, Linux {os.uname().release}"
