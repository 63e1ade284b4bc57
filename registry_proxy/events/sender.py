"""The port of what sends a delivery to its receiver."""

from dataclasses import dataclass
from typing import Protocol

from registry_proxy.events.delivery import Delivery
from registry_proxy.events.subscription import Subscription

TRY_SECONDS = 15.0
"""The longest time of one try."""


@dataclass(frozen=True, slots=True)
class ReceiverAnswer:
    """The outcome of one try.

    Args:
        status: HTTP status; None where there was no answer.
        text: begin of the body, at most ANSWER_MAX_CHARACTERS, or why there was no answer.
        retry_after_seconds: the receiver's word, None without one.
    """

    status: int | None
    text: str
    retry_after_seconds: float | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether the receiver has the event."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants no event any more."""
        return self.status == 410


class Sender(Protocol):
    """Sends events to receivers."""

    async def send(self, subscription: Subscription, number: int, delivery: Delivery) -> ReceiverAnswer:
        """Try once; never raises for what a receiver does."""
