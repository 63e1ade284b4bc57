"""Bodies of the admin API: faults are reported, and no more of them than anybody reads."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import encode_basic_auth
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from pytest_aiohttp import AiohttpClient

from registry_proxy.api.problems import FAULTS_MAX
from tests.support.admin_bench import ADMIN, admin_node

_Http = TestClient[Request, Application]


@pytest.fixture
async def http(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[_Http]:
    """Start an admin listener and log in."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        http.session.headers.update({"Authorization": encode_basic_auth(*ADMIN), "Content-Type": "application/json"})
        yield http


async def _refused(http: _Http, method: str, path: str, body: bytes) -> list[dict[str, str]]:
    async with http.request(method, f"/admin/v1{path}", data=body) as response:
        assert response.status == 400
        faults: list[dict[str, str]] = (await response.json(content_type=None))["errors"]
        return faults


@pytest.mark.parametrize(
    ("path", "body", "place", "count"),
    [
        ("/users/ann", {f"x{number}": 1 for number in range(50_000)}, "#/x0", 50_000),
        ("/users/ann", {"groups": [1] * 900}, "#/groups/0", 900),
        ("/users/ann", {"groups": ["$"] * 900}, "#/groups", 900),
        ("/policy", {"version": 1, "groups": {}, "grants": [{}] * 50_000}, "#/grants/0/subject", 150_000),
        (
            "/policy",
            {"version": 1, "groups": {}, "grants": [{**dict.fromkeys("abcdef", 1)}] * 100},
            "#/grants/0/a",
            900,
        ),
    ],
)
async def test_of_many_faults_the_first_are_reported(http: _Http, path: str, body: Any, place: str, count: int) -> None:
    """The first faults are listed and the rest are counted: a megabyte of faults keeps nobody waiting."""
    faults = await _refused(http, "PUT", path, json.dumps(body).encode())
    assert len(faults) == FAULTS_MAX + 1
    assert place in {fault["pointer"] for fault in faults}
    assert faults[-1] == {"pointer": "", "detail": f"and {count - FAULTS_MAX} more"}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/users/ann", b'{"admin": "x"}', {"#/admin": "expected true or false"}),
        ("/users/ann", b'{"groups": 1, "y": 1}', {"#/groups": "expected a list", "#/y": "unknown field"}),
        ("/users/ann", b"[]", {"#": "expected an object"}),
        ("/users/ann", b"{", {"#": "expected JSON: EOF while parsing an object at line 1 column 1"}),
        (
            "/policy",
            b'{"version": 2, "groups": {}}',
            {"#/version": "expected 1", "#/grants": "expected a value: the field is not there"},
        ),
        (
            "/robots/ci",
            json.dumps({"networks": ["x"] * 1001}).encode(),
            {"#/networks": "expected at most 1000 entries"},
        ),
    ],
)
async def test_each_fault_says_what_was_expected(http: _Http, path: str, body: bytes, expected: dict[str, str]) -> None:
    """All faults have one form, whichever part found them."""
    faults = await _refused(http, "PUT", path, body)
    assert {fault["pointer"]: fault["detail"] for fault in faults} == expected


async def test_faults_far_behind_are_counted(http: _Http) -> None:
    """Thousands of faults that begin late in the body are reported by their number."""
    good = {"subject": "user:ann", "repository": "a", "actions": ["pull"]}
    body = {"version": 1, "groups": {}, "grants": [good] * 200 + [{}] * 1000}
    faults = await _refused(http, "PUT", "/policy", json.dumps(body).encode())
    assert faults == [{"pointer": "", "detail": "and 3000 more"}]


@pytest.mark.parametrize(
    ("method", "path", "field", "entry", "most"),
    [
        ("PUT", "/users/ann", "groups", "dev", 1000),
        ("PATCH", "/users/bob", "groups", "dev", 1000),
        ("PUT", "/groups/dev", "members", "bob", 10_000),
        ("PATCH", "/groups/dev", "members", "bob", 10_000),
        ("PUT", "/robots/ci", "networks", "10.0.0.0/8", 1000),
        ("POST", "/grants", "actions", "pull", 100),
        ("POST", "/me/tokens", "actions", "pull", 100),
        ("POST", "/policy/replay", "remove", "x", 100_000),
        ("POST", "/cache/warm", "platforms", "linux/amd64", 100),
    ],
)
async def test_a_list_has_an_end(http: _Http, method: str, path: str, field: str, entry: str, most: int) -> None:
    """A list beyond its limit is one fault, and the API's description has the limit."""
    required = {"subject": "user:bob", "repository": "a"} if path == "/grants" else {}
    required |= {"repository": "a"} if path == "/cache/warm" else {}
    body = {**required, field: [entry] * (most + 1)}
    (fault,) = await _refused(http, method, path, json.dumps(body).encode())
    assert fault["pointer"] == f"#/{field}"
    assert str(most) in fault["detail"]
    async with http.get("/admin/v1/openapi.json") as response:
        schemas = (await response.json())["components"]["schemas"]
    found = [schema["properties"][field] for schema in schemas.values() if field in schema.get("properties", {})]
    assert most in {each.get("maxItems") for one in found for each in [one, *one.get("anyOf", [])]}


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/grants"), ("PATCH", "/grants/1"), ("POST", "/explain"), ("POST", "/me/tokens")],
)
async def test_bodies_that_all_users_may_send_are_small(http: _Http, method: str, path: str) -> None:
    """Bodies that all users may send are small, so that their faults keep no worker busy."""
    for size_bytes, status in ((64 * 1024, 400), (64 * 1024 + 1, 413)):
        async with http.request(method, f"/admin/v1{path}", data=b" " * size_bytes) as response:
            assert response.status == status
