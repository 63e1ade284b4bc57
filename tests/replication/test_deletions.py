"""Deletes at several replicas: tombstones, refused deletes, and later pushes."""

import asyncio
import time
from functools import partial

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import ContentKind
from registry_proxy.ports.replicas import StorageKind
from registry_proxy.ports.store import Table
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Tag, digest_of
from registry_proxy.replication.deletions import DeletionsElsewhere
from registry_proxy.replication.tag_records import read_record
from tests.support.fakes.images import Parts, image
from tests.support.fakes.memory import MemoryHoldings
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench
from tests.support.refusal import refused
from tests.support.waiting import until

LATEST = Tag("latest")


async def push(setting: Bench, parts: Parts, *tags: str) -> Parts:
    """Push a whole image under its tags."""
    for blob in parts.blobs:
        await setting.under_test.upload(blob)
    for tag in tags:
        await setting.under_test.put(tag, parts.manifest, parts.media_type)
    return parts


async def test_a_delete_is_everywhere_and_forgets_every_tag(setting: Bench) -> None:
    """Manifest, tags, holding and records are gone immediately; other images keep theirs."""
    gone, kept = await push(setting, image(b"1"), "v1", "latest"), await push(setting, image(b"2"), "v2")
    await setting.under_test.manage.delete_manifest(ROUTED, gone.digest)
    assert setting.a.tags == setting.b.tags == {(REPOSITORY, "v2"): kept.digest}
    assert setting.holdings.find(ROUTED, ContentKind.MANIFEST, gone.digest) is None
    assert setting.holdings.find_tag(ROUTED, LATEST) is None
    assert [record.key for record in await setting.under_test.store.list(Table.TAGS)] == [f"{ROUTED}|v2"]
    assert [record.key for record in await setting.under_test.store.list(Table.MANIFESTS)] == [
        f"{ROUTED}|{kept.digest}"
    ]
    assert await setting.under_test.intents() == {}


async def test_a_replica_that_was_down_keeps_a_tombstone(setting: Bench) -> None:
    """Its remaining copy does not count; a later push of the digest removes the tombstone."""
    app = await push(setting, image(b"1"), LATEST)
    setting.replicas.down.add("b")
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    marks = await setting.under_test.journal.current.marks()
    assert marks.has_tombstone("b", ROUTED, app.digest)
    assert not marks.has_tombstone("a", ROUTED, app.digest)
    setting.replicas.down.clear()
    await setting.under_test.put(LATEST, app.manifest, app.media_type)
    assert not (await setting.under_test.journal.current.marks()).has_tombstone("b", ROUTED, app.digest)
    assert await setting.under_test.intents() == {}


async def test_a_deleted_tag_does_not_come_back_older(setting: Bench) -> None:
    """A replica that missed a tag's last move, and then its delete, is not asked for the tag."""
    old = await push(setting, image(b"old"), LATEST)
    setting.replicas.down.add("b")
    new = await push(setting, image(b"new"), LATEST)
    await setting.under_test.manage.delete_manifest(ROUTED, new.digest)
    assert setting.b.tags == {(REPOSITORY, LATEST): old.digest}
    assert (await setting.under_test.journal.current.marks()).misses_tag("b", ROUTED, LATEST)
    intent = await setting.under_test.journal.find(IntentKey(ROUTED, IntentKind.TAG, LATEST))
    assert intent is not None
    assert intent.digest is None  # not the deleted digest: nobody may restore that


async def test_a_deleted_tag_leaves_its_manifest_to_other_tags(setting: Bench) -> None:
    """The tag is gone at all replicas, in the records and in memory; the other tag and the manifest stay everywhere."""
    app = await push(setting, image(b"1"), "v1", LATEST)
    assert await setting.under_test.manage.delete_manifest(ROUTED, LATEST) == app.digest
    assert setting.a.tags == setting.b.tags == {(REPOSITORY, "v1"): app.digest}
    assert setting.a.manifests.keys() == setting.b.manifests.keys() == {(REPOSITORY, app.digest)}
    assert setting.holdings.find_tag(ROUTED, LATEST) is None
    assert setting.holdings.find(ROUTED, ContentKind.MANIFEST, app.digest) is not None
    assert [record.key for record in await setting.under_test.store.list(Table.TAGS)] == [f"{ROUTED}|v1"]
    assert await setting.under_test.intents() == {}


