"""Writes that one replica misses, and what the operator paused."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Digest, Repository, Tag


@dataclass(frozen=True, slots=True)
class Pause:
    """A replica that an administrator took out of writes and repair, as for its own garbage collection.

    ``revision`` is that of its record: a write whose intents are older did not know of it. ``since`` is in seconds
    since the epoch, ``by`` a typed subject.
    """

    replica: str
    reason: str
    by: str
    since: float
    revision: int


class PauseRefusedError(Exception):
    """A replica cannot be paused, or resumed, as things are; the text says why."""


class Marks(Protocol):
    """The writes that each replica is known to miss: an immutable snapshot of the open intents."""

    def misses_tag(self, replica: str, routed: RoutedRepository, tag: Tag) -> bool: ...
    def misses_any(self, replica: str, routed: RoutedRepository) -> bool:
        """Its 404 counts only where this is False."""

    def has_tombstone(self, replica: str, routed: RoutedRepository, digest: Digest) -> bool:
        """Tell whether the replica still holds a manifest or blob that was deleted through us."""

    def why_new(self, replica: str, upstream: str) -> str:
        """Return why a replica has to be compared with the others before it counts; "" where it has not."""

    def pending(self, replica: str, upstream: str) -> int:
        """The number of keys that it is behind in."""

    def refuses(self, replica: str, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> bool:
        """Tell whether the replica cannot have this: it is not asked for it, and its 404 proves nothing."""

    def refused(self, replica: str, upstream: str) -> int:
        """Return the number of keys that it cannot have, less those that a person dismissed."""

    def lost(self, upstream: str) -> int:
        """Return the number of keys that no replica has any more, less those that a person dismissed."""

    def pause(self, upstream: str) -> Pause | None:
        """Return the pause of one of its replicas; there is one at most."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in the sequence of writes: the number of the last change of the journal, and those of the records."""

    number: int
    records: tuple[int, ...]


class MarkSource(Protocol):
    """Gives the marks as they are now, including every write acknowledged on this node."""

    async def marks(self, *, of_all_nodes: bool = False) -> Marks:
        """Return the marks; with ``of_all_nodes`` what any node acknowledged until now counts, if the store answers."""

    def moment(self) -> Moment:
        """Return the moment of the marks that were given last."""

    def written_since(self, moment: Moment, upstream: str, *, leave_intents: bool) -> Collection[Repository] | None:
        """Return the repositories that were written to between a moment and the marks that were given last.

        Args:
            moment: of earlier marks.
            upstream: the repositories are its.
            leave_intents: False for shared storage, whose writes are not in the journal.

        Returns:
            None where any may have been.
        """


class IntentKind(StrEnum):
    """The kind of object that an intent is about; the middle part of its key."""

    MANIFEST = "manifest"
    TAG = "tag"
    BLOB = "blob"


@dataclass(frozen=True, slots=True)
class IntentKey:
    """The object that a write is about: the newest intent of a key is the truth."""

    routed: RoutedRepository
    kind: IntentKind
    name: str
    """A digest or a tag, as text."""

    def __str__(self) -> str:
        return f"{self.routed}|{self.kind}|{self.name}"


@dataclass(frozen=True, slots=True)
class ContentException:
    """A key that is lost, or that some replicas refuse: ``refused`` names them, and why."""

    key: IntentKey
    is_lost: bool
    refused: Mapping[str, str]
    is_dismissed: bool


class Exceptions(Protocol):
    """The contents that cannot be everywhere. Raises StoreUnavailableError."""

    async def list(self, upstream: str) -> Sequence[ContentException]: ...
    async def dismiss(self, upstream: str, repository: str | None, name: str | None) -> int: ...
    async def forget(self, upstream: str, repository: str | None, name: str | None) -> int: ...
