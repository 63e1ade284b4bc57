"""Metrics of deliveries, and the bound of a queue, without counting in the store at each event."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from registry_proxy.events.deliveries import Deliveries, DeliveryLimits
from registry_proxy.events.delivery import Delivery, Lane
from registry_proxy.events.sender import ReceiverAnswer
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.metrics import (
    DeadLetters,
    DeliveryAttempt,
    DisabledSubscriptions,
    MetricEvent,
    OldestDelivery,
    QueuedDeliveries,
)
from registry_proxy.ports.store import Change, Table
from registry_proxy.tasks import running
from tests.events.support import Bench, ScriptedSender, pushed
from tests.support.waiting import until

FAILED = ReceiverAnswer(500, "out of order")
Answer = Callable[[Subscription, Delivery], ReceiverAnswer]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every look at the clock set the gauges."""
    monkeypatch.setattr("registry_proxy.events.backlog._REPORT_SECONDS", 0.0)


def delivering(bench: Bench, sender: ScriptedSender, **limits: Any) -> AbstractAsyncContextManager[Any]:
    """Deliver the events of a bench for the length of a with block."""
    deliveries = Deliveries(
        store=bench.store,
        changes=bench.changes,
        subscriptions=bench.subscriptions,
        sender=sender,
        limits=DeliveryLimits(**limits),
        observer=bench.observer,
    )
    return running(deliveries.run(), "deliveries")


def gauge(bench: Bench, event_class: type[MetricEvent]) -> Any:
    """Return the last value of a gauge; None before the first one."""
    return bench.observer.last(event_class) if bench.observer.found(event_class) else None


async def test_a_receiver_that_fails_shows_in_the_gauges_until_it_has_everything(bench: Bench) -> None:
    """Number and age of waiting events rise while it fails, and are 0 afterwards; attempts have their outcome."""
    await bench.subscribe()
    failing = [True]
    await bench.put(pushed(1), pushed(2), pushed(3, repository="team/other"))
    async with delivering(bench, ScriptedSender(lambda *_: FAILED if failing[0] else ReceiverAnswer(200, ""))):
        await until(lambda: gauge(bench, QueuedDeliveries) == 3 and gauge(bench, OldestDelivery) > 0.3)
        assert bench.observer.total(DeliveryAttempt, "failed") >= 2
        failing[0] = False
        await until(lambda: gauge(bench, QueuedDeliveries) == 0 == gauge(bench, OldestDelivery))
    assert bench.observer.total(DeliveryAttempt, "delivered") == 3
    assert gauge(bench, DeadLetters) == 0


async def test_the_age_is_that_of_the_event_also_after_a_new_start(bench: Bench) -> None:
    """Deliveries that an earlier process queued are counted with their true age."""
    await bench.subscribe()
    await bench.subscribe("skipping", on_failure="skip")
    for name in ("ci", "skipping"):
        delivery = Delivery(event=pushed(1), queued_at=1_700_000_000.0).stored()
        await bench.store.commit([Change(Table.DELIVERIES, Lane(name, "team/app").key(1), delivery)])
    sender = ScriptedSender(lambda *_: FAILED)
    async with delivering(bench, sender, max_age_seconds=1e12):
        await until(lambda: gauge(bench, QueuedDeliveries) == 2 and gauge(bench, OldestDelivery) > 1e6)


async def test_dead_letters_are_counted_until_they_are_replayed(bench: Bench) -> None:
    """A delivery that is given up is one dead letter; the gauge follows removals by another process."""
    await bench.subscribe()
    await bench.put(pushed(1), pushed(2))
    async with delivering(bench, ScriptedSender(lambda *_: FAILED), max_age_seconds=0.0):
        await until(lambda: gauge(bench, DeadLetters) == 2 and gauge(bench, QueuedDeliveries) == 0)
        assert bench.observer.total(DeliveryAttempt, "dead") == 2
        (first, _) = await bench.store.list(Table.DEAD_LETTERS)
        await bench.store.commit([Change(Table.DEAD_LETTERS, first.key, None)])
        await until(lambda: gauge(bench, DeadLetters) == 1)


