"""Access to the admin API: the credentials, and the moment at which they are judged."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import encode_basic_auth
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from pytest_aiohttp import AiohttpClient

from registry_proxy.access.grant import GrantInput
from registry_proxy.access.secrets import SecretKind
from registry_proxy.admission import auth
from registry_proxy.api import requests
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.directory.users import UserInput
from registry_proxy.ports.events import AuditKind
from registry_proxy.protocol.scope import CATALOG, Access, Action
from tests.support.admin_bench import ADMIN, BOB, Node, admin_node

API = "/admin/v1"


@dataclass
class Bench:
    """A running admin listener with the users admin and bob."""

    http: TestClient[Request, Application]
    node: Node

    async def call(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> tuple[int, Any]:
        """Send a request; return status and document."""
        async with self.http.request(method, API + path, headers=headers, json=body) as response:
            content = await response.read()
            return response.status, (await response.json(content_type=None)) if content else None

    def bearer(self, subject: str, secret_id: str | None = None) -> dict[str, str]:
        """Return the header with a token."""
        token = self.node.signer.issue(subject, 0, (), time.time(), secret_id=secret_id).token
        return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}


@pytest.fixture
async def bench(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[Bench]:
    """Start an admin listener."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        yield Bench(http, node)


def basic(login: tuple[str, str]) -> dict[str, str]:
    """Return the headers of a JSON body with a name and a password."""
    return {"Authorization": encode_basic_auth(*login), "Content-Type": "application/json"}


class HeldBack:
    """A request body whose end is held back."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.may_go = asyncio.Event()

    async def parts(self) -> AsyncIterator[bytes]:
        yield self._body[:1]
        await self.may_go.wait()
        yield self._body[1:]


BOSS = ("boss", "the password of boss")


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return an event that is set once a handler waits for the body of a request that passed the first check."""
    begun, read = asyncio.Event(), Request.read

    async def tell(request: Request) -> bytes:
        begun.set()
        return await read(request)

    monkeypatch.setattr(Request, "read", tell)
    return begun


@asynccontextmanager
async def held_back(
    bench: Bench, reading: asyncio.Event, method: str, path: str, content: bytes, headers: dict[str, str]
) -> AsyncIterator["asyncio.Task[int]"]:
    """Send a request whose body is held back while the with block runs; its status is the result of the task."""
    body = HeldBack(content)

    async def send() -> int:
        async with bench.http.request(method, f"{API}{path}", data=body.parts(), headers=headers) as response:
            return response.status

    async with asyncio.TaskGroup() as tasks:
        sent = tasks.create_task(send())
        await reading.wait()
        yield sent
        body.may_go.set()


@pytest.mark.parametrize("how", ["demoted", "disabled", "new password", "revoked", "no secret", "no owner"])
async def test_a_right_that_ends_while_the_body_is_held_back_is_over(
    bench: Bench, reading: asyncio.Event, how: str
) -> None:
    """A caller whose right ends before the body arrives changes nothing with it."""
    directory = bench.node.directory
    await directory.users.put("boss", UserInput(password=BOSS[1], is_admin=how != "no owner"))
    secret, text = await directory.secrets.add("user:boss", SecretKind.PERSONAL, SecretInput())
    given = GrantInput(subject="user:boss", repository="own/**", actions=("manage",))
    owning = await directory.grants.add(given) if how == "no owner" else None
    senders = {"revoked": bench.bearer("user:boss"), "no secret": basic(("boss", text))}
    body = b'{"subject": "user:bob", "repository": "own/app", "actions": ["pull"]}'
    async with held_back(bench, reading, "POST", "/grants", body, senders.get(how, basic(BOSS))) as sent:
        if owning is not None:
            await directory.grants.delete(owning.id)
        elif how == "demoted":
            await directory.users.put("boss", UserInput(is_admin=False))
        elif how == "disabled":
            await directory.users.put("boss", UserInput(is_admin=True, is_disabled=True))
        elif how == "new password":
            await directory.users.put("boss", UserInput(is_admin=True, password="another password"))
        elif how == "revoked":
            await directory.revocations.revoke("user:boss")
        else:
            await directory.secrets.delete("user:boss", secret.id)
    assert sent.result() in {401, 403}
    assert await directory.grants.list() == []


async def test_a_body_that_is_held_back_and_still_allowed_is_taken(bench: Bench, reading: asyncio.Event) -> None:
    """A change elsewhere while the body is held back does not matter to the caller."""
    async with held_back(bench, reading, "PUT", "/groups/dev", b'{"members": ["bob"]}', basic(ADMIN)) as sent:
        await bench.node.directory.users.put("ann", UserInput(is_ldap=True))
    assert sent.result() == 201


