"""ports.store.Store: one suite for SQLite and for a real Redis."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis.asyncio

from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.store import Change, Record, Table
from registry_proxy.store.changes import StoreWatch
from registry_proxy.store.open import open_store
from registry_proxy.store.redis import RedisStore
from registry_proxy.store.sqlite import SqliteStore
from tests.support.waiting import until

Opened = tuple[SqliteStore | RedisStore, StoreWatch]
Open = Callable[..., Awaitable[Opened]]
Store = SqliteStore | RedisStore


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return f"redis://127.0.0.1:{request.getfixturevalue('redis').port}/0"


@pytest.fixture
async def open_one(url: str, tmp_path: Path) -> AsyncIterator[Open]:
    """Return a function that opens the store again; ``node`` is the node whose page it shares."""
    async with AsyncExitStack() as stack:

        async def open_it(node: str = "node") -> Opened:
            return await stack.enter_async_context(open_store(url, str(tmp_path / f"{node}.page")))

        yield open_it


@pytest.fixture
async def store(open_one: Open) -> Store:
    """An empty store."""
    return (await open_one())[0]


async def test_gives_back_what_was_written(store: Store) -> None:
    """A record comes back as it was written, with any JSON in it; an absent record is None."""
    value = {"text": "a\u00fc\U0001f433 \x00'\"", "number": 2**53, "list": [1, None, True], "nested": {"a": {}}}
    revision = await store.commit([Change(Table.USERS, "ann", value)])
    assert await store.get(Table.USERS, "ann") == Record("ann", value, revision)
    assert await store.get(Table.USERS, "bob") is None
    assert await store.get(Table.GROUPS, "ann") is None


async def test_several_records_come_by_one_question(store: Store) -> None:
    """Records come in the order of the keys, also of different tables, with None for absent ones."""
    revision = await store.commit([Change(Table.USERS, "a", {"n": 1}), Change(Table.GROUPS, "a", {"n": 2})])
    keys = [(Table.GROUPS, "a"), (Table.USERS, "b"), (Table.USERS, "a")]
    assert await store.get_all(keys) == [Record("a", {"n": 2}, revision), None, Record("a", {"n": 1}, revision)]


async def test_lists_by_prefix_in_order(store: Store) -> None:
    """A list holds exactly the keys with the prefix, sorted, whatever their characters are."""
    keys = ["a", "a|b", "a|b/c", "a|bb", "a|\u00fc", "b", "B", "a|[x]*", "%", "_"]
    await store.commit([Change(Table.INTENTS, key, {"key": key}) for key in keys])
    for prefix in ["", "a", "a|", "a|b", "a|b/", "a|[", "%", "c", "a|\u00fc"]:
        found = await store.list(Table.INTENTS, prefix)
        assert [record.key for record in found] == sorted(key for key in keys if key.startswith(prefix))
        assert all(record.value == {"key": record.key} for record in found)


async def test_tells_the_heads_of_keys(store: Store) -> None:
    """The part of keys before the first ``|`` is listed once, also where one begins with another; keys are counted."""
    heads = ["a", "a-b", "a/b", "a}", "a~", "b", "main/team/app", "main/team/app-x", "\u00fc"]
    keys = [f"{head}|{rest}" for head in heads for rest in ("", "1", "2|3", "~", "\ufffd")]
    await store.commit([Change(Table.TAGS, key, {}) for key in keys])
    await store.commit([Change(Table.MANIFESTS, "c|1", {}), Change(Table.INTENTS, "d|1", {})])
    for prefix in ["", "a", "a|", "a/", "main/", "main/team/app", "main/team/app|", "c", "\u00fc"]:
        found = [key for key in keys if key.startswith(prefix)]
        names = await store.heads(Table.TAGS, prefix)
        assert sorted(names) == sorted({key.partition("|")[0] for key in found}), prefix
        assert len(names) == len(set(names))
        assert await store.count(Table.TAGS, prefix) == len(found), prefix
    assert await store.heads(Table.USERS) == []


async def test_lists_behind_a_key(store: Store) -> None:
    """The key itself is left out; one that lies before the prefix, or after it, changes nothing else."""
    keys = ["a", "a|1", "a|1\u0001", "a|2", "a|3", "b|1", "ä|1"]
    await store.commit([Change(Table.INTENTS, key, {}) for key in keys])

    async def found(prefix: str, after: str, limit: int | None = None) -> list[str]:
        return [record.key for record in await store.list(Table.INTENTS, prefix, after=after, limit=limit)]

    assert await found("", "a|1") == keys[2:]
    assert await found("a|", "a|1") == ["a|1\u0001", "a|2", "a|3"]
    assert await found("a|", "a|1", 1) == ["a|1\u0001"]
    assert await found("a|", "a") == await found("a|", "") == keys[1:5]
    assert await found("b", "a|3") == ["b|1"]
    assert await found("a|", "b") == await found("", "ä|1") == []


async def test_lists_many(store: Store) -> None:
    """A table of ten thousand records is listed whole."""
    await store.commit([Change(Table.MANIFESTS, f"r{number % 10}|{number:05}", {}) for number in range(10_000)])
    assert len(await store.list(Table.MANIFESTS)) == 10_000
    assert len(await store.list(Table.MANIFESTS, "r7|")) == 1000


async def test_deletes(store: Store) -> None:
    """A deleted record is absent from get and list; a second delete is no error."""
    await store.commit([Change(Table.USERS, "ann", {}), Change(Table.USERS, "bob", {})])
    await store.commit([Change(Table.USERS, "ann", None)])
    await store.commit([Change(Table.USERS, "ann", None)])
    assert await store.get(Table.USERS, "ann") is None
    assert [record.key for record in await store.list(Table.USERS)] == ["bob"]


async def test_revisions_rise(store: Store) -> None:
    """Each commit has a higher sequence number: the revision of all its records, also after deletes."""
    first = await store.commit([Change(Table.USERS, "ann", {}), Change(Table.GROUPS, "dev", {})])
    second = await store.commit([Change(Table.USERS, "ann", None)])
    third = await store.commit([Change(Table.USERS, "ann", {})])
    assert first < second < third
    ann, dev = await store.get(Table.USERS, "ann"), await store.get(Table.GROUPS, "dev")
    assert ann is not None
    assert dev is not None
    assert (ann.revision, dev.revision) == (third, first)


async def test_a_commit_is_all_or_nothing(store: Store) -> None:
    """When one precondition fails, nothing of the commit is done, wherever in it that precondition stands."""
    revision = await store.commit([Change(Table.USERS, "ann", {"v": 1})])
    versions = await store.versions()
    bad = Change(Table.USERS, "ann", {"v": 2}, expect=revision + 1)
    good = [Change(Table.GROUPS, "dev", {}), Change(Table.USERS, "ann", None), Change(Table.GRANTS, "1", {}, expect=0)]
    for changes in ([bad, *good], [*good, bad]):
        with pytest.raises(ConflictError):
            await store.commit(changes)
        assert await store.get(Table.USERS, "ann") == Record("ann", {"v": 1}, revision)
        assert await store.list(Table.GROUPS) == []
        assert await store.list(Table.GRANTS) == []
        assert await store.versions() == versions


async def test_expectations(store: Store) -> None:
    """``expect`` 0 holds only for an absent record, a number only for that revision, None always; for deletes too."""
    revision = await store.commit([Change(Table.USERS, "ann", {}, expect=0)])
    with pytest.raises(ConflictError):
        await store.commit([Change(Table.USERS, "ann", {}, expect=0)])
    with pytest.raises(ConflictError):
        await store.commit([Change(Table.USERS, "ann", None, expect=revision - 1)])
    with pytest.raises(ConflictError):
        await store.commit([Change(Table.USERS, "bob", None, expect=revision)])
    revision = await store.commit([Change(Table.USERS, "ann", {}, expect=revision)])
    await store.commit([Change(Table.USERS, "ann", None, expect=revision)])
    await store.commit([Change(Table.USERS, "ann", {}, expect=0)])


async def test_expectations_see_the_state_before_the_commit(store: Store) -> None:
    """Two changes of one record in one commit are both judged by the state before; the last one is stored."""
    await store.commit([Change(Table.USERS, "ann", {"v": 1}, expect=0), Change(Table.USERS, "ann", {"v": 2}, expect=0)])
    found = await store.get(Table.USERS, "ann")
    assert found is not None
    assert found.value == {"v": 2}


async def test_an_empty_commit_changes_nothing(store: Store) -> None:
    """An empty commit returns the current sequence number."""
    revision = await store.commit([Change(Table.USERS, "ann", {})])
    assert await store.commit([]) == revision
    assert max((await store.versions()).values()) == revision


async def test_versions_name_the_last_change_of_each_table(store: Store) -> None:
    """Versions change for the tables of a commit and for no others, also when it only deletes."""
    before = await store.versions()
    assert before.get(Table.USERS, 0) == 0
    first = await store.commit([Change(Table.USERS, "ann", {}), Change(Table.GRANTS, "1", {})])
    second = await store.commit([Change(Table.USERS, "ann", None)])
    after = await store.versions()
    assert (after[Table.USERS], after[Table.GRANTS], after.get(Table.GROUPS, 0)) == (second, first, 0)
    assert after[Table.META] == before[Table.META] > 0


async def test_the_schema_version_is_there_from_the_first_commit(store: Store) -> None:
    """A new store names its schema."""
    await store.commit([Change(Table.USERS, "ann", {})])
    found = await store.get(Table.META, "schema")
    assert found is not None
    assert found.value == {"version": 1}


async def test_a_value_that_is_no_json_is_refused_before_anything_is_written(store: Store) -> None:
    """An unserialisable value raises in the caller; the store stays usable and unchanged."""
    with pytest.raises(TypeError):
        await store.commit([Change(Table.USERS, "ann", {}), Change(Table.USERS, "bob", {"v": object()})])
    assert await store.list(Table.USERS) == []


async def test_two_stores_never_lose_an_update(open_one: Open) -> None:
    """Many tasks over two store objects that count by compare-and-set reach the exact number."""
    stores = [(await open_one())[0], (await open_one())[0]]
    await stores[0].commit([Change(Table.META, "counter", {"n": 0})])

    async def count(store: Store) -> None:
        for _ in range(5):
            while True:
                found = await store.get(Table.META, "counter")
                assert found is not None
                change = Change(Table.META, "counter", {"n": found.value["n"] + 1}, expect=found.revision)
                try:
                    await store.commit([change])
                except ConflictError:
                    continue
                break

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(count(stores[number % 2]))
    found = await stores[1].get(Table.META, "counter")
    assert found is not None
    assert found.value == {"n": 30}


async def test_set_if_absent_has_one_winner(open_one: Open) -> None:
    """Of many commits that expect a record to be absent exactly one succeeds."""
    stores = [(await open_one())[0] for _ in range(4)]
    changes = [[Change(Table.USERS, "admin", {"winner": number}, expect=0)] for number in range(12)]
    answers = await asyncio.gather(
        *(stores[number % 4].commit(change) for number, change in enumerate(changes)), return_exceptions=True
    )
    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert sum(isinstance(answer, ConflictError) for answer in answers) == 11


async def test_a_lease_is_exclusive(open_one: Open) -> None:
    """Of many holders over two store objects no two hold the lease at once, and all get their turn."""
    stores = [(await open_one())[0], (await open_one())[0]]
    inside, most, turns = 0, 0, 0

    async def hold(store: Store) -> None:
        nonlocal inside, most, turns
        async with store.lease("main/team/a:latest"):
            inside += 1
            most = max(most, inside)
            turns += 1
            await store.versions()
            inside -= 1

    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(hold(stores[number % 2]))
    assert (most, turns) == (1, 10)


async def test_leases_of_different_keys_do_not_wait(store: Store) -> None:
    """One task may hold any number of leases on different keys; an error inside releases them."""

    async def hold_many_and_fail() -> None:
        async with AsyncExitStack() as stack:
            for number in range(70):
                await stack.enter_async_context(store.lease(f"key {number}"))
            raise KeyError

    with pytest.raises(KeyError):
        await hold_many_and_fail()
    async with store.lease("key 7"):
        pass


async def test_a_cancelled_wait_or_holder_frees_the_lease(store: Store) -> None:
    """A task that is cancelled while it waits for a lease or holds it leaves the lease to the next."""
    held, go = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with store.lease("k"):
            held.set()
            await go.wait()

    async with asyncio.TaskGroup() as group:
        holder = group.create_task(hold())
        await held.wait()
        waiters = [group.create_task(hold()) for _ in range(3)]
        await store.versions()
        for task in [*waiters, holder]:
            task.cancel()
        await asyncio.wait([holder, *waiters])
    async with asyncio.timeout(30), store.lease("k"):
        pass


async def test_a_lease_waits_no_longer_than_its_patience(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that is not released in time raises an unavailable store, and does not hang."""
    for module in ("sqlite", "redis"):
        monkeypatch.setattr(f"registry_proxy.store.{module}.LEASE_PATIENCE_SECONDS", 0.2)
    async with store.lease("k"):
        with pytest.raises(StoreUnavailableError, match="lease on k"):
            async with store.lease("k"):
                pass


