"""Manifests and tags at several replicas: intents, healing, writes taken back and writes completed."""

import asyncio
from functools import partial
from typing import Any

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import ContentKind
from registry_proxy.ports.store import Table
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, DOCKER_SCHEMA1_SIGNED, OCI_MANIFEST, Descriptor
from registry_proxy.protocol.errors import ErrorCode
from registry_proxy.protocol.reference import Tag, digest_of, keeper_tag
from tests.support.fakes.images import Parts, image, index
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench
from tests.support.refusal import refused
from tests.support.waiting import until

LATEST = Tag("latest")


async def upload(setting: Bench, parts: Parts) -> Parts:
    """Push the blobs of an image."""
    for blob in parts.blobs:
        await setting.under_test.upload(blob)
    return parts


async def push(setting: Bench, parts: Parts, tag: str = LATEST) -> Parts:
    """Push a whole image."""
    await upload(setting, parts)
    await setting.under_test.put(tag, parts.manifest, parts.media_type)
    return parts


def cached_tag(setting: Bench) -> object:
    """Return this node's answer for the tag without a request."""
    found = setting.holdings.find_tag(ROUTED, LATEST)
    return None if found is None else found.digest


async def records(setting: Bench) -> tuple[set[str], dict[str, str]]:
    """Return the recorded manifests and tags."""
    manifests = {record.key for record in await setting.under_test.store.list(Table.MANIFESTS)}
    tags = {record.key: record.value["digest"] for record in await setting.under_test.store.list(Table.TAGS)}
    return manifests, tags


async def test_a_push_is_everywhere_and_recorded(setting: Bench) -> None:
    """Both replicas, the cache, the holding, the tag and the records agree; nothing is open."""
    app = await push(setting, image(b"layer"))
    for replica in (setting.a, setting.b):
        assert replica.tags == {(REPOSITORY, LATEST): app.digest}
        assert replica.manifests[REPOSITORY, app.digest].body == app.manifest
    assert setting.cache.read_small(app.digest) == app.manifest
    known = setting.holdings.find(ROUTED, ContentKind.MANIFEST, app.digest)
    assert known is not None
    assert known.descriptor == app.descriptor
    assert cached_tag(setting) == app.digest
    assert await records(setting) == ({f"{ROUTED}|{app.digest}"}, {f"{ROUTED}|latest": str(app.digest)})
    assert await setting.under_test.intents() == {}


async def test_by_digest_no_tag_is_made(setting: Bench) -> None:
    """A manifest pushed by its digest is known and sets no tag; a digest that does not match is refused."""
    app = await upload(setting, image(b"layer"))
    error = await refused(setting.under_test.put(digest_of(b"other"), app.manifest, app.media_type))
    assert error.code is ErrorCode.DIGEST_INVALID
    await setting.under_test.put(app.digest, app.manifest, app.media_type)
    assert setting.a.tags == {}
    assert (await records(setting))[1] == {}


@pytest.mark.parametrize(
    ("body", "media_type"), [(b"[", OCI_MANIFEST), (b"{}", OCI_MANIFEST), (b"{}", DOCKER_SCHEMA1_SIGNED)]
)
async def test_a_body_that_is_no_manifest_reaches_no_replica(setting: Bench, body: bytes, media_type: str) -> None:
    """Broken bodies and schema 1 are MANIFEST_INVALID before anything is written."""
    error = await refused(setting.under_test.put(LATEST, body, media_type))
    assert error.code is ErrorCode.MANIFEST_INVALID
    assert setting.a.count("put_manifest") == 0
    assert await records(setting) == (set(), {})


