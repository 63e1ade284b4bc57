"""Repair by the journal: the missed writes, their order and sources, and those that cannot be repaired."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import pytest_asyncio

from registry_proxy.ports.errors import StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.metrics import KeyRepair
from registry_proxy.ports.repair import Comparison
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.descriptor import Manifest
from registry_proxy.protocol.reference import Tag, digest_of
from registry_proxy.repair.copies import Copies, Pace
from registry_proxy.repair.repair import Repairer
from registry_proxy.repair.verify import Verifier
from registry_proxy.replication.intents import WRITING_SECONDS, parse_key
from registry_proxy.replication.pauses import repair_lease
from registry_proxy.tasks import spawn
from tests.support.fakes.images import Parts, image, index
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, MemoryReplica
from tests.support.waiting import until

LATEST = Tag("latest")


class Workshop:
    """A repairer over the two replicas of a bench."""

    def __init__(self, setting: Bench) -> None:
        self.observer = RecordingObserver()
        self.now = 0.0
        copies = Copies(
            replica_sets={"main": setting.replicas},
            readers={"main": setting.a},
            cache=setting.cache,
            holdings=setting.holdings,
            pace=Pace(0),
            observer=self.observer,
        )
        self.repairer = Repairer(
            replica_set=setting.replicas,
            store=setting.under_test.store,
            journal=setting.under_test.journal,
            copies=copies,
            verifier=setting.verifier(),
            pins=setting.spool,
            observer=self.observer,
        )
        self._setting = setting

    async def repair(self) -> bool:
        """Repair b once."""
        self._setting.replicas.down.clear()
        return await self.repairer.repair(self._setting.b)

    def counts(self) -> Counter[str]:
        """Return the number of keys by outcome."""
        return Counter(event.outcome for event in self.observer.found(KeyRepair))


@pytest_asyncio.fixture
async def workshop(setting: Bench) -> AsyncIterator[Workshop]:
    """Give a repairer over the bench."""
    yield Workshop(setting)


async def push(setting: Bench, parts: Parts, *tags: str) -> Parts:
    """Push a whole image under its tags, or by digest alone."""
    for blob in parts.blobs:
        await setting.under_test.upload(blob)
    for tag in tags or (parts.digest,):
        await setting.under_test.put(tag, parts.manifest, parts.media_type)
    return parts


def same(setting: Bench) -> bool:
    """Tell whether both replicas hold the same."""
    a, b = setting.a, setting.b
    return (a.tags, a.manifests, a.blobs) == (b.tags, b.manifests, b.blobs)


async def test_pushes_while_a_replica_was_down(setting: Bench, workshop: Workshop) -> None:
    """Blobs, children, index and tags reach it, each after its references; nothing stays open or pinned."""
    await push(setting, image(b"before"), "latest")
    setting.replicas.down.add("b")
    children = [await push(setting, image(layer)) for layer in (b"1", b"2")]
    await push(setting, index(*children), "latest", "v2")
    assert setting.spool.pins
    setting.b.requests.clear()
    assert await workshop.repair()
    assert same(setting)
    assert await setting.under_test.intents() == {}
    assert setting.spool.pins == set()
    assert workshop.counts() == {"copied": 8}  # 3 blobs (the config is the same), 3 manifests, 2 tags
    puts = [what for method, _, what in setting.b.requests if method == "put_manifest"]
    assert puts[-2:] == ["latest", "v2"] or puts[-2:] == ["v2", "latest"]
    assert await workshop.repair()
    assert workshop.counts() == {"copied": 8}


async def test_the_cache_alone_is_enough(setting: Bench, workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    """When the only replica with a push is lost, the other one gets our pinned copies of blobs and manifest."""
    caplog.set_level(logging.INFO)
    setting.replicas.down.add("b")
    app = await push(setting, image(b"layer"), "latest")
    assert setting.spool.pins == {app.digest, *map(digest_of, app.blobs)}
    setting.a.is_down = True
    assert await workshop.repair()
    assert setting.b.tags == {(REPOSITORY, LATEST): app.digest}
    assert await setting.under_test.intents() == {}
    assert setting.spool.pins == set()
    assert "replica main/b: 4 keys repaired, 0 failed" in caplog.messages


async def test_deletes_while_a_replica_was_down(setting: Bench, workshop: Workshop) -> None:
    """Manifest, tags and a blob are removed there too; an older tag goes without the manifest that it was on."""
    old = await push(setting, image(b"old"), "moved", "kept")
    gone = await push(setting, image(b"gone"), "v1")
    setting.replicas.down.add("b")
    new = await push(setting, image(b"new"), "moved")
    await setting.under_test.manage.delete_manifest(ROUTED, gone.digest)
    await setting.under_test.manage.delete_manifest(ROUTED, new.digest)
    await setting.under_test.manage.delete_blob(ROUTED, digest_of(gone.blobs[1]))
    assert setting.b.tags[REPOSITORY, "moved"] == old.digest
    assert await workshop.repair()
    assert setting.b.tags == setting.a.tags == {(REPOSITORY, "kept"): old.digest}
    assert same(setting)
    assert await setting.under_test.intents() == {}


async def test_a_tag_of_a_deleted_manifest_stays_deleted_when_it_is_pushed_again(
    setting: Bench, workshop: Workshop
) -> None:
    """A replica that missed the delete still has the old tag: it is neither served nor left there."""
    app = await push(setting, image(b"app"), "v1")
    setting.replicas.down.add("b")
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    setting.replicas.down.clear()
    await push(setting, app, "v2")
    assert setting.b.tags[REPOSITORY, "v1"] == app.digest
    assert (await setting.under_test.journal.current.marks()).misses_tag("b", ROUTED, Tag("v1"))
    assert await workshop.repair()
    assert setting.b.tags == setting.a.tags == {(REPOSITORY, "v2"): app.digest}


async def test_a_repair_that_died_goes_on(setting: Bench, workshop: Workshop) -> None:
    """After a kill between two keys the next repair does the rest; done keys are not done again."""
    setting.replicas.down.add("b")
    await push(setting, image(b"1", b"2"), "latest")
    setting.b.gates["put_manifest"] = asyncio.Event()
    task = asyncio.get_running_loop().create_task(workshop.repair())
    await until(lambda: ("put_manifest", REPOSITORY) in [request[:2] for request in setting.b.requests])
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert sum("|blob|" in key for key in await setting.under_test.intents()) == 0
    del setting.b.gates["put_manifest"]
    setting.b.requests.clear()
    again = Workshop(setting)
    assert await again.repair()
    assert setting.b.count("push_blob") == 0
    assert same(setting)


async def test_blobs_are_sent_several_at_a_time(setting: Bench, workshop: Workshop) -> None:
    """The blobs for a far registry go in parallel; no manifest goes before the last of them."""
    setting.replicas.down.add("b")
    await push(setting, image(*(b"%d" % number for number in range(9))), "latest")
    setting.b.gates["push_blob"] = asyncio.Event()
    repairing = asyncio.get_running_loop().create_task(workshop.repair())
    await until(lambda: setting.b.count("push_blob") > 1)
    assert setting.b.count("put_manifest") == 0
    setting.b.gates["push_blob"].set()
    assert await repairing
    assert same(setting)


async def test_without_the_store_a_repair_ends(
    setting: Bench, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first key that cannot be confirmed ends it, as a failure of the store; nothing is left running."""
    setting.replicas.down.add("b")
    await push(setting, image(b"1", b"2"), "latest")

    async def confirm(*_: object) -> bool:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(setting.under_test.journal, "confirm", confirm)
    before = asyncio.all_tasks()
    with pytest.raises(StoreUnavailableError):
        await workshop.repair()
    assert asyncio.all_tasks() == before


