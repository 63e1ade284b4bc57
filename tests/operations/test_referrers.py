"""Referrers: each pushed one is listed, whatever the registries support, also under the fallback tag."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.operations.referrers import ReferrersPage
from registry_proxy.ports.errors import AbsenceUnknownError
from registry_proxy.ports.names import ContentKind
from registry_proxy.protocol.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Tag, digest_of, fallback_tags
from registry_proxy.protocol.referrers import Referrer, describe_referrer, index_of, parse_referrers
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, bench

CONFIG = b"{}"
SUBJECT = digest_of(b"an image that need not exist")
TAG = fallback_tags(SUBJECT)[0]


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Two replicas without the referrers API, with the config that all artifacts here use."""
    async with bench(tmp_path) as setting:
        await setting.under_test.upload(CONFIG)
        yield setting


def artifact(about: str, subject: Digest | None = SUBJECT, **fields: Any) -> bytes:
    """Return an artifact, with or without a subject; fields that are None are left out."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.sbom",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(digest_of(CONFIG)), "size": 2},
        "layers": [],
        "subject": subject and {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 28},
        "annotations": {"about": about},
        **fields,
    }
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


async def attach(setting: Bench, body: bytes, media_type: str = OCI_MANIFEST) -> Digest:
    """Push an artifact by its digest."""
    return (await setting.under_test.put(digest_of(body), body, media_type)).digest


async def listed(setting: Bench, artifact_type: str | None = None) -> dict[Digest, Referrer]:
    """Return the referrers of the subject."""
    page = await page_of(setting, artifact_type)
    assert page.last is None
    return {entry.digest: entry for entry in parse_referrers(page.index.body)}


async def page_of(
    setting: Bench, artifact_type: str | None = None, last: str | None = None, page_size: int | None = None
) -> ReferrersPage:
    """Return a page of the list."""
    return await setting.under_test.referrers.list_page(ROUTED, SUBJECT, artifact_type, last=last, page_size=page_size)


def tagged(replica: Any) -> set[Digest] | None:
    """Return the entries of the subject's fallback tag at a replica; None where there is no such tag."""
    digest = replica.tags.get((REPOSITORY, TAG))
    if digest is None:
        return None
    return {entry.digest for entry in parse_referrers(replica.manifests[REPOSITORY, digest].body)}


def put_past_us(replica: Any, body: bytes, tag: str | None = None, media_type: str = OCI_MANIFEST) -> Digest:
    """Put a manifest into a replica."""
    digest = digest_of(body)
    replica.manifests[REPOSITORY, digest] = Manifest(Descriptor(media_type, digest, len(body)), body)
    if tag is not None:
        replica.tags[REPOSITORY, tag] = digest
    return digest


async def test_a_pushed_referrer_is_listed_at_once_and_under_the_fallback_tag(setting: Bench) -> None:
    """Each entry has the type and annotations that the specification derives, for images and indexes; filters work."""
    bodies = {
        "own": (artifact("1"), OCI_MANIFEST, "application/vnd.example.sbom"),
        "of its config": (artifact("2", artifactType=None), OCI_MANIFEST, "application/vnd.oci.empty.v1+json"),
        "of an index": (
            artifact("3", artifactType="a/b", mediaType=OCI_INDEX, config=None, layers=None, manifests=[]),
            OCI_INDEX,
            "a/b",
        ),
        "none": (
            artifact("4", artifactType=None, mediaType=OCI_INDEX, config=None, layers=None, manifests=[]),
            OCI_INDEX,
            None,
        ),
    }
    for body, media_type, artifact_type in bodies.values():
        digest = await attach(setting, body, media_type)
        found = await listed(setting)
        assert found[digest].artifact_type == artifact_type
        assert found[digest].fields["annotations"] == json.loads(body)["annotations"]
        assert tagged(setting.a) == tagged(setting.b) == set(found)
    assert len(await listed(setting)) == 4
    for body, _, artifact_type in bodies.values():
        if artifact_type is not None:
            assert set(await listed(setting, artifact_type)) == {digest_of(body)}
    assert await listed(setting, "no/such") == {}


async def test_a_manifest_without_a_subject_costs_no_question(setting: Bench) -> None:
    """A push without a subject causes neither a fallback tag nor a question to the referrers API."""
    await setting.under_test.put("1", artifact("1", subject=None), OCI_MANIFEST)
    for replica in (setting.a, setting.b):
        assert replica.count("fetch_referrers") == 0
        assert tagged(replica) is None


