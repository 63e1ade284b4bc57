"""Fixtures that every test may ask for: real registries, a real Redis, and a guard against leaving this machine."""

import compileall
import functools
import gc
import ipaddress
import itertools
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import typer.main
from httpx._urlparse import urlparse

from tests.support import servers
from tests.support.copied import Copies
from tests.support.product import Proxy, proxy_server

# A busy machine is no fault of the code; a failure can be repeated from the printed example.
hypothesis.settings.register_profile("tests", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tests")


_COPIES = pytest.StashKey[Copies]()


def pytest_configure(config: pytest.Config) -> None:
    """Compile the package: else, with PYTHONDONTWRITEBYTECODE, each of the many processes that tests start does so.

    Then make the process that copies the service, where tests run: the collected tests are a hundred MiB, which
    each copy would map and unmap several times.
    """
    gc.disable()  # until all tests are collected, which is a fifth faster
    compileall.compile_dir(Path(__file__).parent.parent / "registry_proxy", quiet=1)
    os.environ.setdefault("GOGC", "800")  # registries would collect garbage for a fifth of their time
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.stash[_COPIES] = Copies()


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the process that copies the service."""
    if _COPIES in config.stash:
        config.stash[_COPIES].close()


_LONG = ("chaos", "clients", "path", "nginx", "reports", "attack")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each process of xdist, which cuts the list into as many parts, its share of modules, the long ones first.

    A module stays in one piece, so that its tests start their shared servers once.
    """
    root = Path(__file__).parent
    folders = {folder: rank for rank, folder in enumerate(_LONG)}
    modules = [list(tests) for _, tests in itertools.groupby(items, key=lambda item: item.path)]
    # Large ones before small ones, which even the parts out.
    modules.sort(key=lambda tests: (folders.get(tests[0].path.relative_to(root).parts[0], len(_LONG)), -len(tests)))
    parts: list[list[pytest.Item]] = [[] for _ in range(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))]
    for tests in modules:
        min(parts, key=len).extend(tests)
    items[:] = itertools.chain.from_iterable(parts)


def pytest_collection_finish() -> None:
    """Take the collected tests out of every later collection of garbage: here, and in each fork of this process.

    A fork server checks all inherited objects before its first copy: with a hundred MiB of tests that took
    most of a second of a processor, and of a busy machine longer than its test waits.
    """
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def copies(pytestconfig: pytest.Config) -> Copies:
    """Return the process that copies the service, made before any test has changed anything in this process."""
    return pytestconfig.stash[_COPIES]


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Iterator[None]:
    """Fail every connection to another machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError(f"a test dialled {address}")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _clients_made_cheaply() -> Iterator[None]:
    """Spare clients of this process a quarter of their time: contexts, the environment, addresses parsed repeatedly."""
    make_context_once = functools.cache(httpx.create_ssl_context)

    def create_ssl_context(verify: Any = True, **options: Any) -> ssl.SSLContext:  # noqa: FBT002 - as in the library
        # A file may hold another authority; the machine's own ones stay.
        return (make_context_once if isinstance(verify, bool) else httpx.create_ssl_context)(verify=verify, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._client.get_environment_proxies", dict)
        patch.setattr("httpx._urls.urlparse", functools.lru_cache(1000)(urlparse))
        patch.setattr("httpx._transports.default.create_ssl_context", create_ssl_context)
        yield


@pytest.fixture(scope="session", autouse=True)
def _command_line_made_once() -> Iterator[None]:
    """Build the commands once for all tests that call them in this process: that takes 40 ms of a processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(typer.main.get_command))
        yield


def require_program(name: str) -> str:
    """Return the path of a program, or skip the test with the reason."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


StartRegistry = Callable[..., servers.Server]


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[StartRegistry]:
    """Return a function that starts a real docker-registry; takes the arguments of ``servers.docker_registry``."""
    require_program("docker-registry")
    with ExitStack() as stack:

        def start(name: str = "registry", **options: Any) -> servers.Server:
            return stack.enter_context(servers.running(servers.docker_registry(tmp_path / name, **options)))

        yield start


@pytest.fixture
def registries(start_registry: StartRegistry) -> list[servers.Server]:
    """Start two registries with separate stores."""
    return [start_registry("first"), start_registry("second")]


@pytest.fixture
def dns(tmp_path: Path) -> Iterator[servers.Dns]:
    """Give a DNS server, which runs from its first ``serve``."""
    server = servers.dnsmasq(tmp_path / "dns", require_program("dnsmasq"))
    yield server
    server.stop()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[servers.Server]:
    """Start a real redis-server."""
    require_program("redis-server")
    with servers.running(servers.redis_server(tmp_path / "redis")) as server:
        yield server


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate of 127.0.0.1, which is its own authority, and its key, with openssl."""
    command = [require_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a certificate of 127.0.0.1; key.pem lies beside it."""
    path = tmp_path / "cert.pem"
    make_certificate(path, path.with_name("key.pem"))
    return path


StartProxy = Callable[..., Proxy]


@pytest.fixture
def start_proxy(tmp_path: Path, copies: Copies) -> Iterator[StartProxy]:
    """Return a function that starts the product: ``start_proxy(registries, extra_settings, name=..., is_copy=...)``."""
    with ExitStack() as stack:

        def start(
            registries: Iterable[servers.Server],
            extra: Mapping[str, Any] | None = None,
            *,
            name: str = "proxy",
            is_copy: bool = True,
        ) -> Proxy:
            proxy = proxy_server(tmp_path / name, registries, extra, copies=copies if is_copy else None)
            stack.enter_context(servers.running(proxy))
            return proxy

        yield start
