"""The admin listener over real sockets and a real SQLite store: access, and the answer of each call."""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_aiohttp import AiohttpClient
from yarl import URL

from registry_proxy.access.grant import GrantInput
from registry_proxy.access.secrets import SecretKind
from registry_proxy.admission.auth import OPS_PATHS
from registry_proxy.cache.holdings import FileHoldings
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.directory.users import UserInput
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.events import ReloadOutcome
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.metrics import CacheRequest
from registry_proxy.ports.names import CacheResult, ContentKind, RoutedRepository
from registry_proxy.ports.repair import Difference, RepairStatus
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.reference import Digest, Repository, digest_of
from registry_proxy.replication.intents import Intent, change_of
from registry_proxy.tasks import spawn
from tests.support.admin_bench import (
    ADMIN,
    ADMIN_ROUTES,
    BOB,
    CACHE_MAX_BYTES,
    Contract,
    Node,
    admin_node,
    contract_of,
    filled,
)

API = "/admin/v1"


def _basic(username: str, password: str) -> dict[str, str]:
    encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}", "Content-Type": "application/json"}


@dataclass
class Admin:
    """A running admin listener with its node."""

    http: TestClient[Request, Application]
    node: Node
    contract: Contract

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        auth: tuple[str, str] | None = ADMIN,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Send a request below /admin/v1; return status, document and headers, as the OpenAPI document has them."""
        sent = {**(headers or {}), **(_basic(*auth) if auth is not None else {})}
        json_body = {} if body is None else {"json": body}
        async with self.http.request(method, API + path, headers=sent, **json_body) as response:
            content = await response.read()
            document = json.loads(content) if content else None
            self.contract.check(
                method,
                (API + path).partition("?")[0],
                response.status,
                response.content_type,
                document,
                is_tagged="ETag" in response.headers,
            )
            return response.status, document, response.headers

    def token(self, subject: str, generation: int = 0) -> str:
        """Issue a token."""
        return self.node.signer.issue(subject, generation, (), time.time()).token


@pytest.fixture
async def admin(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[Admin]:
    """Start an admin listener with the users admin (an administrator) and bob."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        yield Admin(http, node, await contract_of(node, http))


ROUTES = [
    *((method, filled(path)) for method, path in (route.split() for route in ADMIN_ROUTES) if path not in OPS_PATHS),
    ("GET", "/there/is/no/such/path"),
    ("DELETE", "/users"),
]


BAD_CREDENTIALS = [
    {},
    {"Authorization": "Basic"},
    {"Authorization": "Basic !!!"},
    {"Authorization": "Basic " + base64.b64encode(b"\xff:x").decode()},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer x.y.z"},
    {"Authorization": "Digest a"},
]


async def test_only_an_administrator_gets_in(admin: Admin) -> None:
    """Every route answers 401 to wrong or missing credentials and 403 to others, also for absent objects."""
    bearer = {"Authorization": f"Bearer {admin.token('user:bob')}"}
    for method, path in ROUTES:
        for sent in BAD_CREDENTIALS:
            status, problem, headers = await admin.call(method, path, {}, auth=None, headers=sent)
            assert (status, problem["status"]) == (401, 401), (path, sent)
            assert headers.getall("WWW-Authenticate") == ['Basic realm="registry-proxy admin", charset="UTF-8"']  # type: ignore[attr-defined]  # a multi-dict
            assert headers["Content-Type"] == "application/problem+json"
        status, problem, _ = await admin.call(method, path, {}, auth=None, headers=bearer)
        if (method, path) == ("POST", "/me/tokens"):
            assert (status, problem["detail"].partition(" (")[0]) == (
                403,
                "creating a personal token needs the user's password",
            )
        elif path.startswith(("/me", "/tags")) or path in {"/explain", "/deployments"}:
            assert status in {200, 204, 400, 404}, path
        else:
            assert (status, problem["detail"]) == (403, "this needs a user with the admin's right")
    for auth, status in ((("admin", "wrong password"), 401), (("nobody", ADMIN[1]), 401), (("", ""), 401), (BOB, 403)):
        assert (await admin.call("PUT", "/users/bob", {"groups": ["dev"]}, auth=auth))[0] == status
    assert (await admin.node.directory.users.get("bob")).groups == ()


async def test_an_administrator_gets_in_by_password_and_by_token(admin: Admin) -> None:
    """Every route accepts both: no answer is about credentials any more."""
    bearer = {"Authorization": f"Bearer {admin.token('user:admin')}"}
    for method, path in ROUTES:
        for auth, headers in ((ADMIN, {}), (None, bearer)):
            status, document, _ = await admin.call(method, path, {}, auth=auth, headers=headers)
            if (method, path, auth) != ("POST", "/me/tokens", None):
                assert status not in {401, 403}, document
            assert status < 500, document


async def test_a_revoked_token_and_a_demoted_admin_are_refused(admin: Admin) -> None:
    """A revocation ends tokens immediately; the right to administer is judged at the request, not at the login."""
    bearer = {"Authorization": f"Bearer {admin.token('user:admin')}"}
    status, made, _ = await admin.call("POST", "/revocations", {"subject": "user:admin"})
    assert (status, made["generation"], made["subject"]) == (201, 1, "user:admin")
    assert made["id"]
    assert (await admin.call("GET", "/users", auth=None, headers=bearer))[0] == 401
    assert (await admin.call("PUT", "/users/bob", {"admin": True}))[0] == 200
    assert (await admin.call("GET", "/users", auth=BOB))[0] == 200
    assert (await admin.call("PUT", "/users/bob", {"admin": False}))[0] == 200
    assert (await admin.call("GET", "/users", auth=BOB))[0] == 403


