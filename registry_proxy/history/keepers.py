"""Keepers: reserved tags that keep the content of the newest moves alive at the registries.

The garbage collection of a registry takes manifests without a tag, also children of an index that has one, and follows
no subject. So each manifest of an image has a keeper, and each of its referrers. A keeper is written as every other
tag is: at all replicas, in the journal and on record, so that a replica that is added receives it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from registry_proxy.history.record import TagHistory
from registry_proxy.operations.contents import links_of, unless_absent
from registry_proxy.operations.manifests import ManifestWriter
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.referrers import subject_in
from registry_proxy.ports.deletions import Deletions
from registry_proxy.ports.errors import (
    CacheUnavailableError,
    ConflictError,
    FillFailedError,
    StoreUnavailableError,
    UpstreamUnavailableError,
)
from registry_proxy.ports.history import Move
from registry_proxy.ports.journal import IntentKind
from registry_proxy.ports.names import RoutedRepository, parse_routed
from registry_proxy.ports.store import Record, Store, StoreChanges, Table, read_since
from registry_proxy.protocol.descriptor import Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import (
    KEEPER_PREFIX,
    RESERVED_TAG_PREFIX,
    Digest,
    Tag,
    keeper_tag,
    parse_digest,
)
from registry_proxy.tasks import repeat

_log = logging.getLogger(__name__)
_LEASE = "keepers"
_LOOK_SECONDS = 1.0
_REVIEW_SECONDS = 3600.0
_ATTEMPTS = 30
_MANIFESTS_MAX = 1000
"""Limit of the manifests of one image, with its referrers."""

_NOT_TO_BE_KEPT = {400, 404}
"""The status for a manifest that was deleted or pushed past us, lost a part, or is none for a replica: for good."""

_FAILURES = (RegistryError, UpstreamUnavailableError, FillFailedError, CacheUnavailableError, OSError)

_Subject = tuple[RoutedRepository, IntentKind, str]


@dataclass(frozen=True, slots=True)
class KeepLimits:
    """The moves of a tag whose content is kept: the newest, and those of a time; nothing where ``moves`` is 0."""

    moves: int
    age_seconds: float

    def wanted(self, moves: Sequence[Move], now: float) -> Sequence[Digest]:
        """Return the digests that are kept of a tag with these moves, newest first."""
        if not self.moves:
            return []
        states = [move for move in moves if move.digest is not None]
        kept = [move for index, move in enumerate(states) if index < self.moves or move.at >= now - self.age_seconds]
        return [parse_digest(digest) for digest in dict.fromkeys(move.digest for move in kept) if digest is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperTools:
    """The collaborators of keepers.

    Args:
        store: the moves, and which tags and manifests are written.
        changes: tells when something is.
        pull: reads manifests.
        find_referrers: returns the manifests that refer to one.
        writer: writes keepers.
        deletions: removes them.
    """

    store: Store
    changes: StoreChanges
    pull: Pull
    find_referrers: Callable[[RoutedRepository, Digest], Awaitable[Sequence[Digest]]]
    writer: ManifestWriter
    deletions: Deletions


class Keepers:
    """Follows the moves of all nodes, and keeps the content of the newest of each tag."""

    def __init__(self, tools: KeeperTools, limits: KeepLimits, clock: Callable[[], float] = time.time) -> None:
        self._tools = tools
        self._limits = limits
        self._clock = clock
        self._record = TagHistory(tools.store)
        self._version: int | None = None
        self._seen = -1
        self._reviewed_at = float("-inf")
        self._waiting: dict[_Subject, int] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        await repeat(self.follow, _LOOK_SECONDS, StoreUnavailableError, ConflictError, at_once=True)

    async def follow(self) -> None:
        """Keep what was written since the last call; review everything now and then. Raises StoreUnavailableError."""
        now, seen = self._clock(), self._tools.changes.version(Table.INTENTS)
        is_due = not 0 <= now - self._reviewed_at < _REVIEW_SECONDS
        is_written = self._limits.moves > 0 and (seen != self._seen or self._waiting)
        if not is_due and not is_written:
            return
        async with self._tools.store.lease(_LEASE):
            found, is_whole = await read_since(self._tools.store, Table.INTENTS, self._version)
            if is_due or is_whole:
                await self.review()
                self._waiting.clear()
                self._reviewed_at = now
            else:
                self._waiting |= dict.fromkeys(filter(None, map(_written, found.records)), 0)
                await self._keep_written()
        self._version, self._seen = found.version, seen

    # ------------------------------------------------------------ what was written

    async def _keep_written(self) -> None:
        """Keep each image that was written; one that cannot be kept now is tried again a few times."""
        for (routed, kind, name), attempts in list(self._waiting.items()):
            try:
                if kind is IntentKind.TAG:
                    for digest in await self._without_keeper(routed, Tag(name)):
                        await self._keep(routed, digest)
                else:
                    await self._keep_referrer(routed, parse_digest(name))
            except _FAILURES as error:
                self._waiting[routed, kind, name] = attempts + 1
                if attempts + 1 < _ATTEMPTS:
                    continue
                _log.warning("%s of %s is not kept yet: %s", name, routed, error)
            del self._waiting[routed, kind, name]

    async def _without_keeper(self, routed: RoutedRepository, tag: Tag) -> Sequence[Digest]:
        """Return the wanted states of a tag that have no keeper: it may have moved several times lately."""
        wanted = self._limits.wanted(await self._record.moves(routed, tag), self._clock())
        keys = [(Table.TAGS, f"{routed}|{keeper_tag(each)}") for each in wanted]
        records = await self._tools.store.get_all(keys) if keys else []
        return [digest for digest, record in zip(wanted, records, strict=True) if record is None]

    async def _keep_referrer(self, routed: RoutedRepository, digest: Digest) -> None:
        """Keep a manifest that was written, where it refers to one that is kept."""
        manifest = await self._find(routed, digest)
        subject = None if manifest is None else subject_in(manifest)
        if subject is not None and await self._record.current(routed, keeper_tag(subject)) is not None:
            await self._keep(routed, digest)

    async def _keep(self, routed: RoutedRepository, digest: Digest) -> Collection[Digest]:
        """Have a keeper on each manifest of an image; return their digests.

        Raises:
            RegistryError, UpstreamUnavailableError: the image cannot be read or written.
        """
        manifests = await self._collect(routed, digest)
        for each, manifest in manifests.items():
            tag = keeper_tag(each)
            if await self._record.current(routed, tag) != each:
                try:
                    await self._tools.writer.write(routed, tag, manifest, links_of(manifest), may_move_tags=True)
                except RegistryError as error:
                    if error.status not in _NOT_TO_BE_KEPT:
                        raise
                    _log.info("%s of %s is not kept: %s", each, routed, error)
        return manifests.keys()

    async def _collect(self, routed: RoutedRepository, digest: Digest) -> Mapping[Digest, Manifest]:
        """Return the manifests of an image and its referrers, as far as they are there, those named before others."""
        found: dict[Digest, Manifest] = {}
        visited: set[Digest] = set()
        waiting: list[tuple[Digest, Manifest | None]] = [(digest, None)]
        while waiting:
            each, manifest = waiting.pop()
            if manifest is not None:  # its children are here
                found[each] = manifest
                referrers = await self._tools.find_referrers(routed, each)
                waiting += [(referrer, None) for referrer in reversed(referrers)]
            elif each not in visited and len(visited) < _MANIFESTS_MAX:
                visited.add(each)
                if (manifest := await self._find(routed, each)) is not None:
                    children = [child.digest for child in links_of(manifest).manifests]
                    waiting += [(each, manifest), *((child, None) for child in reversed(children))]
        return found

    async def _find(self, routed: RoutedRepository, digest: Digest) -> Manifest | None:
        answer = await unless_absent(self._tools.pull.get_manifest(routed, digest))
        return None if answer is None else answer.manifest

    # ------------------------------------------------------------ everything

    async def review(self) -> None:
        """Keep all that is wanted, and remove the keepers of everything else. Raises StoreUnavailableError."""
        heads = {*await self._tools.store.heads(Table.MOVES), *await self._tools.store.heads(Table.TAGS)}
        for routed in map(parse_routed, sorted(heads)):
            try:
                await self._review(routed)
            except _FAILURES as error:  # without a part of the answer nothing may be removed
                _log.warning("the kept content of %s is not reviewed: %s", routed, error)
            await asyncio.sleep(0)

    async def _review(self, routed: RoutedRepository) -> None:
        store, kept = self._tools.store, set[Digest]()
        moves = await store.list(Table.MOVES, f"{routed}|") if self._limits.moves else []
        for digest in _wanted(moves, self._limits, self._clock()):
            if digest not in kept:
                kept.update(await self._keep(routed, digest))
        for record in await store.list(Table.TAGS, f"{routed}|{KEEPER_PREFIX}"):
            tag = Tag(record.key.rpartition("|")[2])
            if parse_digest(record.value["digest"]) not in kept:
                async with self._tools.deletions.lease(routed, tag):
                    await self._tools.deletions.delete_tag(routed, tag, None)


def _written(text: str) -> _Subject | None:
    """Return the tag or manifest that a key of the journal is about; None for a blob, and for tags of our own."""
    routed, kind, name = text.split("|")
    if kind == IntentKind.BLOB or name.startswith(RESERVED_TAG_PREFIX):
        return None
    return parse_routed(routed), IntentKind(kind), name


def _wanted(records: Iterable[Record], limits: KeepLimits, now: float) -> Sequence[Digest]:
    """Return the digests that are kept of a repository with these moves."""
    found: dict[Digest, None] = {}
    for _, moves in groupby(records, lambda record: record.key.rpartition("|")[0]):
        found |= dict.fromkeys(limits.wanted([Move.of(record) for record in moves], now))
    return list(found)
