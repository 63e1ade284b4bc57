"""Every route of both listeners for every kind of caller: the right ones pass, and a refusal reveals nothing."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from aiohttp import ClientResponse, encode_basic_auth
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from pytest_aiohttp import AiohttpClient

from registry_proxy.access.grant import GrantInput
from registry_proxy.admission.auth import OPS_PATHS
from registry_proxy.directory.users import UserInput
from registry_proxy.protocol.endpoints import Operation, parse_request
from registry_proxy.protocol.reference import Digest, digest_of
from tests.support.admin_bench import ADMIN, ADMIN_ROUTES, CALLERS, Node, admin_node, filled
from tests.support.fakes.public import PublicBench

API = "/admin/v1"
ABSENT = "nil"
"""As long as the names of existing objects: the lengths of answers are compared too."""
CONTENT, BODY = b"a layer", b'{"schemaVersion":2}'
HERE, NOT_HERE = {"blob": digest_of(CONTENT), "manifest": digest_of(BODY)}, digest_of(b"not here")
SESSION = "{}/blobs/uploads/session-0?_state=state%20of%20session-0"

_TOKEN = frozenset(CALLERS) - {"no token"}
_PULL = frozenset({"pull", "admin"})
_PUSH = frozenset({"create", "push", "admin"})
_DELETE = frozenset({"delete", "admin"})

# Of each operation: a request, and the callers that may send it. {} is the repository, then a digest.
REGISTRY: Mapping[Operation, tuple[str, str, frozenset[str]]] = {
    Operation.PING: ("GET", "", _TOKEN),
    Operation.LIST_REPOSITORIES: ("GET", "_catalog", _TOKEN),
    Operation.LIST_TAGS: ("GET", "{}/tags/list", _PULL),
    Operation.GET_BLOB: ("GET", "{}/blobs/{blob}", _PULL),
    Operation.HEAD_BLOB: ("HEAD", "{}/blobs/{blob}", _PULL),
    Operation.GET_MANIFEST: ("GET", "{}/manifests/{manifest}", _PULL),
    Operation.HEAD_MANIFEST: ("HEAD", "{}/manifests/{manifest}", _PULL),
    Operation.LIST_REFERRERS: ("GET", "{}/referrers/{manifest}", _PULL),
    Operation.START_UPLOAD: ("POST", "{}/blobs/uploads/", _PUSH),
    Operation.UPLOAD_STATUS: ("GET", SESSION, _PUSH),
    Operation.APPEND_UPLOAD: ("PATCH", SESSION, _PUSH),
    Operation.COMMIT_UPLOAD: ("PUT", SESSION + "&digest={blob}", _PUSH),
    Operation.CANCEL_UPLOAD: ("DELETE", SESSION, _PUSH),
    Operation.PUT_MANIFEST: ("PUT", "{}/manifests/latest", _PUSH),
    Operation.DELETE_MANIFEST: ("DELETE", "{}/manifests/{manifest}", _DELETE),
    Operation.DELETE_BLOB: ("DELETE", "{}/blobs/{blob}", _DELETE),
}
BESIDE_REGISTRY = {"/auth/token", "/auth/keys", "/healthz"}
"""Open to everyone: a login needs no token."""


def _path(template: str, repository: str, digests: Mapping[str, Digest]) -> str:
    return "/v2/" + template.format(repository, **{kind: str(digest) for kind, digest in digests.items()})


async def _contents(response: ClientResponse, *names: str) -> tuple[int, str, str]:
    """Return everything in an answer, with the requested names replaced."""
    headers = {name: value for name, value in response.headers.items() if name not in {"Date", "X-Request-ID"}}
    texts = [(await response.read()).decode(), json.dumps(headers, sort_keys=True)]
    for name in names:
        texts = [text.replace(name, "NAME") for text in texts]
    return response.status, texts[0], texts[1]


def test_the_table_of_the_registry_is_complete() -> None:
    """A new operation of the registry's API needs a row in the table, with a request for it."""
    assert set(REGISTRY) == set(Operation)
    for operation, (method, template, _) in REGISTRY.items():
        path, _, query = _path(template, "team/app", HERE).partition("?")
        assert parse_request(method, path, query).operation is operation


async def test_the_table_of_the_public_listener_is_complete(public: PublicBench) -> None:
    """A new path beside /v2/ needs a row in the table; each is open, and there are no others."""
    assert set(public.make_app().beside_registry) == BESIDE_REGISTRY
    for path in BESIDE_REGISTRY:
        async with public.session.get(path) as response:
            assert response.status == 200
    for path in ("/", "/v1/", "/auth", "/auth/token/", "/metrics", "/readyz", f"{API}/users"):
        async with public.session.get(path) as response:
            assert response.status == 404


