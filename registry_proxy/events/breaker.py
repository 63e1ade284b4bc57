"""Breakers: while a receiver accepts nothing, one delivery at a time tries it in place of all lanes."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from registry_proxy.events.delivery import Lane
from registry_proxy.events.schedule import wait_seconds
from registry_proxy.events.sender import TRY_SECONDS, ReceiverAnswer

FAILURES = 16
"""Number of failures in a row, in at least so many lanes as ``LANES``, after which a receiver counts as failing."""

LANES = 4
_REST_SECONDS = 300.0


@dataclass(slots=True)
class _Receiver:
    """The receiver of one subscription since its last success."""

    failures: int = 0
    lanes: set[Lane] = field(default_factory=set)
    is_open: bool = False
    probes: int = 0
    next_probe_at: float = 0.0


class Breakers:
    """Knows which receivers fail as a whole, in this process and since it began to deliver.

    A receiver that answers some events with an error of theirs (4xx) is there: only failures without an answer, 429 and
    5xx count. The tries of a receiver that fails follow the schedule of one delivery.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._receivers: dict[str, _Receiver] = {}

    def rest_until(self, lane: Lane) -> float | None:
        """Return the time until which a lane leaves its receiver alone; None where it may try now, in place of others.

        A lane that may try does so at once.
        """
        receiver, now = self._receivers.get(lane.subscription), self._clock()
        if receiver is None or not receiver.is_open:
            return None
        if now < receiver.next_probe_at:
            return now + random.uniform(_REST_SECONDS, 2 * _REST_SECONDS)  # noqa: S311 - spreads lanes
        receiver.next_probe_at = now + 2 * TRY_SECONDS  # until its outcome is noted
        return None

    def note(self, lane: Lane, answer: ReceiverAnswer) -> bool:
        """Take note of a try; return whether the receiver has just come back, and all lanes may go on."""
        if answer.status is not None and answer.status < 500 and answer.status != 429:
            receiver = self._receivers.pop(lane.subscription, None)
            return receiver is not None and receiver.is_open
        receiver = self._receivers.setdefault(lane.subscription, _Receiver())
        receiver.failures += 1
        if len(receiver.lanes) < LANES:
            receiver.lanes.add(lane)
        if receiver.failures >= FAILURES and len(receiver.lanes) >= LANES:
            receiver.is_open = True
            receiver.probes += 1
            receiver.next_probe_at = self._clock() + wait_seconds(receiver.probes, answer.retry_after_seconds)
        return False

    def next_probe_at(self, lane: Lane) -> float | None:
        """Return when the receiver of a lane that failed is tried again; None where each lane does so by itself."""
        receiver = self._receivers.get(lane.subscription)
        return receiver.next_probe_at if receiver is not None and receiver.is_open else None
