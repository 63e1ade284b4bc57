"""Proofs that a repository holds a content, where the answers of the replicas prove nothing."""

import asyncio

import pytest

from registry_proxy.operations import proofs as holdings_module
from registry_proxy.operations.proofs import HOLDING_FRESH_SECONDS, HoldingProofs
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.protocol.descriptor import (
    BLOB_MEDIA_TYPE,
    DOCKER_SCHEMA1_SIGNED,
    Descriptor,
    Manifest,
    ManifestLinks,
    parse_manifest,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of
from tests.support.fakes.images import Parts, image, index
from tests.support.fakes.memory import MemoryCache, MemoryHoldings, MemoryReader, ScriptedSeparation, holdings_of
from tests.support.refusal import refused

BLOB, MANIFEST = ContentKind.BLOB, ContentKind.MANIFEST
APP, OTHER = RoutedRepository("main", Repository("team/app")), RoutedRepository("main", Repository("team/other"))
LAYER = digest_of(b"layer")


class Table:
    """The proofs of an upstream that mixes blobs, over a store, holdings and replicas in memory."""

    def __init__(self, *mixed: ContentKind, recorded: tuple[Digest, ...] = ()) -> None:
        self.reader, self.cache, self.holdings = MemoryReader(), MemoryCache(), MemoryHoldings()
        self.separation = ScriptedSeparation(set(mixed))
        self.proofs: HoldingProofs = holdings_of(self.reader, self.holdings, self.cache, self.separation, recorded)

    def add(self, parts: Parts, tag: str | None = None) -> None:
        """Put an image or index into the upstream."""
        self.reader.manifests[APP.repository, parts.digest] = Manifest(parts.descriptor, parts.manifest)
        for blob in parts.blobs:
            self.reader.add_blob(APP.repository, blob)
        if tag is not None:
            self.reader.tags[APP.repository, tag] = parts.digest

    async def holds(self, digest: Digest, kind: ContentKind = BLOB, routed: RoutedRepository = APP) -> bool:
        """Tell whether a repository is proved to hold a digest."""
        try:
            await self.proofs.require(routed, kind, digest)
        except RegistryError as error:
            return error.status != 404
        return True


@pytest.fixture
def table() -> Table:
    """Return the table of an upstream that mixes both kinds."""
    return Table(BLOB, MANIFEST)


async def test_nothing_is_looked_for_where_repositories_are_kept_apart() -> None:
    """Each answer is the replicas' own, and costs no further request."""
    table = Table()
    answer = await table.proofs.ask(APP, BLOB, LAYER, lambda: asyncio.sleep(0, "answer"))
    assert answer == "answer"
    await table.proofs.require(APP, BLOB, LAYER)
    assert await table.proofs.may_mount(APP, LAYER)
    assert await table.proofs.find_absent(APP, parse_manifest(image(b"layer").manifest, image(b"").media_type)) == []
    await table.proofs.note_push(APP, LAYER)
    assert table.reader.requests == []


async def test_without_proof_nobody_is_asked(table: Table) -> None:
    """The replicas do not even get the request: they would take the blob into the repository."""
    asked = []

    async def question() -> None:
        asked.append(1)

    error = await refused(table.proofs.ask(APP, BLOB, LAYER, question))
    assert (error.code, error.status, asked) == (ErrorCode.BLOB_UNKNOWN, 404, [])
    error = await refused(table.proofs.ask(APP, MANIFEST, LAYER, question))
    assert (error.code, error.status, asked) == (ErrorCode.MANIFEST_UNKNOWN, 404, [])


@pytest.mark.parametrize("is_recorded", [True, False])
async def test_tags_and_records_prove_what_they_lead_to(is_recorded: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """A tag or a recorded manifest, its children, and their blobs belong to the repository, and to no other."""
    child = image(b"layer")
    parent = index(child)
    table = Table(BLOB, MANIFEST, recorded=(parent.digest,) if is_recorded else ())
    table.add(child)
    table.add(parent, None if is_recorded else "latest")
    for digest, kind in ((parent.digest, MANIFEST), (child.digest, MANIFEST), (LAYER, BLOB)):
        assert await table.holds(digest, kind)
    assert not await table.holds(digest_of(b"other"))
    if not is_recorded:
        assert not await table.holds(LAYER, routed=OTHER)


async def test_knowledge_of_this_node_proves_it_without_a_request(table: Table) -> None:
    """A manifest that the repository is known to hold, or a cached tag, is enough."""
    app = image(b"layer")
    await table.cache.store(app.digest, app.manifest)
    assert not await table.holds(LAYER)
    table.reader.requests.clear()
    table.holdings.remember(APP, MANIFEST, app.descriptor)
    assert await table.holds(LAYER)
    table.holdings.remember_tag(APP, Tag("t"), image(b"").descriptor, recorded=None, unless_changed_from=None)
    assert await table.holds(image(b"").digest, MANIFEST)
    assert table.reader.requests == []


async def test_a_push_proves_a_blob_until_it_is_deleted(table: Table) -> None:
    """A pushed blob that no manifest names yet exists for every node."""
    await table.proofs.note_push(APP, LAYER)
    assert await table.holds(LAYER)
    assert not await table.holds(LAYER, routed=OTHER)
    await table.proofs.note_delete(APP, BLOB, LAYER)
    assert not await table.holds(LAYER)


async def test_an_old_membership_is_proved_again_and_stands_when_nobody_answers(table: Table) -> None:
    """A blob that no manifest names any more is forgotten; without replicas it stays as it was."""
    table.holdings.remember(APP, BLOB, Descriptor(BLOB_MEDIA_TYPE, LAYER, 5))
    assert await table.holds(LAYER)
    table.holdings.ages[LAYER] = HOLDING_FRESH_SECONDS
    table.reader.is_down = True
    assert await table.holds(LAYER)
    table.reader.is_down = False
    assert not await table.holds(LAYER)
    assert table.holdings.find(APP, BLOB, LAYER) is None


async def test_a_repository_is_read_once_for_all_who_ask(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many questions about absent contents read a repository once, until the time is over."""
    for number in range(5):
        table.add(image(b"%d" % number), f"t{number}")
    strangers = [digest_of(b"stranger %d" % number) for number in range(50)]
    assert not any(await asyncio.gather(*map(table.holds, strangers)))
    assert not await table.holds(LAYER)
    assert table.reader.count("list_tags") == 1
    assert table.reader.count("fetch_manifest") == 5
    monkeypatch.setattr(holdings_module, "_WALK_SECONDS", -1.0)
    monkeypatch.setattr(holdings_module, "_WALK_SHARE", 0)
    table.proofs._walked.clear()  # the time is over
    table.add(image(b"layer"), "later")
    assert await table.holds(LAYER)


async def test_contents_that_a_manifest_may_name(table: Table) -> None:
    """A manifest may name only contents of the repository; its subject may be absent."""
    app = image(b"layer")
    config, _ = (Descriptor("", digest_of(blob), 1) for blob in app.blobs)
    links = parse_manifest(app.manifest, app.media_type)
    for blob in app.blobs:
        table.reader.add_blob(APP.repository, blob)
    assert await table.proofs.find_absent(APP, links) == [blob.digest for blob in links.blobs]
    await table.proofs.note_push(APP, LAYER)
    assert await table.proofs.find_absent(APP, links) == [config.digest]
    assert await table.proofs.find_absent(APP, ManifestLinks((), (app.descriptor,), None)) == [app.digest]
    table.add(app, "1")
    table.reader.manifests[APP.repository, app.digest] = Manifest(app.descriptor, app.manifest)
    assert await Table(BLOB).proofs.find_absent(APP, ManifestLinks((), (app.descriptor,), None)) == [app.digest]
    assert await table.proofs.find_absent(APP, ManifestLinks((), (), Descriptor("", LAYER, 5))) == []


async def test_a_manifest_of_an_old_kind_names_nothing(table: Table) -> None:
    """Docker schema 1 is served by its tag, and proves nothing else."""
    old = Parts(b'{"schemaVersion": 1, "fsLayers": []}', (), DOCKER_SCHEMA1_SIGNED)
    table.add(old, "old")
    assert await table.holds(old.digest, MANIFEST)
    assert not await table.holds(LAYER)


class Dying(ScriptedSeparation):
    """A separation whose replicas are down for the first ``failures`` questions."""

    failures = 1

    def is_settled(self, kind: ContentKind) -> bool:  # noqa: ARG002 - of neither kind
        return False

    async def verify(self, kind: ContentKind) -> None:
        if self.failures:
            self.failures -= 1
            raise UpstreamUnavailableError("it went down")
        self.mixed.add(kind)


async def test_the_answer_of_a_replica_that_died_is_sought_from_another_one() -> None:
    """An answer that can no longer be verified is not trusted: another replica is asked, and verified."""
    table, dying = Table(), Dying()
    table.reader.add_blob(APP.repository, b"layer")
    table.proofs = holdings_of(table.reader, table.holdings, table.cache, dying)
    assert not await table.proofs.is_held(APP, BLOB, LAYER)  # the other one mixes repositories
    assert table.reader.count("stat_blob") == 2
    dying.mixed.clear()
    dying.failures = 2
    with pytest.raises(UpstreamUnavailableError):
        await table.proofs.is_held(APP, BLOB, LAYER)