async def test_guessing_is_slowed_down(admin: Admin) -> None:
    """After ten wrong passwords for a user from one address the answer is 429 with the time to wait."""
    statuses = [(await admin.call("GET", "/users", auth=("bob", f"wrong {i}")))[0] for i in range(11)]
    assert statuses == [401] * 10 + [429]
    _, _, headers = await admin.call("GET", "/users", auth=("bob", "wrong"))
    assert int(headers["Retry-After"]) > 0


async def test_a_page_of_another_site_changes_nothing(admin: Admin) -> None:
    """Credentials that a browser remembers are not enough for a change that another site's page sends."""
    status, _, _ = await admin.call("POST", "/cache/purge", headers={"Sec-Fetch-Site": "cross-site"})
    assert status == 403
    assert (await admin.call("POST", "/cache/purge", headers={"Sec-Fetch-Site": "same-origin"}))[0] == 200


async def test_a_user_is_made_changed_and_removed(admin: Admin) -> None:
    """PUT makes (201) or replaces (200) a user, with defaults for absent fields; no answer holds a password."""
    status, made, _ = await admin.call("PUT", "/users/ann", {"password": "secret of ann", "groups": ["dev"]})
    assert (status, made) == (201, {"name": "ann", "admin": False, "disabled": False, "ldap": False, "groups": ["dev"]})
    assert (await admin.call("GET", "/users/ann"))[1] == made
    assert (await admin.call("PUT", "/users/ann", {"admin": True}))[:2] == (200, {**made, "admin": True, "groups": []})
    assert (await admin.call("GET", "/users", auth=("ann", "secret of ann")))[0] == 200, "the password is kept"
    assert (await admin.call("DELETE", "/users/ann"))[:2] == (204, None)
    for method in ("GET", "DELETE"):
        assert (await admin.call(method, "/users/ann"))[0] == 404
    assert (await admin.call("GET", "/users", auth=("ann", "secret of ann")))[0] == 401


async def test_groups_and_members_are_two_views_of_one_relation(admin: Admin) -> None:
    """A change in one view shows in the other, and changes its ETag."""
    _, _, before = await admin.call("GET", "/users/bob")
    assert (await admin.call("PUT", "/groups/dev", {"members": ["bob", "admin"]}))[0] == 201
    _, bob, after = await admin.call("GET", "/users/bob")
    assert bob["groups"] == ["dev"]
    assert before["ETag"] != after["ETag"]
    assert (await admin.call("PUT", "/users/bob", {"groups": ["ops"]}))[0] == 200
    assert (await admin.call("GET", "/groups/dev"))[1] == {"name": "dev", "members": ["admin"]}
    assert (await admin.call("GET", "/groups/ops"))[1] == {"name": "ops", "members": ["bob"]}
    assert (await admin.call("DELETE", "/groups/ops"))[0] == 204
    assert (await admin.call("GET", "/users/bob"))[1]["groups"] == []


async def test_a_grant_is_made_found_and_removed(admin: Admin) -> None:
    """POST answers 201 with the whole object, its id and the defaults; GET filters; DELETE removes."""
    body = {"subject": "user:bob", "repository": "team/**", "actions": ["push", "pull"]}
    status, made, _ = await admin.call("POST", "/grants", body)
    defaults = {"tags": "*", "mode": "enforce", "expires_at": None}
    assert (status, made) == (201, {**body, **defaults, "actions": ["pull", "push"], "id": made["id"]})
    other = {
        "subject": "group:dev",
        "repository": "b",
        "actions": ["delete"],
        "expires_at": "2100-01-01T02:00:00+02:00",
    }
    _, second, _ = await admin.call("POST", "/grants", other)
    assert second["expires_at"] == "2100-01-01T00:00:00Z"
    for query, expected in {
        "": {made["id"], second["id"]},
        "?subject=user:bob": {made["id"]},
        "?repository=team/a/b": {made["id"]},
        "?repository=b": {second["id"]},
        "?repository=team/**": {made["id"]},
        "?repository=b&subject=user:bob": set(),
    }.items():
        _, page, _ = await admin.call("GET", f"/grants{query}")
        assert {grant["id"] for grant in page["items"]} == expected, query
    assert (await admin.call("GET", f"/grants/{made['id']}"))[1] == made
    assert (await admin.call("DELETE", f"/grants/{made['id']}"))[0] == 204
    assert (await admin.call("DELETE", f"/grants/{made['id']}"))[0] == 404


async def test_a_patch_changes_what_it_names(admin: Admin) -> None:
    """An absent field stays, null gives the default, and an invalid value is refused as in a PUT."""
    made = {"password": "the password of ann", "admin": True, "disabled": True, "groups": ["dev", "ops"]}
    await admin.call("PUT", "/users/ann", made)
    status, ann, _ = await admin.call("PATCH", "/users/ann", {"groups": ["qa"], "admin": None})
    assert (status, ann) == (200, {"name": "ann", "admin": False, "disabled": True, "ldap": False, "groups": ["qa"]})
    assert (await admin.call("PATCH", "/users/ann", {"disabled": False}))[1] == {**ann, "disabled": False}
    assert (await admin.call("GET", "/me/tokens", auth=("ann", "the password of ann")))[0] == 200, "it is kept"
    await admin.call("PUT", "/users/eve", {"ldap": True})
    assert (await admin.call("PATCH", "/users/eve", {"groups": ["dev"]}))[1]["ldap"] is True
    assert (await admin.call("PATCH", "/groups/qa", {}))[1] == {"name": "qa", "members": ["ann"]}
    assert (await admin.call("PATCH", "/groups/qa", {"members": None}))[1] == {"name": "qa", "members": []}
    networks, ends = ["10.0.0.0/8"], "2100-01-01T00:00:00Z"
    await admin.call("PUT", "/robots/ci", {"networks": networks, "expires_at": ends})
    status, robot, _ = await admin.call("PATCH", "/robots/ci", {"expires_at": None})
    assert (status, robot) == (200, {"name": "ci", "expires_at": None, "networks": networks})
    for path in ("/users/no", "/groups/no", "/robots/no", "/grants/no", "/users/%00"):
        assert (await admin.call("PATCH", path, {}))[0] == 404, path
    wrong: dict[str, Any] = {"/users/ann": {"name": "x"}, "/groups/qa": {"members": ["no"]}, "/robots/ci": [1]}
    for path, body in wrong.items():
        assert (await admin.call("PATCH", path, body))[0] == 400, path