async def test_two_do_not_repair_a_replica_at_once(
    setting: Bench, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second repair of a replica waits for the first, and gives up after a while."""
    monkeypatch.setattr("registry_proxy.store.sqlite.LEASE_PATIENCE_SECONDS", 0.1)
    setting.replicas.down.add("b")
    await push(setting, image(b"1"), "latest")
    setting.b.gates["push_blob"] = asyncio.Event()
    first = asyncio.get_running_loop().create_task(workshop.repair())
    await until(lambda: setting.b.count("push_blob") > 0)
    with pytest.raises(StoreUnavailableError):
        await Workshop(setting).repair()
    setting.b.gates["push_blob"].set()
    assert await first
    assert setting.b.count("push_blob") == 2


async def test_a_newcomer_that_another_process_took_in_is_not_compared_again(
    setting: Bench, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waited for its turn looks again: a comparison of all repositories is expensive."""
    await push(setting, image(b"1"), "latest")
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await setting.under_test.store.commit([Change(Table.META, "members/main", {"names": ["a"]})])
    compare, comparisons, waiting = Verifier.compare, list[object](), list[str]()

    async def count(verifier: Verifier, comparison: Comparison, **options: Any) -> None:
        comparisons.append(comparison)
        await compare(verifier, comparison, **options)

    def lease(store: Store, upstream: str, replica: str) -> AbstractAsyncContextManager[None]:
        waiting.append(replica)
        return repair_lease(store, upstream, replica)

    monkeypatch.setattr(Verifier, "compare", count)
    monkeypatch.setattr("registry_proxy.repair.repair.repair_lease", lease)
    setting.b.gates["push_blob"] = asyncio.Event()
    repairs = [asyncio.get_running_loop().create_task(one.repair()) for one in (workshop, Workshop(setting))]
    await until(lambda: len(waiting) == 2 and setting.b.count("push_blob") > 0)
    setting.b.gates["push_blob"].set()
    assert await asyncio.gather(*repairs) == [True, True]
    assert len(comparisons) == 2, "one to find its missing contents, one to see that there are none"
    assert same(setting)


async def test_a_push_that_comes_between_wins(setting: Bench, workshop: Workshop) -> None:
    """A tag that moves while its repair waits for the lease is repaired to its new value."""
    setting.replicas.down.add("b")
    await push(setting, image(b"1"), "latest")
    setting.replicas.down.clear()
    newer = await push(setting, image(b"2"), "latest")
    assert await workshop.repair()
    assert setting.b.tags == {(REPOSITORY, "latest"): newer.digest}
    assert same(setting)


async def test_a_failure_is_reported_and_tried_again(setting: Bench, workshop: Workshop) -> None:
    """A key that cannot be repaired delays no other, and stays open until it can be."""
    setting.replicas.down.add("b")
    await push(setting, image(b"1"), "latest")
    setting.b.errors["push_blob"] = UpstreamUnavailableError("no space left on its device")
    assert not await workshop.repair()
    status = workshop.repairer.status("b")
    assert (status.is_running, status.failed > 0, "no space left" in status.error) == (False, True, True)
    assert "failed" in workshop.counts()
    setting.b.errors.clear()
    assert await workshop.repair()
    assert same(setting)
    assert workshop.repairer.status("b").error == ""


async def abandon(setting: Bench, *keys: IntentKey) -> None:
    """Let the minute pass after which a write counts as abandoned."""
    for record in await setting.under_test.store.list(Table.INTENTS):
        if parse_key(record.key) in keys:
            assert record.value["writing_until"] > WRITING_SECONDS
            abandoned = {**record.value, "writing_until": 1}
            await setting.under_test.store.commit([Change(Table.INTENTS, record.key, abandoned)])


async def begin_and_die(setting: Bench, parts: Parts, tag: str) -> None:
    """Store the intents of a push as a node does that dies before it reaches any replica."""
    content = (parts.digest, parts.media_type)
    changes = [
        Change(Table.MANIFESTS, f"{ROUTED}|{parts.digest}", {"media_type": parts.media_type, "size_bytes": 1}),
        Change(Table.TAGS, f"{ROUTED}|{tag}", {"digest": str(parts.digest)}),
    ]
    keys = [IntentKey(ROUTED, IntentKind.MANIFEST, str(parts.digest)), IntentKey(ROUTED, IntentKind.TAG, tag)]
    await setting.under_test.journal.begin(dict.fromkeys(keys, content), ["a", "b"], changes)
    await abandon(setting, *keys)


@pytest.mark.parametrize("deleted_at", ["", "a", "ab"])
async def test_a_delete_whose_node_died_midway_is_completed(
    setting: Bench, workshop: Workshop, deleted_at: str
) -> None:
    """A delete done at any replica is done at all of them, with the records of the manifest and its tags."""
    gone = await push(setting, image(b"gone"), "latest")
    kept = await push(setting, image(b"kept"), "v2")
    key = IntentKey(ROUTED, IntentKind.MANIFEST, str(gone.digest))
    await setting.under_test.journal.begin({key: (None, "")}, ["a", "b"])
    for replica in (setting.a, setting.b):
        if replica.name in deleted_at:
            await replica.delete_manifest(REPOSITORY, gone.digest)
    await abandon(setting, key)
    for _ in range(2):
        for client in (setting.a, setting.b):
            assert await workshop.repairer.repair(client)
    assert same(setting)
    assert setting.b.tags == {(REPOSITORY, "v2"): kept.digest}
    assert await setting.under_test.intents() == {}
    for table, name in ((Table.MANIFESTS, str(kept.digest)), (Table.TAGS, "v2")):
        assert [record.key for record in await setting.under_test.store.list(table)] == [f"{ROUTED}|{name}"]


async def test_a_push_whose_node_died_midway_is_rolled_forward(setting: Bench, workshop: Workshop) -> None:
    """One replica has it: the other gets it, and the tag is served again."""
    await push(setting, image(b"old"), "latest")
    new = image(b"new")
    for blob in new.blobs:
        await setting.under_test.upload(blob)
    await begin_and_die(setting, new, "latest")
    setting.a.manifests[REPOSITORY, new.digest] = Manifest(new.descriptor, new.manifest)
    setting.a.tags[REPOSITORY, "latest"] = new.digest
    for client in (setting.a, setting.b):
        assert await workshop.repairer.repair(client)
    assert same(setting)
    assert setting.b.tags == {(REPOSITORY, "latest"): new.digest}
    assert await setting.under_test.intents() == {}


async def test_a_push_whose_node_died_before_any_replica_is_taken_back(setting: Bench, workshop: Workshop) -> None:
    """No replica has the manifest: intents and records are removed, and the tag keeps its value; old marks stay."""
    setting.replicas.down.add("b")
    old = await push(setting, image(b"old"), "latest")
    await begin_and_die(setting, image(b"new"), "latest")
    assert await workshop.repair()
    tags = {record.key: record.value["digest"] for record in await setting.under_test.store.list(Table.TAGS)}
    assert tags == {f"{ROUTED}|latest": str(old.digest)}
    assert await workshop.repair()
    assert setting.b.tags == {(REPOSITORY, "latest"): old.digest}
    assert same(setting)
    assert await setting.under_test.intents() == {}
    assert workshop.counts()["given_up"] == 2


async def test_while_a_replica_is_away_nothing_is_taken_back(setting: Bench, workshop: Workshop) -> None:
    """The absent replica may be the one with the manifest."""
    await begin_and_die(setting, image(b"new"), "latest")
    setting.replicas.down.add("a")
    assert not await workshop.repairer.repair(setting.b)
    assert len(await setting.under_test.intents()) == 2


async def test_a_write_that_is_under_way_is_left_alone(setting: Bench, workshop: Workshop) -> None:
    """Its intents name every replica, and repair ignores them until the time of the write is over."""
    new = image(b"new")
    await setting.under_test.journal.begin(
        {IntentKey(ROUTED, IntentKind.TAG, "latest"): (new.digest, new.media_type)}, ["a", "b"]
    )
    assert await workshop.repair()
    assert workshop.counts() == {}
    ((_, missing),) = (await setting.under_test.intents()).items()
    assert missing == ["a", "b"]


async def test_pins_that_another_node_made_needless_go(setting: Bench, workshop: Workshop) -> None:
    """A pin of content that no open intent names is released with the next repair."""
    stray = digest_of(b"stray")
    setting.spool.pin(stray)
    setting.replicas.down.add("b")
    await push(setting, image(b"1"), "latest")
    assert await workshop.repair()
    assert setting.spool.pins == set()


async def test_pins_go_also_where_others_do_all_repairs(
    setting: Bench, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing pending, a pin that no open intent names is released all the same."""
    monkeypatch.setattr("registry_proxy.repair.kept._PAUSE_SECONDS", 0.01)
    setting.spool.pin(digest_of(b"stray"))
    running = asyncio.get_running_loop().create_task(workshop.repairer.run())
    await until(lambda: not setting.spool.pins)
    running.cancel()
    await asyncio.wait([running])


async def test_a_replica_is_repaired_as_soon_as_it_is_up(setting: Bench, workshop: Workshop) -> None:
    """The repair starts without a command."""
    setting.replicas.down.add("b")
    await push(setting, image(b"1"), "latest")
    running = asyncio.get_running_loop().create_task(workshop.repairer.run())
    setting.replicas.down.clear()
    await until(lambda: same(setting))
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


# ---------------------------------------------------------------- writes that come late


def without_leases(setting: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grant every lease immediately, as for a node that hung for longer than a lease lasts."""
    monkeypatch.setattr(setting.under_test.store, "lease", lambda _: contextlib.nullcontext())


def before(replica: MemoryReplica, method: str, act: Callable[[], Awaitable[object]]) -> None:
    """Run a function before the next call of a method reaches a replica: the call is late."""
    call = getattr(replica, method)

    async def late(*arguments: object) -> None:
        setattr(replica, method, call)
        await act()
        await call(*arguments)

    setattr(replica, method, late)


async def test_a_late_delete_of_a_repair_takes_no_newer_push(
    setting: Bench, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push that another node made and acknowledged meanwhile is recorded as missing, and there in the end."""
    without_leases(setting, monkeypatch)
    app = await push(setting, image(b"layer"), "latest")
    setting.replicas.down.add("b")
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    before(setting.b, "delete_manifest", lambda: push(setting, app, "latest"))
    await workshop.repair()
    assert (await setting.under_test.journal.current.marks()).pending("b", "main") > 0
    assert await workshop.repair()
    assert same(setting)
    assert setting.b.tags == {(REPOSITORY, "latest"): app.digest}


async def test_a_late_tag_of_a_repair_is_not_the_newest(
    setting: Bench, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag moved meanwhile is not served by the replica with the older one, and is repaired."""
    without_leases(setting, monkeypatch)
    old, new = image(b"old"), image(b"new")
    setting.replicas.down.add("b")
    await push(setting, old, "latest")
    await push(setting, new)
    put = setting.b.put_manifest

    async def late(repository: str, tag_or_digest: object, manifest: Manifest) -> None:
        if tag_or_digest == LATEST:
            setting.b.put_manifest = put  # type: ignore[method-assign]  # of this replica alone
            await setting.under_test.put(LATEST, new.manifest, new.media_type)
        await put(repository, tag_or_digest, manifest)  # type: ignore[arg-type]  # handed on

    setting.b.put_manifest = late  # type: ignore[method-assign]  # of this replica alone
    await workshop.repair()
    assert setting.b.tags == {(REPOSITORY, "latest"): old.digest}
    assert (await setting.under_test.journal.current.marks()).misses_tag("b", ROUTED, LATEST)
    assert await workshop.repair()
    assert same(setting)
    assert setting.b.tags == {(REPOSITORY, "latest"): new.digest}


@pytest.mark.parametrize("newer_is_over", [True, False])
async def test_a_late_push_is_not_the_newest(
    setting: Bench, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, *, newer_is_over: bool
) -> None:
    """A push that reaches a replica after a newer one of its tag leaves a mark there, also during that one."""
    without_leases(setting, monkeypatch)
    old, new = image(b"old"), image(b"new")
    await push(setting, old)
    await push(setting, new)
    newer: list[asyncio.Task[object]] = []
    may_end = asyncio.Event()

    async def move() -> None:
        newer.append(spawn(setting.under_test.put(LATEST, new.manifest, new.media_type), "newer push"))
        if newer_is_over:
            await newer[0]
        else:
            await until(lambda: setting.b.tags.get((REPOSITORY, LATEST)) == new.digest)

    if not newer_is_over:
        put = setting.a.put_manifest

        async def hold_the_newer(*arguments: Any) -> None:
            if arguments[2].descriptor.digest == new.digest:
                await may_end.wait()
            await put(*arguments)

        setting.a.put_manifest = hold_the_newer  # type: ignore[method-assign, assignment]  # of this replica alone
    before(setting.b, "put_manifest", move)
    await setting.under_test.put(LATEST, old.manifest, old.media_type)
    may_end.set()
    await newer[0]
    assert setting.b.tags == {(REPOSITORY, "latest"): old.digest}
    assert (await setting.under_test.journal.current.marks()).misses_tag("b", ROUTED, LATEST)
    setting.replicas.down.clear()
    for replica in (setting.a, setting.b):
        await workshop.repairer.repair(replica)
    assert same(setting)
    assert setting.b.tags == {(REPOSITORY, "latest"): new.digest}


async def test_a_late_delete_takes_no_newer_push(
    setting: Bench, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete that reaches one replica after a newer push of the same image leaves a mark there."""
    without_leases(setting, monkeypatch)
    app = await push(setting, image(b"layer"), "latest")
    before(setting.b, "delete_manifest", lambda: push(setting, app, "latest"))
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    assert (await setting.under_test.journal.current.marks()).pending("b", "main") > 0
    for replica in (setting.a, setting.b):
        await workshop.repairer.repair(replica)
    assert (REPOSITORY, app.digest) in setting.b.manifests
    assert same(setting)
