"""Images and bodies that no honest client makes, against tags, deployments and rules: an error names the fault."""

import json
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import httpx
import pytest

from tests.conftest import require_program
from tests.support.copied import Copies
from tests.support.product import OCI_MANIFEST, Image, Proxy, User, digest_of, proxy_server
from tests.support.servers import docker_registry, running

REPOSITORY = "team/app"
CONFIG = "application/vnd.oci.image.config.v1+json"
HALF = "\ud800"
DEEP = json.loads("[" * 300 + "]" * 300)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start a proxy before a registry."""
    require_program("docker-registry")
    root = tmp_path_factory.mktemp("images")
    with running(docker_registry(root / "registry")) as registry:
        proxy = proxy_server(root / "proxy", [registry], copies=copies)
        with running(proxy):
            yield proxy


@pytest.fixture(scope="module")
def ann(proxy: Proxy) -> User:
    """Make a user who may push."""
    return proxy.add_user("ann", pull_push_delete=["team/**"])


def crooked(config: bytes, **fields: Any) -> Image:
    """Return an image with a configuration of any kind, and fields of any kind in its manifest."""
    described = {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)}
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": [], **fields}
    return Image(json.dumps(body).encode(), {digest_of(config): config})


CONFIGS = {
    "half characters": json.dumps(
        {"os": HALF, "architecture": HALF, "config": {"Labels": {HALF: HALF}, "Env": [HALF], "Cmd": [HALF]}}
    ).encode(),
    "other types": json.dumps(
        {"os": 7, "config": {"Labels": {"a": None, "b": DEEP}, "Env": {"A": 1}, "Cmd": 7}}
    ).encode(),
    "no object": b"[]",
    "deep": b"[" * 100_000,
    "long number": b'{"config": {"Labels": {"a": ' + b"9" * 10_000 + b"}}}",
    "no number": b'{"config": {"Labels": {"a": NaN, "b": 1e999}}}',
    "utf-16": json.dumps({"config": {"Labels": {"a": "b"}}}).encode("utf-16"),
    "no text": b"\xff\xfe\x00",
    "empty": b"",
    "labels as a list": b'{"config": {"Labels": ["a"]}}',
    "config as text": b'{"config": "x", "created": "0001-01-01T00:00:00"}',
}


def admin_as(proxy: Proxy, user: User) -> httpx.Client:
    """Return a client of the admin API for a user."""
    auth = (user.name or "", user.password or "")
    return httpx.Client(base_url=f"{proxy.admin_url}/admin/v1", auth=auth, timeout=30)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_crooked_configuration_is_shown_as_far_as_it_goes(proxy: Proxy, ann: User, config: bytes) -> None:
    """The image is shown and compared, and a report of its deployment is taken."""
    image = crooked(config, annotations={"a": HALF, "b": None})
    ann.push(REPOSITORY, "v1", image)
    with admin_as(proxy, ann) as client:
        shown = client.get("/tags/image", params={"repository": REPOSITORY, "reference": "v1"})
        assert shown.status_code == 200, shown.text
        report = {"environment": "test", "repository": REPOSITORY, "digest": image.digest, "tag": "v1"}
        assert client.post("/deployments", json=report).status_code == 201
        assert client.get("/deployments").status_code == 200
    command = proxy.command("tag", "show", f"{REPOSITORY}:v1")
    assert command.exit_code == 0, command.output


def test_a_rule_judges_each_of_them(proxy: Proxy, ann: User) -> None:
    """A configuration of any kind is judged: the push is let through or refused, and never an error of ours."""
    rule = {
        "repository": "team/**",
        "labels": {"a": "x"},
        "platforms": ["linux/*"],
        "max_age_seconds": 3600,
        "not_root": True,
    }
    with proxy.admin() as admin:
        answer = admin.put("/rules/all", json=rule)
        assert answer.status_code < 300, answer.text
    found = set()
    for config in CONFIGS.values():
        image = crooked(config, annotations={"a": HALF, "b": None})
        for digest, blob in image.blobs.items():
            ann.push_blob(REPOSITORY, blob, digest)
        answer = ann.push_manifest(REPOSITORY, "v2", image)
        found.add(answer.status_code)
        assert answer.status_code < 500, answer.text
    with proxy.admin() as admin:
        admin.delete("/rules/all").raise_for_status()
    assert found == {403}


VALUES: list[Any] = [
    None,
    True,
    -1,
    1e308,
    10**30,
    "",
    "x" * 100_000,
    "a\x00b",
    "\x1b[2J",
    "..",
    "a/../b",
    "A",
    [],
    {},
    [[]],
    {"a": {}},
]


def faults(admin: httpx.Client, path: str, form: Mapping[str, Any]) -> Iterator[object]:
    """Give each value of a field, and each body, that gets an error of the server."""
    json_type = {"Content-Type": "application/json"}
    for field, value in product(form, VALUES):
        answer = admin.post(path, content=json.dumps({**form, field: value}), headers=json_type)
        if answer.status_code >= 500:
            yield path, field, str(value)[:50], answer.text
    for raw in (b"", b"[" * 100_000, b"\xff", b"null", b'{"reason": "\\ud800"}', b"{" + b'"a":1,' * 10_000):
        answer = admin.post(path, content=raw, headers=json_type)
        if answer.status_code >= 500:
            yield path, raw[:20], answer.text


def test_bodies_of_any_kind_get_an_error_that_names_them(proxy: Proxy) -> None:
    """No value of any field is an error of the server."""
    tag = {"repository": REPOSITORY, "tag": "v1", "digest": digest_of(b"x"), "reason": "", "dry_run": True}
    report = {"environment": "e", "repository": REPOSITORY, "digest": digest_of(b"x"), "outcome": "failed", "at": 1}
    with proxy.admin() as admin:
        found = [*faults(admin, "/tags/rollback", tag), *faults(admin, "/tags/restore", {**tag, "steps": 1})]
        found += faults(admin, "/deployments", {**report, "tag": "v1"})
    assert found == []


def test_queries_of_any_kind_get_an_error_that_names_them(proxy: Proxy) -> None:
    """No value of any parameter is an error of the server."""
    queries = {"/tags": {}, "/tags/history": {"tag": "v1"}, "/tags/image": {"reference": "v1"}, "/deployments": {}}
    values = ("", "\x00", "x" * 5000, "-1", "\u202e", f"sha256:{'0' * 64}", "..", "9" * 400, "|", "a|b")
    with proxy.admin() as admin:
        for path, query in queries.items():
            names = [*query, "repository", "limit", "after", "environment", "history"]
            for name, value in product(names, values):
                answer = admin.get(path, params={"repository": REPOSITORY, **query, name: value})
                assert answer.status_code < 500, (path, name, value[:20], answer.text)