async def test_a_replica_with_the_api_needs_no_tag_unless_another_has_none(setting: Bench) -> None:
    """Two replicas with the API get no tag; where one has no API both get it, with all entries of the API."""
    setting.a.has_referrers = setting.b.has_referrers = True
    first = await attach(setting, artifact("1"))
    assert set(await listed(setting)) == {first}
    assert tagged(setting.a) is tagged(setting.b) is None
    setting.b.has_referrers = False
    second = await attach(setting, artifact("2"))
    assert set(await listed(setting)) == tagged(setting.a) == tagged(setting.b) == {first, second}


async def test_two_pushes_at_once_are_both_listed(setting: Bench) -> None:
    """Of many simultaneous attachments none is overwritten by another."""
    attached = await asyncio.gather(*(attach(setting, artifact(str(number))) for number in range(8)))
    assert set(await listed(setting)) == tagged(setting.a) == tagged(setting.b) == set(attached)


async def test_older_clients_that_write_the_index_themselves_lose_nothing(setting: Bench) -> None:
    """An index read before another push is accepted unchanged, and the entries missing in it are listed again."""
    first, second = artifact("1"), artifact("2")
    await attach(setting, first)
    theirs = index_of([Referrer(digest_of(first), {**describe_of(first).fields, "platform": {"os": "linux"}})])
    await attach(setting, second)
    pushed = await setting.under_test.push.put_manifest(ROUTED, TAG, OCI_INDEX, theirs.body, may_move_tags=True)
    assert pushed.descriptor == theirs.descriptor
    assert tagged(setting.a) == tagged(setting.b) == {digest_of(first), digest_of(second)}
    assert (await listed(setting))[digest_of(first)].fields["platform"] == {"os": "linux"}
    assert setting.holdings.find_tag(ROUTED, TAG) is not None


async def test_an_entry_that_a_client_takes_out_goes_with_its_manifest(setting: Bench) -> None:
    """Clients remove an entry before they delete its manifest; until then that still refers to the subject."""
    digest = await attach(setting, artifact("1"))
    await setting.under_test.put(TAG, index_of([]).body, OCI_INDEX)
    assert set(await listed(setting)) == {digest}
    await setting.under_test.manage.delete_manifest(ROUTED, digest)
    assert await listed(setting) == {}
    assert tagged(setting.a) == tagged(setting.b) == set()


async def test_an_entry_that_is_no_referrer_does_not_come_back(setting: Bench) -> None:
    """An entry of another subject's referrer, or of a removed manifest, stays out once a client left it out."""
    other = put_past_us(setting.a, artifact("1", subject=digest_of(b"other")))
    setting.b.manifests |= setting.a.manifests
    gone = digest_of(b"gone")
    fields = [{"mediaType": OCI_MANIFEST, "digest": str(one), "size": 1} for one in (other, gone)]
    index = index_of([Referrer(one, each) for one, each in zip((other, gone), fields, strict=True)])
    for replica in (setting.a, setting.b):
        put_past_us(replica, index.body, TAG, OCI_INDEX)
    await setting.under_test.put(TAG, index_of([]).body, OCI_INDEX)
    assert tagged(setting.a) == tagged(setting.b) == set()


async def test_a_deleted_referrer_is_listed_no_more(setting: Bench) -> None:
    """A deleted referrer is neither in our list nor under the tag; others stay, also those of a deleted subject."""
    first, second = [await attach(setting, artifact(about)) for about in "12"]
    await setting.under_test.manage.delete_manifest(ROUTED, first)
    assert set(await listed(setting)) == tagged(setting.a) == tagged(setting.b) == {second}
    body = artifact("of an artifact", subject=second)
    third = await attach(setting, body)
    await setting.under_test.manage.delete_manifest(ROUTED, second)
    page = await setting.under_test.referrers.list_page(ROUTED, second, None)
    assert [entry.digest for entry in parse_referrers(page.index.body)] == [third]


