"""The policy as one document: read, compared and replaced, whole or not at all."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import encode_basic_auth
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from pytest_aiohttp import AiohttpClient

from registry_proxy.access.grant import GrantInput
from registry_proxy.directory.users import UserInput
from registry_proxy.ports.events import AuditEvent
from tests.support.admin_bench import ADMIN, Contract, Node, admin_node, contract_of

DEV = {"subject": "group:dev", "repository": "team/**", "tags": "*", "actions": ["pull", "push"], "mode": "enforce"}
GRANT = {**DEV, "expires_at": None}
HOME = {**GRANT, "subject": "anonymous", "repository": "home/{subject}/**", "expires_at": "2100-01-01T00:00:00Z"}
POLICY = {"version": 1, "groups": {"dev": ["bob", "carl"], "empty": []}, "grants": [HOME, GRANT]}
NOTHING: dict[str, Any] = {
    "groups_added": {},
    "groups_removed": {},
    "groups_changed": {},
    "grants_added": [],
    "grants_removed": [],
    "subscriptions_added": {},
    "subscriptions_removed": {},
    "subscriptions_changed": {},
    "rules_added": {},
    "rules_removed": {},
    "rules_changed": {},
}


class Policy:
    """An admin listener and calls to it."""

    def __init__(self, node: Node, http: TestClient[Request, Application], contract: Contract) -> None:
        self.node = node
        self._http = http
        self._contract = contract

    async def call(
        self, method: str, path: str = "/policy", body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, str]:
        """Send a request as the administrator; return status, document and ETag."""
        sent = {"Authorization": encode_basic_auth(*ADMIN), "Content-Type": "application/json", **(headers or {})}
        content = None if body is None else io.BytesIO(json.dumps(body).encode())
        async with self._http.request(method, f"/admin/v1{path}", data=content, headers=sent) as response:
            document = await response.json()
            self._contract.check(method, f"/admin/v1{path}", response.status, response.content_type, document)
            return response.status, document, response.headers.get("ETag", "")

    def audited(self) -> list[AuditEvent]:
        """Return the policy changes in the audit log."""
        return [event for event in self.node.audit.events if event.action == "policy.put"]

    async def stored(self) -> Any:
        """Return the policy as GET shows it."""
        return (await self.call("GET"))[1]


@pytest.fixture
async def policy(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[Policy]:
    """Start an admin listener with the users admin, bob, carl and dora, and no policy."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        for name in ("carl", "dora"):
            await node.directory.users.put(name, UserInput(password="long enough"))
        yield Policy(node, http, await contract_of(node, http))


async def test_a_policy_is_replaced_and_not_appended_to(policy: Policy) -> None:
    """Members, groups and grants that the document does not name are removed, in force with the answer."""
    status, changes, _ = await policy.call("PUT", body=POLICY)
    assert (status, changes["grants_added"]) == (200, [HOME, GRANT])
    assert changes["groups_added"] == POLICY["groups"]
    assert await policy.stored() == POLICY
    after = {**POLICY, "groups": {"dev": ["dora", "user:bob"]}, "grants": [{**GRANT, "actions": ["pull"]}]}
    _, changes, _ = await policy.call("PUT", body=after)
    assert changes["groups_changed"] == {"dev": {"added": ["dora"], "removed": ["carl"]}}
    assert changes["groups_removed"] == {"empty": []}
    assert [grant["actions"] for grant in changes["grants_added"]] == [["pull"]]
    assert sorted(grant["repository"] for grant in changes["grants_removed"]) == ["home/{subject}/**", "team/**"]
    assert await policy.stored() == {**after, "groups": {"dev": ["bob", "dora"]}}
    assert (await policy.node.directory.users.get("carl")).groups == ()
    question = {"repository": "team/app", "action": "pull"}
    for name, allowed in (("bob", True), ("dora", True), ("carl", False)):
        _, answer, _ = await policy.call("POST", "/explain", {**question, "subject": f"user:{name}"})
        assert answer["allowed"] == allowed, name


