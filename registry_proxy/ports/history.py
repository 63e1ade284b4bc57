"""The history of tags: moves as they are stored, one record each, in the commit of the write that moves the tag."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.store import Change, Record, Table
from registry_proxy.protocol.reference import Tag

_MICROSECONDS = 1_000_000
_NUMBER_END = 10**17
"""Above the microseconds of each time until the year 5138. Keys count down from it: a list begins with the newest."""

MOVED = "moved"
"""The field in the record of a tag, or of its deletion, with the number of its last move."""


class MoveKind(StrEnum):
    """The ways in which a tag moves."""

    PUSH = "push"
    ROLLBACK = "rollback"
    RESTORE = "restore"
    PROMOTION = "promotion"
    DELETE = "delete"
    SEEN = "seen"
    """Somebody moved it past us, or an administrator chose what it is where replicas differed."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The reason for a write that a client asked for.

    Args:
        actor: the client.
        kind: of the moves that the write makes.
        reason: in the words of the client; "" for none.
        content_bytes: size of the blobs that the manifest names; 0 for an index, or where it is not known.
        overrides_rules: whether an administrator sets aside the rules of images.
    """

    actor: Actor
    kind: MoveKind = MoveKind.PUSH
    reason: str = ""
    content_bytes: int = 0
    overrides_rules: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One move of a tag.

    Args:
        number: microseconds since the epoch, and greater than that of the move before: the order of the moves of a tag.
        kind: how it moved.
        digest: of the manifest; None for a tag that was deleted.
        previous: the digest before; None for a tag that was new.
        subject: typed; "" where it is not known.
        address: IP address of the client.
        request_id: of its request.
        reason: in the words of the client.
        size_bytes: of an image, with its blobs; 0 where it is not known.
        registry: scheme, host and port as the client addressed the registry: events of later moves name it.
    """

    number: int = 0
    kind: MoveKind
    digest: str | None
    previous: str | None = None
    subject: str = ""
    address: str = ""
    request_id: str = ""
    reason: str = ""
    size_bytes: int = 0
    registry: str = ""

    @property
    def at(self) -> float:
        """Seconds since the epoch."""
        return self.number / _MICROSECONDS

    def stored(self) -> dict[str, Any]:
        """Return the move as plain JSON, without the number, which is in its key."""
        value = {name: getattr(self, name) for name in self.__slots__ if name != "number"}
        return {name: each for name, each in value.items() if each not in {None, "", 0}}

    @classmethod
    def of(cls, record: Record) -> Self:
        """Return the move of a record; fields that a later release stored are left out."""
        return cls.from_value(record.value, _NUMBER_END - int(record.key.rpartition("|")[2]))

    @classmethod
    def from_value(cls, value: Mapping[str, Any], number: int = 0) -> Self:
        """Return the move that ``stored`` returned."""
        known = {name: value[name] for name in cls.__slots__ if name in value}
        kind = MoveKind(known["kind"])
        return cls(**{"digest": None, **known, "kind": kind, "number": number})

    @classmethod
    def by(cls, cause: Cause, digest: str | None, previous: str | None = None, size_bytes: int = 0) -> Self:
        """Return a move with its cause; its number is given when it is stored."""
        return cls(
            kind=cause.kind,
            digest=digest,
            previous=previous,
            subject=cause.actor.subject,
            address=cause.actor.address,
            request_id=cause.actor.request_id,
            reason=cause.reason,
            size_bytes=size_bytes,
            registry=f"{cause.actor.scheme}://{cause.actor.host}" if cause.actor.host else "",
        )


def moves_prefix(routed: RoutedRepository, tag: Tag | str) -> str:
    """Return the beginning of the keys of a tag's moves in the table MOVES."""
    return f"{routed}|{tag}|"


def move_key(prefix: str, number: int) -> str:
    """Return the key of a move, given what ``moves_prefix`` returned."""
    return f"{prefix}{_NUMBER_END - number:017d}"


def next_number(now: float, last: int) -> int:
    """Return the number of a move: the time, unless a clock that is ahead gave the last move a later one."""
    return max(int(now * _MICROSECONDS), last + 1)


def stored_move(prefix: str, move: Move, number: int) -> Change:
    """Return the change that stores a move under its number."""
    return Change(Table.MOVES, move_key(prefix, number), move.stored(), expect=0)