async def test_an_absent_tag_is_no_tag_to_delete(setting: Bench) -> None:
    """A tag that never was, or is deleted, is 404, though an absent replica still has it; there is no tombstone."""
    await push(setting, image(b"1"), LATEST)
    manage = setting.under_test.manage
    assert (await refused(manage.delete_manifest(ROUTED, Tag("never")))).code is ErrorCode.MANIFEST_UNKNOWN
    assert await setting.under_test.intents() == {}
    setting.replicas.down.add("b")
    await manage.delete_manifest(ROUTED, LATEST)
    assert (await refused(manage.delete_manifest(ROUTED, LATEST))).status == 404
    assert await setting.under_test.intents() == {f"{ROUTED}|tag|latest": ["b"]}


async def test_a_tag_that_a_replica_away_may_have_is_no_404(setting: Bench) -> None:
    """Tag and digest of an image pushed past the proxy are not called absent while a replica does not answer."""
    setting.b.add_manifest(REPOSITORY, image(b"1").manifest, LATEST)
    setting.replicas.down.add("b")
    for tag_or_digest in (LATEST, image(b"1").digest):
        with pytest.raises(UpstreamUnavailableError):
            await setting.under_test.manage.delete_manifest(ROUTED, tag_or_digest)


async def test_a_replica_that_missed_the_delete_of_a_tag_is_not_asked_for_it(setting: Bench) -> None:
    """A tombstone of the tag stays for it until the tag is pushed again: the later push wins."""
    app = await push(setting, image(b"1"), "v1", LATEST)
    setting.replicas.down.add("b")
    await setting.under_test.manage.delete_manifest(ROUTED, LATEST)
    marks = await setting.under_test.journal.current.marks()
    assert marks.misses_tag("b", ROUTED, LATEST)
    assert not marks.misses_tag("b", ROUTED, Tag("v1"))
    assert not marks.has_tombstone("b", ROUTED, app.digest)
    other = await push(setting, image(b"2"), LATEST)
    intent = await setting.under_test.journal.find(IntentKey(ROUTED, IntentKind.TAG, LATEST))
    assert intent is not None
    assert (intent.digest, intent.missing) == (other.digest, ("b",))


async def test_deletes_and_pushes_of_a_tag_take_turns(setting: Bench) -> None:
    """After many parallel pushes and deletes of a tag and its manifests both replicas agree with the record."""
    one, two = await push(setting, image(b"1"), LATEST, "v1"), await push(setting, image(b"2"), "v2")
    manage = setting.under_test.manage
    work = [setting.under_test.put(LATEST, app.manifest, app.media_type) for app in (one, two) for _ in range(4)]
    deletes = [manage.delete_manifest(ROUTED, LATEST) for _ in range(4)]
    deletes.append(manage.delete_manifest(ROUTED, two.digest))
    results = await asyncio.gather(*work, *deletes, return_exceptions=True)
    assert all(not isinstance(result, Exception) or isinstance(result, RegistryError) for result in results)
    assert setting.a.tags == setting.b.tags
    assert setting.a.tags[REPOSITORY, "v1"] == one.digest
    recorded = {
        record.key.rpartition("|")[2]: record.value["digest"]
        for record in await setting.under_test.store.list(Table.TAGS)
    }
    assert recorded == {tag: str(digest) for (_, tag), digest in setting.a.tags.items()}
    assert await setting.under_test.intents() == {}


async def test_a_caller_that_asked_during_the_delete_of_a_tag_asks_again(setting: Bench) -> None:
    """The record of the tag changes before a replica is touched and again before the answer."""
    app = await push(setting, image(b"1"), LATEST)
    setting.a.tags[REPOSITORY, "past"] = setting.b.tags[REPOSITORY, "past"] = app.digest
    store, past = setting.under_test.store, Tag("past")
    for tag in (LATEST, past):
        before = (await read_record(store, IntentKey(ROUTED, IntentKind.TAG, tag))).revision
        setting.b.gates["delete_tag"] = gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(setting.under_test.manage.delete_manifest(ROUTED, tag))
            request = ("delete_tag", REPOSITORY, tag)
            await until(partial(setting.b.requests.__contains__, request))
            during = (await read_record(store, IntentKey(ROUTED, IntentKind.TAG, tag))).revision
            gate.set()
        after = (await read_record(store, IntentKey(ROUTED, IntentKind.TAG, tag))).revision
        assert after not in {before, during}


