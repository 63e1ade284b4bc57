"""A subscription: its fields and stored form, and the events that it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from registry_proxy.ports.outbox import TAG_MOVES, EventType, RegistryEvent
from registry_proxy.ports.store import Record
from registry_proxy.protocol.patterns import compile_repository_pattern, compile_text_pattern

ALL_REPOSITORIES = "**"


class Format(StrEnum):
    """The shape in which a receiver gets events."""

    CLOUDEVENTS = "cloudevents"
    DISTRIBUTION = "distribution"
    HARBOR = "harbor"
    TEMPLATE = "template"


_OF_CONTENT = frozenset({EventType.PUSH, EventType.MANIFEST, EventType.DELETE, EventType.PULL})
_EXPRESSED: Mapping[str, frozenset[EventType]] = {
    Format.CLOUDEVENTS: frozenset(EventType),
    Format.DISTRIBUTION: _OF_CONTENT,
    Format.HARBOR: _OF_CONTENT - {EventType.MANIFEST},
    Format.TEMPLATE: _OF_CONTENT,
}
"""The types that a shape has a form for. A gap in a template would start a deployment of nothing."""


class OnFailure(StrEnum):
    """Whether later events of a repository wait for one that could not be delivered, or pass it."""

    HOLD = "hold"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionInput:
    """The content of a subscription before its rules are checked; the fields of the admin API.

    Args:
        url: of the receiver, http or https.
        secrets: the active one first; two while one takes the place of the other.
        events: types.
        repository: pattern of canonical names.
        tags: pattern; events without a tag match any.
        format: the shape of the body.
        template: of the body, where ``format`` is template; "" otherwise. See ``events.shapes.template``.
        headers: sent with each delivery.
        on_failure: see ``OnFailure``.
        enabled: a subscription that is not takes no events, and what is queued for it waits.
    """

    url: str
    secrets: Sequence[str] = ()
    events: Sequence[str] = (EventType.PUSH.value, EventType.DELETE.value)
    repository: str = ALL_REPOSITORIES
    tags: str = "*"
    format: str = Format.CLOUDEVENTS.value
    template: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    on_failure: str = OnFailure.HOLD.value
    enabled: bool = True


_CONTENT = tuple(each.name for each in fields(SubscriptionInput))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription(SubscriptionInput):
    """A subscription on record. ``disabled_reason`` says why the service itself disabled it; "" where it did not."""

    name: str
    disabled_reason: str = ""
    revision: int = 0

    def __repr__(self) -> str:
        return f"Subscription({self.name})"  # its secrets and headers belong into no log

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the name: plain JSON."""
        content = {name: getattr(self, name) for name in _CONTENT}
        return {
            **content,
            "secrets": list(self.secrets),
            "events": list(self.events),
            "headers": dict(self.headers),
            "disabled_reason": self.disabled_reason,
        }

    def takes(self, event: RegistryEvent) -> bool:
        """Tell whether an event is delivered to this subscription.

        A gap goes to every one that is enabled and whose format can express it. An event of no repository, as those of
        replicas, matches any pattern.
        """
        if event.type is EventType.GAP:
            return self.enabled and self.can_express(EventType.GAP)
        return (
            self.asks_for(event.type)
            and (not event.repository or self._covers(event.repository))
            and (not event.tag or compile_text_pattern(self.tags).fullmatch(event.tag) is not None)
        )

    def asks_for(self, kind: EventType) -> bool:
        """Tell whether events of a type are delivered to this subscription, wherever they happen."""
        return self.enabled and self._form_of(kind) is not None

    def _form_of(self, kind: EventType) -> EventType | None:
        """Return the type as which the receiver gets events of a type; None where it does not get them."""
        forms = (kind, EventType.PUSH) if kind in TAG_MOVES else (kind,)
        return next((form for form in forms if form in self.events and self.can_express(form)), None)

    def received(self, event: RegistryEvent) -> RegistryEvent:
        """Return an event as the receiver gets it: as a push where it knows of no other move of a tag."""
        form = self._form_of(event.type)
        return event if form is None else replace(event, type=form)

    def _covers(self, repository: str) -> bool:
        return compile_repository_pattern(self.repository).fullmatch(repository) is not None

    def can_express(self, kind: EventType) -> bool:
        """Tell whether the format of this subscription has a form for events of a type.

        One that a later release has stored has none here: its events are not taken, but pushes go on.
        """
        return kind in _EXPRESSED.get(self.format, frozenset())


def subscription_of(record: Record) -> Subscription:
    """Return the subscription of a record; fields that a later release has stored are left out."""
    content = {name: value for name, value in record.value.items() if name in {*_CONTENT, "disabled_reason"}}
    return Subscription(name=record.key, revision=record.revision, **content)
