"""Helm keeps charts in the registry, with both replicas up and with either down."""

import json
from pathlib import Path

import pytest

from tests.acceptance.clients import Client
from tests.support.product import Proxy, User

pytestmark = pytest.mark.acceptance("helm")
_PASSWORD = "password of a user"
_PLAIN = "--plain-http"


def test_helm_pushes_and_pulls_a_chart(outage: Proxy, tmp_path: Path) -> None:
    """A chart is packaged, pushed, found by its version and pulled from a registry; a wrong password is refused."""
    helm = Client("helm", tmp_path / "home", outage.host)
    (helm.home / "pulled").mkdir(parents=True)
    login = ("registry", "login", _PLAIN, helm.host, "-u", "ann", "--password-stdin")
    assert helm.attempt(*login, stdin="wrong").returncode != 0
    helm.run(*login, stdin=_PASSWORD)
    helm.run("create", "app")
    helm.run("package", "app", "--version", "1.2.3+4")  # a tag has no "+"
    package = helm.home / "app-1.2.3+4.tgz"
    assert "Digest: sha256:" in helm.run("push", _PLAIN, package.name, f"oci://{helm.host}/charts")

    chart = f"oci://{helm.host}/charts/app"
    assert outage.command("cache", "purge", "--all", "--yes").exit_code == 0
    helm.run("pull", _PLAIN, chart, "--version", "1.2.3+4", "--destination", "pulled")
    assert (helm.home / "pulled" / package.name).read_bytes() == package.read_bytes()
    assert "version: 1.2.3+4" in helm.run("show", "chart", _PLAIN, chart, "--version", ">=1.0.0")
    assert "kind: Deployment" in helm.run("template", _PLAIN, "release", chart, "--version", "1.2.3+4")
    served = json.loads(User(outage, "ann", _PASSWORD).get("charts/app", "manifests/1.2.3_4", Accept="*/*").content)
    assert served["config"]["mediaType"] == "application/vnd.cncf.helm.config.v1+json"
    helm.run("registry", "logout", helm.host)
    assert helm.attempt("pull", _PLAIN, chart, "--version", "1.2.3+4").returncode != 0