async def test_a_grant_is_changed_in_its_place(admin: Admin) -> None:
    """A trial becomes a rule without a gap: the subject, the repository and the id of the grant stay."""
    given = {"subject": "user:bob", "repository": "a/**", "tags": "v*", "actions": ["pull"], "mode": "warn"}
    _, grant, _ = await admin.call("POST", "/grants", {**given, "expires_at": 4_102_444_800.25})
    path = f"/grants/{grant['id']}"
    status, changed, headers = await admin.call("PATCH", path, {"mode": "enforce", "tags": None})
    assert (status, changed) == (200, {**grant, "mode": "enforce", "tags": "*"})
    assert (await admin.call("PATCH", path, {}, headers={"If-Match": headers["ETag"]}))[1] == changed
    question = {"subject": "user:bob", "repository": "a/b", "action": "pull"}
    assert (await admin.call("POST", "/explain", question))[1]["would_deny"] is False
    wrong: list[dict[str, Any]] = [{"subject": "user:ann"}, {"actions": []}, {"actions": None}, {"expires_at": "soon"}]
    for body in [*wrong, {"mode": "x"}]:
        assert (await admin.call("PATCH", path, body))[0] == 400, body
    assert (await admin.call("GET", path))[1] == changed
    assert (await admin.call("PATCH", path, {"expires_at": None}))[1] == {**changed, "expires_at": None}


async def test_a_grant_without_effect_is_made_with_a_warning(admin: Admin) -> None:
    """A grant for a subject that does not exist yet is accepted; a warning says why it has no effect now."""
    await admin.node.directory.users.put("off", UserInput(is_ldap=True, is_disabled=True))
    await admin.node.directory.groups.put("dev", [])
    warnings = {}
    for subject in (
        "user:bob",
        "user:zoe",
        "user:off",
        "group:dev",
        "group:none",
        "robot:ci",
        "oidc:a/b/c",
        "anonymous",
    ):
        body = {"subject": subject, "repository": "a", "actions": ["pull"]}
        status, _, headers = await admin.call("POST", "/grants", body)
        assert status == 201
        if "Warning" in headers:
            warnings[subject] = headers["Warning"]
    after = 'until that changes, the grant allows nothing"'
    assert warnings == {
        "user:zoe": f'299 - "there is no user:zoe: {after}',
        "user:off": f'299 - "user:off is disabled: {after}',
        "group:none": f'299 - "there is no group:none, and no rule of auth.oidc puts anybody into it: {after}',
        "robot:ci": f'299 - "there is no robot:ci: {after}',
        "oidc:a/b/c": f'299 - "no rule of auth.oidc makes oidc:a/b/c: {after}',
    }
    await admin.node.directory.grants.add(GrantInput(subject="user:bob", repository="mine/**", actions=["manage"]))
    body = {"subject": "user:zoe", "repository": "mine/a", "actions": ["pull"]}
    status, _, headers = await admin.call("POST", "/grants", body, auth=BOB)
    assert (status, "Warning" in headers) == (201, False), "an owner of a namespace does not learn who exists"


async def test_patches_lose_nothing_of_each_other(admin: Admin) -> None:
    """All of many simultaneous patches are in force afterwards; with the old ETag only one is accepted."""
    names = ["admin", "disabled", "groups"]
    bodies: list[dict[str, Any]] = [{"disabled": True}, {"groups": ["a"]}, {"admin": True}]
    for status, _, _ in await asyncio.gather(*(admin.call("PATCH", "/users/bob", body) for body in bodies)):
        assert status == 200
    _, bob, headers = await admin.call("GET", "/users/bob")
    assert [bob[name] for name in names] == [True, True, ["a"]]
    condition = {"If-Match": headers["ETag"]}
    calls = [admin.call("PATCH", "/users/bob", {"groups": [f"g{i}"]}, headers=condition) for i in range(4)]
    statuses = sorted(status for status, _, _ in await asyncio.gather(*calls))
    assert statuses == [200] + [412] * 3


async def test_explain_names_the_grant_that_decided(admin: Admin) -> None:
    """The explanation is that of the current policy."""
    question = {"subject": "user:bob", "repository": "team/app", "tag": "v1", "action": "pull"}
    status, answer, _ = await admin.call("POST", "/explain", question)
    assert (status, answer["allowed"], answer["grant"]) == (200, False, None)
    assert "team/app" in answer["reason"]
    _, grant, _ = await admin.call(
        "POST", "/grants", {"subject": "user:bob", "repository": "team/*", "actions": ["pull"], "mode": "warn"}
    )
    _, answer, _ = await admin.call("POST", "/explain", question)
    assert (answer["allowed"], answer["grant"], answer["would_deny"]) == (True, grant["id"], True)
    _, answer, _ = await admin.call("POST", "/explain", {**question, "subject": "user:admin", "action": "delete"})
    assert answer["allowed"]


