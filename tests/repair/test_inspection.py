"""Replicas whose storage has changed, in memory: proofs, missing proofs, and consequences."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.replicas import ReplicaSet
from registry_proxy.ports.store import Change, Table
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import RESERVED_PREFIX, Digest, Repository, Tag
from registry_proxy.repair.inspection import SENTINELS, Inspection, sentinel_tag
from registry_proxy.repair.tag_findings import TagFindings
from registry_proxy.replication.roster import sentinel_key
from tests.support.fakes.images import Parts, image
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, MemoryReplica

LATEST = Tag("latest")
SENTINEL_TAG = sentinel_tag("main")


async def push(setting: Bench, content: bytes, *tags: str) -> Parts:
    """Push a whole image under its tags."""
    parts = image(content)
    for blob in parts.blobs:
        await setting.under_test.upload(blob)
    for tag in tags:
        await setting.under_test.put(tag, parts.manifest, parts.media_type)
    return parts


def state_of(replica: MemoryReplica) -> dict[str, Any]:
    """Return a copy of everything that a replica stores."""
    return {name: copy.copy(getattr(replica, name)) for name in ("tags", "manifests", "blobs")}


def put_back(replica: MemoryReplica, state: dict[str, Any]) -> None:
    """Give a replica another storage."""
    for name, value in state.items():
        setattr(replica, name, value)


@pytest.fixture
async def inspection(setting: Bench) -> Inspection:
    """Return an inspection of both replicas, which are on the roster and have sentinels."""
    store, journal = setting.under_test.store, setting.under_test.journal
    await journal.roster.note()
    made = Inspection(store=store, journal=journal, recorded=["main"])
    await made.leave_sentinels(setting.replicas)
    return made


async def doubts(setting: Bench, inspection: Inspection) -> dict[str, str]:
    """Inspect both replicas at their return; return the doubted ones with the reasons."""
    for client in (setting.a, setting.b):
        await inspection.inspect(setting.replicas, client, is_returning=True)
    marks = await setting.under_test.journal.current.marks()
    return {name: why for name in "ab" if (why := marks.why_new(name, "main"))}


async def test_a_replica_that_holds_what_it_confirmed_is_not_doubted(setting: Bench, inspection: Inspection) -> None:
    """A replica that lost an untagged manifest to its garbage collection, or misses a write, is not doubted either."""
    old = await push(setting, b"1", LATEST)
    await push(setting, b"2", LATEST)
    del setting.b.manifests[REPOSITORY, old.digest]
    setting.replicas.down.add("a")
    await push(setting, b"3", LATEST, "new")
    setting.replicas.down.clear()
    assert await doubts(setting, inspection) == {}


async def test_an_older_state_is_known_by_a_late_write(setting: Bench, inspection: Inspection) -> None:
    """It gives no tags, its 404 proves nothing, and later deletes count as deleted there; it is counted once."""
    gone = await push(setting, b"1", LATEST, "gone")
    before = state_of(setting.b)
    await setting.under_test.manage.delete_manifest(ROUTED, gone.digest)
    await push(setting, b"2", LATEST)
    put_back(setting.b, before)
    found = await doubts(setting, inspection)
    assert list(found) == ["b"]
    assert "older state" in found["b"]
    marks = await setting.under_test.journal.current.marks()
    assert marks.misses_tag("b", ROUTED, LATEST)
    assert marks.misses_any("b", ROUTED)
    assert marks.has_tombstone("b", ROUTED, gone.digest)
    assert not marks.has_tombstone("a", ROUTED, gone.digest)


async def test_an_emptied_storage_is_distinct_from_an_older_one(setting: Bench, inspection: Inspection) -> None:
    """Without a repository it was wiped. The last replica stays on the roster: nothing else could replace it."""
    await push(setting, b"1", LATEST)
    for replica in (setting.a, setting.b):
        put_back(replica, {"tags": {}, "manifests": {}, "blobs": {}})
    found = await doubts(setting, inspection)
    assert list(found) == ["a"]
    assert "empty" in found["a"]


@pytest.mark.parametrize("unheard", ["sentinel", "witness"])
async def test_a_question_without_an_answer_hides_nothing_else(
    setting: Bench, inspection: Inspection, monkeypatch: pytest.MonkeyPatch, unheard: str
) -> None:
    """An older state is detected even if it refuses us the sentinels' repository, or fails with the newest witness."""
    await push(setting, b"1", LATEST)
    before = state_of(setting.b)
    await push(setting, b"2", LATEST)
    poisoned = await push(setting, b"3", "poisoned")
    put_back(setting.b, before)
    setting.b.tags[REPOSITORY, "poisoned"] = poisoned.digest
    setting.b.manifests[REPOSITORY, poisoned.digest] = setting.a.manifests[REPOSITORY, poisoned.digest]
    resolve_tag = setting.b.resolve_tag

    async def resolve_some(repository: Repository, tag: Tag) -> Descriptor:
        if repository == SENTINELS and unheard == "sentinel":
            raise RegistryError(ErrorCode.UNAVAILABLE, "no access", status=502)
        if tag == "poisoned" and unheard == "witness":
            raise UpstreamUnavailableError("it answers 500")
        return await resolve_tag(repository, tag)

    monkeypatch.setattr(setting.b, "resolve_tag", resolve_some)
    assert list(await doubts(setting, inspection)) == ["b"]