async def test_the_intent_is_stored_before_a_replica_is_touched(setting: Bench) -> None:
    """While the first PUT is under way both replicas are in the intents, and neither counts as behind."""
    app = await upload(setting, image(b"layer"))
    setting.a.gates["put_manifest"] = setting.b.gates["put_manifest"] = gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        put = group.create_task(setting.under_test.put(LATEST, app.manifest, app.media_type))
        await until(lambda: setting.a.count("put_manifest") == 1)
        names = {f"{ROUTED}|manifest|{app.digest}": ["a", "b"], f"{ROUTED}|tag|latest": ["a", "b"]}
        assert await setting.under_test.intents() == names
        marks = await setting.under_test.journal.current.marks()
        assert not marks.misses_any("a", ROUTED)
        assert not marks.misses_tag("b", ROUTED, LATEST)
        gate.set()
    assert put.result().digest == app.digest
    assert await setting.under_test.intents() == {}


async def test_a_tag_has_another_revision_when_its_push_is_acknowledged(setting: Bench) -> None:
    """A replica's answer about a tag during a push is not used after the push: the record has another revision.

    Another node that asks while the push is under way may get the tag as it was before.
    """
    app, store, key = await upload(setting, image(b"layer")), setting.under_test.store, f"{ROUTED}|latest"
    setting.a.gates["put_manifest"] = setting.b.gates["put_manifest"] = gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        put = group.create_task(setting.under_test.put(LATEST, app.manifest, app.media_type))
        await until(lambda: setting.a.count("put_manifest") == 1)
        during = await store.get(Table.TAGS, key)
        gate.set()
    assert put.result().digest == app.digest
    after = await store.get(Table.TAGS, key)
    assert during is not None
    assert after is not None
    assert after.revision > during.revision
    found = setting.holdings.find_tag(ROUTED, LATEST)
    assert found is not None
    assert found.recorded == after.revision, "this node knows what it is now"


async def test_a_replica_that_is_down_is_marked_and_a_later_push_clears_it(setting: Bench) -> None:
    """Its missing writes are on record before the answer; a second push of the image when it is back leaves no mark."""
    setting.replicas.down.add("b")
    app = await push(setting, image(b"layer"))
    marks = await setting.under_test.journal.current.marks()
    assert marks.misses_tag("b", ROUTED, LATEST)
    assert not marks.misses_tag("a", ROUTED, LATEST)
    assert marks.pending("b", "main") == 4  # two blobs, a manifest, a tag
    setting.replicas.down.clear()
    # Docker sends HEAD for the blobs, finds them present, and sends the manifest alone.
    await setting.under_test.put(LATEST, app.manifest, app.media_type)
    assert setting.b.blobs == setting.a.blobs
    assert setting.b.tags == setting.a.tags
    assert await setting.under_test.intents() == {}
    assert setting.spool.pins == set()


async def test_a_replica_that_dies_in_the_put_is_marked(setting: Bench) -> None:
    """The replica may or may not have the manifest: it counts as behind."""
    app = await upload(setting, image(b"layer"))
    setting.b.errors["put_manifest"] = UpstreamUnavailableError("reset")
    await setting.under_test.put(LATEST, app.manifest, app.media_type)
    assert (await setting.under_test.journal.current.marks()).misses_tag("b", ROUTED, LATEST)
    assert setting.replicas.down == {"b"}


