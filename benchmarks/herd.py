"""A herd on one cold blob: beside one client alone when the upstream is slow, beside nginx hot when it is not.

Part of `make bench`. The upstream is a real docker-registry, made slow by a relay before it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.first import nginx_server
from benchmarks.load import cpu_seconds, describe_machine
from tests.support.crowd import Crowd
from tests.support.product import Proxy, digest_of, proxy_server, push_blob_directly, random_bytes
from tests.support.relay import Relay
from tests.support.servers import Server, docker_registry, running

MIB = 2**20
CLIENTS = 200
REPOSITORY = "bench/app"
SLOW_BYTES_PER_SECOND = 5 * MIB


@dataclass(frozen=True)
class Run:
    """The figures of a crowd: seconds from its start to the first and last body's end, and to the last first byte."""

    last_done: float
    last_first_byte: float
    cpu_seconds: float


def measure(url: str, body: bytes, headers: Sequence[str], clients: int, pid: int) -> Run:
    """Send the requests of some clients at the same moment; raise unless each receives the expected number of bytes."""
    crowd = Crowd(url, body, headers, clients, compare=False)
    crowd.connect()
    before = cpu_seconds(pid)
    crowd.run(600)
    if not all(client.is_complete(len(body)) for client in crowd.clients):
        raise RuntimeError(f"{url}: not every body was whole")
    return Run(
        last_done=max(client.done_at for client in crowd.clients),
        last_first_byte=max(client.first_byte_at for client in crowd.clients),
        cpu_seconds=cpu_seconds(pid) - before,
    )


def header_of(proxy: Proxy) -> list[str]:
    """Return the header with which a client may pull."""
    user = proxy.add_user("bench", pull=["bench/**"])
    return [f"Authorization: Bearer {user.token(f'repository:{REPOSITORY}:pull')}"]


def slow(root: Path, registry: Server, size_bytes: int, rounds: int) -> None:
    """Print the delay of the last client of a herd against one client alone, with a slow upstream."""
    alone: list[Run] = []
    herd: list[Run] = []
    direct: list[Run] = []
    for number in range(rounds):
        with Relay(registry.port, bytes_per_second=SLOW_BYTES_PER_SECOND).running() as relay:
            proxy = proxy_server(root / f"slow-{number}", [Server([], relay.port, root / "none")], {"workers": 2})
            with running(proxy):
                headers = header_of(proxy)
                upstream = f"http://127.0.0.1:{relay.port}"
                for clients, sent, base, pid, runs in (
                    (1, [], upstream, registry.pid, direct),
                    (1, headers, proxy.url, proxy.pid, alone),
                    (CLIENTS, headers, proxy.url, proxy.pid, herd),
                ):
                    blob = random_bytes(size_bytes)
                    push_blob_directly(registry, REPOSITORY, blob)
                    url = f"{base}/v2/{REPOSITORY}/blobs/{digest_of(blob)}"
                    runs.append(measure(url, blob, sent, clients, pid))
    limit = f"{SLOW_BYTES_PER_SECOND // MIB} MiB/s"
    print(
        f"\n### Cold {size_bytes // MIB} MiB blob, upstream limited to {limit}, 2 workers\n\n"
        "| who | last client s | x one alone | last first byte ms | CPU s |\n|---|---|---|---|---|"
    )
    yardstick = statistics.median(run.last_done for run in alone)
    for name, runs in (
        ("one client, from the upstream itself", direct),
        ("one client alone", alone),
        (f"{CLIENTS} clients", herd),
    ):
        done = statistics.median(run.last_done for run in runs)
        first = statistics.median(run.last_first_byte for run in runs) * 1e3
        cpu = statistics.median(run.cpu_seconds for run in runs)
        print(f"| {name} | {done:.2f} | {done / yardstick:.2f} | {first:.0f} | {cpu:.2f} |")


def fast(root: Path, registry: Server, size_bytes: int, rounds: int) -> None:
    """Print the time of a herd on a cold blob beside that of nginx on the same blob hot."""
    nginx = nginx_server(root / "nginx")
    folder = root / "nginx" / "html" / f"v2/{REPOSITORY}/blobs"
    folder.mkdir(parents=True)
    proxy = proxy_server(root / "fast", [registry], {"workers": 2})
    hot, cold, warm = [], [], []
    with running(nginx), running(proxy):
        headers = header_of(proxy)
        for _ in range(rounds):
            blob = random_bytes(size_bytes)
            push_blob_directly(registry, REPOSITORY, blob)
            (folder / digest_of(blob)).write_bytes(blob)
            path = f"/v2/{REPOSITORY}/blobs/{digest_of(blob)}"
            hot.append(measure(nginx.url + path, blob, [], CLIENTS, nginx.pid))
            cold.append(measure(proxy.url + path, blob, headers, CLIENTS, proxy.pid))
            warm.append(measure(proxy.url + path, blob, headers, CLIENTS, proxy.pid))
            time.sleep(0.5)  # the write-back of the kernel belongs to no round
    print(
        f"\n### {size_bytes // MIB} MiB blob, {CLIENTS} clients at once, upstream unlimited, 2 workers\n\n"
        "| server | last client s | x nginx | last first byte ms | CPU s |\n|---|---|---|---|---|"
    )
    yardstick = statistics.median(run.last_done for run in hot)
    for name, runs in (("nginx, hot, 1 worker", hot), ("registry-proxy, cold", cold), ("registry-proxy, hot", warm)):
        done = statistics.median(run.last_done for run in runs)
        first = statistics.median(run.last_first_byte for run in runs) * 1e3
        cpu = statistics.median(run.cpu_seconds for run in runs)
        print(f"| {name} | {done:.2f} | {done / yardstick:.2f} | {first:.0f} | {cpu:.2f} |")


def main() -> None:
    """Measure and print; the exit status is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--mib", type=int, default=100, help="size of the blob of the fast table (default 100)")
    options = parser.parse_args()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        root.chmod(0o755)  # nginx's worker runs as another user
        registry = stack.enter_context(running(docker_registry(root / "backend")))
        print(f"{describe_machine()}; {options.rounds} interleaved rounds, medians; clients on the same cores")
        slow(root, registry, 25 * MIB, options.rounds)
        fast(root, registry, options.mib * MIB, options.rounds)


if __name__ == "__main__":
    main()
