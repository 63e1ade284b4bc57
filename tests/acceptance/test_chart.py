"""The chart for Kubernetes and the plain manifests: valid objects, the same each time, with good settings."""

import importlib
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry_proxy.config.load import load_settings
from scripts.authority import make_certificate
from tests.acceptance.programs import find_program

pytestmark = pytest.mark.acceptance("helm")
_ROOT = Path(__file__).parent.parent.parent
_CHART = _ROOT / "charts" / "registry-proxy"
_ALL = ("-f", str(_CHART / "ci" / "ha-values.yaml"))
_VALUES = pytest.mark.parametrize("values", [(), _ALL], ids=["defaults", "everything"])
_KUBERNETES = ("1.30", "1.37")
Objects = Mapping[tuple[str, str], Any]


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run helm without a cluster."""
    return subprocess.run([find_program("helm") or "helm", *arguments], capture_output=True, text=True, check=False)


def render(*values: str) -> str:
    """Return the manifests of a release; fail with helm's words."""
    done = helm("template", "registry-proxy", str(_CHART), *values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(*values: str) -> Objects:
    """Return the objects of a release by kind and name."""
    found = [each for each in yaml.safe_load_all(render(*values)) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


@_VALUES
def test_helm_finds_no_fault(values: tuple[str, ...]) -> None:
    """`helm lint` has neither an error nor a warning."""
    done = helm("lint", "--strict", str(_CHART), *values)
    assert done.returncode == 0, done.stdout


@_VALUES
def test_nothing_is_random(values: tuple[str, ...]) -> None:
    """Rendering twice gives the same bytes, and no secret is made."""
    assert render(*values) == render(*values)
    assert "Secret" not in {kind for kind, _ in objects(*values)}


@_VALUES
@pytest.mark.parametrize("version", _KUBERNETES)
def test_the_objects_are_valid(values: tuple[str, ...], version: str) -> None:
    """Each object of Kubernetes itself fits its schema, which knows every field."""
    validate = importlib.import_module("kubernetes_validate").validate
    kinds = set()
    for (kind, _), each in objects(*values).items():
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            validate(each, version, strict=True)
            kinds.add(kind)
    assert {"ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet"} <= kinds


@_VALUES
def test_the_settings_are_good(values: tuple[str, ...], tmp_path: Path) -> None:
    """The configuration is accepted by the service, and each path that it writes to lies in a volume of a claim."""
    found = objects(*values)
    text = found["ConfigMap", "registry-proxy"]["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text.replace("/etc/registry-proxy", str(tmp_path)))
    for folder in (tmp_path / "tls", tmp_path / "admin-tls"):
        _, certificate, key = make_certificate(folder, "127.0.0.1")
        certificate.rename(folder / "tls.crt")
        key.rename(folder / "tls.key")
    settings = load_settings(str(tmp_path / "config.yaml"), {})
    stateful = found["StatefulSet", "registry-proxy"]["spec"]
    claims = {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    [container] = stateful["template"]["spec"]["containers"]
    mounts = {Path(each["mountPath"]): each["name"] for each in container["volumeMounts"] if each["name"] in claims}
    cache, *state = (
        {name for mount, name in mounts.items() if Path(path).is_relative_to(mount)}
        for path in (
            f"{settings.cache.path}.audit",
            settings.audit_path,
            settings.auth.signing_key_file,
            settings.sqlite_path or "",
        )
    )
    assert (cache, state) == ({"cache"}, [{"state"}] * 3)
    delay = settings.drain.delay_seconds + settings.drain.timeout_seconds
    assert delay < stateful["template"]["spec"]["terminationGracePeriodSeconds"]
    assert delay > 3 * container["readinessProbe"]["periodSeconds"] * container["readinessProbe"]["failureThreshold"]


def test_everything_is_by_reference() -> None:
    """Passwords, the URL of Redis and keys come from secrets that exist, and a change of the settings ends the pods."""
    found = objects(*_ALL)
    pod = found["StatefulSet", "registry-proxy"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    secrets = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each}
    assert secrets == {
        "REGISTRY_PROXY_ADMIN_PASSWORD": {"name": "registry-proxy-admin", "key": "admin-password"},
        "REGISTRY_PROXY__STORE": {"name": "registry-proxy-store", "key": "store"},
    }
    mounted = {each["secret"]["secretName"] for each in pod["spec"]["volumes"] if "secret" in each}
    assert mounted == {"registry-tls", "registry-admin-tls", "registry-passwords"}
    changed = objects(*_ALL, "--set", "config.workers=3")["StatefulSet", "registry-proxy"]["spec"]["template"]
    assert changed["metadata"]["annotations"] != pod["metadata"]["annotations"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_only_the_proxy_reaches_the_registries() -> None:
    """The policy of the registries' pods lets in the pods of the proxy and no others."""
    found = objects(*_ALL)
    policy = found["NetworkPolicy", "registry-proxy-registries"]["spec"]
    proxy = found["StatefulSet", "registry-proxy"]["spec"]["selector"]
    assert policy["podSelector"] == {"matchLabels": {"app": "registry"}}
    [rule] = policy["ingress"]
    assert rule["from"] == [{"podSelector": proxy}]


def test_the_alerts_are_those_of_the_project() -> None:
    """The rules for Prometheus are config/alerts.yml."""
    rules = objects(*_ALL)["PrometheusRule", "registry-proxy"]["spec"]
    assert rules == yaml.safe_load((_ROOT / "config" / "alerts.yml").read_text())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("replicaCount=2", "needs a Redis"),
        ("replicasCount=2", "replicasCount"),
        ("image.digest=abc", "digest"),
        ("ingress.enabled=true", "ingress.host is needed"),
    ],
)
def test_wrong_values_are_refused(wrong: str, words: str) -> None:
    """A value that cannot be meant ends the rendering with its name."""
    done = helm("template", "registry-proxy", str(_CHART), "--set", wrong)
    assert done.returncode != 0
    assert words in done.stderr


def test_the_plain_manifests_are_current() -> None:
    """packaging/kubernetes/registry-proxy.yaml is the chart with its defaults, for people without helm."""
    assert (_ROOT / "packaging" / "kubernetes" / "registry-proxy.yaml").read_text() == render()


def test_the_versions_agree(tmp_path: Path) -> None:
    """The version of the application is the one of the package, and the chart can be packaged."""
    chart = yaml.safe_load((_CHART / "Chart.yaml").read_text())
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    copy = shutil.copytree(_CHART, tmp_path / "registry-proxy")
    done = helm("package", str(copy), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"registry-proxy-{chart['version']}.tgz").exists()