async def test_lists_come_in_pages(admin: Admin) -> None:
    """The links ``next`` give every item once, in order; the last page has none."""
    for name in ("carl", "dora", "eve"):
        await admin.call("PUT", f"/users/{name}", {"password": "long enough"})
    seen, after, pages = [], "", 0
    while after is not None:
        _, page, _ = await admin.call("GET", f"/users?limit=2&after={after}")
        seen += [user["name"] for user in page["items"]]
        after, pages = page["next"], pages + 1
    assert (seen, pages) == (["admin", "bob", "carl", "dora", "eve"], 3)
    for query in ("limit=0", "limit=x", "limit=-1", "limit=", "limit=1&limit=2", "lmit=1", "subject=user:bob"):
        assert (await admin.call("GET", f"/users?{query}"))[0] == 400, query


@pytest.mark.parametrize("path", ["/users/bob", "/groups/dev"])
async def test_if_match_guards_a_change(admin: Admin, path: str) -> None:
    """A write with an old ETag is 412 and changes nothing; with the current one, or none, it succeeds."""
    await admin.call("PUT", "/groups/dev", {})
    _, _, headers = await admin.call("GET", path)
    etag = headers["ETag"]
    assert (await admin.call("PUT", path, {}, headers={"If-Match": f'"other", {etag}'}))[0] == 200
    for method in ("PUT", "PATCH", "DELETE"):
        for stale in (etag, f"W/{etag}", "nonsense", ""):
            status, problem, _ = await admin.call(method, path, {}, headers={"If-Match": stale})
            assert (status, problem["status"]) == (412, 412), stale
    assert (await admin.call("PUT", path, {}, headers={"If-None-Match": "*"}))[0] == 412
    _, _, headers = await admin.call("PUT", path, {}, headers={"If-Match": "*"})
    assert (await admin.call("DELETE", path, headers={"If-Match": headers["ETag"]}))[0] == 204
    body = {"password": "long enough"} if "users" in path else {}
    assert (await admin.call("PUT", path, body, headers={"If-Match": "*"}))[0] == 412
    assert (await admin.call("PUT", path, body, headers={"If-None-Match": "*"}))[0] == 201


async def test_of_two_changes_by_the_same_etag_one_wins(admin: Admin) -> None:
    """If-Match holds over the commit itself, not only over a read before it."""
    _, _, headers = await admin.call("GET", "/users/bob")
    condition = {"If-Match": headers["ETag"]}
    calls = [admin.call("PUT", "/users/bob", {"groups": [f"g{i}"]}, headers=condition) for i in range(8)]
    statuses = sorted(status for status, _, _ in await asyncio.gather(*calls))
    assert statuses == [200] + [412] * 7


async def test_every_fault_is_reported_at_once_and_no_password(admin: Admin) -> None:
    """A 400 is an RFC 9457 document with a pointer for each fault; the password that was sent is not in it."""
    secret = "x" * 7
    cases: list[tuple[str, str, Any, set[str]]] = [
        ("PUT", "/users/a:b", {"password": secret, "groups": ["$"]}, {"", "#/password", "#/groups"}),
        ("PUT", "/users/ann", {"password": 7, "admin": "yes", "x": 1}, {"#/password", "#/admin", "#/x"}),
        ("PUT", "/users/ann", {}, {"#/password"}),
        ("PUT", "/groups/dev", {"members": ["nobody"]}, {"#/members"}),
        ("POST", "/grants", {}, {"#/subject", "#/repository", "#/actions"}),
        (
            "POST",
            "/grants",
            {"subject": "ann", "repository": "A", "tags": " ", "actions": ["fly"], "mode": "m"},
            {"#/subject", "#/repository", "#/tags", "#/actions", "#/mode"},
        ),
        ("POST", "/explain", {"subject": "x", "repository": "/", "action": "pull"}, {"#/subject", "#/repository"}),
        ("POST", "/revocations", {"subject": "group:dev"}, {"#/subject"}),
        ("POST", "/cache/purge", {"digest": "sha256:1"}, {"#/digest"}),
    ]
    for method, path, body, pointers in cases:
        status, problem, headers = await admin.call(method, path, body)
        assert (status, headers["Content-Type"]) == (400, "application/problem+json"), body
        assert {fault["pointer"] for fault in problem["errors"]} == pointers
        assert {"type", "title", "status", "detail"} <= problem.keys()
        assert secret not in json.dumps(problem)


@pytest.mark.parametrize(
    "expires_at", ["soon", "2030-01-01", "2030-01-01T00:00:00", -1, 0, 1e300, True, [], "0001-01-01T00:00:00+14:00"]
)
async def test_an_expiry_that_is_no_time_is_refused(admin: Admin, expires_at: object) -> None:
    """A grant must not live on because its expiry was not understood."""
    body = {"subject": "user:bob", "repository": "a", "actions": ["pull"], "expires_at": expires_at}
    status, problem, _ = await admin.call("POST", "/grants", body)
    assert status == 400
    assert all(fault["pointer"].startswith("#/expires_at") for fault in problem["errors"])


async def test_an_expiry_is_a_time_or_unix_seconds(admin: Admin) -> None:
    """Both forms mean the same, and the answer has RFC 3339."""
    for expires_at in ("2100-01-01T00:00:00Z", 4_102_444_800, 4_102_444_800.0):
        body = {"subject": "user:bob", "repository": "a", "actions": ["pull"], "expires_at": expires_at}
        assert (await admin.call("POST", "/grants", body))[1]["expires_at"] == "2100-01-01T00:00:00Z"


async def test_a_revocation_names_one_thing(admin: Admin) -> None:
    """A revocation names a token by its id, or a subject; both, neither, or an invalid id is refused."""
    status, answer, _ = await admin.call("POST", "/revocations", {"token_id": "abc-_1"})
    assert (status, answer["token_id"]) == (201, "abc-_1")
    for body in ({}, {"token_id": "x", "subject": "user:bob"}, {"token_id": "x/"}, {"token_id": ""}):
        assert (await admin.call("POST", "/revocations", body))[0] == 400


