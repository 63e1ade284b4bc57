"""The third-party programs of these tests, the product before them, and the list of programs that are missing."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.clients import Client
from tests.acceptance.programs import find_program, why_not
from tests.acceptance.registries import DESCRIBE
from tests.acceptance.roots import IMAGE, MINIMAL, SMALL_IMAGE, WITHOUT_SHELL, write_root
from tests.clients.conftest import Docker
from tests.clients.conftest import docker_socket as docker_socket  # noqa: PLC0414 - the fixture, for these tests too
from tests.support.copied import Copies
from tests.support.product import Image, Proxy, make_image, notice_down, proxy_server, random_bytes, tar_of
from tests.support.servers import docker_registry, running, terminated, wait_until

_ROOT = Path(__file__).parent.parent.parent
_BUILD_SECONDS = 600
_LEFT_OUT = pytest.StashKey[Counter[str]]()


@pytest.hookimpl(trylast=True)  # after -m: only the tests that would run are counted
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose programs are missing. They are deselected: a skipped test is a failure here."""
    reasons: dict[str, str | None] = {}
    left_out: list[pytest.Item] = []
    for item in items:
        needed = [name for mark in item.iter_markers("acceptance") for name in mark.args]
        for name in needed:
            reasons.setdefault(name, why_not(name))
        missing = [f"{name} ({reasons[name]})" for name in needed if reasons[name] is not None]
        if missing:
            left_out.append(item)
            config.stash.setdefault(_LEFT_OUT, Counter())[" and ".join(missing)] += 1
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the programs that are missing, and how many tests each of them keeps out."""
    for missing, count in sorted(config.stash.get(_LEFT_OUT, Counter()).items()):
        terminalreporter.write_line(f"not installed: {missing}: {count} tests deselected")


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start the product, shared by all tests that never stop it; ann may do everything.

    Two docker-registry are its main upstream. Repositories below the name of another registry, ``olareg/app``, lie in
    one of that kind, those below ``zots/`` in two of zot.
    """
    root = tmp_path_factory.mktemp("product")
    upstreams = {"main": [docker_registry(root / name) for name in ("first", "second")]}
    upstreams |= {kind: [describe(root / kind)] for kind, describe in DESCRIBE.items() if why_not(kind) is None}
    if "zot" in upstreams:
        upstreams["zots"] = [DESCRIBE["zot"](root / name) for name in ("zot-1", "zot-2")]
    settings = {
        "upstreams": {
            name: {"replicas": [{"url": server.url} for server in servers]} for name, servers in upstreams.items()
        },
        "routes": [{"prefix": "" if name == "main" else f"{name}/", "upstream": name} for name in upstreams],
    }
    proxy = proxy_server(root / "proxy", upstreams["main"], settings, copies=copies)
    with ExitStack() as stack:
        for server in (*(server for servers in upstreams.values() for server in servers), proxy):
            stack.enter_context(running(server))
        proxy.add_user("ann", pull_push_delete=["**"])
        yield proxy


_IMAGES_BEFORE = ("buildctl", "cosign", "notation", "oras", "regctl")


@pytest.fixture(scope="session", params=[None, 0, 1], ids=["both up", "first down", "second down"])
def outage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start two registries and the product, push an image for each client, and stop one registry, or none."""
    root = tmp_path_factory.mktemp("outage")
    registries = [docker_registry(root / name) for name in ("first", "second")]
    proxy = proxy_server(root / "proxy", registries, copies=copies)
    with ExitStack() as stack:
        for server in (*registries, proxy):
            stack.enter_context(running(server))
        user = proxy.add_user("ann", pull_push_delete=["**"])
        for program in _IMAGES_BEFORE:
            user.push(f"before/{program}", "1", new_image())
        wait_until(lambda: "fallback tags of its replicas were compared" in proxy.log_text(), "replicas are compared")
        if request.param is not None:
            registries[request.param].stop()
            notice_down(user, "before/none")
        yield proxy


def new_image() -> Image:
    """Return a small image that no registry holds yet."""
    return make_image(tar_of(random_bytes(2000)))


_CONTAINERD = """
version = 3
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
address = "{root}/socket"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "native"
"""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Download the locked dependencies, for installations without an index; return their directory."""
    target = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "-r", str(_ROOT / "requirements.lock"), "-d", str(target)], check=True)
    return target


@pytest.fixture(scope="session")
def engine(docker_socket: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Docker:
    """Build the image without network, on a minimal Debian and on a root without a shell; return the engine."""
    root = tmp_path_factory.mktemp("image")
    docker = Docker(docker_socket, root / "home")
    docker.home.mkdir()
    for name, packages in (("minimal", MINIMAL), ("without-shell", WITHOUT_SHELL)):
        archive = write_root(root / f"{name}.tar", packages, is_complete=packages is MINIMAL)
        docker.run("import", str(archive), f"debian:{name}")
        archive.unlink()
    context = root / "context"
    context.mkdir()
    for name in ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "pyproject.toml", "requirements.lock"):
        shutil.copy(_ROOT / name, context)
    shutil.copytree(_ROOT / "registry_proxy", context / "registry_proxy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(_ROOT / "packaging", context / "packaging")
    shutil.copytree(wheels, context / "wheels")
    build = ["build", "--network", "none", "--build-arg", "BASE=debian:minimal", "--build-arg", "PIP_NO_INDEX=1"]
    docker.run(*build, "--build-arg", "VERSION=1.2.3", "-t", IMAGE, str(context), seconds=_BUILD_SECONDS)
    small = ["--build-arg", "RUNTIME=debian:without-shell"]
    docker.run(*build, *small, "-t", SMALL_IMAGE, str(context), seconds=_BUILD_SECONDS)
    return docker


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a containerd of our own; return its socket."""
    root = tmp_path_factory.mktemp("containerd")
    (root / "config.toml").write_text(_CONTAINERD.format(root=root))
    command = [find_program("containerd") or "containerd", "--config", str(root / "config.toml")]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    with terminated(process):
        wait_until((root / "socket").exists, "containerd listens")
        yield root / "socket"


@pytest.fixture(scope="session")
def buildkitd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a separate buildkitd, whose containers share the network; return its address."""
    root = tmp_path_factory.mktemp("buildkitd")
    address = f"unix://{root / 'socket'}"
    command = [find_program("buildkitd") or "buildkitd", "--root", str(root / "root"), "--addr", address]
    command += ["--containerd-worker=false", "--oci-worker-snapshotter", "native", "--oci-worker-net", "host"]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}  # Debian's runc is in /usr/sbin
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    with terminated(process):
        wait_until((root / "socket").exists, "buildkitd listens")
        yield address


LogIn = Callable[[str], Client]


@pytest.fixture
def log_in(product: Proxy, tmp_path: Path) -> LogIn:
    """Return a function that gives a client by the name of its program, logged in at the product as ann."""

    def log_in(program: str) -> Client:
        client = Client(program, tmp_path / f"home of {program}", product.host)
        client.log_in("ann", "password of a user")
        return client

    return log_in


@pytest.fixture
def client(program: str, log_in: LogIn) -> Client:
    """Give the client named by ``program`` in the test."""
    return log_in(program)