async def test_a_slow_replica_holds_nobody_up_for_ever(setting: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its grace a replica that does not answer is left behind, on record."""
    monkeypatch.setattr("registry_proxy.replication.fanout.fan_out.__defaults__", (0.05,))
    app = await upload(setting, image(b"layer"))
    setting.b.gates["put_manifest"] = asyncio.Event()
    await setting.under_test.put(LATEST, app.manifest, app.media_type)
    assert (await setting.under_test.intents())[f"{ROUTED}|tag|latest"] == ["b"]


async def test_no_quorum_is_said_before_anything(setting: Bench) -> None:
    """With two needed and one up there is a 503, no intent, and no request."""
    setting.replicas.write_quorum = 2
    setting.replicas.down.add("b")
    app = image(b"layer")
    assert (await refused(setting.under_test.put(LATEST, app.manifest, app.media_type))).status == 503
    assert await setting.under_test.intents() == {}
    assert setting.a.requests == []


async def test_a_quorum_lost_midway_rolls_forward(setting: Bench) -> None:
    """One of two needed replicas has it: 503, its intent stays, and the client's retry completes it.

    Until then either value of the tag may be served; from the answer to the retry on only the new one.
    """
    setting.replicas.write_quorum = 2
    before = await push(setting, image(b"layer"))
    app = await upload(setting, image(b"layer", label="2"))
    setting.b.errors["put_manifest"] = UpstreamUnavailableError("reset")
    assert (await refused(setting.under_test.put(LATEST, app.manifest, app.media_type))).status == 503
    assert (await setting.under_test.intents())[f"{ROUTED}|tag|latest"] == ["b"]
    assert cached_tag(setting) == before.digest
    setting.b.errors.clear()
    setting.replicas.down.clear()
    await setting.under_test.put(LATEST, app.manifest, app.media_type)
    assert await setting.under_test.intents() == {}
    assert cached_tag(setting) == app.digest


async def test_a_manifest_that_all_refuse_is_taken_back(setting: Bench) -> None:
    """A manifest that every replica refuses leaves intents, records and the tag as before; the answer says why."""
    setting.replicas.down.add("b")
    first = await push(setting, image(b"layer"))
    before, intents = await records(setting), await setting.under_test.intents()
    setting.replicas.down.clear()
    broken = image(b"never uploaded", label="2")
    error = await refused(setting.under_test.put(LATEST, broken.manifest, broken.media_type))
    assert (error.code, error.status) == (ErrorCode.MANIFEST_BLOB_UNKNOWN, 400)
    assert await records(setting) == before
    assert await setting.under_test.intents() == intents
    assert setting.a.tags == {(REPOSITORY, LATEST): first.digest}
    assert cached_tag(setting) == first.digest


# ---------------------------------------------------------------- healing


async def test_a_collected_blob_is_sent_again_from_the_cache(setting: Bench) -> None:
    """A garbage collection at the replicas removed the blobs: they come from our cache and the push succeeds."""
    app = await upload(setting, image(b"layer"))
    setting.a.blobs.clear()
    setting.b.blobs.clear()
    await setting.under_test.put(LATEST, app.manifest, app.media_type)
    assert len(setting.a.blobs) == len(setting.b.blobs) == 2


async def test_a_refusal_is_not_final_when_a_repair_brings_the_blob(
    setting: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that missed a blob, and has it a moment later, gets the manifest: no final refusal is on record."""
    app = await upload(setting, image(b"1"))
    blobs, put_manifest = setting.b.blobs, setting.b.put_manifest
    setting.b.blobs = {}

    async def put_before_the_repair(*arguments: Any) -> None:
        try:
            await put_manifest(*arguments)
        finally:
            setting.b.blobs = blobs

    monkeypatch.setattr(setting.b, "put_manifest", put_before_the_repair)
    await setting.under_test.put(LATEST, app.manifest, app.media_type)
    assert setting.b.tags == {(REPOSITORY, LATEST): app.digest}
    assert await setting.under_test.intents() == {}


async def test_a_blob_that_cannot_be_sent_again_is_forgotten(setting: Bench) -> None:
    """For a collected blob in no cache the client gets MANIFEST_BLOB_UNKNOWN, and its retry will upload it."""
    app = await upload(setting, image(b"layer"))
    setting.a.blobs.clear()
    setting.b.blobs.clear()
    layer = digest_of(b"layer")
    setting.cache.drop(layer)
    error = await refused(setting.under_test.put(LATEST, app.manifest, app.media_type))
    assert error.code is ErrorCode.MANIFEST_BLOB_UNKNOWN
    assert setting.holdings.find(ROUTED, ContentKind.BLOB, layer) is None
    await push(setting, app)


async def test_a_manifest_does_not_fetch_what_its_repository_does_not_hold(setting: Bench) -> None:
    """A manifest with the digest of another repository's cached blob does not copy it: MANIFEST_BLOB_UNKNOWN."""
    app = image(b"layer")
    for blob in app.blobs:
        setting.cache.add(blob)
    error = await refused(setting.under_test.put(LATEST, app.manifest, app.media_type))
    assert error.code is ErrorCode.MANIFEST_BLOB_UNKNOWN
    assert setting.a.blobs == {}

    # The same for a child of an index, also where its blobs may lie here.
    await upload(setting, app)
    private = index(app)
    setting.cache.add(app.manifest)
    error = await refused(setting.under_test.put(LATEST, private.manifest, private.media_type))
    assert error.code is ErrorCode.MANIFEST_BLOB_UNKNOWN
    assert setting.a.manifests == {}


async def test_the_children_of_an_index_are_healed_with_their_blobs(setting: Bench) -> None:
    """A replica that was away while the children were pushed gets them, blobs first, when the index comes."""
    setting.replicas.down.add("b")
    amd64, arm64 = await upload(setting, image(b"amd64")), await upload(setting, image(b"arm64"))
    for child in (amd64, arm64):
        await setting.under_test.put(child.digest, child.manifest, child.media_type)
    setting.replicas.down.clear()
    both = index(amd64, arm64)
    await setting.under_test.put(LATEST, both.manifest, both.media_type)
    assert setting.b.manifests.keys() == setting.a.manifests.keys()
    assert setting.b.blobs == setting.a.blobs
    assert await setting.under_test.intents() == {}


# ---------------------------------------------------------------- tags that may not be moved


async def test_create_only_makes_new_tags_and_moves_none(setting: Bench) -> None:
    """The first push of a tag is accepted, the second is a 403 that changes nothing."""
    first, second = await upload(setting, image(b"1")), await upload(setting, image(b"2"))
    await setting.under_test.put(LATEST, first.manifest, first.media_type, may_move=False)
    error = await refused(setting.under_test.put(LATEST, second.manifest, second.media_type, may_move=False))
    assert (error.code, error.status) == (ErrorCode.DENIED, 403)
    assert setting.a.tags == setting.b.tags == {(REPOSITORY, LATEST): first.digest}


async def test_create_only_sees_tags_pushed_past_the_proxy(setting: Bench) -> None:
    """A tag that only one replica has, and that has no record, exists."""
    app = await upload(setting, image(b"1"))
    setting.b.add_manifest(REPOSITORY, b"{}", LATEST)
    error = await refused(setting.under_test.put(LATEST, app.manifest, app.media_type, may_move=False))
    assert error.status == 403


async def test_create_only_may_repeat_a_push_that_succeeded(setting: Bench) -> None:
    """A retried push of the same digest moves nothing, whether the tag is on record or only at replicas."""
    app = await upload(setting, image(b"1"))
    for _ in range(2):
        await setting.under_test.put(LATEST, app.manifest, app.media_type, may_move=False)
    for replica in (setting.a, setting.b):
        replica.add_manifest(REPOSITORY, app.manifest, Tag("past"))
    await setting.under_test.put(Tag("past"), app.manifest, app.media_type, may_move=False)
    assert setting.a.tags == setting.b.tags == dict.fromkeys([(REPOSITORY, LATEST), (REPOSITORY, "past")], app.digest)


async def test_create_only_moves_no_tag_back_that_was_moved_past_the_proxy(setting: Bench) -> None:
    """The record still names the first digest, a replica another one: a second push of the first is a move."""
    app = await upload(setting, image(b"1"))
    await setting.under_test.put(LATEST, app.manifest, app.media_type, may_move=False)
    setting.b.add_manifest(REPOSITORY, b"{}", LATEST)
    error = await refused(setting.under_test.put(LATEST, app.manifest, app.media_type, may_move=False))
    assert error.status == 403


async def test_create_only_may_repeat_what_failed_halfway(setting: Bench) -> None:
    """A create that missed its quorum is on record but was never acknowledged: its retry is no move."""
    setting.replicas.write_quorum = 2
    app = await upload(setting, image(b"1"))
    setting.b.errors["put_manifest"] = UpstreamUnavailableError("reset")
    assert (await refused(setting.under_test.put(LATEST, app.manifest, app.media_type, may_move=False))).status == 503
    setting.b.errors.clear()
    setting.replicas.down.clear()
    await setting.under_test.put(LATEST, app.manifest, app.media_type, may_move=False)
    assert setting.b.tags == {(REPOSITORY, LATEST): app.digest}


async def test_two_creates_at_once_make_one_tag(setting: Bench) -> None:
    """Of ten parallel creates of one tag exactly one is accepted, the same at every replica."""
    images = [await upload(setting, image(bytes([number]))) for number in range(10)]
    puts = [setting.under_test.put(LATEST, app.manifest, app.media_type, may_move=False) for app in images]
    results = await asyncio.gather(*puts, return_exceptions=True)
    taken = [result for result in results if isinstance(result, Descriptor)]
    assert len(taken) == 1
    assert setting.a.tags == setting.b.tags == {(REPOSITORY, LATEST): taken[0].digest}


async def test_parallel_moves_of_a_tag_end_the_same_everywhere(setting: Bench) -> None:
    """After ten parallel pushes of one tag both replicas, the record and this node agree on the last one."""
    images = [await upload(setting, image(bytes([number]))) for number in range(10)]
    await asyncio.gather(*(setting.under_test.put(LATEST, app.manifest, app.media_type) for app in images))
    assert setting.a.tags == setting.b.tags
    winner = setting.a.tags[REPOSITORY, LATEST]
    assert cached_tag(setting) == winner
    assert (await records(setting))[1] == {f"{ROUTED}|latest": str(winner)}
    assert await setting.under_test.intents() == {}


async def test_a_put_goes_on_when_its_client_leaves(setting: Bench) -> None:
    """A push cancelled in mid-fan-out completes at the other replica too, and leaves nothing open."""
    app = await upload(setting, image(b"layer"))
    setting.b.gates["put_manifest"] = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        put = group.create_task(setting.under_test.put(LATEST, app.manifest, app.media_type))
        await until(lambda: setting.b.count("put_manifest") == 1)
        put.cancel()
    setting.b.gates["put_manifest"].set()
    await until(lambda: cached_tag(setting) == app.digest)
    assert setting.b.tags == {(REPOSITORY, LATEST): app.digest}
    assert await setting.under_test.intents() == {}
    assert Descriptor(BLOB_MEDIA_TYPE, digest_of(b"layer"), 5) in setting.holdings.entries.values()


async def test_a_manifest_that_a_replica_misses_is_kept(setting: Bench) -> None:
    """Our copy of it is pinned until all have it; where it cannot be kept the push is not acknowledged."""
    setting.replicas.down.add("b")
    app = await push(setting, image(b"layer"))
    assert app.digest in setting.spool.pins
    assert setting.cache.read_small(app.digest) == app.manifest
    setting.cache.is_full = True
    other = image(b"layer", b"other")
    for blob in other.blobs:
        setting.a.blobs[REPOSITORY, digest_of(blob)] = blob
    error = await refused(setting.under_test.put("other", other.manifest, other.media_type))
    assert error.status == 503


async def test_a_keeper_brings_no_deleted_manifest_back(setting: Bench) -> None:
    """Under the lease of the digest it is looked whether the manifest is on record still."""
    app = await push(setting, image(b"layer"))
    keep = partial(setting.under_test.put, keeper_tag(app.digest), app.manifest, app.media_type)
    await keep()
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    assert (await refused(keep())).code is ErrorCode.MANIFEST_UNKNOWN
    assert setting.a.tags == setting.b.tags == {}
    assert setting.a.manifests == setting.b.manifests == {}
