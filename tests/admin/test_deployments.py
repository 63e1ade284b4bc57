"""Deployments of the admin API: the right to report, the visible ones, and the tag in the meantime."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_aiohttp import AiohttpClient

from registry_proxy.access.grant import GrantInput, make_grant
from registry_proxy.access.logins import LoginResult
from registry_proxy.access.policy import Policy
from registry_proxy.access.secrets import SecretKind
from registry_proxy.admin.deployments import DeploymentBody, _may_report
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.ports.history import Move, MoveKind, moves_prefix, stored_move
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Digest, Repository, digest_of
from registry_proxy.protocol.scope import Action
from tests.support.admin_bench import Contract, Node, admin_node, contract_of

REPOSITORY = "team/app"
ROUTED = RoutedRepository("main", Repository(REPOSITORY))


@dataclass
class Bench:
    """A running admin listener, with an image in a repository."""

    node: Node
    http: Any
    contract: Contract
    digest: Digest

    async def grant(self, subject: str, *actions: str, repository: str = "team/**", tags: str = "*") -> None:
        """Grant a right."""
        given = GrantInput(subject=subject, repository=repository, actions=actions, tags=tags)
        await self.node.directory.grants.add(given)

    async def call(self, method: str, query: str, caller: str, body: Any = None, secret: str | None = None) -> Any:
        """Send a request; return status and document, as the OpenAPI document has them."""
        token = self.node.signer.issue(caller, 0, (), time.time(), secret_id=secret).token
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        path = "/admin/v1/deployments"
        async with self.http.request(method, path + query, headers=headers, json=body) as response:
            document = await response.json(content_type=None)
            self.contract.check(method, path, response.status, response.content_type, document)
            return response.status, document

    async def report(self, caller: str = "user:admin", secret: str | None = None, **fields: Any) -> Any:
        """Report a deployment."""
        body = {"environment": "production", "repository": REPOSITORY, "digest": str(self.digest), **fields}
        return await self.call("POST", "", caller, body, secret)

    async def listed(self, caller: str = "user:admin", query: str = "", secret: str | None = None) -> Any:
        """Return the list as a caller sees it."""
        status, document = await self.call("GET", query, caller, secret=secret)
        assert status == 200
        return document["items"]


@pytest.fixture
async def bench(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[Bench]:
    """Start an admin listener with the robot ci, and the users admin and bob."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        await node.directory.robots.put("ci", None, ())
        body = b'{"schemaVersion": 2, "config": {"mediaType": "a/b", "digest": "sha256:%s", "size": 9}, "layers": []}'
        digest = node.reader.add_manifest(REPOSITORY, body % (b"0" * 64))
        yield Bench(node, http, await contract_of(node, http), digest)


async def test_a_report_is_answered_and_listed(bench: Bench) -> None:
    """A reported deployment is listed with its id; without a tag the entry has no state of a tag."""
    status, made = await bench.report(at="2023-01-31T08:00:00Z", outcome="succeeded")
    assert status == 201
    assert {name: made[name] for name in ("environment", "repository", "digest", "outcome", "runs", "at")} == {
        "environment": "production",
        "repository": REPOSITORY,
        "digest": str(bench.digest),
        "outcome": "succeeded",
        "runs": True,
        "at": "2023-01-31T08:00:00Z",
    }
    assert (made["subject"], made["behind"]) == ("user:admin", None)
    assert await bench.listed() == [made]
    assert await bench.listed(query="?environment=staging") == []
    assert await bench.listed(query="?repository=team/other") == []
    assert (await bench.call("GET", "?history=perhaps", "user:admin"))[0] == 400
    assert (await bench.report(digest=str(digest_of(b"absent"))))[0] == 404
    assert (await bench.report(environment="no name!"))[0] == 400
    bench.node.reader.is_down = True
    assert (await bench.report(digest=str(digest_of(b"absent"))))[0] == 503