async def test_a_delete_is_done_though_the_tag_cannot_be_written(setting: Bench) -> None:
    """An entry that stays under the tag is not in our list."""
    digest = await attach(setting, artifact("1"))
    for replica in (setting.a, setting.b):
        replica.errors["put_manifest"] = RegistryError(ErrorCode.DENIED, "no", status=403)
    await setting.under_test.manage.delete_manifest(ROUTED, digest)
    assert tagged(setting.a) == {digest}
    assert await listed(setting) == {}


async def test_a_referrer_that_was_pushed_past_us_is_listed_and_kept(setting: Bench) -> None:
    """Referrers under either replica's tag, or in the API of one, are listed; the next push has all under the tag."""
    bodies = [artifact(about) for about in "123"]
    for replica in (setting.a, setting.b):
        for body in bodies:
            put_past_us(replica, body)
    for replica, body in ((setting.a, bodies[0]), (setting.b, bodies[1])):
        entry = describe_of(body)
        bare = Referrer(entry.digest, {key: entry.fields[key] for key in ("mediaType", "digest", "size")})
        put_past_us(replica, index_of([bare]).body, TAG, OCI_INDEX)
    found = await listed(setting)
    assert found == {digest_of(body): describe_of(body) for body in bodies[:2]}
    setting.a.has_referrers = True
    assert set(await listed(setting)) == {digest_of(body) for body in bodies}
    own = await attach(setting, artifact("own"))
    assert tagged(setting.a) == tagged(setting.b) == {own, *map(digest_of, bodies)}


def describe_of(body: bytes) -> Referrer:
    """Return the entry of an artifact."""
    return describe_referrer(Manifest(Descriptor(OCI_MANIFEST, digest_of(body), len(body)), body))


async def test_a_referrer_that_one_replica_misses_is_sent_to_it(setting: Bench) -> None:
    """A referrer with a layer pushed to one replica alone, past the proxy, is at both after the next push."""
    bodies = []
    for replica, word in ((setting.a, b"one"), (setting.b, b"two")):
        layer = {"mediaType": "text/plain", "digest": str(replica.add_blob(REPOSITORY, word)), "size": 3}
        bodies.append(artifact(word.decode(), layers=[layer]))
        put_past_us(replica, bodies[-1])
        put_past_us(replica, index_of([describe_of(bodies[-1])]).body, TAG, OCI_INDEX)
    last = await attach(setting, artifact("3"))
    everything = {last, *map(digest_of, bodies)}
    assert set(await listed(setting)) == tagged(setting.a) == tagged(setting.b) == everything
    assert setting.a.blobs == setting.b.blobs


async def test_a_referrer_deleted_past_us_keeps_no_other_from_being_listed(setting: Bench) -> None:
    """Registries refuse an index with absent manifests: it is written without them."""
    gone, stays = [await attach(setting, artifact(about)) for about in "12"]
    for replica in (setting.a, setting.b):
        del replica.manifests[REPOSITORY, gone]
    setting.holdings.forget(ROUTED, ContentKind.MANIFEST, gone)
    last = await attach(setting, artifact("3"))
    assert set(await listed(setting)) == tagged(setting.a) == tagged(setting.b) == {stays, last}


async def test_a_list_that_might_miss_something_is_an_error(setting: Bench) -> None:
    """Neither a client nor a push gets an empty list because a replica does not answer."""
    setting.replicas.down.add("b")
    setting.b.is_down = True
    with pytest.raises(AbsenceUnknownError):
        await listed(setting)
    with pytest.raises(AbsenceUnknownError):
        await attach(setting, artifact("1"))


async def test_parts_of_a_list_follow_each_other(setting: Bench) -> None:
    """A page begins after the last digest of the one before, with the same filter."""
    attached = [await attach(setting, artifact(str(number))) for number in range(5)]
    await attach(setting, artifact("other", artifactType="a/b"))
    seen: list[Digest] = []
    last: str | None = None
    while len(seen) < 5:
        page = await page_of(setting, "application/vnd.example.sbom", last, 2)
        seen += [entry.digest for entry in parse_referrers(page.index.body)]
        last = page.last
    assert last is None
    assert seen == sorted(attached, key=str)


async def test_a_fallback_tag_on_something_else_is_written_over_by_an_index(setting: Bench) -> None:
    """An image under that name lists nothing, and keeps no referrer from being listed."""
    await setting.under_test.put(Tag(TAG), artifact("an image", subject=None), OCI_MANIFEST)
    digest = await attach(setting, artifact("1"))
    assert tagged(setting.a) == {digest}
