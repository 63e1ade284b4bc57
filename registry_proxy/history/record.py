"""The record of moves as callers see it: the tags of a repository, and the moves of a tag."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from registry_proxy.operations.contents import unless_absent
from registry_proxy.ports.history import MOVED, Move, move_key, moves_prefix
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.ports.store import Record, Store, Table
from registry_proxy.protocol.reference import RESERVED_TAG_PREFIX, Digest, Tag, parse_digest

COUNTED_MAX = 100
"""Limit of the moves that ``moves_since`` counts."""


@dataclass(frozen=True, slots=True)
class RecordedTag:
    """A tag, what it is on record as, and the key of its last move; None for what is on no record."""

    tag: Tag
    digest: Digest | None
    move: str | None


class TagHistory:
    """Reads the history of tags. Its methods raise StoreUnavailableError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def tags(self, routed: RoutedRepository) -> Sequence[RecordedTag]:
        """Return the tags of a repository that are on record, without our own."""
        records = await self._store.list(Table.TAGS, f"{routed}|")
        return [tag for tag in map(_recorded, records) if not tag.tag.startswith(RESERVED_TAG_PREFIX)]

    async def listed(self, routed: RoutedRepository, reader: RegistryReader) -> Sequence[RecordedTag]:
        """Return the tags of a repository at the registries, each as it is on record, without our own.

        A tag that was made past us, or before the store was new, is on no record.

        Raises:
            RegistryError, UpstreamUnavailableError: the registries cannot be asked.
        """
        recorded = {each.tag: each for each in await self.tags(routed)}
        tags = await unless_absent(reader.list_tags(routed.repository)) or ()
        own = [tag for tag in tags if not tag.startswith(RESERVED_TAG_PREFIX)]
        return [recorded.get(tag, RecordedTag(tag, None, None)) for tag in own]

    async def current(self, routed: RoutedRepository, tag: Tag) -> Digest | None:
        """Return what a tag is on record as; None where it was deleted, or was never made through us."""
        record = await self._store.get(Table.TAGS, f"{routed}|{tag}")
        return None if record is None else parse_digest(record.value["digest"])

    async def held(self, routed: RoutedRepository, digest: Digest) -> bool:
        """Tell whether a repository is on record to have held a manifest: pushed through us, or deleted lately."""
        deletion = IntentKey(routed, IntentKind.MANIFEST, str(digest))
        keys = [(Table.MANIFESTS, f"{routed}|{digest}"), (Table.DELETIONS, str(deletion))]
        return any(record is not None for record in await self._store.get_all(keys))

    async def purged(self, routed: RoutedRepository, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Return those of some manifests that were purged, and not pushed again."""
        keys = [f"{routed}|{digest}" for digest in digests]
        purged = await self._store.get_all([(Table.PURGED, key) for key in keys])
        pushed = await self._store.get_all([(Table.MANIFESTS, key) for key in keys])
        found = zip(digests, purged, pushed, strict=True)
        return [digest for digest, purge, push in found if purge is not None and push is None]

    async def last_moves(self, tags: Collection[RecordedTag]) -> Mapping[Tag, Move]:
        """Return the last move of each tag that has a history, by one question."""
        keys = {tag.tag: tag.move for tag in tags if tag.move is not None}
        records = await self._store.get_all([(Table.MOVES, key) for key in keys.values()]) if keys else []
        return {tag: Move.of(record) for tag, record in zip(keys, records, strict=True) if record is not None}

    async def moves(self, routed: RoutedRepository, tag: Tag, *, limit: int | None = None) -> Sequence[Move]:
        """Return the moves of a tag, newest first; the first ``limit`` of them where that is given.

        The digest before each is that of the move behind it, where there is one: a write that was taken back may have
        come between when it was stored.
        """
        records = await self._store.list(Table.MOVES, moves_prefix(routed, tag), limit=limit)
        return list(_chained([Move.of(record) for record in records]))

    async def moves_since(self, routed: RoutedRepository, tag: Tag, digest: str) -> int | None:
        """Return how often a tag was moved since it was a digest, COUNTED_MAX for that or more; None for not known."""
        records = await self._store.list(Table.MOVES, moves_prefix(routed, tag), limit=COUNTED_MAX)
        found = (number for number, record in enumerate(records) if Move.of(record).digest == digest)
        return next(found, COUNTED_MAX if len(records) == COUNTED_MAX else None)


def _recorded(record: Record) -> RecordedTag:
    routed, _, tag = record.key.rpartition("|")
    number = record.value.get(MOVED)
    key = None if number is None else move_key(f"{routed}|{tag}|", number)
    return RecordedTag(Tag(tag), parse_digest(record.value["digest"]), key)


def _chained(moves: Sequence[Move]) -> Iterator[Move]:
    for index, move in enumerate(moves):
        is_last = index + 1 == len(moves)
        yield move if is_last else replace(move, previous=moves[index + 1].digest)
