"""The journal as a snapshot: which replica misses, refuses or still holds what, and what is lost."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from registry_proxy.ports.journal import IntentKey, IntentKind, Pause
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Digest, Tag
from registry_proxy.replication.intents import Intent

_K = TypeVar("_K", bound=Hashable)
NO_PAUSES: Mapping[str, Pause] = MappingProxyType({})
NO_NEWCOMERS: Mapping[tuple[str, str], str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Entry:
    """An open intent, and the replicas that it counts against in this snapshot."""

    intent: Intent
    behind: tuple[str, ...]


class JournalMarks:
    """The open intents as a snapshot, indexed for the questions of ``ports.journal.Marks``.

    A later snapshot is made from this one by what has changed, at the cost of copying its tables: with tens of
    thousands of open intents a push would wait for them all to be read and indexed anew, several times.
    """

    def __init__(
        self,
        intents: Iterable[tuple[IntentKey, Intent]],
        now: float,
        newcomers: Mapping[tuple[str, str], str] = NO_NEWCOMERS,
        pauses: Mapping[str, Pause] = NO_PAUSES,
    ) -> None:
        self.newcomers = newcomers
        self._pauses = pauses
        self._entries: dict[IntentKey, _Entry] = {}
        self._under_way: dict[IntentKey, float] = {}
        self._behind: dict[tuple[str, RoutedRepository], int] = {}
        self._pending: dict[tuple[str, str], int] = {}
        self._refused: dict[tuple[str, str], int] = {}
        self._lost: dict[IntentKey, bool] = {}
        self._missed_contents: dict[str, int] = {}
        self.valid_from, self.valid_until = now, float("inf")
        self._put(intents, now)

    def changed(
        self,
        changes: Mapping[IntentKey, Intent | None],
        now: float,
        newcomers: Mapping[tuple[str, str], str],
        pauses: Mapping[str, Pause],
    ) -> "JournalMarks":
        """Return a later snapshot, which differs from this one in these intents; None for one that is closed."""
        later = JournalMarks((), now, newcomers, pauses)
        for name in ("_entries", "_under_way", "_behind", "_pending", "_refused", "_lost", "_missed_contents"):
            setattr(later, name, getattr(self, name).copy())
        under_way = {key: self._entries[key].intent for key in self._under_way}
        overdue = {key: intent for key, intent in under_way.items() if not intent.is_under_way(now)}
        wanted = {**overdue, **changes}
        for key in wanted:
            later._take_out(key)
        later._put(((key, intent) for key, intent in wanted.items() if intent is not None), now)
        return later

    def _put(self, intents: Iterable[tuple[IntentKey, Intent]], now: float) -> None:
        for key, intent in intents:
            entry = self._entries[key] = _Entry(intent, tuple(intent.replicas_behind(now)))
            if intent.is_under_way(now):
                self._under_way[key] = intent.writing_until
            if intent.is_lost:
                self._lost[key] = intent.is_dismissed
            self._count(key, entry, 1)
        self.valid_until = min(self._under_way.values(), default=float("inf"))

    def _take_out(self, key: IntentKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._under_way.pop(key, None)
            self._lost.pop(key, None)
            self._count(key, entry, -1)

    def _count(self, key: IntentKey, entry: _Entry, one: int) -> None:
        intent, upstream = entry.intent, key.routed.upstream
        if key.kind is not IntentKind.TAG and intent.digest is not None and (intent.missing or intent.is_lost):
            _add(self._missed_contents, key.name, one)
        for replica in entry.behind:
            _add(self._behind, (replica, key.routed), one)
            _add(self._pending, (upstream, replica), one)
        if not intent.is_dismissed:
            for replica in intent.refused:
                _add(self._refused, (upstream, replica), one)

    @property
    def intents(self) -> Iterator[tuple[IntentKey, Intent]]:
        """All open intents."""
        return ((key, entry.intent) for key, entry in self._entries.items())

    def find(self, key: IntentKey) -> Intent | None:
        """Return the open intent of a key."""
        entry = self._entries.get(key)
        return None if entry is None else entry.intent

    def misses_tag(self, replica: str, routed: RoutedRepository, tag: Tag) -> bool:
        return self.has_tag_intent(replica, routed, tag) or self.is_newcomer(routed.upstream, replica)

    def misses_any(self, replica: str, routed: RoutedRepository) -> bool:
        """Tell whether it misses anything in the repository."""
        return (replica, routed) in self._behind or self.is_newcomer(routed.upstream, replica)

    def is_newcomer(self, upstream: str, replica: str) -> bool:
        """Tell whether the replica was not compared with the others yet: it may miss anything."""
        return bool(self.newcomers) and (upstream, replica) in self.newcomers

    def why_new(self, replica: str, upstream: str) -> str:
        """Return why a replica has to be compared with the others; "" where it has not."""
        return self.newcomers.get((upstream, replica), "")

    def has_tag_intent(self, replica: str, routed: RoutedRepository, tag: str) -> bool:
        """Tell whether it is on record that it misses a move or the end of this tag."""
        entry = self._entries.get(IntentKey(routed, IntentKind.TAG, tag)) if self._entries else None
        return entry is not None and (replica in entry.behind or replica in entry.intent.refused)

    def has_tombstone(self, replica: str, routed: RoutedRepository, digest: Digest) -> bool:
        """Tell whether it still holds what was deleted."""
        return any(
            entry.intent.digest is None and replica in entry.behind for entry in self._of_content(routed, str(digest))
        )

    def _of_content(self, routed: RoutedRepository, digest: str) -> Iterator[_Entry]:
        if self._entries:
            for kind in (IntentKind.MANIFEST, IntentKind.BLOB):
                entry = self._entries.get(IntentKey(routed, kind, digest))
                if entry is not None:
                    yield entry

    def pending(self, replica: str, upstream: str) -> int:
        """Return in how many keys it is behind."""
        return self._pending.get((upstream, replica), 0) + self.is_newcomer(upstream, replica)

    def refuses(self, replica: str, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> bool:
        """Tell whether it cannot have this, and so is not asked for it, and its 404 proves nothing."""
        if isinstance(tag_or_digest, Digest):
            return any(replica in entry.intent.refused for entry in self._of_content(routed, str(tag_or_digest)))
        intent = self.find(IntentKey(routed, IntentKind.TAG, tag_or_digest))
        return intent is not None and replica in intent.refused

    def refused(self, replica: str, upstream: str) -> int:
        """Return how many keys it cannot have, less those that were dismissed."""
        return self._refused.get((upstream, replica), 0)

    def lost(self, upstream: str) -> int:
        """Return how many keys no replica of an upstream has any more, less those that were dismissed."""
        return sum(key.routed.upstream == upstream and not is_dismissed for key, is_dismissed in self._lost.items())

    def pause(self, upstream: str) -> Pause | None:
        """Return the pause of one of its replicas; there is one at most."""
        return self._pauses.get(upstream)

    @property
    def lost_keys(self) -> Mapping[IntentKey, bool]:
        """The keys that no replica has any more, and whether each was dismissed."""
        return self._lost

    def is_missed(self, digest: Digest) -> bool:
        """Tell whether some replica misses this content, in any repository: then our copy of it must stay."""
        return str(digest) in self._missed_contents


def _add(counts: dict[_K, int], key: _K, one: int) -> None:
    """Change a count; what comes to zero goes."""
    count = counts.get(key, 0) + one
    if count:
        counts[key] = count
    else:
        counts.pop(key, None)
