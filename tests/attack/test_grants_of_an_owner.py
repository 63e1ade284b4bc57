"""Grants cost each request below them and each worker: a namespace's owner may make a bounded number of them."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from pytest_aiohttp import AiohttpClient

from registry_proxy.access.grant import Grant, GrantInput, grant_of, make_grant
from registry_proxy.access.turns import Caller
from registry_proxy.admission.owners_turns import OwnersTurns
from registry_proxy.directory.users import UserInput
from registry_proxy.ports.store import Change, Record, Table
from tests.support.admin_bench import Node, admin_node
from tests.support.waiting import until

OWNERS_MAX = 1000


class Bench:
    """An admin listener with ann, the owner of team/**, and each user, the owner of home/NAME/**."""

    def __init__(self, node: Node, http: TestClient[Request, Application]) -> None:
        self.node = node
        self._http = http

    async def call(self, method: str, path: str, body: Any = None, *, caller: str = "user:ann") -> tuple[int, Any]:
        """Send a request with a token of the caller; return status and document."""
        token = self.node.signer.issue(caller, 0, (), time.time()).token
        headers = {"Authorization": f"Bearer {token}"}
        async with self._http.request(method, f"/admin/v1{path}", json=body, headers=headers) as response:
            return response.status, None if response.status == 204 else await response.json()

    async def give(self, tags: str, *, repository: str = "team/app", caller: str = "user:ann") -> tuple[int, Any]:
        """Grant everybody the right to pull some tags."""
        body = {"subject": "anonymous", "repository": repository, "tags": tags, "actions": ["pull"]}
        return await self.call("POST", "/grants", body, caller=caller)

    async def fill(self, count: int) -> None:
        """Store a number of grants in team/app, all at once."""
        given = [
            GrantInput(subject="anonymous", repository="team/app", tags=f"x{i}*", actions=["pull"])
            for i in range(count)
        ]
        grants = [make_grant(each, f"{number:016x}") for number, each in enumerate(given)]
        await self.node.store.commit([Change(Table.GRANTS, grant.id, grant.stored()) for grant in grants])


@pytest.fixture
async def bench(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[Bench]:
    """Start an admin listener with the users admin, ann and bob."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        await node.directory.users.put("ann", UserInput(password="the password of ann"))
        for subject, pattern in (("user:ann", "team/**"), ("anonymous", "home/{subject}/**")):
            await node.directory.grants.add(GrantInput(subject=subject, repository=pattern, actions=["manage"]))
        yield Bench(node, http)


async def test_an_owner_gives_no_more_than_the_bound(bench: Bench) -> None:
    """Beyond the bound the refusal says to remove a grant first; an existing grant can still be repeated."""
    await bench.fill(OWNERS_MAX - 2)  # her own right to manage is one as well
    status, last = await bench.give("last")
    assert status == 201
    status, problem = await bench.give("more")
    assert (status, "1000 grants in home/ann/** or team/**" in problem["detail"]) == (409, True)
    assert (await bench.give("last"))[0] == 201  # an equal grant: no second one is made
    assert (await bench.call("DELETE", f"/grants/{last['id']}"))[0] == 204
    assert (await bench.give("more"))[0] == 201


async def test_the_bound_of_an_owner_is_nobody_elses(bench: Bench) -> None:
    """Administrators, and owners of other namespaces, give grants beside a full namespace."""
    await bench.fill(OWNERS_MAX)
    assert (await bench.give("more"))[0] == 409
    assert (await bench.give("more", caller="user:admin"))[0] == 201
    assert (await bench.give("more", repository="home/bob/app", caller="user:bob"))[0] == 201


async def test_a_list_for_an_owner_makes_nothing_of_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list for an owner builds no grants of others: fifty thousand of them would stop the worker's other requests."""
    await bench.fill(50)
    assert (await bench.give("mine", repository="home/bob/app", caller="user:bob"))[0] == 201
    made: list[str] = []

    def counted(record: Record) -> Grant:
        made.append(record.value["repository"])
        return grant_of(record)

    monkeypatch.setattr("registry_proxy.directory.grants.grant_of", counted)
    _, listed = await bench.call("GET", "/grants", caller="user:bob")
    assert [each["repository"] for each in listed["items"]] == made == ["home/bob/app"]


async def test_owners_who_toggle_grants_take_turns(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner with many changes delays another owner by at most one of them, and an administrator by none."""
    done: list[str] = []

    async def give(caller: str, repository: str, tags: str) -> int:
        status, _ = await bench.give(tags, repository=repository, caller=caller)
        done.append(caller)
        return status

    is_free = asyncio.Event()

    async def wait(turns: OwnersTurns) -> None:
        await is_free.wait()
        turns._turns.end()

    monkeypatch.setattr(OwnersTurns, "_end", wait)
    assert await give("user:ann", "team/app", "first") == 201
    async with asyncio.TaskGroup() as group:
        many = [group.create_task(give("user:ann", "team/app", f"v{number}")) for number in range(20)]
        await until(lambda: sum(task.done() for task in many) == 4)
        other = group.create_task(give("user:bob", "home/bob/app", "v1"))
        await until(lambda: sum(task.done() for task in many) == 5)
        assert await give("user:admin", "team/app", "admin") == 201
        assert not other.done()
        is_free.set()
    assert [task.result() for task in many].count(429) == 5
    assert other.result() == 201
    assert done.index("user:bob") - done.index("user:admin") <= 2


async def test_the_next_change_of_an_owner_waits_three_times_as_long_as_the_policy_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most a quarter of the time goes into policies, however many changes an owner sends."""
    now, pauses = 100.0, list[float]()

    class Control:
        async def policy(self) -> None:
            nonlocal now
            now += 2.0

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    turns = OwnersTurns(cast("Any", Control()), clock=lambda: now)
    await turns._turns.begin(Caller("user:ann", is_known=False))
    await turns._end()
    assert pauses == [6.0]
    await turns._turns.begin(Caller("user:bob", is_known=False))