_WITHOUT_BODY = {"/cache/verify", "/keys/rotate", "/reload"}
ROUTES_WITH_BODY = [route for route in ROUTES if route[0] in {"PUT", "PATCH", "POST"} and route[1] not in _WITHOUT_BODY]
BODIES = [
    b"[" * 60_000,
    b'{"groups":' * 6_000,
    b"{",
    b"\xff\xfe",
    b'{"password":"\\ud800 lone surrogate"}',
    b'{"groups":["\\u0000"]}',
    b"null",
    b"[]",
    b"NaN",
    b'{"admin":' + b"9" * 5000 + b"}",
]


async def test_a_garbage_body_is_a_400(admin: Admin) -> None:
    """Any body other than a JSON object of the right shape gives a problem document, never a 500."""
    for method, path in ROUTES_WITH_BODY:
        for body in BODIES:
            async with admin.http.request(method, API + path, data=body, headers=_basic(*ADMIN)) as response:
                assert (response.status, response.content_type) == (400, "application/problem+json"), (path, body[:50])
                assert (await response.json(content_type=None))["status"] == 400


async def test_a_large_or_encoded_body_is_refused(admin: Admin) -> None:
    """A body over 1 MiB is 413, with and without a stated length; Content-Encoding is 415."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(32):
            yield b" " * 65536

    for data in (io.BytesIO(b" " * (1024 * 1024 + 1)), chunks()):
        async with admin.http.put(f"{API}/users/ann", data=data, headers=_basic(*ADMIN)) as response:
            assert (response.status, response.content_type) == (413, "application/problem+json")
    headers = {**_basic(*ADMIN), "Content-Encoding": "gzip"}
    async with admin.http.put(f"{API}/users/ann", data=b"{}", headers=headers) as response:
        assert response.status in {400, 415}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)
_FIELDS = [
    "password",
    "admin",
    "groups",
    "members",
    "subject",
    "repository",
    "tags",
    "actions",
    "mode",
    "expires_at",
    "digest",
    "token_id",
    "tag",
    "action",
]


async def test_no_garbage_is_a_500(admin: Admin) -> None:
    """Any JSON in any known field, and any path, is answered below 500; 501 is allowed for planned routes."""
    loop = asyncio.get_running_loop()

    async def attempt(method: str, path: str, body: object) -> None:
        status, _, _ = await admin.call(method, path, body)
        assert status < 500 or status == 501, (path, body)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(ROUTES_WITH_BODY),
        _JSON | st.dictionaries(st.sampled_from(_FIELDS), _JSON | st.lists(st.text()) | st.text(), max_size=4),
    )
    def garbage(route: tuple[str, str], body: object) -> None:
        asyncio.run_coroutine_threadsafe(attempt(*route, body), loop).result(30)

    await asyncio.to_thread(garbage)


NAMES = ["%00", "%FF", "a%2Fb", "..%2f..", "%ED%A0%80", "a" * 5000, "%20", "oidc", "x%0d%0ay", "%C3%A4"]


async def test_a_name_that_cannot_be_is_refused(admin: Admin) -> None:
    """Names in a path are judged before any lookup: 404 for a read, 400 for a creation."""
    async with aiohttp.ClientSession(headers=_basic(*ADMIN)) as session:
        for kind in ("users", "groups", "grants"):
            for name in NAMES:
                # Encoded here: the client must not normalise it.
                target = URL(f"{admin.http.make_url(API)}/{kind}/{name}", encoded=True)
                for method, expected in {"GET": {404}, "DELETE": {404}, "PUT": {400, 404, 405}}.items():
                    async with session.request(method, target, json={}) as response:
                        assert response.status in expected, (method, kind, name)


async def test_raw_bytes_in_a_path_are_no_500(admin: Admin) -> None:
    """A path that is not even text is refused like any other unknown path."""
    url = admin.http.make_url("/")
    assert url.host is not None
    basic = _basic(*ADMIN)["Authorization"].encode()
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"GET /admin/v1/users/\xff\xed\xa0\x80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: "
        + basic
        + b"\r\n\r\n"
    )
    status_line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert status_line.split()[1] in {b"400", b"404"}


IDLE = {"running": False, "started_at": None, "done": 0, "failed": 0, "error": ""}


async def test_a_repair_is_asked_for(admin: Admin) -> None:
    """A repair is 202 with the current upstream and wakes the repairer; an unknown name gets the list of known ones."""
    admin.node.repairs["main"].now = RepairStatus(is_running=True, started_at=1.5e9, done=3, failed=1, error="a: down")
    status, document, _ = await admin.call("POST", "/upstreams/main/repair")
    assert (status, admin.node.repairs["main"].woken) == (202, 1)
    repair = {"running": True, "started_at": "2017-07-14T02:40:00Z", "done": 3, "failed": 1, "error": "a: down"}
    assert [replica["repair"] for replica in document["replicas"]] == [repair, repair]
    assert (await admin.call("GET", "/upstreams/main"))[1] == document
    for method, path in (("GET", "/upstreams/none"), ("POST", "/upstreams/none/repair")):
        status, problem, _ = await admin.call(method, path)
        assert (status, "main" in problem["detail"]) == (404, True)
    assert (await admin.call("POST", "/upstreams/main/repair", {"all": True}))[0] == 400


async def test_replicas_are_compared_in_the_background(admin: Admin) -> None:
    """A comparison is 202 immediately, shows its progress by GET, runs alone, and names holders of each difference."""
    path, verifier = "/upstreams/main/verify", admin.node.verifier
    assert (await admin.call("GET", path))[0] == 404
    wanted, found = digest_of(b"1"), digest_of(b"2")
    key = IntentKey(RoutedRepository("main", Repository("team/app")), IntentKind.TAG, "latest")
    verifier.finds = [Difference(key, "b", wanted, found, "", ("a",)), Difference(key, "b", None, found, "", ())]
    status, document, _ = await admin.call("POST", path, {"repair": True, "prefer": "a"})
    assert (status, document["done"], document["started_at"]) == (202, False, "2017-07-14T02:40:00Z")
    assert (await admin.call("POST", path, {}))[0] == 409
    verifier.gate.set()
    while not document["done"]:
        _, document, _ = await admin.call("GET", path)
    assert verifier.asked == [(True, "a")]
    assert (document["differing"], document["undecided"], document["lost"]) == (2, 1, 0)
    assert document["differences"][0] == {
        "repository": "team/app",
        "kind": "tag",
        "name": "latest",
        "replica": "b",
        "wanted": str(wanted),
        "found": str(found),
        "holders": ["a"],
    }
    status, problem, _ = await admin.call("POST", path, {"prefer": "c"})
    assert (status, problem["errors"][0]["pointer"]) == (400, "#/prefer")


async def test_a_comparison_takes_the_former_name_of_repair(admin: Admin) -> None:
    """For one release the request may say ``mend``, and the answer repeats the number of repairs as ``mended``."""
    path, verifier = "/upstreams/main/verify", admin.node.verifier
    verifier.gate.set()
    status, document, _ = await admin.call("POST", path, {"mend": True})
    while not document["done"]:
        _, document, _ = await admin.call("GET", path)
    assert (status, verifier.asked) == (202, [(True, None)])
    assert (document["repaired"], document["mended"]) == (0, 0)


async def test_exceptions_are_listed_and_dismissed(admin: Admin) -> None:
    """Lost contents and refusals are listed with their reasons; dismissed ones are marked; bad requests are 4xx."""
    routed, digest = RoutedRepository("main", Repository("team/app")), digest_of(b"gone")
    lost, tag = IntentKey(routed, IntentKind.BLOB, str(digest)), IntentKey(routed, IntentKind.TAG, "v1")
    intents = {lost: Intent(digest, "", (), is_lost=True), tag: Intent(digest, "", (), refused={"b": "too large"})}
    pending = IntentKey(routed, IntentKind.TAG, "v2")
    intents[pending] = Intent(digest, "", ("b",))
    await admin.node.store.commit([change_of(key, intent, expect=0) for key, intent in intents.items()])
    path = "/upstreams/main/exceptions"
    common = {"repository": "team/app", "dismissed": False}
    blob = {**common, "kind": "blob", "name": str(digest), "lost": True, "refused": {}}
    refused = {**common, "kind": "tag", "name": "v1", "lost": False, "refused": {"b": "too large"}}
    assert (await admin.call("GET", path))[:2] == (200, {"items": [blob, refused], "next": None})
    assert (await admin.call("GET", f"{path}?limit=1"))[1]["items"] == [blob]
    for body, count in (({"name": "v2"}, 0), ({"repository": "team"}, 0), ({"name": "v1"}, 1), ({}, 1), ({}, 0)):
        assert (await admin.call("POST", "/upstreams/main/dismiss", body))[:2] == (200, {"dismissed": count})
    assert [one["dismissed"] for one in (await admin.call("GET", path))[1]["items"]] == [True, True]
    assert (await admin.call("GET", "/upstreams/none/exceptions"))[0] == 404
    assert (await admin.call("POST", "/upstreams/none/dismiss", {}))[0] == 404
    assert (await admin.call("POST", "/upstreams/main/dismiss", {"all": True}))[0] == 400


async def test_upstreams_shows_every_replica_without_credentials(admin: Admin) -> None:
    """Each replica has state, latency and pending, beside warnings of the repair; no password in a URL is shown."""
    admin.node.repairs["main"].notices = ["a copy is gone"]
    _, page, _ = await admin.call("GET", "/upstreams")
    assert page == {
        "items": [
            {
                "name": "main",
                "lost": 0,
                "replicas": [
                    {
                        "name": "a",
                        "url": "http://127.0.0.1:5001",
                        "state": "up",
                        "reason": "",
                        "latency_seconds": 0.0015,
                        "pending": 0,
                        "refused": 0,
                        "keeps_apart": True,
                        "paused": None,
                        "repair": IDLE,
                    },
                    {
                        "name": "b",
                        "url": "http://[::1]:5002/",
                        "state": "up",
                        "reason": "",
                        "latency_seconds": 0.0015,
                        "pending": 0,
                        "refused": 0,
                        "keeps_apart": True,
                        "paused": None,
                        "repair": IDLE,
                    },
                ],
                "warnings": ["a copy is gone"],
            }
        ],
        "next": None,
    }


async def test_a_replica_is_paused_and_resumed(admin: Admin) -> None:
    """The document says who paused the replica, and when it is quiet; a refusal is 409, an unknown replica 400."""
    status, upstream, _ = await admin.call("POST", "/upstreams/main/pause", {"replica": "a", "reason": "its disk"})
    pause = {"reason": "its disk", "by": "user:admin", "since": "2017-07-14T02:40:00Z", "quiet": False}
    assert (status, [one["paused"] for one in upstream["replicas"]]) == (200, [pause, None])
    admin.node.maintains.is_over = True
    assert (await admin.call("GET", "/upstreams/main"))[1]["replicas"][0]["paused"] == {**pause, "quiet": True}
    for path, replica, expected in (
        ("pause", "b", 409),
        ("resume", "b", 409),
        ("resume", "c", 400),
        ("pause", "c", 400),
    ):
        status, problem, _ = await admin.call("POST", f"/upstreams/main/{path}", {"replica": replica})
        assert status == expected, problem
    status, upstream, _ = await admin.call("POST", "/upstreams/main/resume", {"replica": "a"})
    assert (status, [one["paused"] for one in upstream["replicas"]]) == (200, [None, None])
    assert (await admin.call("POST", "/upstreams/none/pause", {"replica": "a"}))[0] == 404


async def test_upstreams_are_shown_while_the_store_is_away(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store is away it is unknown whether a paused replica is quiet; the answer says that it is not."""

    async def is_quiet(_: object) -> bool:
        raise StoreUnavailableError("away")

    await admin.call("POST", "/upstreams/main/pause", {"replica": "a"})
    monkeypatch.setattr(admin.node.maintains, "is_quiet", is_quiet)
    assert (await admin.call("GET", "/upstreams/main"))[1]["replicas"][0]["paused"]["quiet"] is False