async def test_the_same_policy_again_changes_nothing(policy: Policy) -> None:
    """The policy as read, or in another order or with repetitions, changes neither a grant's id nor a revision."""
    await policy.node.directory.grants.add(
        GrantInput(subject="user:bob", repository="a", actions=("pull",), expires_at=4e9 + 1 / 3)
    )
    await policy.node.directory.groups.put("dev", ["bob"])
    _, before, etag = await policy.call("GET")
    ids = [grant.id for grant in await policy.node.directory.grants.list()]
    shuffled = {"grants": [*before["grants"], *before["grants"]], "groups": {"dev": ["user:bob", "bob"]}, "version": 1}
    for body in (before, shuffled):
        assert await policy.call("POST", "/policy/diff", body) == (200, NOTHING, "")
        assert await policy.call("PUT", body=body) == (200, NOTHING, etag)
    assert await policy.call("GET") == (200, before, etag)
    assert [grant.id for grant in await policy.node.directory.grants.list()] == ids


async def test_a_grant_that_stays_keeps_its_id(policy: Policy) -> None:
    """Grants are compared by their content: only new ones are created."""
    await policy.call("PUT", body=POLICY)
    ids = {grant.repository: grant.id for grant in await policy.node.directory.grants.list()}
    _, changes, _ = await policy.call("PUT", body={**POLICY, "grants": [GRANT, {**GRANT, "repository": "b"}]})
    assert [grant["id"] for grant in changes["grants_removed"]] == [ids["home/{subject}/**"]]
    assert ids["team/**"] in {grant.id for grant in await policy.node.directory.grants.list()}


async def test_a_diff_tells_and_changes_nothing(policy: Policy) -> None:
    """A diff lists the changes that a PUT would make; it changes nothing and leaves no event in the audit log."""
    _, preview, _ = await policy.call("POST", "/policy/diff", POLICY)
    assert await policy.stored() == {"version": 1, "groups": {}, "grants": []}
    assert policy.audited() == []
    _, done, _ = await policy.call("PUT", body=POLICY)
    assert done == preview


BAD: list[tuple[dict[str, Any], set[str]]] = [
    ({"groups": {"dev": ["ghost", "bob", "robot:ci"]}}, {"#/groups/dev/0", "#/groups/dev/2"}),
    ({"groups": {"a/b": [], "oidc": []}}, {"#/groups"}),
    ({"groups": {"dev": "bob"}}, {"#/groups/dev"}),
    ({"groups": None}, {"#/groups"}),
    (
        {"grants": [GRANT, {**GRANT, "repository": "Team/**", "actions": []}]},
        {"#/grants/1/repository", "#/grants/1/actions"},
    ),
    ({"grants": [{**GRANT, "subject": "ann", "mode": "maybe"}]}, {"#/grants/0/subject", "#/grants/0/mode"}),
    ({"grants": [{**GRANT, "id": "1"}]}, {"#/grants/0/id"}),
    ({"grants": [{**GRANT, "expires_at": "soon"}]}, {"#/grants/0/expires_at"}),
    ({"version": 2}, {"#/version"}),
    ({"version": ...}, {"#/version"}),
    ({"groups": ...}, {"#/groups"}),
    ({"grants": ...}, {"#/grants"}),
    ({"users": {}}, {"#/users"}),
]


@pytest.mark.parametrize(("changes", "pointers"), BAD, ids=range(len(BAD)))
async def test_an_invalid_policy_changes_nothing(policy: Policy, changes: dict[str, Any], pointers: set[str]) -> None:
    """Every fault is reported with its place, and the policy stays as it was to the last group."""
    await policy.call("PUT", body=POLICY)
    before = await policy.call("GET")
    body = {name: part for name, part in {**POLICY, "groups": {}, **changes}.items() if part is not ...}
    for method, path in (("PUT", "/policy"), ("POST", "/policy/diff")):
        status, problem, _ = await policy.call(method, path, body)
        assert status == 400, problem
        assert {fault["pointer"] for fault in problem["errors"]} == pointers
    assert await policy.call("GET") == before


