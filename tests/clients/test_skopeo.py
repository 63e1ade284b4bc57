"""skopeo, podman and buildah push and pull through the proxy."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import Docker
from tests.conftest import StartProxy, StartRegistry, require_program
from tests.support.fakes.issuer import AUDIENCE, FakeIssuer, running_issuer
from tests.support.product import Proxy, make_image, random_bytes, tar_of


def run(*command: str, stdin: str | None = None) -> str:
    """Run a command and return its output; raise with it after a failure."""
    done = subprocess.run(
        command, input=stdin, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=90, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
    return done.stdout


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Make a directory with a short name."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def start(start_proxy: StartProxy, start_registry: StartRegistry, extra: Mapping[str, Any] | None = None) -> Proxy:
    """Start a proxy before two registries, with an image at team/app:1 and a user ann who may pull and push there."""
    proxy = start_proxy([start_registry("first"), start_registry("second")], extra)
    proxy.add_user("ann", pull_push=["team/**"]).push("team/app", "1", make_image(tar_of(random_bytes(200_000))))
    return proxy


def test_skopeo_copies_out_and_in(start_proxy: StartProxy, start_registry: StartRegistry, tmp_path: Path) -> None:
    """Skopeo reads an image and writes it to another tag; the digests stay equal."""
    require_program("skopeo")
    proxy = start(start_proxy, start_registry)
    credentials = "ann:password of a user"
    out = f"dir:{tmp_path / 'image'}"
    source, target = f"docker://{proxy.host}/team/app:1", f"docker://{proxy.host}/team/copy:1"
    run("skopeo", "copy", "--src-tls-verify=false", "--src-creds", credentials, source, out)
    run("skopeo", "copy", "--dest-tls-verify=false", "--dest-creds", credentials, out, target)
    inspected = [
        json.loads(run("skopeo", "inspect", "--tls-verify=false", "--creds", credentials, name))
        for name in (source, target)
    ]
    assert inspected[0]["Digest"] == inspected[1]["Digest"]


def test_podman_and_buildah_log_in_and_pull(
    start_proxy: StartProxy, start_registry: StartRegistry, tmp_path: Path, short_path: Path
) -> None:
    """Podman and buildah log in with a password on standard input and pull."""
    proxy = start(start_proxy, start_registry)
    for program in ("podman", "buildah"):
        require_program(program)
        runroot = short_path / program  # podman accepts at most 50 characters
        storage = ["--root", str(tmp_path / program), "--runroot", str(runroot)]
        storage += ["--storage-driver", "vfs"]
        authfile = str(tmp_path / f"{program}.json")
        login = ["login", "--tls-verify=false", "--authfile", authfile, "-u", "ann", "--password-stdin", proxy.host]
        run(program, *storage, *login, stdin="password of a user")
        pull = ["pull", "--tls-verify=false", "--authfile", authfile, f"{proxy.host}/team/app:1"]
        run(program, *storage, *pull)


def test_skopeo_pushes_while_a_registry_is_down(
    start_proxy: StartProxy, start_registry: StartRegistry, tmp_path: Path
) -> None:
    """With one of two registries down, skopeo, which gives up at any 5xx, pushes an image that no registry had."""
    require_program("skopeo")
    registries = [start_registry("first"), start_registry("second")]
    proxy = start_proxy(registries)
    proxy.add_user("ann", pull_push=["team/**"]).push("team/app", "1", make_image(tar_of(random_bytes(200_000))))
    credentials = "ann:password of a user"
    out = f"dir:{tmp_path / 'image'}"
    run(
        "skopeo", "copy", "--src-tls-verify=false", "--src-creds", credentials, f"docker://{proxy.host}/team/app:1", out
    )
    registries[0].stop()
    target = f"docker://{proxy.host}/team/elsewhere:1"
    run("skopeo", "copy", "--dest-tls-verify=false", "--dest-creds", credentials, out, target)


@pytest.fixture
def issuer() -> Iterator[FakeIssuer]:
    """Serve an issuer of ID tokens."""
    with running_issuer() as issuer:
        yield issuer


def credentials(proxy: Proxy, issuer: FakeIssuer, kind: str) -> tuple[str, str, str]:
    """Return the name and the secret of a subject that may pull below team/, and a wrong secret."""
    with proxy.admin() as admin:
        if kind == "robot":
            admin.put("/robots/ci", json={}).raise_for_status()
            secret = admin.post("/robots/ci/secrets", json={}).json()["secret"]
            grant = {"subject": "robot:ci", "repository": "team/**", "actions": ["pull"]}
            admin.post("/grants", json=grant).raise_for_status()
            return "robot$ci", secret, secret[:-4] + "AAAA"
        if kind == "oidc":
            grant = {"subject": "oidc:ci/any/acme/app", "repository": "team/**", "actions": ["pull"]}
            admin.post("/grants", json=grant).raise_for_status()
            return "oidc", issuer.token(), issuer.token(aud="https://other.example.com")
    url = f"{proxy.admin_url}/admin/v1/me/tokens"
    secret = httpx.post(url, json={}, auth=("ann", "password of a user"), timeout=30, verify=False).json()["secret"]
    return "ann", secret, secret[:-4] + "AAAA"


def test_every_client_logs_in_with_a_secret(
    docker: Docker, start_proxy: StartProxy, start_registry: StartRegistry, short_path: Path, issuer: FakeIssuer
) -> None:
    """Docker, skopeo, podman and buildah log in by a robot's secret, a personal token and an ID token, by no other."""
    rules = [{"name": "any", "claims": {"repository": "acme/*"}, "subject": "{repository}"}]
    oidc = {"ci": {"issuer": issuer.url, "audience": AUDIENCE, "rules": rules}}
    proxy = start(start_proxy, start_registry, {"auth": {"oidc": oidc}})
    storage = ("--root", str(short_path / "r"), "--runroot", str(short_path / "rr"), "--storage-driver", "vfs")
    auth_file = str(short_path / "auth.json")
    logins = {
        "skopeo": ["skopeo", "login", "--tls-verify=false", "--authfile", auth_file],
        "podman": ["podman", *storage, "login", "--tls-verify=false", "--authfile", auth_file],
        "buildah": ["buildah", *storage, "login", "--tls-verify=false", "--authfile", auth_file],
    }
    for kind in ("robot", "personal", "oidc"):
        name, secret, wrong = credentials(proxy, issuer, kind)
        assert "Login Succeeded" in docker.login(proxy.host, name, secret).stdout
        docker.run("pull", "-q", f"{proxy.host}/team/app:1")
        docker.forget(f"{proxy.host}/team/app:1")
        refused = docker.login(proxy.host, name, wrong, check=False)
        assert refused.returncode != 0
        assert ("its audience is not" in refused.stdout) is (kind == "oidc"), refused.stdout
        for program, login in logins.items():
            require_program(program)
            command = [*login, "-u", name, "--password-stdin", proxy.host]
            assert "Login Succeeded" in run(*command, stdin=secret), program
            with pytest.raises(AssertionError):
                run(*command, stdin=wrong)
        run("skopeo", "inspect", "--tls-verify=false", "--authfile", auth_file, f"docker://{proxy.host}/team/app:1")
