"""Real servers for tests and benchmarks, on free ports of 127.0.0.1, each ended by the process that started it."""

import base64
import contextlib
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

_DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Before a command. A function of our own before exec would copy the whole test process for each server."""

_START_SECONDS = 20
_END_SECONDS = 20
_FIRST_PORT = 20_000
_PORTS_OF_A_PROCESS = 1_000
_PROCESSES = 12


@functools.cache
def _ports() -> Iterator[int]:
    """Return the ports of this test process: another process does not take a port that was free a moment ago.

    They lie below those that the kernel gives to clients. Their owner is decided by names of sockets, which the
    kernel takes back when the process ends.
    """
    for number in range(_PROCESSES):
        claim = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            claim.bind(f"\0ports of registry-proxy tests {number}")
            first = _FIRST_PORT + number * _PORTS_OF_A_PROCESS
            claim.detach()
            return itertools.cycle(range(first, first + _PORTS_OF_A_PROCESS))
        claim.close()
    raise RuntimeError(f"{_PROCESSES} test processes run already")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 without a listener."""
    for port in itertools.islice(_ports(), _PORTS_OF_A_PROCESS):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("every port of this test process is taken")


def wait_for_port(port: int, process: "Started | None" = None) -> None:
    """Return once a server accepts connections on the port; raise when the process ended or the time is over."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with status {process.poll()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port}")
        time.sleep(0.02)


class Started(Protocol):
    """A running process: the part of ``subprocess.Popen`` that is used here."""

    pid: int
    args: Any

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


@dataclass
class Server:
    """A program started for a test; ``log`` holds its output."""

    arguments: Sequence[str]
    port: int
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: Started | None = None

    @property
    def url(self) -> str:
        """Its address as an http URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self.process is None:
            raise RuntimeError("not running")
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it was started and has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def launch(self) -> None:
        """Start it and return at once."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_DIES_WITH_PARENT, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self.launch()
        wait_for_port(self.port, self.process)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal, harder after the time-out; do nothing when it is not running."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def log_text(self) -> str:
        """Return its output so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Start a server for the length of a with block; its log is printed when it cannot start."""
    try:
        server.start()
        yield server
    except BaseException:
        print(f"--- {server.log}\n{server.log_text()[-4000:]}")
        raise
    finally:
        server.stop()


def docker_registry(
    root: Path,
    port: int | None = None,
    *,
    delete_enabled: bool = True,
    proxy_remote_url: str | None = None,
    htpasswd: Path | None = None,
    http_secret: str = "secret of the tests",
    storage: Path | None = None,
    catalog_max_entries: int | None = None,
    remembers_blobs: bool = False,
) -> Server:
    """Describe a CNCF distribution registry (Debian's docker-registry); ``root`` holds its configuration, log and data.

    With ``remembers_blobs`` it has the cache in memory that is in Debian's configuration.
    Its access log lines are in ``log_text()``: ``"GET /v2/a/blobs/sha256:... HTTP/1.1" 200``.
    """
    root.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    deletes = str(delete_enabled).lower()
    more = ", cache: {blobdescriptor: inmemory}" if remembers_blobs else ""
    files = f"filesystem: {{rootdirectory: '{storage or root / 'data'}'}}"
    lines = [
        "version: 0.1",
        "log: {accesslog: {disabled: false}, level: warn}",
        f"storage: {{{files}, delete: {{enabled: {deletes}}}{more}}}",
        f"http: {{addr: '127.0.0.1:{port}', secret: '{http_secret}'}}",
    ]
    if catalog_max_entries:
        lines.append(f"catalog: {{maxentries: {catalog_max_entries}}}")
    if proxy_remote_url:
        lines.append(f"proxy: {{remoteurl: '{proxy_remote_url}'}}")
    if htpasswd:
        lines.append(f"auth: {{htpasswd: {{realm: tests, path: '{htpasswd}'}}}}")
    config = root / "config.yml"
    config.write_text("\n".join(lines) + "\n")
    return Server(["docker-registry", "serve", str(config)], port, root / "log")


def blob_gets(registry: Server, digest: str) -> list[int]:
    """Return the statuses of the GETs of a blob that a ``docker_registry`` has logged."""
    return [int(status) for status in re.findall(rf'"GET [^ ]*/blobs/{digest} HTTP/1\.1" (\d+)', registry.log_text())]


def redis_server(root: Path, port: int | None = None, *extra: str) -> Server:
    """Describe a redis-server with durable settings (appendonly, fsync always); ``extra`` are further arguments."""
    root.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(root), "--save", ""]
    durable = ["--appendonly", "yes", "--appendfsync", "always"]
    return Server(["redis-server", *settings, *durable, *extra], port, root / "log")


_NGINX_IN_TURNS = """
worker_processes 1; pid {root}/pid; error_log {root}/error.log; daemon off;
events {{ worker_connections 1024; }}
http {{
    access_log {root}/access.log;
    client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
    upstream nodes {{
        {nodes}
        keepalive 16; keepalive_timeout 60s;
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 0;
        proxy_http_version 1.1; proxy_set_header Connection "";
        proxy_connect_timeout 5s; proxy_read_timeout 900s;
        proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;
        proxy_next_upstream error timeout;
        location / {{ proxy_pass http://nodes; proxy_request_buffering off; proxy_buffering off; }}
        {locations}
    }}
}}
"""


def nginx_in_turns(root: Path, ports: Iterable[int], locations: str = "") -> Server:
    """Describe an nginx that sends each request to another node, on to the next when one fails, and stores no body.

    ``locations`` are further ones of its configuration.
    """
    root.mkdir(parents=True, exist_ok=True)
    port = free_port()
    nodes = " ".join(f"server 127.0.0.1:{node} max_fails=0;" for node in ports)
    config = root / "nginx.conf"
    config.write_text(_NGINX_IN_TURNS.format(root=root, port=port, nodes=nodes, locations=locations))
    return Server(["nginx", "-e", "stderr", "-c", str(config)], port, root / "log")


@dataclass
class Dns(Server):
    """A dnsmasq that knows the records of its arguments and nothing else."""

    program: str = "dnsmasq"

    def serve(self, *records: str) -> None:
        """Start it, or start it again, with the given records, such as ``--host-record=a.test,127.0.0.2``."""
        self.stop()
        self.arguments = [
            self.program,
            *("--keep-in-foreground", "--no-resolv", "--no-hosts", "--local=/test/", "--local-ttl=1", "--user=root"),
            *("--conf-file=/dev/null", "--pid-file=", "--listen-address=127.0.0.1", "--bind-interfaces"),
            f"--port={self.port}",
            *records,
        ]
        self.start()


def dnsmasq(root: Path, program: str) -> Dns:
    """Describe a DNS server; ``root`` holds its log. It runs from its first ``serve``."""
    root.mkdir(parents=True, exist_ok=True)
    return Dns([], free_port(), root / "log", program=program)


@contextlib.contextmanager
def terminated(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End a process with SIGTERM, harder after the time-out, when the with block is left."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(holds: Callable[[], bool], what: str, timeout_seconds: float = 30) -> None:
    """Return when a condition holds; fail when it does not within the time.

    The longer it takes the rarer the question: one may cost the service as much as a pull.
    """
    began = time.monotonic()
    while not holds():
        elapsed = time.monotonic() - began
        assert elapsed < timeout_seconds, f"still not so after {timeout_seconds} s: {what}"
        time.sleep(min(max(elapsed / 5, 0.02), 0.25))


def ldap_server(root: Path, passwords: Mapping[str, str], certificate: Path | None = None) -> Server:
    """Describe a slapd with people below ou=people,dc=example,dc=com; LDAPS with a certificate beside its key."""
    (root / "data").mkdir(parents=True)
    lines = ["include /etc/ldap/schema/core.schema", "modulepath /usr/lib/ldap", "moduleload back_mdb"]
    if certificate is not None:
        lines += [f"TLSCertificateFile {certificate}", f"TLSCertificateKeyFile {certificate.with_name('key.pem')}"]
    lines += ["database mdb", "suffix dc=example,dc=com", f"directory {root}/data", "access to * by * auth"]
    configuration = root / "slapd.conf"
    configuration.write_text("\n".join(lines) + "\n")
    entries = [
        "dn: dc=example,dc=com\nobjectClass: dcObject\nobjectClass: organization\no: x\ndc: example\n",
        "dn: ou=people,dc=example,dc=com\nobjectClass: organizationalUnit\nou: people\n",
    ]
    person = "objectClass: person\nobjectClass: uidObject\ncn: x\nsn: x"
    for name, password in passwords.items():
        dn = f"uid={name},ou=people,dc=example,dc=com".replace("+", "\\+")
        encoded = base64.b64encode(password.encode()).decode()
        entries.append(f"dn: {dn}\n{person}\nuid: {name}\nuserPassword:: {encoded}\n")
    # Ubuntu confines slapd to its own directories, by the path of the program.
    program = str(shutil.copy("/usr/sbin/slapd", root / "slapd"))
    add = [program, "-T", "add", "-f", str(configuration)]
    subprocess.run(add, input="\n".join(entries), text=True, check=True, capture_output=True, timeout=30)
    port = free_port()
    address = f"{'ldap' if certificate is None else 'ldaps'}://127.0.0.1:{port}"
    return Server([program, "-f", str(configuration), "-h", address, "-d", "0"], port, root / "log")
