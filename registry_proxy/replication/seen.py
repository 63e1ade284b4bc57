"""Moves of tags past us: entered in the history when a replica is seen to have something else than is on record."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.history import Move, MoveKind, moves_prefix, next_number, stored_move
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import ReplicaSet
from registry_proxy.ports.store import Store, Table
from registry_proxy.protocol.reference import RESERVED_TAG_PREFIX, Digest, Tag, is_fallback_tag
from registry_proxy.replication.manifests import tag_lease
from registry_proxy.replication.tag_records import tag_record_key
from registry_proxy.tasks import spawn

_COMPARED = 16
"""Number of the newest moves whose digests are no news: a replica may be late."""


@dataclass(frozen=True, slots=True)
class SeenMoves:
    """Enters what tags were moved to past us, at upstreams that are written to.

    Args:
        store: holds the moves.
        replica_sets: by upstream.
        clock: seconds since the epoch.
    """

    store: Store
    replica_sets: Mapping[str, ReplicaSet]
    clock: Callable[[], float] = time.time

    def __call__(self, routed: RoutedRepository, tag: Tag, digest: Digest) -> None:
        """Take note of what a replica said that a tag is; nobody waits for it."""
        is_ours = tag.startswith(RESERVED_TAG_PREFIX) or is_fallback_tag(tag)
        if not is_ours and not self.replica_sets[routed.upstream].read_only:
            _ = spawn(self._note(routed, tag, digest), "history of a tag")

    async def _note(self, routed: RoutedRepository, tag: Tag, digest: Digest) -> None:
        with contextlib.suppress(StoreUnavailableError, ConflictError):  # the next answer is as good
            if await self._is_news(routed, tag, digest):
                async with tag_lease(self.store, routed, tag):
                    await self.enter(routed, tag, digest)

    async def enter(self, routed: RoutedRepository, tag: Tag, digest: Digest) -> None:
        """Enter a digest that is not on record, under the lease of the tag's writers. Raises StoreUnavailableError."""
        if not await self._is_news(routed, tag, digest):
            return
        prefix = moves_prefix(routed, tag)
        last = next(iter(map(Move.of, await self.store.list(Table.MOVES, prefix, limit=1))), None)
        move = Move(kind=MoveKind.SEEN, digest=str(digest), previous=None if last is None else last.digest)
        number = next_number(self.clock(), 0 if last is None else last.number)
        await self.store.commit([stored_move(prefix, move, number)])

    async def _is_news(self, routed: RoutedRepository, tag: Tag, digest: Digest) -> bool:
        record = await self.store.get(Table.TAGS, tag_record_key(routed, tag))
        if record is not None and str(digest) in {record.value["digest"], *record.value.get("earlier", ())}:
            return False
        moves = await self.store.list(Table.MOVES, moves_prefix(routed, tag), limit=_COMPARED)
        return all(str(digest) not in {move.digest, move.previous} for move in map(Move.of, moves))