async def test_cache_shows_size_and_hit_ratios(admin: Admin) -> None:
    """The hit ratios are those of the metrics, and null before the first request."""
    await admin.node.cache.store(digest_of(b"one"), b"one")
    for result in (CacheResult.HIT, CacheResult.HIT, CacheResult.HIT, CacheResult.MISS):
        admin.node.observer.observe(CacheRequest(ContentKind.BLOB, result))
    _, cache, _ = await admin.call("GET", "/cache")
    assert cache["hit_ratios"] == {"blob": 0.75, "manifest": None}
    assert cache["requests"]["blob"] == {"hit": 3, "miss": 1, "latch": 0}
    assert (cache["size_bytes"], cache["max_size_bytes"], cache["entries"]) == (3, CACHE_MAX_BYTES, 1)


async def test_the_cache_is_purged_by_digest_or_whole(admin: Admin) -> None:
    """A digest removes one entry; no digest removes all."""
    contents = [b"one", b"two", b"three"]
    for content in contents:
        await admin.node.cache.store(digest_of(content), content)
    assert (await admin.call("POST", "/cache/purge", {"digest": str(digest_of(b"two"))}))[:2] == (200, {"removed": 1})
    assert [admin.node.cache.read_small(digest_of(content)) for content in contents] == [b"one", None, b"three"]
    assert (await admin.call("POST", "/cache/purge"))[:2] == (200, {"removed": 2})
    assert (await admin.call("GET", "/cache"))[1]["size_bytes"] == 0


