"""Comparing the replicas of an upstream without the journal, and having mended what differs (docs/decisions.md, 21).

What can be compared is what the protocol lists, tags, and what is on record: the manifests pushed through us. From
these everything else follows. What was pushed past us without a tag cannot be found.
"""

import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from registry_proxy.ports import (
    ReplicaClient,
    ReplicaSet,
    RoutedRepository,
    StorageKind,
    Store,
    StoreUnavailableError,
    Table,
    UpstreamUnavailableError,
)
from registry_proxy.replication.copies import has
from registry_proxy.replication.journal import IntentKey, IntentKind, Journal, JournalMarks
from registry_proxy.replication.manifests import recorded_repositories, tag_record_key, write_lease
from registry_proxy.spec.descriptor import Manifest, ManifestLinks, parse_manifest
from registry_proxy.spec.errors import RegistryError
from registry_proxy.spec.reference import Digest, Repository, Tag, parse_digest

_NOTED_MAX = 1000
_NO_LINKS = ManifestLinks((), (), None)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Difference:
    """A replica does not hold what it shall: ``found`` is what a tag is there instead, None for nothing.

    Where ``wanted`` is None nobody can tell what a tag shall be: the replicas disagree, and no push through us decided.
    ``holders`` are the replicas that hold ``wanted``; none means that it is lost.
    """

    key: IntentKey
    replica: str
    wanted: Digest | None
    found: Digest | None
    media_type: str
    holders: tuple[str, ...]


@dataclass(slots=True)
class Comparison:
    """How far a comparison is, and what it found. Times in seconds since the epoch; ``error`` is why it ended early.

    ``differences`` holds the first thousand of ``differing``; ``mended`` were entered into the journal for repair.
    """

    started_at: float
    is_done: bool = False
    error: str = ""
    repositories: int = 0
    repositories_done: int = 0
    manifests: int = 0
    blobs: int = 0
    differing: int = 0
    undecided: int = 0
    lost: int = 0
    mended: int = 0
    differences: list[Difference] = field(default_factory=list)

    def note(self, difference: Difference) -> None:
        """Count a difference, and keep the first ones."""
        self.differing += 1
        self.undecided += difference.wanted is None
        self.lost += difference.wanted is not None and not difference.holders
        if len(self.differences) < _NOTED_MAX:
            self.differences.append(difference)


