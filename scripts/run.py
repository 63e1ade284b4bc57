"""Starts two registries and the proxy, or with CONFIG=file.yaml only the proxy, and stops all of them."""

import ctypes
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from registry_proxy.config.load import SettingsError, load_settings
from registry_proxy.config.model import Settings
from registry_proxy.node.listeners import describe_holder
from scripts.authority import make_certificate

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = ROOT / "config" / "example.yaml"
LOOPBACK = "127.0.0.1"
SAME_SIGNAL_SECONDS = 0.5  # a terminal and make both pass one Ctrl-C on: together they are one
START_SECONDS = 20.0
STOP_SECONDS = 5.0
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Make the kernel end this process with its parent, however that ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(frozen=True)
class Registry:
    """A registry that was started here; ``command`` starts it again from a shell, ``log`` is its log file."""

    number: int
    process: "subprocess.Popen[str]"
    command: str
    log: Path


def start(command: Sequence[str], **options: object) -> "subprocess.Popen[str]":
    """Start a program out of reach of the terminal's signals: the order of stops is decided here."""
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return] # options are those of Popen
        command,
        text=True,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one call into libc, and no thread is running yet
        **options,
    )


def stop(process: "subprocess.Popen[str]") -> None:
    """End a program, gently at first."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def registry_ports(settings: Settings) -> list[int]:
    """Return the port of each registry that we start: the replicas on this machine."""
    replicas = [replica for upstream in settings.upstreams.values() for replica in upstream.replicas]
    return [replica.port for replica in replicas if replica.host == LOOPBACK]


def refuse_taken_ports(settings: Settings) -> None:
    """Name the holders of the ports that we need, before anything is started, and the way to other ports."""
    keys = {settings.listen.port: "LISTEN", settings.admin_listen.port: "ADMIN_LISTEN"}
    keys |= dict.fromkeys(registry_ports(settings), "UPSTREAMS__MAIN__REPLICAS")
    taken = [
        f"port {port} is taken by {holder}; REGISTRY_PROXY__{key} sets another one"
        for port, key in keys.items()
        if (holder := describe_holder(port))
    ]
    if taken:
        advice = (
            "End it, set another port (see README.md), or give a configuration of your own: CONFIG=file.yaml make run"
        )
        sys.exit("\n".join([*taken, advice]))


def start_registry(number: int, port: int, home: Path | None = None) -> Registry:
    """Start one of Debian's docker-registry with a separate store, under var/ where no directory is named."""
    home = home or ROOT / "var" / f"registry-{number}"
    home.mkdir(parents=True, exist_ok=True)
    config = home / "config.yml"
    if not config.exists():  # made once: with the secret an upload can continue after a restart
        config.touch(mode=0o600)
        config.write_text(
            "version: 0.1\n"
            "log: {level: warn}\n"
            f"storage: {{filesystem: {{rootdirectory: '{home / 'data'}'}}, delete: {{enabled: true}}}}\n"
            f"http: {{secret: {secrets.token_hex(16)}}}\n",
            encoding="utf-8",
        )
    # It reads all variables that begin with REGISTRY_ as its own, ours too.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
    address = {"REGISTRY_HTTP_ADDR": f"{LOOPBACK}:{port}"}
    command = [shutil.which("docker-registry") or "docker-registry", "serve", str(config)]
    with (home / "log").open("a", encoding="utf-8") as log:
        process = start(command, stdout=log, stderr=log, env={**environment, **address})
    deadline = time.monotonic() + START_SECONDS
    while describe_holder(port) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            stop(process)
            sys.exit(f"registry {number} does not start: see {home / 'log'}")
        time.sleep(0.05)
    print(f"registry {number}: http://{LOOPBACK}:{port}, data in {home / 'data'}", flush=True)
    # docker-registry reads every variable that begins with REGISTRY_ as its own, podman's REGISTRY_AUTH_FILE too.
    again = " ".join(["env -i", *(f"{name}={value}" for name, value in address.items()), *map(shlex.quote, command)])
    return Registry(number, process, again, home / "log")


