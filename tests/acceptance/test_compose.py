"""compose.yaml: read by docker-compose, and in agreement with the configuration of nginx and of the image."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry_proxy.config.load import load_settings

pytestmark = pytest.mark.acceptance("docker-compose")
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