async def test_a_queue_that_an_earlier_process_left_is_bounded(bench: Bench) -> None:
    """The bound includes deliveries from before the start; events beyond it are counted as dropped."""
    await bench.subscribe()
    async with delivering(bench, ScriptedSender(lambda *_: FAILED), queued_max=2):
        await bench.put(pushed(1), pushed(2))
        await until(lambda: gauge(bench, QueuedDeliveries) == 2)
    async with delivering(bench, ScriptedSender(lambda *_: FAILED), queued_max=2):
        await bench.put(pushed(3), pushed(4))
        await until(lambda: bench.observer.total(DeliveryAttempt, "dropped") == 2)
    assert [record.value["event"]["id"] for record in await bench.queued()] == ["event-1", "event-2"]


async def test_events_are_queued_without_a_count_of_the_queue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is counted only at the start: a count in the store reads all of it, and delays the worker's pushes."""
    count, counted = bench.store.count, list[Table]()

    async def counting(table: Table, prefix: str = "") -> int:
        counted.append(table)
        return await count(table, prefix)

    monkeypatch.setattr(bench.store, "count", counting)
    await bench.subscribe()
    async with delivering(bench, sender := ScriptedSender()):
        put = list[str]()
        for number in range(1, 6):
            await bench.put(pushed(number))
            put.append(f"event-{number}")
            await until(lambda: sender.ids() == put)
    assert counted.count(Table.DELIVERIES) == 1


async def test_the_gauges_are_0_where_another_process_delivers(bench: Bench) -> None:
    """A process that stops delivering leaves no old number behind."""
    await bench.subscribe()
    await bench.put(pushed(1))
    async with delivering(bench, ScriptedSender(lambda *_: FAILED)):
        await until(lambda: gauge(bench, QueuedDeliveries) == 1)
    assert [gauge(bench, each) for each in (QueuedDeliveries, OldestDelivery, DeadLetters, DisabledSubscriptions)] == [
        0,
        0.0,
        0,
        0,
    ]


async def test_a_disabled_subscription_has_no_age(bench: Bench) -> None:
    """Deliveries to a disabled receiver are counted, and raise no alert."""
    await bench.subscribe()
    await bench.put(pushed(1))
    async with delivering(bench, ScriptedSender(lambda *_: FAILED)):
        await until(lambda: (gauge(bench, OldestDelivery) or 0) > 0.1)
        await bench.subscribe(enabled=False)
        await until(lambda: gauge(bench, OldestDelivery) == 0.0)
        assert gauge(bench, QueuedDeliveries) == 1


async def test_a_subscription_that_goes_in_mid_delivery_leaves_the_numbers_right(bench: Bench) -> None:
    """Deliveries under way to a removed receiver change no count of the others."""
    await bench.subscribe()
    await bench.subscribe("kept")
    gate = asyncio.Event()

    class Slow(ScriptedSender):
        async def send(self, subscription: Subscription, number: int, delivery: Delivery) -> ReceiverAnswer:
            answer = await super().send(subscription, number, delivery)
            if subscription.name == "ci":
                await gate.wait()
            return answer

    sender = Slow(lambda subscription, _: FAILED if subscription.name == "kept" else ReceiverAnswer(200, ""))
    await bench.put(pushed(1), pushed(2))
    async with delivering(bench, sender):
        await until(lambda: gauge(bench, QueuedDeliveries) == 4 and bool(sender.ids()))
        await bench.store.commit([Change(Table.SUBSCRIPTIONS, "ci", None)])
        await until(lambda: gauge(bench, QueuedDeliveries) == 2)
        gate.set()
        await bench.put(pushed(3))
        await until(lambda: gauge(bench, QueuedDeliveries) == 3)