@pytest.mark.parametrize("storage", list(StorageKind))
async def test_a_delete_without_a_replica_that_deletes_changes_nothing(setting: Bench, storage: StorageKind) -> None:
    """Replicas with deletes switched off: 405 for manifest, tag and blob, no tombstone, and the image stays."""
    setting.replicas.storage = storage
    app = await push(setting, image(b"1"), LATEST)
    refusal = RegistryError(ErrorCode.UNSUPPORTED, "delete is disabled")
    for replica in (setting.a, setting.b):
        replica.errors["delete_manifest"] = replica.errors["delete_blob"] = refusal
        replica.errors["delete_tag"] = refusal
    for attempt in (
        setting.under_test.manage.delete_manifest(ROUTED, app.digest),
        setting.under_test.manage.delete_manifest(ROUTED, LATEST),
        setting.under_test.manage.delete_blob(ROUTED, digest_of(b"1")),
    ):
        assert (await refused(attempt)).status == 405
    assert await setting.under_test.intents() == {}
    assert setting.holdings.find_tag(ROUTED, LATEST) is not None
    assert len(await setting.under_test.store.list(Table.TAGS)) == 1


async def test_a_quorum_lost_midway_rolls_forward(setting: Bench) -> None:
    """One of two needed replicas deleted it: 503, tombstones stay for the other, the retry completes it.

    The tombstone of the tag stays for repair, which asks whether the replica has an older one.
    """
    setting.replicas.write_quorum = 2
    app = await push(setting, image(b"1"), LATEST)
    setting.b.errors["delete_manifest"] = UpstreamUnavailableError("reset")
    assert (await refused(setting.under_test.manage.delete_manifest(ROUTED, app.digest))).status == 503
    assert (await setting.under_test.journal.current.marks()).has_tombstone("b", ROUTED, app.digest)
    setting.replicas.down.clear()
    setting.b.errors.clear()
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    assert setting.b.manifests == {}
    assert await setting.under_test.intents() == {f"{ROUTED}|tag|latest": ["b"]}
    assert await setting.under_test.store.list(Table.MANIFESTS) == []


async def test_an_absent_object_is_not_deleted(setting: Bench) -> None:
    """An absent object is a 404 with the right code, and leaves no tombstone; a second delete is a 404 too."""
    app = await push(setting, image(b"1"), LATEST)
    unknown = digest_of(b"unknown")
    manage = setting.under_test.manage
    assert (await refused(manage.delete_manifest(ROUTED, unknown))).code is ErrorCode.MANIFEST_UNKNOWN
    assert (await refused(manage.delete_blob(ROUTED, unknown))).code is ErrorCode.BLOB_UNKNOWN
    await manage.delete_manifest(ROUTED, app.digest)
    assert (await refused(manage.delete_manifest(ROUTED, app.digest))).code is ErrorCode.MANIFEST_UNKNOWN
    assert await setting.under_test.intents() == {}


async def test_an_uncertain_object_is_no_404(setting: Bench) -> None:
    """A delete of an unknown object while a replica does not answer is a 503."""
    setting.b.is_down = True
    with pytest.raises(UpstreamUnavailableError):
        await setting.under_test.manage.delete_blob(ROUTED, digest_of(b"x"))


async def test_a_blob_is_deleted_from_its_repository(setting: Bench) -> None:
    """The replicas and the holding lose it; a replica that was down keeps a tombstone until it is pushed again."""
    await setting.under_test.upload(b"blob")
    digest = digest_of(b"blob")
    setting.replicas.down.add("b")
    await setting.under_test.manage.delete_blob(ROUTED, digest)
    assert setting.a.blobs == {}
    assert setting.holdings.find(ROUTED, ContentKind.BLOB, digest) is None
    assert (await setting.under_test.journal.current.marks()).has_tombstone("b", ROUTED, digest)
    setting.replicas.down.clear()
    await setting.under_test.upload(b"blob")
    assert await setting.under_test.intents() == {}


async def test_read_only_and_no_quorum(setting: Bench) -> None:
    """403 for a read-only upstream; 503 when too few replicas are up, before anything is asked."""
    setting.replicas.read_only = True
    assert (await refused(setting.under_test.manage.delete_blob(ROUTED, digest_of(b"x")))).status == 403
    setting.replicas.read_only = False
    setting.replicas.down |= {"a", "b"}
    assert (await refused(setting.under_test.manage.delete_manifest(ROUTED, digest_of(b"x")))).status == 503
    assert setting.a.requests == []