@pytest.mark.parametrize("caller", CALLERS)
async def test_the_registry(public: PublicBench, caller: str) -> None:
    """A caller with the right passes; all others get the same answer for absent objects, without a look-up."""
    public.reader.add_blob("team/app", CONTENT)
    public.reader.add_manifest("team/app", BODY, "latest")
    subject = {"admin": "user:admin", "anonymous": "anonymous"}.get(caller, "user:ann")
    if caller in {"pull", "create", "push", "delete"}:
        public.allow(caller, repository="team/*")
    if caller == "owner":
        public.allow("manage", repository="team/**")  # the right to manage alone allows no operation
    scopes = [f"repository:{repository}:pull,push,delete" for repository in ("team/app", f"team/{ABSENT}")]
    headers = {} if caller == "no token" else public.bearer(subject, *scopes)
    for operation, (method, template, allowed) in REGISTRY.items():
        public.push.sessions = {"session-0": subject if caller in _PUSH else "user:bob"}
        here = _path(template, "team/app", HERE)
        async with public.session.request(method, here, headers=headers) as response:
            if caller in allowed:
                assert response.status < 300 or operation is Operation.LIST_REFERRERS, operation
                if operation is Operation.LIST_REPOSITORIES:
                    shown = (await response.json())["repositories"]
                    assert shown == (["team/app"] if caller in _PULL else [])
                continue
            answer = await _contents(response, "team/app")
        assert answer[0] == 401, operation
        for repository, digests in (
            (f"team/{ABSENT}", HERE),
            ("team/app", dict.fromkeys(HERE, NOT_HERE)),
        ):
            url = _path(template, repository, digests)
            async with public.session.request(method, url, headers=headers) as response:
                assert await _contents(response, repository) == answer, operation
    if caller not in _PULL:
        assert {request[0] for request in public.reader.requests} <= {"list_repositories"}
    if caller not in _DELETE:
        assert public.manage.calls == []
    if caller not in _PUSH:
        assert public.push.calls == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"])
async def test_a_request_that_is_no_operation_is_forwarded_to_nobody(public: PublicBench, method: str) -> None:
    """Another path or method under /v2/ is refused: with 401 to strangers, with 404 or 405 to an administrator."""
    for path in ("/v2/team/app", "/v2/team/app/blobs", "/v2/_admin/gc", "/v2/team/app/tags", "/v2/team/app/x/y"):
        async with public.session.request(method, path) as response:
            assert response.status == 401, path
        async with public.session.request(method, path, headers=public.bearer("user:admin")) as response:
            assert response.status in {404, 405}, path
    assert public.reader.requests == []
    assert (public.push.calls, public.manage.calls) == ([], [])


class AdminBench:
    """An admin listener with a user for each kind of caller."""

    def __init__(self, node: Node, http: TestClient[Request, Application]) -> None:
        self.node = node
        self.http = http

    def headers(self, caller: str) -> dict[str, str]:
        """Return the headers of a caller."""
        if caller == "no token":
            return {}
        if caller == "anonymous":
            return {"Authorization": f"Bearer {self.node.signer.issue(caller, 0, (), time.time()).token}"}
        password = ADMIN[1] if caller == ADMIN[0] else f"the password of {caller}"
        return {"Authorization": encode_basic_auth(caller, password)}

    async def contents(self, method: str, path: str, caller: str) -> tuple[int, str, str]:
        """Return everything in the answer to a caller."""
        target = path if path in OPS_PATHS else API + path
        async with self.http.request(method, target, json={}, headers=self.headers(caller)) as response:
            return await _contents(response)


@pytest.fixture
async def admin(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[AdminBench]:
    """Start an admin listener; each user has one right, everywhere."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        for name in ("none", "pull", "create", "push", "delete"):
            await node.directory.users.put(name, UserInput(password=f"the password of {name}"))
            if name != "none":
                await node.directory.grants.add(GrantInput(subject=f"user:{name}", repository="**", actions=(name,)))
        await node.directory.users.put("owner", UserInput(password="the password of owner"))
        await node.directory.grants.add(GrantInput(subject="user:owner", repository="own/**", actions=("manage",)))
        yield AdminBench(node, http)


async def test_the_table_of_the_admin_listener_is_complete(admin: AdminBench) -> None:
    """A new route needs a row in the table of its callers."""
    routes = {
        f"{route.method} {route.resource.canonical.removeprefix(API)}"
        for route in admin.node.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert routes == set(ADMIN_ROUTES)


async def test_the_admin_listener(admin: AdminBench) -> None:
    """Callers with the right pass; all others get the same answer for absent objects, and change nothing."""
    before = [await admin.node.directory.users.list(), await admin.node.directory.grants.list()]
    for caller in CALLERS:
        for route, allowed in ADMIN_ROUTES.items():
            method, path = route.split()
            answer = await admin.contents(method, filled(path), caller)
            if caller in allowed:
                assert answer[0] not in {401, 403}, (caller, route)
                assert answer[0] < 500, (caller, route)
            else:
                refusal = 401 if caller in {"no token", "anonymous"} else 403
                assert answer[0] == refusal, (caller, route)
                if caller in {"no token", "none"}:
                    assert await admin.contents(method, filled(path, name=ABSENT), caller) == answer, (caller, route)
        if caller != "admin":
            now = [await admin.node.directory.users.list(), await admin.node.directory.grants.list()]
            assert now == before, caller