async def test_a_sentinel_that_somebody_deleted_is_left_again(setting: Bench, inspection: Inspection) -> None:
    """A replica with everything that it confirmed and no sentinel gets a new sentinel, and is not doubted."""
    await push(setting, b"1", LATEST)
    del setting.a.tags[SENTINELS, SENTINEL_TAG]
    assert await doubts(setting, inspection) == {}
    assert await setting.under_test.store.get(Table.META, sentinel_key("main", "a")) is None


async def test_a_foreign_registry_is_doubted(setting: Bench, inspection: Inspection) -> None:
    """A registry with a sentinel from nobody here is doubted."""
    app = await push(setting, b"1", LATEST)
    setting.b.manifests[SENTINELS, app.digest] = setting.b.manifests[REPOSITORY, app.digest]
    setting.b.tags[SENTINELS, SENTINEL_TAG] = app.digest
    assert "another registry" in (await doubts(setting, inspection))["b"]


async def test_a_registry_may_be_a_replica_of_two_upstreams(setting: Bench, inspection: Inspection) -> None:
    """The sentinel of another upstream at the same registry proves nothing."""
    app = await push(setting, b"1", LATEST)
    setting.b.manifests[SENTINELS, app.digest] = setting.b.manifests[REPOSITORY, app.digest]
    setting.b.tags[SENTINELS, sentinel_tag("other")] = app.digest
    assert await doubts(setting, inspection) == {}


async def test_exchanged_registries_both_miss_what_one_misses(setting: Bench, inspection: Inspection) -> None:
    """Exchanged registries stay on the roster under each other's names, and both miss the write that one missed."""
    await push(setting, b"1", LATEST)
    setting.replicas.down.add("b")
    await push(setting, b"2", LATEST)
    setting.replicas.down.clear()
    first, second = state_of(setting.a), state_of(setting.b)
    put_back(setting.a, second)
    put_back(setting.b, first)
    for _ in range(2):
        assert await doubts(setting, inspection) == {}
    intent = await setting.under_test.journal.find(IntentKey(ROUTED, IntentKind.TAG, LATEST))
    assert intent is not None
    assert intent.missing == ("a", "b")


async def test_an_exchange_that_two_processes_notice_is_made_once(
    setting: Bench, inspection: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica that was not compared yet stays the same under its new name, and the other is not doubted."""
    store, journal = setting.under_test.store, setting.under_test.journal
    await store.commit([Change(Table.META, "members/main", {"names": ["a"]})])
    first, second = state_of(setting.a), state_of(setting.b)
    put_back(setting.a, second)
    put_back(setting.b, first)
    late = Inspection(store=store, journal=journal, recorded=["main"])
    read = late._sentinels
    before = await read(setting.replicas)

    async def read_before(replica_set: ReplicaSet) -> Mapping[str, Digest]:
        monkeypatch.undo()
        await inspection.inspect(replica_set, setting.a, is_returning=True)
        return before

    monkeypatch.setattr(late, "_sentinels", read_before)
    await late.inspect(setting.replicas, setting.a, is_returning=True)
    marks = await journal.current.marks()
    assert [name for name in "ab" if marks.is_newcomer("main", name)] == ["a"]
    assert await read(setting.replicas) == {"a": before["b"], "b": before["a"]}


async def test_two_addresses_of_one_registry_are_not_exchanged(setting: Bench, inspection: Inspection) -> None:
    """The second name of a registry is doubted, and the reason says why."""
    await push(setting, b"1", LATEST)
    put_back(setting.b, state_of(setting.a))
    found = await doubts(setting, inspection)
    assert list(found) == ["b"]
    assert "another replica" in found["b"]


async def test_a_tag_is_held_against_its_record(setting: Bench, inspection: Inspection) -> None:
    """An older answer does not count while another replica has the recorded one; an unknown one is accepted."""
    store, journal = setting.under_test.store, setting.under_test.journal
    findings = TagFindings(replica_sets={"main": setting.replicas}, store=store, journal=journal, inspection=inspection)
    old = await push(setting, b"1", LATEST)
    new = await push(setting, b"2", LATEST)
    past = await push(setting, b"3", "other")
    setting.a.tags[REPOSITORY, LATEST] = setting.b.tags[REPOSITORY, LATEST] = past.digest
    found = await findings.find(ROUTED, LATEST)
    assert found is not None
    assert found.current is not None
    assert (found.current.digest, found.older) == (past.digest, None)
    setting.a.tags[REPOSITORY, LATEST], setting.b.tags[REPOSITORY, LATEST] = old.digest, new.digest
    found = await findings.find(ROUTED, LATEST)
    assert found is not None
    assert found.current is not None
    assert found.current.digest == new.digest
    assert (await journal.current.marks()).is_newcomer("main", "a")
    setting.replicas.down.add("b")  # before its comparison only recorded tags are accepted
    found = await findings.find(ROUTED, LATEST)
    assert found is not None
    assert (found.current, found.recorded) == (None, new.digest)
    assert found.older is not None


def test_sentinels_lie_under_a_reserved_name() -> None:
    """Clients do not see the sentinels."""
    assert SENTINELS.startswith(RESERVED_PREFIX)