class Verifier:
    """Compares the replicas of one upstream, one comparison at a time.

    Args:
        replica_set: the replicas.
        store: what was pushed through us.
        journal: what is known to be missing already, and where the rest is entered.
    """

    def __init__(self, *, replica_set: ReplicaSet, store: Store, journal: Journal) -> None:
        self._replica_set = replica_set
        self._store = store
        self._journal = journal

    def new(self) -> Comparison:
        """Return a comparison that has not begun."""
        return Comparison(time.time())

    async def compare(
        self, comparison: Comparison, *, mend: bool = False, prefer: str | None = None, only_at: str | None = None
    ) -> None:
        """Compare all replicas; errors end up in ``comparison``.

        Args:
            comparison: is brought up to date as it goes.
            mend: enter what differs and is decided into the journal, so that it is repaired. Nothing is ever deleted.
            prefer: a replica that decides what tags are where nothing else does.
            only_at: mend nothing but this replica.
        """
        try:
            await self._compare(comparison, mend=mend, prefer=prefer, only_at=only_at)
        except RegistryError as error:
            comparison.error = error.message
        except (UpstreamUnavailableError, StoreUnavailableError) as error:
            comparison.error = str(error)
        finally:
            comparison.is_done = True

    async def _compare(self, comparison: Comparison, *, mend: bool, prefer: str | None, only_at: str | None) -> None:
        if self._replica_set.storage is StorageKind.SHARED:
            return  # they cannot differ
        if self._replica_set.read_only and len(self._replica_set.replicas) == 1:
            return  # nor can one registry of others, which need not list its repositories, from what nobody pushed
        away = [c.name for c in self._replica_set.replicas if not self._replica_set.is_writable(c.name)]
        if away:
            raise UpstreamUnavailableError(f"replicas can only be compared when all are up; not up: {', '.join(away)}")
        repositories = await self._repositories()
        comparison.repositories = len(repositories)
        for repository in sorted(repositories):
            routed = RoutedRepository(self._replica_set.upstream, repository)
            marks = await self._journal.snapshot()
            async for difference in self._compare_repository(comparison, routed, marks, prefer):
                comparison.note(difference)
                if mend and difference.holders and only_at in {None, difference.replica}:
                    comparison.mended += await self._enter(difference)
            comparison.repositories_done += 1

    async def _repositories(self) -> set[Repository]:
        found: set[Repository] = set()
        for client in self._replica_set.replicas:
            found.update(await client.list_repositories())
        recorded = await recorded_repositories(self._store, f"{self._replica_set.upstream}/")
        return found | {routed.repository for routed in recorded}

    async def _compare_repository(
        self, comparison: Comparison, routed: RoutedRepository, marks: JournalMarks, prefer: str | None
    ) -> AsyncIterator[Difference]:
        recorded = {
            record.key.rpartition("|")[2]: parse_digest(record.value["digest"])
            for record in await self._store.list(Table.TAGS, f"{routed}|")
        }
        digests = {
            parse_digest(record.key.rpartition("|")[2]): str(record.value["media_type"])
            for record in await self._store.list(Table.MANIFESTS, f"{routed}|")
        }
        found = await self._tags(routed, marks)
        for tag in sorted({*recorded, *(tag for tags in found.values() for tag in tags)}):
            held = {
                name: tags.get(Tag(tag)) for name, tags in found.items() if not marks.has_tag_intent(name, routed, tag)
            }
            wanted = _decide(recorded.get(tag), held, prefer)
            holders = tuple(name for name, digest in held.items() if wanted is not None and digest == wanted)
            digests.update((digest, "") for digest in held.values() if digest is not None and digest not in digests)
            for name, digest in held.items():
                if wanted is None or digest != wanted:
                    key = IntentKey(routed, IntentKind.TAG, tag)
                    yield Difference(key, name, wanted, digest, digests.get(wanted, "") if wanted else "", holders)
        async for difference in self._compare_contents(comparison, routed, marks, digests):
            yield difference

    async def _tags(self, routed: RoutedRepository, marks: JournalMarks) -> Mapping[str, Mapping[Tag, Digest]]:
        """Return for each replica what its tags are, less those on what was deleted and is not deleted there yet."""
        found: dict[str, dict[Tag, Digest]] = {}
        for client in self._replica_set.replicas:
            tags = found[client.name] = {}
            try:
                names = await client.list_tags(routed.repository)
            except RegistryError as error:
                if error.status != 404:
                    raise
                continue
            for tag in names:
                try:
                    digest = (await client.resolve_tag(routed.repository, tag)).digest
                except RegistryError as error:
                    if error.status != 404:
                        raise
                    continue
                if not marks.has_tombstone(client.name, routed, digest):
                    tags[tag] = digest
        return found

    async def _compare_contents(
        self, comparison: Comparison, routed: RoutedRepository, marks: JournalMarks, digests: Mapping[Digest, str]
    ) -> AsyncIterator[Difference]:
        """Compare manifests, and what they refer to."""
        waiting, seen = dict(digests), set(digests)
        blobs: set[Digest] = set()
        while waiting:
            digest, media_type = waiting.popitem()
            held = await self._manifests(routed, digest, marks)
            manifest = next(iter(held.values()), None)
            if manifest is not None:
                media_type = manifest.descriptor.media_type
                links = _links(manifest)
                waiting |= {child.digest: child.media_type for child in links.manifests if child.digest not in seen}
                seen.update(child.digest for child in links.manifests)
                blobs.update(blob.digest for blob in links.blobs)
            comparison.manifests += 1
            key = IntentKey(routed, IntentKind.MANIFEST, str(digest))
            for difference in self._lacking(key, digest, media_type, held, marks):
                yield difference
        for digest in blobs:
            clients = self._replica_set.replicas
            holders = [c.name for c in clients if await has(c.stat_blob(routed.repository, digest))]
            comparison.blobs += 1
            key = IntentKey(routed, IntentKind.BLOB, str(digest))
            for difference in self._lacking(key, digest, "", holders, marks):
                yield difference

    async def _manifests(self, routed: RoutedRepository, digest: Digest, marks: JournalMarks) -> Mapping[str, Manifest]:
        """Return the manifest by replica, of those that have it and shall."""
        held = {}
        for client in self._replica_set.replicas:
            if not marks.has_tombstone(client.name, routed, digest):
                try:
                    held[client.name] = await client.fetch_manifest(routed.repository, digest)
                except RegistryError as error:
                    if error.status != 404:
                        raise
        return held

    def _lacking(
        self, key: IntentKey, digest: Digest, media_type: str, holders: Collection[str], marks: JournalMarks
    ) -> list[Difference]:
        return [
            Difference(key, client.name, digest, None, media_type, tuple(holders))
            for client in self._replica_set.replicas
            if client.name not in holders and not marks.has_tombstone(client.name, key.routed, digest)
        ]

    # ------------------------------------------------------------ mending

    async def _enter(self, difference: Difference) -> bool:
        """Enter a difference into the journal, if it is still one; return whether it is there now."""
        key, wanted = difference.key, difference.wanted
        assert wanted is not None  # noqa: S101 - only what has holders is entered
        async with self._lease(difference, wanted):
            clients = {client.name: client for client in self._replica_set.replicas}
            if not await self._holds(clients[difference.holders[0]], key, wanted):
                return False
            if key.kind is IntentKind.TAG and not await self._is_unmoved(key, wanted):
                return False
            return await self._journal.miss(key, wanted, difference.media_type, difference.replica)

    @asynccontextmanager
    async def _lease(self, difference: Difference, wanted: Digest) -> AsyncIterator[None]:
        tag = Tag(difference.key.name) if difference.key.kind is IntentKind.TAG else None
        async with write_lease(self._store, difference.key.routed, wanted, tag):
            yield

    async def _holds(self, client: ReplicaClient, key: IntentKey, wanted: Digest) -> bool:
        repository = key.routed.repository
        if key.kind is IntentKind.BLOB:
            return await has(client.stat_blob(repository, wanted))
        if key.kind is IntentKind.MANIFEST:
            return await has(client.fetch_manifest(repository, wanted))
        try:
            return (await client.resolve_tag(repository, Tag(key.name))).digest == wanted
        except RegistryError as error:
            if error.status != 404:
                raise
            return False

    async def _is_unmoved(self, key: IntentKey, wanted: Digest) -> bool:
        """Tell whether no push through us made the tag something else since it was read."""
        record = await self._store.get(Table.TAGS, tag_record_key(key.routed, Tag(key.name)))
        intent = await self._journal.find(key)
        is_ours = record is None or record.value["digest"] == str(wanted)
        return (is_ours or intent is None) and (intent is None or intent.digest == wanted)


def _decide(recorded: Digest | None, held: Mapping[str, Digest | None], prefer: str | None) -> Digest | None:
    """Return what a tag shall be: as last pushed through us, as all who have it say, or as the preferred says."""
    values = {digest for digest in held.values() if digest is not None}
    if recorded is not None and recorded in values:
        return recorded
    if len(values) == 1:  # moved past us, everywhere; or never pushed through us
        return next(iter(values))
    return None if prefer is None else held.get(prefer)


def _links(manifest: Manifest) -> ManifestLinks:
    try:
        return parse_manifest(manifest.body, manifest.descriptor.media_type)
    except RegistryError:  # Docker schema 1, say
        return _NO_LINKS
