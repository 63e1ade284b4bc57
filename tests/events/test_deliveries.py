"""Deliveries: at least once, in order, with a bounded patience, whichever process dies."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from registry_proxy.events import breaker
from registry_proxy.events import deliveries as module
from registry_proxy.events.deliveries import Deliveries, DeliveryLimits
from registry_proxy.events.delivery import Delivery
from registry_proxy.events.sender import ReceiverAnswer
from registry_proxy.events.subscription import Subscription, subscription_of
from registry_proxy.ports.metrics import DisabledSubscriptions
from registry_proxy.ports.store import Change, Record, Table
from registry_proxy.tasks import end, running, spawn
from tests.events.support import Bench, ScriptedSender, pushed
from tests.support.waiting import until

OK, FAILED = ReceiverAnswer(200, ""), ReceiverAnswer(500, "out of order")


def deliveries(bench: Bench, sender: ScriptedSender, **limits: Any) -> Deliveries:
    """Return the deliverer of a bench's events."""
    return Deliveries(
        store=bench.store,
        changes=bench.changes,
        subscriptions=bench.subscriptions,
        sender=sender,
        limits=DeliveryLimits(**limits),
        observer=bench.observer,
    )


async def become(read: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """Read until the outcome is the expected one; return it."""
    async with asyncio.timeout(10):
        while not wanted(found := await read()):  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.01)
    return found


async def test_events_arrive_in_order_and_stay_on_record_as_delivered(bench: Bench) -> None:
    """Each event is sent once, numbered in the order of the queue, and is listed as delivered."""
    await bench.subscribe()
    sender = ScriptedSender()
    await bench.put(*(pushed(number) for number in range(1, 12)))
    async with running(deliveries(bench, sender).run(), "deliveries"):
        delivered = await become(lambda: bench.store.list(Table.DELIVERED), lambda found: len(found) == 11)
    assert sender.ids() == [f"event-{number}" for number in range(1, 12)]
    assert [number for _, number, _ in sender.sent] == list(range(1, 12))
    assert Delivery.of(delivered[0].value).attempts == 1
    assert await bench.queued() == []


async def test_a_failing_lane_holds_and_others_go_on(bench: Bench) -> None:
    """Later events of the repository wait for the one that fails; those of another repository do not."""
    await bench.subscribe()
    failing = [True]
    sender = ScriptedSender(lambda _, delivery: FAILED if failing[0] and delivery.event.id == "event-1" else OK)
    await bench.put(pushed(1), pushed(2), pushed(3, repository="team/other"))
    async with running(deliveries(bench, sender).run(), "deliveries"):
        await until(lambda: sender.ids().count("event-1") >= 2 and "event-3" in sender.ids())
        assert "event-2" not in sender.ids()
        failing[0] = False
        await until(lambda: "event-2" in sender.ids())
    assert sender.ids()[-2:] == ["event-1", "event-2"]


async def test_a_lane_that_skips_goes_on(bench: Bench) -> None:
    """Later events pass the one that fails, which is retried and arrives in the end."""
    await bench.subscribe(on_failure="skip")
    failing = [True]
    sender = ScriptedSender(lambda _, delivery: FAILED if failing[0] and delivery.event.id == "event-1" else OK)
    await bench.put(pushed(1), pushed(2))
    async with running(deliveries(bench, sender).run(), "deliveries"):
        await until(lambda: "event-2" in sender.ids())
        failing[0] = False
        await become(bench.queued, lambda queued: not queued)
    assert sender.ids()[-1] == "event-1"


async def test_another_process_goes_on_where_one_ended(bench: Bench) -> None:
    """The next process tries a failed delivery immediately, under the same id and number."""
    await bench.subscribe()
    await bench.put(pushed(1))
    first = ScriptedSender(lambda *_: ReceiverAnswer(503, "later", retry_after_seconds=3600.0))
    async with running(deliveries(bench, first).run(), "deliveries"):
        (record,) = await become(bench.queued, lambda queued: queued and queued[0].value["attempts"] == 1)
    assert Delivery.of(record.value).next_attempt_at - Delivery.of(record.value).last_attempt_at >= 3600
    second = ScriptedSender()
    async with running(deliveries(bench, second).run(), "deliveries"):
        await until(lambda: bool(second.sent))
    assert second.sent == first.sent[:1]


