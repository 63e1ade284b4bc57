"""Delivering: one process of all nodes at a time empties the outbox and serves the lanes of all subscriptions.

The time of a lane's next try is kept in memory: after a start each of them is tried at once.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from registry_proxy.events.agenda import Agenda
from registry_proxy.events.backlog import Backlog
from registry_proxy.events.breaker import Breakers
from registry_proxy.events.delivery import Delivery, Lane, number_of
from registry_proxy.events.fan_out import FanOut
from registry_proxy.events.receipts import reported
from registry_proxy.events.schedule import wait_seconds
from registry_proxy.events.sender import Sender
from registry_proxy.events.subscription import OnFailure, Subscription
from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.ports.deployments import DeploymentAnswers
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.store import Change, Record, Store, StoreChanges, Table

_LOOK_SECONDS = 0.1
_STORE_PAUSE_SECONDS = 1.0
_AT_ONCE = 8
"""Number of deliveries to one receiver at the same time."""

_IN_A_ROW = 20
"""Number of deliveries of a lane after which other lanes of its receiver come first."""

_SKIP_AMONG = 100
"""Number of deliveries among which a lane that skips looks together for one that is due again."""

_DELIVERED_KEPT = 100
"""Number of delivered events of a lane that stay on record."""

_LONG_LANE_SECONDS = 10.0
"""Time until the next look at a lane that skips more deliveries than are looked at together."""

_LANES_IN_A_STEP = 500
"""Number of lanes after which requests that wait come first."""

_REMOVED_AT_ONCE = 500
_LEASE = "events"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """Bounds: ``queued_max`` deliveries wait for one subscription, each for at most ``max_age_seconds``."""

    queued_max: int = 100_000
    max_age_seconds: float = 3 * 86_400.0


class Deliveries:
    """Delivers for all nodes while this process holds the lease.

    Args:
        store: holds outbox, lanes and deliveries.
        changes: tells when the outbox or a subscription has changed.
        subscriptions: as they are now.
        sender: sends one delivery.
        limits: bounds of what waits.
        observer: receives the attempts, and what waits.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        store: Store,
        changes: StoreChanges,
        subscriptions: CurrentSubscriptions,
        sender: Sender,
        limits: DeliveryLimits,
        observer: Observer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._changes = changes
        self._subscriptions = subscriptions
        self._sender = sender
        self._limits = limits
        self._clock = clock
        self._backlog = Backlog(store, changes, observer, clock)
        self._fan_out = FanOut(store, subscriptions, self._backlog, limits.queued_max, clock)
        self._led_since = 0.0
        self._failure: StoreUnavailableError | None = None
        self._is_miscounted = False
        self._answers: DeploymentAnswers | None = None
        self._breakers = Breakers(clock)
        self._agenda = Agenda(self._serve, _AT_ONCE, clock)
        self._looked_at: dict[Lane, str] = {}  # of lanes that skip: the key behind which to look for the next retry
        self._newest_tried: dict[Lane, str] = {}  # of lanes that skip, since this process delivers

    async def run(self, answers: DeploymentAnswers | None = None) -> None:
        """Go on until cancelled; another process takes over where this one cannot reach the store.

        Args:
            answers: takes the deployments that receivers report; None leaves them out.
        """
        self._answers = answers
        while True:
            try:
                async with self._store.lease(_LEASE):
                    try:
                        await self._lead()
                    finally:
                        self._backlog.leave()
            except (StoreUnavailableError, ConflictError):
                await asyncio.sleep(_STORE_PAUSE_SECONDS)

    async def _lead(self) -> None:
        """Deliver until the store is away. Raises StoreUnavailableError."""
        self._led_since, self._failure = self._clock(), None
        self._breakers, self._agenda = Breakers(self._clock), Agenda(self._serve, _AT_ONCE, self._clock)
        self._looked_at.clear()
        self._newest_tried.clear()
        outbox = subscribed = losses = -1
        async with contextlib.aclosing(self._agenda) as agenda:
            while self._failure is None:
                if subscribed != (version := self._changes.version(Table.SUBSCRIPTIONS)):
                    await self._look_at_all(agenda)
                    subscribed = version
                if losses != (version := self._changes.losses()):
                    for lane in await self._fan_out.note_loss():
                        agenda.serve_at(lane, 0.0)
                    losses, self._is_miscounted = version, True
                if self._is_miscounted:
                    self._is_miscounted = False
                    await self._backlog.load(each.name for each in await self._subscriptions.current())
                if outbox != (version := self._changes.version(Table.OUTBOX)):
                    lanes, is_left = await self._fan_out.run_once()
                    outbox = -1 if is_left else version
                    for lane in lanes:
                        subscription = await self._find(lane)
                        is_waiting = subscription is None or subscription.on_failure == OnFailure.HOLD
                        agenda.note_event(lane, is_waiting=is_waiting)
                agenda.start_due()
                await self._backlog.report()
                await asyncio.sleep(_LOOK_SECONDS)
        raise self._failure

    async def _look_at_all(self, agenda: Agenda) -> None:
        """Have every lane served that has a delivery; remove what is on record of subscriptions that are gone."""
        current = await self._subscriptions.current()
        known = {subscription.name for subscription in current}
        self._backlog.note_disabled(sum(bool(each.disabled_reason) and not each.enabled for each in current))
        for count, text in enumerate(await self._store.heads(Table.DELIVERIES), 1):
            if count % _LANES_IN_A_STEP == 0:
                await asyncio.sleep(0)
            if (lane := Lane.of(text)).subscription in known:
                agenda.serve_at(lane, 0.0)
        for remembered in (self._newest_tried, self._looked_at):
            for lane in [lane for lane in remembered if lane.subscription not in known]:
                del remembered[lane]
        for name in {Lane.of(text).subscription for text in await self._store.heads(Table.LANES)} - known:
            for table in (Table.DELIVERIES, Table.DEAD_LETTERS, Table.DELIVERED, Table.LANES):
                while records := await self._store.list(table, f"{name}/", limit=_REMOVED_AT_ONCE):
                    await self._store.commit([Change(table, record.key, None) for record in records])
            self._backlog.forget(name)

    async def _find(self, lane: Lane) -> Subscription | None:
        current = await self._subscriptions.current()
        return next((each for each in current if each.name == lane.subscription), None)

    async def _serve(self, lane: Lane) -> float | None:
        """Deliver the next events of a lane; return when to go on, None where nothing is left that can go."""
        try:
            for _ in range(_IN_A_ROW):
                subscription = await self._find(lane)
                if subscription is None or not subscription.enabled:
                    self._backlog.note_oldest(lane, None)
                    return None
                record, again_at = await self._next(lane, subscription)
                if record is None:
                    return again_at
                if (rest_until := self._breakers.rest_until(lane)) is not None:
                    delivery = Delivery.of(record.value)
                    if not self._is_too_old(delivery):
                        return rest_until
                    await self._give_up(lane, record, delivery)
                    continue
                again_at = await self._try(lane, subscription, record)
                if again_at is not None and (probe_at := self._breakers.next_probe_at(lane)) is not None:
                    return probe_at
                if again_at is not None and subscription.on_failure == OnFailure.HOLD:
                    return again_at
        except StoreUnavailableError as error:
            self._failure = error
            return None
        except ConflictError:  # the subscription is gone, or the lease was lost while this process stood still
            _log.info("a delivery of %s was changed meanwhile", lane)
            self._is_miscounted = True
        return self._clock()

    async def _next(self, lane: Lane, subscription: Subscription) -> tuple[Record | None, float | None]:
        """Return the delivery to try now, or when the first will be due."""
        prefix = f"{lane}|"
        newest = "" if subscription.on_failure == OnFailure.HOLD else self._newest_tried.get(lane, "")
        untried = await self._store.list(Table.DELIVERIES, prefix, after=newest, limit=1)
        if not newest:
            self._backlog.note_oldest(lane, Delivery.of(untried[0].value).queued_at if untried else None)
        if subscription.on_failure == OnFailure.HOLD:
            return (untried[0] if untried else None), None
        if untried:
            self._newest_tried[lane] = untried[0].key
            return untried[0], None
        return await self._next_again(lane, prefix)

    async def _next_again(self, lane: Lane, prefix: str) -> tuple[Record | None, float | None]:
        """Return a delivery of a lane that skips to try once more, or when to look again.

        Of a long lane some deliveries are looked at each time, in turns.
        """
        after = self._looked_at.pop(lane, "")
        records = await self._store.list(Table.DELIVERIES, prefix, after=after, limit=_SKIP_AMONG)
        if not after:
            self._backlog.note_oldest(lane, Delivery.of(records[0].value).queued_at if records else None)
        now, again_at = self._clock(), float("inf")
        for record in records:
            delivery = Delivery.of(record.value)
            if delivery.next_attempt_at <= now:
                self._looked_at[lane] = after
                return record, None
            again_at = min(again_at, delivery.next_attempt_at)
        if len(records) == _SKIP_AMONG:
            self._looked_at[lane] = records[-1].key
        if after or lane in self._looked_at:
            again_at = min(again_at, now + _LONG_LANE_SECONDS)
        return None, None if again_at == float("inf") else again_at

    async def _try(self, lane: Lane, subscription: Subscription, record: Record) -> float | None:
        """Send one delivery and put the outcome on record; return when it is tried again, None for never."""
        delivery = Delivery.of(record.value)
        answer = await self._sender.send(subscription, number_of(record.key), delivery)
        if self._breakers.note(lane, answer):
            self._agenda.serve_all_of(lane.subscription)
        now = self._clock()
        delivery = replace(
            delivery,
            attempts=delivery.attempts + 1,
            last_status=answer.status,
            last_answer=answer.text,
            last_attempt_at=now,
            next_attempt_at=now + wait_seconds(delivery.attempts + 1, answer.retry_after_seconds),
        )
        if answer.is_accepted:
            report = reported(answer.text, delivery.event, subscription)
            if report is not None and self._answers is not None:
                await self._answers.take(report, subscription.name)
            await self._store.commit(self._ended(lane, record, replace(delivery, ended_at=now), Table.DELIVERED))
            self._backlog.note_delivered(lane)
            return None
        if self._is_too_old(delivery):
            await self._give_up(lane, record, delivery)
            return None
        changes = [Change(Table.DELIVERIES, record.key, delivery.stored(), expect=record.revision)]
        if answer.is_gone:
            changes.append(_disabled(subscription))
            _log.warning("disabled the subscription %s: its receiver answered 410 Gone", subscription.name)
        self._backlog.note_failed()
        await self._store.commit(changes)
        return delivery.next_attempt_at

    def _is_too_old(self, delivery: Delivery) -> bool:
        return self._clock() - delivery.queued_at > self._limits.max_age_seconds

    async def _give_up(self, lane: Lane, record: Record, delivery: Delivery) -> None:
        _log.warning(
            "gave up a delivery of event %s to %s: %s", delivery.event.id, lane.subscription, delivery.last_answer
        )
        letter = replace(delivery, ended_at=self._clock())
        await self._store.commit(self._ended(lane, record, letter, Table.DEAD_LETTERS))
        self._backlog.note_given_up(lane)

    @staticmethod
    def _ended(lane: Lane, record: Record, delivery: Delivery, table: Table) -> Sequence[Change]:
        changes = [
            Change(Table.DELIVERIES, record.key, None, expect=record.revision),
            Change(table, record.key, {**delivery.stored(), "next_attempt_at": 0.0}),
        ]
        if table is Table.DELIVERED and (oldest := number_of(record.key) - _DELIVERED_KEPT) > 0:
            changes.append(Change(Table.DELIVERED, lane.key(oldest), None))
        return changes


def _disabled(subscription: Subscription) -> Change:
    reason = "the receiver answered 410 Gone: it wants no events any more"
    value = replace(subscription, enabled=False, disabled_reason=reason).stored()
    return Change(Table.SUBSCRIPTIONS, subscription.name, value, expect=subscription.revision)