async def test_a_commit_is_known_to_the_node_at_once(open_one: Open) -> None:
    """When a commit has returned, every worker that shares the page sees another version; readers see the content."""
    (store, changes), (other_store, other_changes) = await open_one(), await open_one()
    for table in (Table.USERS, Table.TAGS):
        versions = [watch.version(table) for watch in (changes, other_changes)]
        await store.commit([Change(table, "x", {})])
        assert changes.version(table) != versions[0]
        assert other_changes.version(table) != versions[1]
        assert await other_store.get(table, "x") is not None
        same = changes.version(table)
        await store.commit([Change(Table.GROUPS, "y", {})])
        assert changes.version(table) == same


async def test_a_commit_is_known_to_other_nodes_within_two_seconds(open_one: Open) -> None:
    """Another node with a separate page notices the commit by polling, once."""
    (store, _), (_, far) = await open_one("one"), await open_one("two")
    before = far.version(Table.GRANTS)
    await store.commit([Change(Table.GRANTS, "1", {})])
    await until(lambda: far.version(Table.GRANTS) != before, timeout_seconds=2)
    seen = far.version(Table.GRANTS)
    await far.check()
    assert far.version(Table.GRANTS) == seen
    assert far.seconds_since_contact() < 5


async def test_content_survives_reopening(url: str, tmp_path: Path) -> None:
    """Committed records are there after the store was closed; versions continue."""
    async with open_store(url, str(tmp_path / "page")) as (store, _):
        first = await store.commit([Change(Table.USERS, "ann", {"v": 1})])
    async with open_store(url, str(tmp_path / "page")) as (store, _):
        assert await store.get(Table.USERS, "ann") == Record("ann", {"v": 1}, first)
        assert await store.commit([Change(Table.USERS, "ann", {})]) == first + 1


