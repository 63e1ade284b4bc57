"""The login that `docker login` leaves in its file serves every client that reads that file.

Reports: "auth file contains an Identity token" of podman, skopeo and buildah after `docker login`, and pull secrets of
Kubernetes made of such a file that log in with an empty password.
"""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import require_program
from tests.support.copied import Copies
from tests.support.product import Proxy, make_image, proxy_server, random_bytes
from tests.support.servers import docker_registry, running

PASSWORD = "password of a user"


@dataclass(frozen=True)
class Home:
    """A user's directory with the file in which clients keep their logins."""

    directory: Path
    proxy: Proxy

    @property
    def login(self) -> dict[str, Any]:
        """The entry of the registry in the file."""
        entry: dict[str, Any] = json.loads((self.directory / "config.json").read_text())["auths"][self.proxy.host]
        return entry

    def run(self, *command: str, password: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a client that keeps its logins there; no engine answers it."""
        require_program(command[0])
        environment = os.environ | {
            "DOCKER_CONFIG": str(self.directory),
            "REGISTRY_AUTH_FILE": str(self.directory / "config.json"),
            "DOCKER_HOST": f"unix://{self.directory}/none",
        }
        return subprocess.run(
            command, input=password, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def docker_login(self) -> None:
        """Log in with the docker command."""
        done = self.run("docker", "login", "-u", "ann", "--password-stdin", self.proxy.host, password=PASSWORD)
        assert "Login Succeeded" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[dict[str, Proxy]]:
    """Start proxies that give refresh tokens to docker, give none, and have the default."""
    require_program("docker-registry")
    root = tmp_path_factory.mktemp("logins")
    with ExitStack() as stack:
        registry = stack.enter_context(running(docker_registry(root / "registry")))
        started = {}
        for name, auth in (("true", {"refresh_tokens": True}), ("false", {"refresh_tokens": False}), ("default", {})):
            started[name] = proxy_server(root / name, [registry], {"auth": auth}, copies=copies)
            stack.enter_context(running(started[name]))
            started[name].add_user("ann", pull_push=["**"])
        yield started


@pytest.mark.parametrize("setting", ["false", "default"])
def test_one_docker_login_serves_all(proxies: dict[str, Proxy], tmp_path: Path, setting: str) -> None:
    """Docker stores the password; podman, skopeo and a pull secret use it, and podman may log in again."""
    proxy = proxies[setting]
    home = Home(tmp_path, proxy)
    proxy.add_user("ann", pull_push=["**"]).push("team/app", "1", make_image(random_bytes(1000)))
    home.docker_login()
    assert "identitytoken" not in home.login
    assert base64.b64decode(home.login["auth"]).decode() == f"ann:{PASSWORD}"  # as a kubelet does
    image = f"docker://{proxy.host}/team/app:1"
    for command in (
        ["skopeo", "inspect", "--raw", "--tls-verify=false", image],
        ["podman", "login", "--tls-verify=false", "-u", "ann", "--password-stdin", proxy.host],
        ["skopeo", "login", "--tls-verify=false", "-u", "ann", "--password-stdin", proxy.host],
    ):
        done = home.run(*command, password=PASSWORD)
        assert done.returncode == 0, done.stderr


def test_with_refresh_tokens_docker_forgets_the_password(proxies: dict[str, Proxy], tmp_path: Path) -> None:
    """`auth.refresh_tokens: true` gives docker a token to store, with which skopeo and podman cannot log in."""
    home = Home(tmp_path, proxies["true"])
    home.docker_login()
    assert home.login["identitytoken"]
    assert base64.b64decode(home.login["auth"]).decode() == "ann:"
    refused = home.run(
        "skopeo", "login", "--tls-verify=false", "-u", "ann", "--password-stdin", home.proxy.host, password=PASSWORD
    )
    assert "Identity token" in refused.stderr


def test_a_refresh_token_stays_valid_after_the_setting_is_taken_back(
    proxies: dict[str, Proxy], tmp_path: Path, copies: Copies
) -> None:
    """Docker has dropped the password: an issued token is good until it expires, and no new one is issued."""
    given = proxies["true"]
    home = Home(tmp_path, given)
    home.docker_login()
    refresh_token = home.login["identitytoken"]
    text = given.config.read_text()
    given.config.write_text(text.replace("refresh_tokens: true", "refresh_tokens: false"))
    try:
        assert given.command("reload").exit_code == 0
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token, "service": "registry-proxy"}
        assert httpx.post(f"{given.url}/auth/token", data=form, timeout=30, verify=False).status_code == 200
        query = {"offline_token": "true", "service": "registry-proxy"}
        answer = httpx.get(f"{given.url}/auth/token", params=query, auth=("ann", PASSWORD), timeout=30, verify=False)
        assert "refresh_token" not in answer.json()
    finally:
        given.config.write_text(text)
        assert given.command("reload").exit_code == 0
