"""A delivery: one event on its way to one subscription, and the lane that it belongs to.

The events of one repository for one subscription are a lane: numbered from 1 and delivered in that order. The keys of
DELIVERIES, DELIVERED and DEAD_LETTERS are ``<subscription>/<repository>|<number>``.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from registry_proxy.ports.outbox import RegistryEvent
from registry_proxy.ports.store import Record

ANSWER_MAX_CHARACTERS = 1024
_NUMBER_DIGITS = 12


class DeliveryState(StrEnum):
    """The state of a delivery."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Lane:
    """The events of one repository for one subscription."""

    subscription: str
    repository: str

    def __str__(self) -> str:
        return f"{self.subscription}/{self.repository}"

    def key(self, number: int) -> str:
        """Return the key of the delivery with a number; keys sort as the numbers do."""
        return f"{self}|{number:0{_NUMBER_DIGITS}d}"

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the lane whose text this is."""
        subscription, _, repository = text.partition("/")
        return cls(subscription, repository)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way.

    Args:
        event: the event.
        queued_at: seconds since the epoch.
        is_replay: whether it was delivered, or given up, before.
        attempts: number of tries so far.
        last_status: HTTP status of the last answer; None where there was none.
        last_answer: begin of its body, or why there was none.
        last_attempt_at: seconds since the epoch; 0 before the first.
        next_attempt_at: seconds since the epoch; earlier where the service starts anew.
        ended_at: when it was delivered or given up.
    """

    event: RegistryEvent
    queued_at: float
    is_replay: bool = False
    attempts: int = 0
    last_status: int | None = None
    last_answer: str = ""
    last_attempt_at: float = 0.0
    next_attempt_at: float = 0.0
    ended_at: float = 0.0

    def stored(self) -> dict[str, Any]:
        """Return the delivery as plain JSON."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "event": self.event.stored()}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Return the delivery that ``stored`` returned."""
        known = {name: value[name] for name in cls.__slots__ if name in value}
        return cls(**{**known, "event": RegistryEvent.of(value["event"])})


@dataclass(frozen=True, slots=True)
class ListedDelivery:
    """A delivery as the admin shows it."""

    id: str
    subscription: str
    number: int
    state: DeliveryState
    delivery: Delivery


def number_of(key: str) -> int:
    """Return the number of the delivery with a key."""
    return int(key.rpartition("|")[2])


def delivery_id(key: str) -> str:
    """Return the id of the delivery with a key: one component of a URL."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def key_of(text: str) -> str | None:
    """Return the key of the delivery with an id; None for a text that is no id."""
    try:
        key = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:  # no Base64, or no UTF-8
        return None
    lane, _, number = key.rpartition("|")
    return key if "/" in lane and number.isascii() and number.isdigit() else None


def listed(record: Record, state: DeliveryState) -> ListedDelivery:
    """Return the delivery of a record."""
    lane = Lane.of(record.key.rpartition("|")[0])
    return ListedDelivery(
        delivery_id(record.key), lane.subscription, number_of(record.key), state, Delivery.of(record.value)
    )