async def test_a_later_failure_is_listed_beside_what_runs(bench: Bench) -> None:
    """Both are listed by default; ``history`` adds all receipts."""
    body = b'{"schemaVersion": 2, "config": {"mediaType": "a/b", "digest": "sha256:%s", "size": 8}, "layers": []}'
    other = bench.node.reader.add_manifest(REPOSITORY, body % (b"1" * 64))
    await bench.report(digest=str(other), at=1e9)
    await bench.report(at=2e9 - 1e9 + 1)
    await bench.report(digest=str(other), at=1e9 + 2, outcome="failed")
    shown = await bench.listed()
    assert [(each["digest"], each["outcome"], each["runs"]) for each in shown] == [
        (str(other), "failed", False),
        (str(bench.digest), "succeeded", True),
    ]
    assert len(await bench.listed(query="?history=true")) == 3
    assert len(await bench.listed(query="?history=true&repository=team/app&environment=production")) == 3


async def test_the_moves_of_the_tag_since_are_counted(bench: Bench) -> None:
    """The history of the tag gives the number without a request to a registry; a tag that is back is not behind."""
    prefix, digests = moves_prefix(ROUTED, "1.2"), [str(digest_of(content)) for content in (b"old", b"new", b"newer")]

    async def move(number: int, digest: str) -> None:
        await bench.node.store.commit([stored_move(prefix, Move(kind=MoveKind.PUSH, digest=digest), number)])

    assert (await bench.report(tag="1.2"))[1]["behind"] is None
    await move(1, digests[0])
    await move(2, str(bench.digest))
    assert (await bench.report(tag="1.2"))[1]["behind"] == 0
    await move(3, digests[1])
    await move(4, digests[2])
    assert [each["behind"] for each in await bench.listed()] == [2]
    await move(5, str(bench.digest))
    assert [each["behind"] for each in await bench.listed()] == [0]
    for number in range(6, 200):
        await move(number, digests[number % 2])
    assert [each["behind"] for each in await bench.listed()] == [100]


async def test_robots_that_may_pull_report_and_users_need_push(bench: Bench) -> None:
    """Without a right it is 403 for existing and absent images; everyone's right to pull is not enough."""
    absent = str(digest_of(b"absent"))
    for caller in ("user:bob", "robot:ci"):
        assert (await bench.report(caller))[0] == 403
        assert (await bench.report(caller, digest=absent))[0] == 403
    await bench.grant("anonymous", "pull")
    assert (await bench.report("robot:ci"))[0] == 403
    await bench.grant("robot:ci", "pull")
    await bench.grant("user:bob", "pull")
    assert (await bench.report("robot:ci"))[0] == 201
    assert (await bench.report("user:bob"))[0] == 403
    await bench.grant("user:bob", "create")
    assert (await bench.report("user:bob"))[0] == 201


async def test_a_repository_without_the_right_to_pull_shows_nowhere(bench: Bench) -> None:
    """Neither the repository nor a hidden tag shows; a narrowed secret sees and reports less."""
    await bench.report(tag="secret-feature")
    assert await bench.listed("user:bob") == []
    await bench.grant("user:bob", "pull", "push", tags="v*")
    (seen,) = await bench.listed("user:bob")
    assert (seen["digest"], seen["tag"], seen["behind"]) == (str(bench.digest), "", None)
    assert (await bench.report("user:bob", tag="secret-feature"))[0] == 403
    narrow = SecretInput(actions=(Action.PULL,))
    secret, _ = await bench.node.directory.secrets.add("user:bob", SecretKind.PERSONAL, narrow)
    assert len(await bench.listed("user:bob", secret=secret.id)) == 1
    assert (await bench.report("user:bob", secret=secret.id))[0] == 403


@pytest.mark.parametrize(("subject", "may"), [("group:deployers", True), ("anonymous", False), ("group:others", False)])
def test_a_job_with_an_id_token_reports_by_a_grant_to_its_group(subject: str, *, may: bool) -> None:
    """A job needs no push, as a robot needs none; everyone's right to pull is not enough."""
    grant = make_grant(GrantInput(subject=subject, repository="team/**", actions=("pull",)), "1")
    policy = Policy([], [], [grant], {}, oidc_groups={"ci/main": ["deployers"]})
    report = DeploymentBody(environment="production", repository=REPOSITORY, digest="sha256:0")
    assert _may_report(policy, LoginResult("oidc:ci/main/x"), report) is may
    assert not _may_report(policy, LoginResult("oidc:ci/main/x", may_manage=False), report)
