"""The deliveries that wait, as the process that delivers knows them: how many for each subscription, and how old."""

import time
from collections import Counter
from collections.abc import Callable, Iterable

from registry_proxy.events.delivery import Lane
from registry_proxy.ports.metrics import (
    DeadLetters,
    DeliveryAttempt,
    DisabledSubscriptions,
    Observer,
    OldestDelivery,
    QueuedDeliveries,
)
from registry_proxy.ports.store import Store, StoreChanges, Table

_REPORT_SECONDS = 5.0


class Backlog:
    """Counts deliveries from the moment at which this process begins to deliver, and reports to metrics.

    No other process changes the queued ones meanwhile. Counting them in the store reads all of them: a worker that
    did so at each event would keep its pushes waiting.

    Args:
        store: holds the deliveries.
        changes: tells when dead letters have changed: any process replays them.
        observer: receives the gauges and the attempts.
        clock: seconds since the epoch.
    """

    def __init__(
        self, store: Store, changes: StoreChanges, observer: Observer, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._changes = changes
        self._observer = observer
        self._clock = clock
        self._queued = Counter[str]()
        self._oldest: dict[Lane, float] = {}
        self._dead_version = -1
        self._reported_at = 0.0

    async def load(self, names: Iterable[str]) -> None:
        """Count what is queued for the subscriptions with these names. Raises StoreUnavailableError."""
        for name in names:
            self._queued[name] = await self._store.count(Table.DELIVERIES, f"{name}/")

    def queued(self, subscription: str) -> int:
        """Return how many deliveries wait for a subscription."""
        return self._queued[subscription]

    def add(self, lane: Lane, queued_count: int, dropped_count: int) -> None:
        """Count deliveries that were queued in a lane, and events that were dropped for it."""
        if queued_count:
            self._queued[lane.subscription] += queued_count
            self._oldest.setdefault(lane, self._clock())
        if dropped_count:
            self._observer.observe(DeliveryAttempt("dropped", dropped_count))

    def note_delivered(self, lane: Lane) -> None:
        """Count a delivery that arrived."""
        self._queued[lane.subscription] -= 1
        self._observer.observe(DeliveryAttempt("delivered", 1))

    def note_given_up(self, lane: Lane) -> None:
        """Count a delivery that became a dead letter."""
        self._queued[lane.subscription] -= 1
        self._observer.observe(DeliveryAttempt("dead", 1))

    def note_failed(self) -> None:
        """Count an attempt that is repeated."""
        self._observer.observe(DeliveryAttempt("failed", 1))

    def note_oldest(self, lane: Lane, queued_at: float | None) -> None:
        """Remember since when the oldest delivery of a lane waits; None where none waits for an enabled receiver."""
        if queued_at is None:
            self._oldest.pop(lane, None)
        else:
            self._oldest[lane] = queued_at

    def note_disabled(self, subscription_count: int) -> None:
        """Report how many subscriptions the service itself has disabled."""
        self._observer.observe(DisabledSubscriptions(subscription_count))

    def forget(self, subscription: str) -> None:
        """Forget a subscription that is gone."""
        del self._queued[subscription]
        self._oldest = {lane: at for lane, at in self._oldest.items() if lane.subscription != subscription}

    async def report(self) -> None:
        """Set the gauges, every few seconds. Raises StoreUnavailableError."""
        now = self._clock()
        if 0 <= now - self._reported_at < _REPORT_SECONDS:
            return
        self._reported_at = now
        self._observer.observe(QueuedDeliveries(self._queued.total()))
        self._observer.observe(OldestDelivery(max(0.0, now - min(self._oldest.values(), default=now))))
        if self._dead_version != (version := self._changes.version(Table.DEAD_LETTERS)):
            self._observer.observe(DeadLetters(await self._store.count(Table.DEAD_LETTERS)))
            self._dead_version = version

    def leave(self) -> None:
        """Forget everything, and set the gauges to 0: another process knows better from now on."""
        self._queued.clear()
        self._oldest.clear()
        self._dead_version, self._reported_at = -1, 0.0
        for event in (QueuedDeliveries(0), OldestDelivery(0.0), DeadLetters(0), DisabledSubscriptions(0)):
            self._observer.observe(event)