async def test_if_match_guards_the_whole_policy(policy: Policy) -> None:
    """An ETag from before any change of a group or grant gives 412; the current one succeeds."""
    etags = [(await policy.call("PUT", body=POLICY))[2]]
    await policy.node.directory.groups.put("ops", ["bob"])
    etags.append((await policy.call("GET"))[2])
    grant = await policy.node.directory.grants.add(GrantInput(subject="anonymous", repository="a", actions=("pull",)))
    etags.append((await policy.call("GET"))[2])
    await policy.node.directory.grants.delete(grant.id)
    assert len(set(etags)) == 3
    for etag in etags:
        assert (await policy.call("PUT", body=POLICY, headers={"If-Match": etag}))[0] == 412
    _, _, etag = await policy.call("GET")
    assert (await policy.call("PUT", body=POLICY, headers={"If-Match": etag}))[0] == 200


async def test_two_at_once_leave_one_of_them_whole(policy: Policy) -> None:
    """Of two policies that are put at the same time one is there in the end, never a mixture."""
    policies = [
        {
            "version": 1,
            "groups": {f"g{n}": ["bob"], "all": ["bob", "carl"][: n % 3]},
            "grants": [{**GRANT, "tags": f"{n}"}],
        }
        for n in range(6)
    ]
    answers = await asyncio.gather(*(policy.call("PUT", body=body) for body in policies))
    assert {status for status, *_ in answers} == {200}
    assert await policy.stored() in policies
    groups = (await policy.stored())["groups"]
    of_bob = tuple(sorted(name for name, members in groups.items() if "bob" in members))
    assert (await policy.node.directory.users.get("bob")).groups == of_bob


async def test_the_audit_log_tells_what_changed(policy: Policy) -> None:
    """The event holds the user and the difference."""
    await policy.call("PUT", body=POLICY)
    many = [{**GRANT, "repository": f"r{number}"} for number in range(200)]
    await policy.call("PUT", body={**POLICY, "grants": many})
    short, long = policy.audited()
    assert (short.outcome, short.subject) == ("ok", "user:admin")
    assert short.detail["asked"]["groups_added"] == POLICY["groups"]
    assert {name: len(part) for name, part in long.detail["asked"].items()} == {
        "grants_added": 200,
        "grants_removed": 2,
    }


async def test_ten_thousand_grants_are_put_at_once(policy: Policy) -> None:
    """A policy of the promised size fits into one body; one beyond all bounds is refused whole."""
    many = [{**GRANT, "repository": f"team{number}/**", "subject": f"user:u{number}"} for number in range(10_000)]
    assert (await policy.call("PUT", body={**POLICY, "grants": many}))[0] == 200
    assert len((await policy.stored())["grants"]) == 10_000
    assert (await policy.call("PUT", body={**POLICY, "groups": {"dev": ["x" * 9_000_000]}}))[0] == 413


async def test_a_replay_knows_groups_that_have_other_members(policy: Policy, tmp_path: Path) -> None:
    """Recent questions are replayed with the members of the proposed policy, not with those of today."""
    await policy.call("PUT", body=POLICY)
    asked = [["2030-01-01T00:00:00Z", f"user:{name}", "team/app", "pull", "", 3] for name in ("bob", "carl", "dora")]
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "decisions-0.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in asked))
    status, report, _ = await policy.call("POST", "/policy/replay", {"groups": {"dev": ["user:bob", "dora"]}})
    assert (status, report["subjects_newly_denied"], report["subjects_newly_allowed"]) == (
        200,
        ["user:carl"],
        ["user:dora"],
    )