async def test_one_process_delivers_at_a_time(bench: Bench) -> None:
    """Two processes send each event once, and the second takes over when the first ends."""
    await bench.subscribe()
    sender = ScriptedSender()
    first = spawn(deliveries(bench, sender).run(), "first")
    async with running(deliveries(bench, sender).run(), "second"):
        await bench.put(*(pushed(number) for number in range(1, 10)))
        await become(lambda: bench.store.list(Table.DELIVERED), lambda found: len(found) == 9)
        await end(first)
        await bench.put(pushed(10))
        await until(lambda: len(sender.sent) >= 10)
    assert sender.ids() == [f"event-{number}" for number in range(1, 11)]


async def test_an_old_delivery_becomes_a_dead_letter(bench: Bench) -> None:
    """A delivery that fails for longer than the limit is listed with its last answer, and the lane goes on."""
    await bench.subscribe()
    sender = ScriptedSender(lambda _, delivery: FAILED if delivery.event.id == "event-1" else OK)
    await bench.put(pushed(1), pushed(2))
    async with running(deliveries(bench, sender, max_age_seconds=0.0).run(), "deliveries"):
        (dead,) = await become(lambda: bench.store.list(Table.DEAD_LETTERS), bool)
        await until(lambda: "event-2" in sender.ids())
    letter = Delivery.of(dead.value)
    assert (letter.event.id, letter.last_status, letter.last_answer) == ("event-1", 500, "out of order")


async def test_410_disables_the_subscription(bench: Bench) -> None:
    """A receiver that answers 410 gets nothing more; queued events wait, and the reason is on record."""
    await bench.subscribe()
    sender = ScriptedSender(lambda *_: ReceiverAnswer(410, ""))

    async def read() -> Subscription:
        return subscription_of((await bench.store.list(Table.SUBSCRIPTIONS))[0])

    await bench.put(pushed(1), pushed(2))
    async with running(deliveries(bench, sender).run(), "deliveries"):
        subscription = await become(read, lambda found: not found.enabled)
        await bench.put(pushed(3))
        await become(lambda: bench.store.list(Table.OUTBOX), lambda found: not found)
        await until(lambda: bench.observer.last(DisabledSubscriptions) == 1)
        await bench.subscribe(url=subscription.url, enabled=False)  # by an administrator
        await until(lambda: bench.observer.last(DisabledSubscriptions) == 0)
    assert "410" in subscription.disabled_reason
    assert sender.ids() == ["event-1"]
    assert len(await bench.queued()) == 2


async def test_a_deleted_subscription_leaves_nothing(bench: Bench) -> None:
    """Its deliveries, dead letters and numbers are removed, and nothing is sent any more."""
    await bench.subscribe()
    await bench.subscribe("kept")
    sender = ScriptedSender(lambda subscription, _: OK if subscription.name == "kept" else FAILED)
    await bench.put(pushed(1), pushed(2))

    async def of_ci() -> list[Record]:
        tables = (Table.DELIVERIES, Table.DELIVERED, Table.DEAD_LETTERS, Table.LANES)
        return [record for table in tables for record in await bench.store.list(table, "ci/")]

    async with running(deliveries(bench, sender).run(), "deliveries"):
        await until(lambda: "event-2" in sender.ids("kept"))
        await bench.store.commit([Change(Table.SUBSCRIPTIONS, "ci", None)])
        await become(of_ci, lambda found: not found)
    assert len(await bench.store.list(Table.DELIVERED, "kept/")) == 2


