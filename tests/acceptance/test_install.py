"""docs/install.md on a clean Debian: its commands are copied from the page, up to a pushed and pulled image."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.roots import MINIMAL, write_root
from tests.clients.conftest import Docker
from tests.support.product import ADMIN_PASSWORD, Proxy
from tests.support.servers import docker_registry, free_port, running, wait_until

pytestmark = [pytest.mark.acceptance("docker", "systemd-sysusers", "systemd-tmpfiles"), pytest.mark.timeout(600)]
_ROOT = Path(__file__).parent.parent.parent
_PAGE = (_ROOT / "docs" / "install.md").read_text()
_ELSEWHERE = ("docker build -t registry-proxy .", "systemctl enable --now registry-proxy")
"""The image is built by test_image.py, and no systemd runs in a container: the test starts what the unit starts."""


def section(title: str) -> str:
    """Return a section of the page."""
    return _PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands(title: str) -> list[str]:
    """Return the commands of a section."""
    return re.findall(r"^\$ (.+)$", section(title), re.MULTILINE)


def script() -> str:
    """Return all commands of the page that run here, and after them the service as its unit starts it."""
    titles = re.findall(r"^## (.+)$", _PAGE, re.MULTILINE)
    copied = [command for title in titles for command in commands(title)]
    assert [command for command in copied if command.startswith(("docker", "systemctl"))] == sorted(_ELSEWHERE)[::-1]
    unit = (_ROOT / "packaging" / "systemd" / "registry-proxy.service").read_text()
    [start] = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    as_user = "exec setpriv --reuid registry-proxy --regid registry-proxy --init-groups"
    here = [command for command in copied if command not in _ELSEWHERE]
    return "\n".join(
        ["mkdir -p /usr/local/bin", "cd /source", *here, "test -s var/tls/server.pem", f"{as_user} {start}"]
    )


@pytest.fixture
def engine(docker_socket: Path, tmp_path: Path) -> Docker:
    """Return an engine that has a clean Debian."""
    docker = Docker(docker_socket, tmp_path / "home")
    docker.home.mkdir()
    archive = write_root(tmp_path / "root.tar", (*MINIMAL, "systemd"), is_complete=True)
    docker.run("import", str(archive), "debian:clean")
    archive.unlink()
    return docker


@pytest.fixture
def installed(engine: Docker, wheels: Path, tmp_path: Path) -> Iterator[Proxy]:
    """Install the service by the commands of the page, from a checkout and without an index; return it."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("packaging", "registry_proxy"):
        shutil.copytree(_ROOT / name, source / name, ignore=ignored)
    for name in ("LICENSE", "README.md", "pyproject.toml", "requirements.lock"):
        shutil.copy(_ROOT / name, source)
    registry = docker_registry(tmp_path / "registry")
    proxy = Proxy([], free_port(), tmp_path / "log", admin_port=free_port())
    variables = {
        "PIP_FIND_LINKS": "/wheels",
        "PIP_NO_INDEX": "1",
        "REGISTRY_PROXY_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "REGISTRY_PROXY__ADMIN_LISTEN": f"127.0.0.1:{proxy.admin_port}",
        "REGISTRY_PROXY__LISTEN": proxy.host,
        "REGISTRY_PROXY__UPSTREAMS__MAIN__REPLICAS": json.dumps([{"url": registry.url}]),
    }
    options = [f"--env={name}={value}" for name, value in variables.items()]
    options += ["--network=host", f"--volume={source}:/source", f"--volume={wheels}:/wheels:ro"]
    with running(registry):
        engine.run("run", "-d", "--name", "installed", *options, "debian:clean", "sh", "-exc", script())
        try:
            wait_until(lambda: _is_over(engine), "the service is installed and ready", timeout_seconds=300)
            yield proxy
        finally:
            print(engine.run("logs", "installed").stdout[-4000:])
            engine.run("rm", "-f", "installed")


def _is_over(engine: Docker) -> bool:
    """Tell whether the service is ready; fail when the container has ended."""
    state = engine.run("inspect", "-f", "{{.State.Running}}", "installed").stdout.strip()
    assert state == "true"
    return "is ready: " in engine.run("logs", "installed").stdout


def test_the_page_leads_to_a_pushed_and_pulled_image(installed: Proxy, engine: Docker) -> None:
    """On a clean Debian the commands install the service, and the first push of the page works."""
    engine.run("tag", "debian:clean", "debian:12")
    login, *copied = re.findall(r"^docker (.+)$", section("The first push"), re.MULTILINE)
    assert login == "login HOST -u admin"
    engine.login(installed.host, "admin", ADMIN_PASSWORD)
    pushed = engine.image_id("debian:12")
    for command in copied:
        engine.run(*command.replace("HOST", installed.host).split())
    assert [command.split()[0] for command in copied] == ["tag", "push", "pull"]
    assert engine.image_id(f"{installed.host}/team/debian:12") == pushed