@pytest.mark.parametrize(("path", "seconds"), [("/groups/dev", "0.05"), ("/policy", "0.4")])
async def test_a_body_is_not_waited_for_forever(
    bench: Bench, path: str, seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that does not arrive in time is 408 and changes nothing; a policy, which may be larger, has more time."""
    monkeypatch.setattr(requests, "_BODY_SECONDS", 0.05)
    body = HeldBack(b"{}")
    async with bench.http.put(f"{API}{path}", data=body.parts(), headers=basic(ADMIN)) as response:
        assert (response.status, response.content_type) == (408, "application/problem+json")
        detail = (await response.json(content_type=None))["detail"]
    assert detail == f"the body did not come within {seconds} s; nothing was changed"
    body.may_go.set()
    assert await bench.node.directory.groups.list() == []


async def test_a_caller_without_a_login_is_not_waited_for(bench: Bench, reading: asyncio.Event) -> None:
    """The body of a caller without a login is not read: it would cost memory for nothing."""
    body = HeldBack(b"{}")
    as_json = {"Content-Type": "application/json"}
    async with bench.http.put(f"{API}/groups/dev", data=body.parts(), headers=as_json) as response:
        assert response.status == 401
    async with bench.http.put(f"{API}/groups/dev", data=body.parts(), headers=basic(BOB)) as response:
        assert response.status == 403
    assert not reading.is_set()
    body.may_go.set()


@pytest.mark.parametrize("access", [Access("repository", "team/app", frozenset({"pull"})), CATALOG, None])
async def test_a_token_with_a_scope_is_not_taken(bench: Bench, access: Access | None) -> None:
    """A token that was given for a repository, perhaps to a step of a build, has no rights of its user here.

    Nor has a token that allows nothing.
    """
    entries = () if access is None else (access,)
    token = bench.node.signer.issue("user:admin", 0, entries, time.time(), is_scoped=access is None).token
    for method, path in (("GET", "/users"), ("POST", "/grants"), ("POST", "/me/tokens"), ("GET", "/me/tokens")):
        status, problem = await bench.call(method, path, {"Authorization": f"Bearer {token}"}, {})
        assert (status, "without" in problem["detail"]) == (403, True)
    assert (await bench.call("GET", "/users", bench.bearer("user:admin")))[0] == 200


async def test_a_personal_token_is_made_with_the_password_alone(bench: Bench) -> None:
    """Neither a bearer token nor a secret, even with all rights of its holder, makes another personal token."""
    secret, text = await bench.node.directory.secrets.add("user:bob", SecretKind.PERSONAL, SecretInput())
    for headers in (bench.bearer("user:bob"), bench.bearer("user:bob", secret.id), basic(("bob", text))):
        status, problem = await bench.call("POST", "/me/tokens", headers, {})
        assert (status, "password" in problem["detail"]) == (403, True)
    assert len(await bench.node.directory.secrets.list("user:bob")) == 1
    assert (await bench.call("POST", "/me/tokens", basic(BOB), {}))[0] == 201


@pytest.mark.parametrize("actions", [None, [Action.PULL]])
@pytest.mark.parametrize("kind", [SecretKind.PERSONAL, SecretKind.ROBOT])
async def test_a_secret_sees_and_removes_none_of_its_siblings(
    bench: Bench, kind: SecretKind, actions: list[str] | None
) -> None:
    """A stolen secret, alone or with a token made from it, must not be able to lock the other secrets out."""
    await bench.node.directory.robots.put("ci", None, ())
    subject, name = ("user:bob", "bob") if kind is SecretKind.PERSONAL else ("robot:ci", "robot$ci")
    secret, text = await bench.node.directory.secrets.add(subject, kind, SecretInput(actions=actions))
    other, _ = await bench.node.directory.secrets.add(subject, kind, SecretInput())
    for headers in (basic((name, text)), bench.bearer(subject, secret.id)):
        for method, path in (("GET", "/me/tokens"), ("DELETE", f"/me/tokens/{other.id}"), ("DELETE", "/me/tokens/no")):
            assert (await bench.call(method, path, headers))[0] == 403
    assert len(await bench.node.directory.secrets.list(subject)) == 2


async def test_the_audit_log_has_what_a_list_changed(bench: Bench) -> None:
    """The event of a changed list names the added and the removed entries, not the ones that stay."""
    await bench.node.directory.users.put("ann", UserInput(is_ldap=True))
    changes: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("PUT", "/groups/dev", {"members": ["bob"]}, {"members": {"added": ["bob"], "removed": []}}),
        ("PATCH", "/groups/dev", {"members": ["ann", "bob"]}, {"members": {"added": ["ann"], "removed": []}}),
        ("PUT", "/users/bob", {"groups": ["ops"]}, {"groups": {"added": ["ops"], "removed": ["dev"]}}),
        ("PATCH", "/users/bob", {"groups": None}, {"groups": {"added": [], "removed": ["ops"]}}),
        ("PATCH", "/users/bob", {"disabled": True}, {"disabled": True}),
    ]
    for method, path, body, detail in changes:
        assert (await bench.call(method, path, basic(ADMIN), body))[0] in {200, 201}
        assert bench.node.audit.events[-1].detail["asked"] == detail


async def test_a_policy_that_is_held_back_is_judged_when_it_has_come(bench: Bench, reading: asyncio.Event) -> None:
    """A policy, which may be larger, has more time to arrive, and the right is judged at its end."""
    await bench.node.directory.users.put("boss", UserInput(password=BOSS[1], is_admin=True))
    body = b'{"version": 1, "groups": {"dev": ["bob"]}, "grants": []}'
    async with held_back(bench, reading, "PUT", "/policy", body, basic(BOSS)) as sent:
        await bench.node.directory.users.put("boss", UserInput())
    assert sent.result() == 403
    assert await bench.node.directory.groups.list() == []


async def test_a_login_is_logged_once_and_each_refusal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login is one event, though each request brings the password; a refused login is one event each."""
    for _ in range(3):
        assert (await bench.call("GET", "/audit", basic(ADMIN)))[0] == 200
        assert (await bench.call("GET", "/audit", basic(BOB)))[0] == 403
        assert (await bench.call("GET", "/audit", basic((ADMIN[0], "wrong password"))))[0] == 401
    logins = [(event.outcome, event.subject) for event in bench.node.audit.events if event.action == "login"]
    assert sorted(logins) == [("ok", "user:admin"), ("ok", "user:bob"), *[("refused", "user:admin")] * 3]
    reasons = [event.rule for event in bench.node.audit.events if event.outcome == "refused"]
    assert reasons == ["the password is wrong"] * 3
    monkeypatch.setattr(auth, "_LOGIN_SECONDS", 0.0)
    await bench.call("GET", "/audit", basic(ADMIN))
    assert (bench.node.audit.events[-1].outcome, bench.node.audit.events[-1].subject) == ("ok", "user:admin")


async def test_everybody_may_ask_about_themselves(bench: Bench) -> None:
    """A user, a robot and a narrowed secret ask only about themselves, and learn nothing of others."""
    directory = bench.node.directory
    await directory.robots.put("ci", None, ())
    narrowed, _ = await directory.secrets.add("user:admin", SecretKind.PERSONAL, SecretInput(actions=[Action.PULL]))
    grant = await directory.grants.add(GrantInput(subject="robot:ci", repository="team/**", actions=("push",)))
    callers = {
        "user:bob": bench.bearer("user:bob"),
        "robot:ci": bench.bearer("robot:ci"),
        "user:admin": bench.bearer("user:admin", narrowed.id),
    }
    question = {"repository": "team/app", "action": "push"}
    answers = {}
    for caller, headers in callers.items():
        for subject in ("user:admin", "user:bob", "robot:ci", "anonymous", "user:nobody"):
            status, answers[subject] = await bench.call("POST", "/explain", headers, {**question, "subject": subject})
            assert status == (200 if subject == caller else 403), (caller, subject)
        assert {answers[subject]["detail"] for subject in answers if subject != caller} == {"this is not yours to ask"}
    status, own = await bench.call("POST", "/explain", callers["robot:ci"], {**question, "subject": "robot:ci"})
    assert (own["allowed"], own["grant"]) == (True, grant.id)


async def test_questions_are_not_recorded_as_changes(bench: Bench) -> None:
    """A POST that changes nothing leaves no event; a change of the own account is no act of an administrator."""
    policy: dict[str, Any] = {"version": 1, "groups": {}, "grants": []}
    question = {"subject": "user:bob", "repository": "a", "action": "pull"}
    for path, body in (
        ("/explain", question),
        ("/policy/diff", policy),
        ("/policy/replay", {}),
        ("/audit/verify", {}),
    ):
        status, document = await bench.call("POST", path, basic(ADMIN), body)
        assert status == 200, document
    assert {event.action for event in bench.node.audit.events} <= {"login"}
    assert (await bench.call("POST", "/me/tokens", basic(BOB), {}))[0] == 201
    assert (await bench.call("PUT", "/groups/dev", basic(ADMIN), {}))[0] == 201
    changes = [(event.action, event.kind) for event in bench.node.audit.events if event.action != "login"]
    assert changes == [("me.tokens.post", AuditKind.ACCOUNT), ("groups.put", AuditKind.ACT)]
