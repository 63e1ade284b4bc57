"""The bounds of the record of moves: by tag, by repository, and in all. The oldest moves go.

A repository that is pushed to very often makes none of the others lose a move: all is shared among those with most. So
do very many repositories of one namespace, the first part of their names: the namespaces share before they do.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.history import Move
from registry_proxy.ports.names import parse_routed
from registry_proxy.ports.store import Change, Record, Store, StoreChanges, Table
from registry_proxy.tasks import repeat

_LEASE = "history"
_LOOK_SECONDS = 60.0
_REMOVED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """Limits of the number of moves: of a tag, of a repository, and in all."""

    of_tag: int = 1000
    of_repository: int = 10_000
    in_all: int = 100_000


def share(counts: Collection[int], total: int) -> int:
    """Return the most that each may keep, so that all keep at most ``total``; those with less keep what they have."""
    left, after = total, len(counts)
    for count in sorted(counts):
        if count * after > left:
            return left // after
        left, after = left - count, after - 1
    return max(counts, default=0)


def allowances_of(counts: Mapping[str, int], limits: HistoryLimits) -> Mapping[str, int]:
    """Return how many moves each repository may keep, given how many it has, by ``upstream/name``."""
    namespaces: dict[str, dict[str, int]] = {}
    for head, count in counts.items():
        namespaces.setdefault(parse_routed(head).repository.partition("/")[0], {})[head] = count
    room = share([sum(each.values()) for each in namespaces.values()], limits.in_all)
    return {
        head: min(limits.of_repository, allowance)
        for each in namespaces.values()
        for allowance in [share(each.values(), room)]
        for head in each
    }


def excess(records: Sequence[Record], limits: HistoryLimits, allowance: int) -> Sequence[Record]:
    """Return the moves of a repository that are too many.

    Args:
        records: all of them, by key: those of a tag stand together, the newest first.
        limits: of a tag.
        allowance: of the repository.
    """
    kept: list[Record] = []
    dropped: list[Record] = []
    for _, moves in groupby(records, lambda record: record.key.rpartition("|")[0]):
        of_tag = list(moves)
        kept += of_tag[: limits.of_tag]
        dropped += of_tag[limits.of_tag :]
    kept.sort(key=lambda record: Move.of(record).number, reverse=True)
    return [*dropped, *kept[allowance:]]


class HistoryBounds:
    """Keeps the record of moves within its bounds.

    Args:
        store: holds it.
        changes: tells when it has grown.
        limits: the bounds.
    """

    def __init__(self, store: Store, changes: StoreChanges, limits: HistoryLimits) -> None:
        self._store = store
        self._changes = changes
        self._limits = limits
        self._version = -1

    async def run(self) -> None:
        """Go on until cancelled; nothing is read while no tag moves."""
        await repeat(self.trim, _LOOK_SECONDS, StoreUnavailableError, ConflictError, at_once=True)

    async def trim(self) -> None:
        """Remove the moves that are too many. Raises StoreUnavailableError."""
        version = self._changes.version(Table.MOVES)
        if version == self._version:
            return
        async with self._store.lease(_LEASE):
            counts = {
                head: await self._store.count(Table.MOVES, f"{head}|") for head in await self._store.heads(Table.MOVES)
            }
            allowances = allowances_of(counts, self._limits)
            for head, count in counts.items():
                allowance = allowances[head]
                if count > min(self._limits.of_tag, allowance):
                    await self._remove(excess(await self._store.list(Table.MOVES, f"{head}|"), self._limits, allowance))
        self._version = version

    async def _remove(self, records: Sequence[Record]) -> None:
        changes = [Change(Table.MOVES, record.key, None) for record in records]
        for first in range(0, len(changes), _REMOVED_AT_ONCE):
            await self._store.commit(changes[first : first + _REMOVED_AT_ONCE])