def tell_of_end(registry: Registry, is_stopping: threading.Event) -> None:
    """Say that a registry ended by itself, and how to start it again; the proxy goes on with the other one."""
    status = registry.process.wait()
    if not is_stopping.is_set():
        reason = f"by signal {-status}" if status < 0 else f"with status {status}"
        print(f"registry {registry.number} ended {reason}: see {registry.log}", flush=True)
        print(f"  start it again: {registry.command}", flush=True)
        print("  (Ctrl-C here does not stop what is started so)", flush=True)


class Signals:
    """Passes SIGINT and SIGTERM on to the proxy, each wish of a person once."""

    def __init__(self) -> None:
        self._proxy: subprocess.Popen[str] | None = None
        self._last = float("-inf")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._pass_on)

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        if self._proxy is None:
            sys.exit(0)
        now = time.monotonic()
        if now - self._last > SAME_SIGNAL_SECONDS:
            self._last = now
            self._proxy.terminate()

    def watch(self, proxy: "subprocess.Popen[str]") -> None:
        """Begin to pass signals on: now there is a proxy to drain."""
        self._proxy = proxy


def tell(proxy: "subprocess.Popen[str]", ca_file: Path | None) -> None:
    """Print the output of the proxy, and once it is ready the next steps; ``ca_file`` is the authority of TLS=1."""
    assert proxy.stdout is not None
    for line in proxy.stdout:
        print(line, end="", flush=True)
        ready = re.match(r"registry-proxy is ready: https?://(\S+) \(admin: (\S+)\)", line)
        if ready:
            address = ready[1].replace("0.0.0.0", "127.0.0.1")
            if ca_file is not None:
                folder = f"/etc/docker/certs.d/{address}"
                print(f"  trust it: mkdir -p {folder} && cp {ca_file} {folder}/ca.crt")
                print(f"  podman:   podman login --cert-dir {ca_file.parent} {address}")
            print(f"  log in:   docker login {address} -u admin")
            if not ready[2].endswith("//127.0.0.1:5080"):
                print(f"  commands: export REGISTRY_PROXY_ADMIN_URL={ready[2].replace('0.0.0.0', '127.0.0.1')}")
            print(f"  metrics:  {ready[2]}/metrics")
            print("  stop:     Ctrl-C", flush=True)


def use_tls(config: str) -> Path:
    """Serve TLS on the public listener with a certificate of our own authority; return the file of the authority."""
    try:
        settings = load_settings(config, os.environ)
    except SettingsError as error:
        sys.exit(str(error))
    ca_file, cert_file, key_file = make_certificate(ROOT / "var" / "tls", settings.listen.host)
    os.environ |= {"REGISTRY_PROXY__TLS__CERT_FILE": str(cert_file), "REGISTRY_PROXY__TLS__KEY_FILE": str(key_file)}
    return ca_file


def main() -> int:
    """Run until the proxy ends; return its exit status."""
    if "MAKELEVEL" in os.environ:
        die_with_parent()
    os.chdir(ROOT)
    signals = Signals()
    config = os.environ.get("CONFIG")
    registries: list[Registry] = []
    is_stopping = threading.Event()
    with ExitStack() as started:
        if not config:
            try:
                settings = load_settings(str(DEFAULT_CONFIG), os.environ)
            except SettingsError as error:
                sys.exit(str(error))
            refuse_taken_ports(settings)
            for number, port in enumerate(registry_ports(settings), start=1):
                registries.append(start_registry(number, port))
                started.callback(stop, registries[-1].process)
        config = config or str(DEFAULT_CONFIG)
        ca_file = use_tls(config) if os.environ.get("TLS") == "1" else None
        command = [sys.executable, "-m", "registry_proxy", "serve", "--config", config]
        proxy = start(command, stdout=subprocess.PIPE)
        started.callback(stop, proxy)
        signals.watch(proxy)
        teller = threading.Thread(target=tell, args=(proxy, ca_file), name="what the proxy prints")
        teller.start()
        for registry in registries:
            watcher = threading.Thread(target=tell_of_end, args=(registry, is_stopping), name="watch of a registry")
            watcher.daemon = True
            watcher.start()
        status = proxy.wait()
        is_stopping.set()
        teller.join()
    return status


if __name__ == "__main__":
    sys.exit(main())
