"""compose.yaml: in agreement with nginx and the image, and started as a whole by docker-compose on Docker's engine."""

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from registry_proxy.config.load import load_settings
from scripts.authority import make_certificate
from tests.acceptance.roots import IMAGE, write_root
from tests.clients.conftest import Docker
from tests.support.product import ADMIN_PASSWORD, Proxy, User, make_image, random_bytes, tar_of
from tests.support.servers import free_port, wait_until

pytestmark = pytest.mark.acceptance("docker-compose")
_REGISTRY = b"{version: 0.1, storage: {filesystem: {rootdirectory: /var/lib/registry}}, http: {addr: ':5000'}}"
_ROOT = Path(__file__).parent.parent.parent


def compose(**variables: str) -> "subprocess.CompletedProcess[str]":
    """Have docker-compose resolve the file with these variables."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables}
    command = ["docker-compose", "-f", str(_ROOT / "compose.yaml"), "config"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def resolved() -> dict[str, Any]:
    """Return the file as docker-compose resolves it."""
    done = compose(REGISTRY_PROXY_ADMIN_PASSWORD="of the first administrator")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def test_the_first_password_must_be_given() -> None:
    """Without a password of the first administrator nothing starts, and the message says so."""
    done = compose()
    assert done.returncode != 0
    assert "the password of the first administrator" in done.stderr


def test_nginx_finds_both_nodes(resolved: dict[str, Any]) -> None:
    """The nodes have the addresses in nginx/two-nodes.conf, and trust nginx alone."""
    services = resolved["services"]
    addresses = {name: services[name]["networks"]["registry"]["ipv4_address"] for name in ("node-1", "node-2", "nginx")}
    named = set(re.findall(r"^\s*server (\S+):5000 ", (_ROOT / "nginx" / "two-nodes.conf").read_text(), re.MULTILINE))
    assert named == {addresses["node-1"], addresses["node-2"]}
    assert "ports" in services["nginx"]
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_the_settings_of_a_node_are_good(resolved: dict[str, Any], node: str) -> None:
    """The environment of a node fits the configuration of the image, which writes to volumes alone."""
    service = resolved["services"][node]
    settings = load_settings(str(_ROOT / "packaging" / "container" / "config.yaml"), service["environment"])
    assert settings.store_url == "redis://redis:6379/0"
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.10/32"]
    assert {replica.host for replica in settings.upstreams["main"].replicas} == {"registry-1", "registry-2"}
    volumes = [volume.split(":")[1] for volume in service["volumes"]]
    written = [f"{settings.cache.path}.audit", settings.auth.signing_key_file, settings.audit_path]
    assert all(any(Path(path).is_relative_to(volume) for volume in volumes) for path in written)
    assert service["read_only"]


@pytest.fixture
def composed(engine: Docker, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start the whole file on an engine, with Debian's nginx, Redis and registries; return docker-compose for it."""
    archive = write_root(tmp_path / "root.tar", ("docker-registry", "nginx", "redis-server"), is_complete=True)
    engine.run("import", str(archive), "debian:services")
    with tarfile.open(archive, "a") as tar:  # Debian's configuration asks for a password
        member = tarfile.TarInfo("etc/registry.yml")
        member.size = len(_REGISTRY)
        tar.addfile(member, io.BytesIO(_REGISTRY))
    changes = ('ENTRYPOINT ["docker-registry", "serve"]', 'CMD ["/etc/registry.yml"]')
    serve = [f"--change={change}" for change in changes]
    engine.run("import", *serve, str(archive), "debian:registry")
    archive.unlink()
    _, certificate, key = make_certificate(tmp_path / "tls", "127.0.0.1")
    variables = {
        "CERT_FILE": str(certificate),
        "KEY_FILE": str(key),
        "REGISTRY_PORT": str(free_port()),
        "NGINX_IMAGE": "debian:services",
        "REDIS_IMAGE": "debian:services",
        "REGISTRY_IMAGE": "debian:registry",
        "REGISTRY_PROXY_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "REGISTRY_PROXY_IMAGE": IMAGE,
        "DOCKER_HOST": f"unix://{engine.socket}",
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
    }

    def run(*arguments: str) -> str:
        command = ["docker-compose", "-f", str(_ROOT / "compose.yaml"), "-p", "test", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        run("up", "-d")
        yield run
    finally:
        print(run("logs", "--no-color", "--tail=20")[-8000:])
        run("down", "-v", "-t", "1")


@pytest.mark.acceptance("docker")
@pytest.mark.timeout(900)
def test_a_push_and_a_pull_survive_one_of_each(composed: Callable[..., str], engine: Docker) -> None:
    """Over TLS of nginx an image is pushed; with a node and a registry killed it is pulled, and another one pushed."""
    address = f"https://127.0.0.1:{composed('port', 'nginx', '443').strip().rpartition(':')[2]}"
    wait_until(lambda: _is_up(address), "a node answers through nginx", timeout_seconds=120)
    user = User(Proxy([], 0, Path()), "admin", ADMIN_PASSWORD, address)
    first, second = (make_image(tar_of(random_bytes(300_000))) for _ in range(2))
    user.push("team/app", "1", first)
    composed("kill", "node-1", "registry-1")
    assert user.pull("team/app", "1") == first
    user.push("team/app", "2", second)
    assert user.pull("team/app", "2") == second
    assert "second" in composed("exec", "-T", "node-2", "registry-proxy", "replica", "list")
    node = composed("ps", "-q", "node-2").strip()
    health = ("inspect", "-f", "{{.State.Health.Status}}", node)
    wait_until(lambda: engine.run(*health).stdout.strip() == "healthy", "the health check of the image succeeds")


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", verify=False).status_code == 200
    except httpx.TransportError:
        return False