_COMMITTER = """
import asyncio, sys
from registry_proxy.ports.store import Change, Table
from registry_proxy.store.open import open_store

async def main():
    async with open_store(sys.argv[1], sys.argv[2]) as (store, _):
        for number in range(1_000_000):
            pair = [Change(Table.USERS, "n", {"n": number}), Change(Table.GROUPS, "n", {"n": number})]
            await store.commit(pair)
            print(number, flush=True)

asyncio.run(main())
"""


async def test_acknowledged_commits_survive_a_killed_process(url: str, tmp_path: Path) -> None:
    """After kill -9 of a committing process all acknowledged commits are there, and no half commit."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _COMMITTER, url, str(tmp_path / "page"), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    acknowledged = -1
    while acknowledged < 40:
        acknowledged = int(await process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    rest = (await process.stdout.read()).split()
    await process.wait()
    acknowledged = max([acknowledged, *(int(number) for number in rest if number.isdigit())])
    async with open_store(url, str(tmp_path / "page")) as (store, _):
        users, groups = await store.get(Table.USERS, "n"), await store.get(Table.GROUPS, "n")
        assert users is not None
        assert users == groups
        assert users.value["n"] >= acknowledged
        await store.commit([Change(Table.USERS, "n", None)])


async def test_a_newer_schema_is_refused(url: str, tmp_path: Path) -> None:
    """A store of a later release is refused in words, and left unchanged."""
    async with open_store(url, str(tmp_path / "page")) as (store, _):
        await store.commit([Change(Table.META, "schema", {"version": 2})])
    with pytest.raises(Exception, match="schema version 2, but this release knows versions up to 1"):
        async with open_store(url, str(tmp_path / "page")) as (store, _):
            await store.get(Table.USERS, "ann")


async def test_a_commit_may_depend_on_whole_tables(store: Store) -> None:
    """After any change in one of the tables nothing is written; other tables do not matter."""
    nothing = dict.fromkeys([Table.GROUPS, Table.GRANTS], 0)
    await store.commit([Change(Table.GROUPS, "a", {})], versions=nothing)
    for stale in (nothing, {Table.GROUPS: 7}, {Table.USERS: 1}):
        with pytest.raises(ConflictError, match="has version"):
            await store.commit([Change(Table.USERS, "ann", {}), Change(Table.GROUPS, "a", None)], versions=stale)
    assert await store.get(Table.USERS, "ann") is None
    versions = await store.versions()
    known = {table: versions.get(table, 0) for table in nothing}
    await store.commit([Change(Table.USERS, "ann", {})], versions=known)
    assert {table: (await store.versions()).get(table, 0) for table in nothing} == known
    await store.commit([Change(Table.GRANTS, "1", {})])
    with pytest.raises(ConflictError, match="grants has version"):
        await store.commit([Change(Table.USERS, "ann", None)], versions=known)
    assert await store.get(Table.USERS, "ann") is not None


async def test_tells_what_changed_since_a_version(open_one: Open) -> None:
    """The changes of a traced table are all writes and removals, and nothing else; None where they are unknown."""
    store, other = [(await open_one(node))[0] for node in ("node", "other")]
    await store.commit([Change(Table.INTENTS, key, {"n": 1}) for key in ("a", "b|\u00fc", "c")])
    version = (await store.versions())[Table.INTENTS]
    same = await store.changed_since(Table.INTENTS, version)
    assert same is not None
    assert (same.version, same.records) == (version, {})
    await other.commit([Change(Table.INTENTS, "a", {"n": 2}), Change(Table.USERS, "ann", {})])
    await store.commit([Change(Table.USERS, "ann", None)])
    last = await store.commit([Change(Table.INTENTS, "b|\u00fc", None), Change(Table.INTENTS, "a", {"n": 3})])
    for asked in (store, other):
        changed = await asked.changed_since(Table.INTENTS, version)
        assert changed is not None
        assert (changed.version, changed.records) == (last, {"a": Record("a", {"n": 3}, last), "b|\u00fc": None})
    assert await store.changed_since(Table.INTENTS, last + 1) is None


async def test_a_gap_in_what_changed_is_noticed(url: str, open_one: Open) -> None:
    """After a commit of a release without traces the changes are unknown, until a later version."""
    store, _ = await open_one()
    await store.commit([Change(Table.INTENTS, "a", {})])
    version = (await store.versions())[Table.INTENTS]
    await store.commit([Change(Table.INTENTS, "b", {})])
    if isinstance(store, SqliteStore):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute("DELETE FROM trace WHERE revision > ?", (version,))
    else:
        async with redis.asyncio.Redis.from_url(url) as client:
            await client.zremrangebyscore("registry-proxy:trace:intents", version + 1, "+inf")
    assert await store.changed_since(Table.INTENTS, version) is None
    known = (await store.versions())[Table.INTENTS]
    await store.commit([Change(Table.INTENTS, "c", {})])
    assert await store.changed_since(Table.INTENTS, version) is None
    changed = await store.changed_since(Table.INTENTS, known)
    assert changed is not None
    assert changed.records.keys() == {"c"}