async def test_a_delete_waits_for_the_push_of_its_digest(setting: Bench) -> None:
    """While a manifest is being pushed no replica is asked to delete it."""
    app = await push(setting, image(b"1"), LATEST)
    setting.b.gates["put_manifest"] = gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(setting.under_test.put("other", app.manifest, app.media_type))
        await until(lambda: setting.b.requests[-1][0] == "put_manifest")
        group.create_task(setting.under_test.manage.delete_manifest(ROUTED, app.digest))
        for _ in range(100):
            await asyncio.sleep(0)
        # A store that is asked now has also processed the earlier requests of the delete.
        await setting.under_test.intents()
        await setting.under_test.intents()
        assert setting.a.count("delete_manifest") == 0
        gate.set()
    assert setting.a.tags == setting.b.tags == {}
    assert await setting.under_test.intents() == {}


async def test_deletes_and_pushes_of_a_digest_take_turns(setting: Bench) -> None:
    """Many parallel pushes and deletes of one image leave both replicas alike and nothing open."""
    app = await push(setting, image(b"1"), LATEST)
    work = [setting.under_test.put(LATEST, app.manifest, app.media_type) for _ in range(5)]
    deletes = [setting.under_test.manage.delete_manifest(ROUTED, app.digest) for _ in range(5)]
    results = await asyncio.gather(*work, *deletes, return_exceptions=True)
    assert all(not isinstance(result, Exception) or isinstance(result, RegistryError) for result in results)
    assert setting.a.tags == setting.b.tags
    assert setting.a.manifests.keys() == setting.b.manifests.keys()
    assert await setting.under_test.intents() == {}


async def test_another_node_forgets_what_was_deleted_once(setting: Bench) -> None:
    """Holdings and tags of a deleted manifest or blob are removed there; those learned later stay."""
    app = await push(setting, image(b"1"), "v1")
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    blob = digest_of(app.blobs[0])
    await setting.under_test.manage.delete_blob(ROUTED, blob)
    await push(setting, image(b"2"), "v2")
    await setting.under_test.manage.delete_manifest(ROUTED, Tag("v2"))
    theirs = MemoryHoldings()
    manifest = app.descriptor

    def learn() -> None:
        theirs.remember(ROUTED, ContentKind.MANIFEST, manifest)
        theirs.remember(ROUTED, ContentKind.BLOB, Descriptor("application/octet-stream", blob, 1))
        theirs.move_tag(ROUTED, Tag("v1"), manifest, recorded=1)
        theirs.move_tag(ROUTED, Tag("v2"), image(b"2").descriptor, recorded=1)

    learn()
    elsewhere = DeletionsElsewhere(setting.under_test.store, setting.under_test.changes, theirs)
    await elsewhere.follow()
    assert (theirs.entries, theirs.tags) == ({}, {})
    learn()
    await elsewhere.follow()
    assert len(theirs.entries) == 2


async def test_a_deletion_costs_other_nodes_no_list_of_all(setting: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hundred thousand records a list stops Redis for half a second: after the first only news are read."""
    store, theirs = setting.under_test.store, MemoryHoldings()
    elsewhere = DeletionsElsewhere(store, setting.under_test.changes, theirs)
    await elsewhere.follow()
    apps = [await push(setting, image(label), "v1") for label in (b"1", b"2", b"3")]
    with monkeypatch.context() as patched:
        for app in apps:
            theirs.remember(ROUTED, ContentKind.MANIFEST, app.descriptor)
            await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
            patched.setattr(store, "list", None)
            await elsewhere.follow()
            patched.undo()
            assert theirs.entries == {}


async def test_old_deletions_leave_the_record(setting: Bench) -> None:
    """After a week a deletion is not on record any more."""
    app = await push(setting, image(b"1"), "v1")
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    store, changes = setting.under_test.store, setting.under_test.changes
    await DeletionsElsewhere(store, changes, MemoryHoldings()).follow()
    assert len(await store.list(Table.DELETIONS)) == 2  # of the manifest, and of its tag
    await DeletionsElsewhere(store, changes, MemoryHoldings(), lambda: time.time() + 8 * 86_400).follow()
    assert await setting.under_test.store.list(Table.DELETIONS) == []