async def test_only_the_last_delivered_events_of_a_lane_stay_on_record(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of delivered events is bounded for each lane."""
    monkeypatch.setattr("registry_proxy.events.deliveries._DELIVERED_KEPT", 3)
    await bench.subscribe()
    sender = ScriptedSender()
    await bench.put(*(pushed(number) for number in range(1, 9)))
    async with running(deliveries(bench, sender).run(), "deliveries"):
        await until(lambda: len(sender.sent) == 8)
        delivered = await become(
            lambda: bench.store.list(Table.DELIVERED), lambda found: bool(found) and found[-1].key.endswith("8")
        )
    assert len(delivered) == 3


@pytest.mark.parametrize("on_failure", ["hold", "skip"])
async def test_a_long_queue_of_a_dead_receiver_costs_the_next_event_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, on_failure: str
) -> None:
    """An event costs the store as many requests with hundreds of deliveries before it as with a few."""
    monkeypatch.setattr("registry_proxy.events.backlog._REPORT_SECONDS", 3600.0)
    requests, used = recording_requests(bench, monkeypatch), []
    await bench.subscribe()
    await bench.subscribe("dead", on_failure=on_failure)
    dead = ReceiverAnswer(503, "", retry_after_seconds=3600.0)
    sender = ScriptedSender(lambda subscription, _: dead if subscription.name == "dead" else OK)
    put = list[str]()

    async def deliver(count: int) -> None:
        """Put events, and wait until the work that they cause is done."""
        for _ in range(count):
            put.append(f"event-{len(put) + 1}")
            await bench.put(pushed(len(put)))
        await until(lambda: len(sender.ids()) == len(put))
        await until(lambda: on_failure == "hold" or len(sender.ids("dead")) == len(put))
        await asyncio.sleep(0.5)

    async with running(deliveries(bench, sender).run(), "deliveries"):
        for count in (120, 300):
            await deliver(count)
            requests.clear()
            await deliver(1)
            used.append(sorted(requests))
    assert [name for name, _ in used[0]] == [name for name, _ in used[1]]
    assert max(size for each in used for _, size in each) <= 100
    assert len(await bench.store.list(Table.DELIVERIES, "dead/")) == len(put)


def recording_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return the growing list of the store's requests, each with the number of records that it reads."""
    requests: list[tuple[str, int]] = []
    for name in ("get", "get_all", "list", "heads", "count", "commit"):
        ask = getattr(bench.store, name)

        async def recorded(*arguments: Any, _ask: Any = ask, _name: str = name, **options: Any) -> Any:
            answer = await _ask(*arguments, **options)
            records = len(answer) if isinstance(answer, list) else 1
            requests.append((_name, answer if _name == "count" else records))
            return answer

        monkeypatch.setattr(bench.store, name, recorded)
    return requests


async def test_many_lanes_to_a_dead_receiver_make_few_tries(bench: Bench) -> None:
    """One delivery at a time tries a receiver that fails as a whole; when it is back, all lanes go on at once."""
    await bench.subscribe("dead")
    await bench.subscribe("well")
    is_back = [False]
    sender = ScriptedSender(lambda to, _: OK if is_back[0] or to.name == "well" else ReceiverAnswer(None, "refused"))
    await bench.put(*(pushed(number, repository=f"team/app{number}") for number in range(200)))
    async with running(deliveries(bench, sender).run(), "deliveries"):
        await until(lambda: len(sender.ids("well")) == 200)
        await until(lambda: len(sender.ids("dead")) >= breaker.FAILURES)
        assert len(sender.ids("dead")) < breaker.FAILURES + 20
        is_back[0] = True
        await become(bench.queued, lambda queued: not queued)
    assert len(sender.ids("dead")) < 200 + breaker.FAILURES + 20


async def test_a_lane_that_skips_passes_more_than_it_looks_at(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many events fail before it, a later one of the lane is tried."""
    monkeypatch.setattr(module, "_SKIP_AMONG", 2)
    await bench.subscribe(on_failure="skip")
    refused = ReceiverAnswer(400, "not for me", retry_after_seconds=3600.0)
    sender = ScriptedSender(lambda _, delivery: OK if delivery.event.id == "event-8" else refused)
    await bench.put(*(pushed(number) for number in range(1, 9)))
    async with running(deliveries(bench, sender).run(), "deliveries"):
        await until(lambda: "event-8" in sender.ids())
        await bench.put(pushed(9))
        await until(lambda: "event-9" in sender.ids())
    assert sender.ids() == [f"event-{number}" for number in range(1, 10)]
