"""The journal as a snapshot: which replica misses, refuses or still holds what, and what is lost."""

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from registry_proxy.ports.journal import IntentKey, IntentKind, Pause
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Digest, Tag
from registry_proxy.replication.intents import Intent

NO_PAUSES: Mapping[str, Pause] = MappingProxyType({})
NO_NEWCOMERS: Mapping[tuple[str, str], str] = MappingProxyType({})


class JournalMarks:
    """The open intents as a snapshot, indexed for the questions of ``ports.journal.Marks``."""

    def __init__(
        self,
        intents: Iterable[tuple[IntentKey, Intent]],
        now: float,
        newcomers: Mapping[tuple[str, str], str] = NO_NEWCOMERS,
        pauses: Mapping[str, Pause] = NO_PAUSES,
    ) -> None:
        self.newcomers = newcomers
        self._pauses = pauses
        self._tags: set[tuple[str, RoutedRepository, str]] = set()
        self._tombstones: set[tuple[str, RoutedRepository, str]] = set()
        self._repositories: set[tuple[str, RoutedRepository]] = set()
        self._pending: dict[tuple[str, str], int] = dict.fromkeys(newcomers, 1)
        self._refusing: set[tuple[str, RoutedRepository, str]] = set()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._lost: dict[IntentKey, bool] = {}
        self._missed_contents: set[str] = set()
        self.valid_until = float("inf")
        for key, intent in intents:
            if intent.is_under_way(now):
                self.valid_until = min(self.valid_until, intent.writing_until)
            if key.kind is not IntentKind.TAG and intent.digest is not None and (intent.missing or intent.is_lost):
                self._missed_contents.add(key.name)
            if intent.is_lost:
                self._lost[key] = intent.is_dismissed
            for replica in intent.replicas_behind(now):
                self._add(replica, key, intent)
            for replica in intent.refused:
                self._add_refusal(replica, key, intent)

    def _add(self, replica: str, key: IntentKey, intent: Intent) -> None:
        upstream = key.routed.upstream
        self._repositories.add((replica, key.routed))
        self._pending[upstream, replica] = self._pending.get((upstream, replica), 0) + 1
        if key.kind is IntentKind.TAG:
            self._tags.add((replica, key.routed, key.name))
        elif intent.digest is None:
            self._tombstones.add((replica, key.routed, key.name))

    def _add_refusal(self, replica: str, key: IntentKey, intent: Intent) -> None:
        self._refusing.add((replica, key.routed, key.name))
        if key.kind is IntentKind.TAG:
            self._tags.add((replica, key.routed, key.name))
        if not intent.is_dismissed:
            self._refused[key.routed.upstream, replica] += 1

    def misses_tag(self, replica: str, routed: RoutedRepository, tag: Tag) -> bool:
        return (replica, routed, tag) in self._tags or self.is_newcomer(routed.upstream, replica)

    def misses_any(self, replica: str, routed: RoutedRepository) -> bool:
        """Tell whether it misses anything in the repository."""
        return (replica, routed) in self._repositories or self.is_newcomer(routed.upstream, replica)

    def is_newcomer(self, upstream: str, replica: str) -> bool:
        """Tell whether the replica was not compared with the others yet: it may miss anything."""
        return bool(self.newcomers) and (upstream, replica) in self.newcomers

    def why_new(self, replica: str, upstream: str) -> str:
        """Return why a replica has to be compared with the others; "" where it has not."""
        return self.newcomers.get((upstream, replica), "")

    def has_tag_intent(self, replica: str, routed: RoutedRepository, tag: str) -> bool:
        """Tell whether it is on record that it misses a move or the end of this tag."""
        return (replica, routed, tag) in self._tags

    def has_tombstone(self, replica: str, routed: RoutedRepository, digest: Digest) -> bool:
        """Tell whether it still holds what was deleted."""
        return bool(self._tombstones) and (replica, routed, str(digest)) in self._tombstones

    def pending(self, replica: str, upstream: str) -> int:
        """Return in how many keys it is behind."""
        return self._pending.get((upstream, replica), 0)

    def refuses(self, replica: str, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> bool:
        """Tell whether it cannot have this, and so is not asked for it, and its 404 proves nothing."""
        return bool(self._refusing) and (replica, routed, str(tag_or_digest)) in self._refusing

    def refused(self, replica: str, upstream: str) -> int:
        """Return how many keys it cannot have, less those that were dismissed."""
        return self._refused[upstream, replica]

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
        """Tell whether some replica lacks this content, in any repository: then our copy of it must stay."""
        return str(digest) in self._missed_contents