async def test_the_cache_is_listed_page_by_page(admin: Admin) -> None:
    """Every entry is listed once, in the order of digests, with its size; an invalid digest is refused."""
    contents = {str(digest_of(content)): len(content) for content in (b"a", b"bb", b"ccc", b"dddd", b"eeeee")}
    for content in (b"a", b"bb", b"ccc", b"dddd", b"eeeee"):
        await admin.node.cache.store(digest_of(content), content)
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        status, page, _ = await admin.call("GET", f"/cache/blobs?limit=2{after}")
        assert status == 200
        assert len(page["items"]) <= 2
        found += page["items"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert [item["digest"] for item in found] == sorted(contents)
    assert {item["digest"]: item["size_bytes"] for item in found} == contents
    assert (await admin.call("GET", "/cache/blobs?after=x"))[0] == 400


async def test_a_repository_is_purged_alone(admin: Admin, tmp_path: Path) -> None:
    """A purge removes the contents of one repository alone; an empty one loses nothing; a digest beside it is a 400."""
    holdings = FileHoldings(tmp_path / "cache")
    for content in (b"mine", b"other"):
        await admin.node.cache.store(digest_of(content), content)
    routed = RoutedRepository("main", Repository("team/app"))
    holdings.remember(routed, ContentKind.BLOB, Descriptor("x/y", digest_of(b"mine"), 4))
    assert (await admin.call("POST", "/cache/purge", {"repository": "none"}))[:2] == (200, {"removed": 0})
    assert (await admin.call("POST", "/cache/purge", {"repository": "team/app"}))[:2] == (200, {"removed": 1})
    assert admin.node.cache.read_small(digest_of(b"other")) == b"other"
    assert holdings.find(routed, ContentKind.BLOB, digest_of(b"mine")) is None
    both = {"repository": "team/app", "digest": str(digest_of(b"other"))}
    for body in (both, {"repository": "NO"}):
        assert (await admin.call("POST", "/cache/purge", body))[0] == 400


async def test_verify_tells_what_rotted_and_drops_it(admin: Admin, tmp_path: Path) -> None:
    """A flipped bit on disk is found and named; the entry is not served any more."""
    good, bad = digest_of(b"good"), digest_of(b"bad")
    await admin.node.cache.store(good, b"good")
    await admin.node.cache.store(bad, b"bad")
    (file,) = (tmp_path / "cache" / "blobs").rglob(bad.hex)
    file.chmod(0o600)
    file.write_bytes(b"BAD")
    file.chmod(0o444)
    assert (await admin.call("POST", "/cache/verify"))[:2] == (200, {"bad": [str(bad)]})
    assert (await admin.call("POST", "/cache/verify"))[:2] == (200, {"bad": []})
    assert (await admin.call("GET", "/cache"))[1]["entries"] == 1


async def test_the_cache_is_verified_by_one_at_a_time(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second verification during the first one is 409, and does not disturb the first."""
    entered, release = asyncio.Event(), asyncio.Event()

    async def verify() -> list[Digest]:
        entered.set()
        await release.wait()
        return []

    monkeypatch.setattr(admin.node.cache, "verify", verify)
    first = spawn(admin.call("POST", "/cache/verify"), "first verification")
    await entered.wait()
    assert (await admin.call("POST", "/cache/verify"))[0] == 409
    release.set()
    assert (await first)[:2] == (200, {"bad": []})


async def test_monitoring_needs_no_credentials(admin: Admin) -> None:
    """/metrics, /healthz and /readyz are open, and no other path is."""
    async with admin.http.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert "registry_proxy_cache_requests_total" in await response.text()
    async with admin.http.get("/healthz") as response:
        assert response.status == 200
    for path in ("/", "/metrics/", "/admin", "/console", "/%2Fmetrics"):
        async with admin.http.get(path) as response:
            assert response.status == 401, path


async def test_readyz_gives_every_reason(admin: Admin) -> None:
    """200 even without any replica, with a warning, as the cache is served; 503 while draining, with all reasons."""
    async with admin.http.get("/readyz") as response:
        assert (response.status, await response.json()) == (200, {"ready": True, "reasons": [], "warnings": []})
        assert "Server" not in response.headers
    first, second = admin.node.upstreams["main"].replicas
    first.state, second.state = ReplicaState.BEHIND, ReplicaState.DOWN
    async with admin.http.get("/readyz") as response:
        assert (response.status, (await response.json())["warnings"]) == (200, [])
    first.state = ReplicaState.CREDENTIALS_REFUSED
    warnings = ["no replica of upstream main is up"]
    async with admin.http.get("/readyz") as response:
        assert (response.status, await response.json()) == (200, {"ready": True, "reasons": [], "warnings": warnings})
    admin.node.draining[0] = True
    async with admin.http.get("/readyz") as response:
        assert response.status == 503
        reasons = ["this node is draining"]
        assert await response.json() == {"ready": False, "reasons": reasons, "warnings": warnings}


async def test_reload_tells_what_became_of_it(admin: Admin) -> None:
    """A reload is 200 with the generation, 422 with every fault of the file, 503 when its workers did not start."""
    admin.node.reloads += [
        ReloadOutcome(2),
        ReloadOutcome(2, ("a.yaml:1: x", "b")),
        ReloadOutcome(2, failure="no room"),
    ]
    status, document, _ = await admin.call("POST", "/reload")
    assert (status, document) == (200, {"generation": 2})
    status, document, _ = await admin.call("POST", "/reload")
    assert (status, [fault["detail"] for fault in document["errors"]]) == (422, ["a.yaml:1: x", "b"])
    status, document, _ = await admin.call("POST", "/reload")
    assert (status, document["detail"].endswith(": no room")) == (503, True)


async def test_failed_logins_are_counted_for_the_client_behind_a_trusted_proxy(admin: Admin) -> None:
    """Behind a proxy, failures of one client do not lock out other clients of the same name."""
    wrong = (ADMIN[0], "wrong password")
    addresses = ["192.0.2.1"] * 12 + ["192.0.2.2"]
    answers = [await admin.call("GET", "/users", auth=wrong, headers={"X-Forwarded-For": each}) for each in addresses]
    assert [status for status, _, _ in answers[-2:]] == [429, 401]


async def test_the_audit_log_tells_what_a_removal_took_along(admin: Admin) -> None:
    """The event holds removed grants in full, ids of secrets, groups and members; also for a grant removed alone."""
    directory = admin.node.directory
    grants = [
        await directory.grants.add(GrantInput(subject=subject, repository="team/**", actions=["pull"]))
        for subject in ("user:bob", "group:dev", "robot:ci", "anonymous")
    ]
    await directory.groups.put("dev", ["bob"])
    await directory.robots.put("ci", None, ())
    secret, _ = await directory.secrets.add("robot:ci", SecretKind.ROBOT, SecretInput())
    asked = []
    for path in ("/users/bob", "/groups/dev", "/robots/ci", f"/grants/{grants[3].id}"):
        assert (await admin.call("DELETE", path))[0] == 204
        asked.append(admin.node.audit.events[-1].detail["asked"])
    assert [[grant["id"] for grant in each.pop("grants_removed")] for each in asked] == [[each.id] for each in grants]
    assert asked == [{"groups": ["dev"]}, {}, {"secret_ids_removed": [secret.id]}, {}]


async def test_a_password_is_in_no_audit_log(admin: Admin) -> None:
    """The audit log holds neither the current password nor the new one, also after a refused change."""
    for body in ({"current": BOB[1], "new": "short"}, {"current": "a wrong password", "new": "a new password"}):
        assert (await admin.call("POST", "/me/password", body, auth=BOB))[0] == 400
    assert (await admin.call("POST", "/me/password", {"current": BOB[1], "new": "a new password"}, auth=BOB))[0] == 204
    text = repr(admin.node.audit.events)
    assert "me.password.post" in text
    assert not [secret for secret in (BOB[1], "short", "a wrong password", "a new password") if secret in text]


async def test_only_a_user_of_ours_changes_a_password(admin: Admin) -> None:
    """A personal token is not the current password; LDAP users have none here; the change ends the user's tokens."""
    directory = admin.node.directory
    _, text = await directory.secrets.add("user:bob", SecretKind.PERSONAL, SecretInput())
    body = {"current": text, "new": "a new password"}
    assert (await admin.call("POST", "/me/password", body, auth=("bob", text)))[0] == 400
    token = {"Authorization": f"Bearer {admin.token('user:bob')}"}
    body = {"current": BOB[1], "new": "a new password"}
    assert (await admin.call("POST", "/me/password", body, auth=None, headers=token))[0] == 204
    assert (await admin.call("GET", "/me", auth=None, headers=token))[0] == 401
    await directory.users.put("bob", UserInput(is_ldap=True))
    token = {"Authorization": f"Bearer {admin.token('user:bob', 2)}"}
    status, problem, _ = await admin.call("POST", "/me/password", body, auth=None, headers=token)
    assert (status, problem["detail"]) == (409, "LDAP keeps the password of bob: change it there")
