"""Registry events, and the outbox that holds them from the commit that caused them on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, Self

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Change
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.times import format_rfc3339


class EventType(StrEnum):
    """The types that a subscription names."""

    PUSH = "push"
    """A client moved a tag: one event for each tag."""

    MANIFEST = "manifest"
    """A client pushed a manifest by digest, as the children of an index and referrers are."""

    DELETE = "delete"
    """A client deleted a tag, or a manifest with every tag on it."""

    ROLLBACK = "rollback"
    """Somebody moved a tag back to what it was before."""

    RESTORE = "restore"
    """Somebody made a deleted tag what it was."""

    PROMOTION = "promotion"
    """Somebody made a tag an image of another repository."""

    RULE_VIOLATED = "rule_violated"
    """A client moved or deleted a tag against a rule: it was refused, or let through by one that only warns."""

    PULL = "pull"
    """A client got a manifest: one event each. They are reported as far as they can be, and may be lost."""

    REPLICA_DOWN = "replica_down"
    """A replica cannot be used: one event for all nodes."""

    REPLICA_REPAIRED = "replica_repaired"
    """A replica that was reported as down is up again and has what it missed."""

    DEPLOYMENT = "deployment"
    """A deployment was reported: the digest runs in an environment now, failed to, or was removed from it."""

    GAP = "gap"
    """Events were dropped, or lost with the store: the receiver compares with the registry."""


TAG_MOVES = frozenset({EventType.PUSH, EventType.ROLLBACK, EventType.RESTORE, EventType.PROMOTION})
"""The types that say what a tag is now. A receiver that knows pushes alone gets each as a push."""

LATER_TYPES = ("retention",)
"""The types that a subscription may name once their feature is there."""


@dataclass(frozen=True, slots=True)
class Actor:
    """The client behind a write.

    Args:
        subject: typed, such as ``robot:ci``.
        address: IP address of the client.
        request_id: of its request.
        user_agent: as the client names itself.
        host: the registry's public name and port, as the client addressed it.
        scheme: http or https, as the client addressed it; "" where it is not known.
    """

    subject: str
    address: str = ""
    request_id: str = ""
    user_agent: str = ""
    host: str = ""
    scheme: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEvent:
    """One event.

    Args:
        id: unique, and the same each time it is delivered.
        type: what happened.
        at: seconds since the epoch.
        repository: canonical name, as clients use it; "" for an event of no repository.
        tag: the tag that was moved or deleted; "" for none.
        digest: of the manifest; "" for a deleted tag that is not on record.
        previous: the digest that the tag had before; "" for a new tag.
        media_type: of the manifest; "" where it is not known.
        size_bytes: of the manifest; 0 where it is not known.
        actor: the client that caused it; None for the service itself.
        detail: what else there is, as JSON has it.
    """

    id: str
    type: EventType
    at: float
    repository: str = ""
    tag: str = ""
    digest: str = ""
    previous: str = ""
    media_type: str = ""
    size_bytes: int = 0
    actor: Actor | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def time(self) -> str:
        """The time of the event as a text of RFC 3339, in UTC."""
        return format_rfc3339(self.at)

    def stored(self) -> dict[str, Any]:
        """Return the event as plain JSON."""
        value = {name: getattr(self, name) for name in self.__slots__}
        actor = self.actor
        if actor is not None:
            value["actor"] = {name: getattr(actor, name) for name in actor.__slots__}
        return value

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Return the event that ``stored`` returned; fields that a later release stored are left out."""
        known = {name: value[name] for name in cls.__slots__ if name in value}
        if known.get("actor") is not None:
            known["actor"] = Actor(**{name: known["actor"][name] for name in Actor.__slots__ if name in known["actor"]})
        return cls(**{**known, "type": EventType(known["type"])})


def with_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an event that say something."""
    return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An event in the outbox.

    Args:
        event: the event.
        writing_until: of a write under way, in seconds since the epoch: before, it is delivered only once the write was
            concluded; 0 for one that is.
        intent: the key in INTENTS of what the write makes so; "" where there is none. Where nobody is writing that any
            more, another write has concluded it, as when a client repeats a push whose node died.
        subscription: the only subscription that receives it; "" for all that want it.
        is_replay: whether it was delivered, or given up, before.
    """

    event: RegistryEvent
    writing_until: float = 0.0
    intent: str = ""
    subscription: str = ""
    is_replay: bool = False

    def stored(self) -> dict[str, Any]:
        """Return the entry as plain JSON."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "event": self.event.stored()}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Return the entry that ``stored`` returned."""
        known = {name: value[name] for name in cls.__slots__ if name in value}
        return cls(**{**known, "event": RegistryEvent.of(value["event"])})

    def concluded(self) -> Self:
        """Return the entry of a write that was concluded."""
        return replace(self, writing_until=0.0)


class Outbox(Protocol):
    """Makes the entries that a write stores in its own commit."""

    async def entry(self, kind: EventType, routed: RoutedRepository, actor: Actor, **fields: Any) -> Change | None:
        """Return the change that puts an event into the outbox; None where no subscription wants it.

        Args:
            kind: what happened.
            routed: where.
            actor: who did it.
            fields: further fields of RegistryEvent; ``at`` is now without one.

        Raises:
            StoreUnavailableError: which subscriptions there are cannot be known.
        """


class PullLog(Protocol):
    """Takes the pulls that subscriptions ask for; it neither waits nor fails."""

    @property
    def is_wanted(self) -> bool:
        """Whether a subscription asks for pulls."""

    def note(self, routed: RoutedRepository, tag: str, descriptor: Descriptor, actor: Actor) -> None:
        """Take a manifest that is sent to a client.

        Args:
            routed: where it lies.
            tag: by which the client named it; "" where it named the digest.
            descriptor: of the manifest.
            actor: the client.
        """
