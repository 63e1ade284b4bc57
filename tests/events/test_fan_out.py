"""Events from the outbox into lanes: none is lost, their numbers are in order, and queues are bounded."""

from dataclasses import replace

from registry_proxy.events.backlog import Backlog
from registry_proxy.events.delivery import Delivery, Lane
from registry_proxy.events.fan_out import FanOut
from registry_proxy.ports.outbox import EventType, OutboxEntry
from registry_proxy.ports.store import LOSS_KEY, Change, Table
from tests.events.support import Bench, pushed


def fan_out(bench: Bench, *, queued_max: int = 1000, now: float = 2_000_000_000.0) -> FanOut:
    """Return the part that moves the events of a bench."""
    backlog = Backlog(bench.store, bench.changes, bench.observer)
    return FanOut(bench.store, bench.subscriptions, backlog, queued_max, lambda: now)


async def test_each_subscription_gets_what_it_takes(bench: Bench) -> None:
    """An event is queued once for each subscription whose types and patterns match, and leaves the outbox."""
    await bench.subscribe("all")
    await bench.subscribe("team", repository="team/**", tags="v*")
    await bench.subscribe("others", repository="other/**")
    await bench.subscribe("deletes", events=["delete"])
    await bench.subscribe("off", enabled=False)
    await bench.put(pushed(1))
    lanes, is_left = await fan_out(bench).run_once()
    assert lanes == {Lane("all", "team/app"), Lane("team", "team/app")}
    assert not is_left
    assert [record.key for record in await bench.queued()] == [
        "all/team/app|000000000001",
        "team/team/app|000000000001",
    ]
    assert await bench.store.list(Table.OUTBOX) == []


async def test_events_of_a_repository_are_numbered_in_the_order_of_their_commits(bench: Bench) -> None:
    """The numbers of a lane have no gaps, and continue after its deliveries are removed."""
    await bench.subscribe()
    await bench.put(*(pushed(number) for number in (3, 1, 2)))
    await fan_out(bench).run_once()
    await bench.store.commit([Change(Table.DELIVERIES, record.key, None) for record in (await bench.queued())[:2]])
    await bench.put(pushed(4))
    await fan_out(bench).run_once()
    queued = [(record.key[-1], record.value["event"]["id"]) for record in await bench.queued()]
    assert queued == [("3", "event-2"), ("4", "event-4")]


async def test_a_format_gets_only_what_it_can_express(bench: Bench) -> None:
    """A format without a form for gaps gets none after a dropped event or a lost store; its numbers still jump."""
    await bench.subscribe("kargo", format="harbor", events=["push", "manifest"])
    await bench.put(pushed(1), pushed(2), replace(pushed(3), type=EventType.MANIFEST, tag=""))
    await fan_out(bench, queued_max=1).run_once()
    await bench.store.commit([Change(Table.META, LOSS_KEY, {"noticed_at": 1.0})])
    assert await fan_out(bench).note_loss() == set()
    await bench.put(pushed(4))
    await fan_out(bench).run_once()
    queued = [(record.key[-1], record.value["event"]["id"]) for record in await bench.queued()]
    assert queued == [("1", "event-1"), ("3", "event-4")]


async def test_a_format_of_a_later_release_stops_nobody(bench: Bench) -> None:
    """A subscription with an unknown format gets nothing; the others get their events."""
    await bench.subscribe("later", format="carrier-pigeon")
    await bench.subscribe("ci")
    await bench.put(pushed(1))
    lanes, _ = await fan_out(bench).run_once()
    assert lanes == {Lane("ci", "team/app")}


async def test_a_write_under_way_holds_back_its_event_alone(bench: Bench) -> None:
    """The event of a running write waits until its end or time limit; events of other tags do not."""
    await bench.subscribe()
    await bench.put(pushed(1), writing_until=2_000_000_060.0)
    await bench.put(pushed(2))
    _, is_left = await fan_out(bench).run_once()
    assert is_left
    assert [record.value["event"]["id"] for record in await bench.queued()] == ["event-2"]
    await fan_out(bench, now=2_000_000_061.0).run_once()
    assert [record.value["event"]["id"] for record in await bench.queued()] == ["event-2", "event-1"]


async def test_a_write_that_another_has_concluded_is_over(bench: Bench) -> None:
    """A client repeats a push whose node died: its event goes with the end of the second push, without the wait."""
    await bench.subscribe()
    await bench.put(pushed(1), writing_until=2_000_000_060.0, intent="main/team/app|tag|v1")
    intent = Change(Table.INTENTS, "main/team/app|tag|v1", {"writing_until": 2_000_000_060.0})
    await bench.store.commit([intent])
    await fan_out(bench).run_once()
    assert await bench.queued() == []
    await bench.store.commit([replace(intent, value={"writing_until": 0})])
    await fan_out(bench).run_once()
    assert [record.value["event"]["id"] for record in await bench.queued()] == ["event-1"]


async def test_a_later_move_of_a_tag_takes_along_the_one_before(bench: Bench) -> None:
    """Where the node of the earlier write died, its event goes first, without the wait."""
    await bench.subscribe()
    await bench.put(pushed(1, tag="latest"), writing_until=2_000_000_060.0)
    await bench.put(pushed(2, tag="latest"))
    await fan_out(bench).run_once()
    assert [record.value["event"]["id"] for record in await bench.queued()] == ["event-1", "event-2"]


async def test_a_full_queue_drops_and_tells_a_gap(bench: Bench) -> None:
    """Beyond the limit events are dropped for that subscription alone; the next one with room follows a gap."""
    await bench.subscribe()
    await bench.put(*(pushed(number) for number in range(1, 6)))
    await fan_out(bench, queued_max=2).run_once()
    assert [record.value["event"]["id"] for record in await bench.queued()] == ["event-1", "event-2"]
    await bench.store.commit([Change(Table.DELIVERIES, record.key, None) for record in await bench.queued()])
    await bench.put(pushed(6))
    await fan_out(bench, queued_max=2).run_once()
    gap, last = [Delivery.of(record.value).event for record in await bench.queued()]
    assert gap.type is EventType.GAP
    assert (gap.detail["first_number"], gap.detail["last_number"]) == (3, 5)
    assert last.id == "event-6"


async def test_an_entry_for_one_subscription_reaches_no_other(bench: Bench) -> None:
    """A test or a replay goes to its subscription, whatever its types and patterns are."""
    await bench.subscribe("one", events=["delete"])
    await bench.subscribe("other")
    await bench.put(pushed(1), subscription="one", is_replay=True)
    await fan_out(bench).run_once()
    (record,) = await bench.queued()
    assert record.key.startswith("one/")
    assert Delivery.of(record.value).is_replay


async def test_a_loss_of_the_store_is_reported_once_to_each_subscription(bench: Bench) -> None:
    """Every enabled subscription gets one gap for a loss."""
    await bench.subscribe("a")
    await bench.subscribe("b")
    assert await fan_out(bench).note_loss() == set()
    await bench.store.commit([Change(Table.META, LOSS_KEY, {"noticed_at": 5.0, "compared": []})])
    for _ in range(2):
        await fan_out(bench).note_loss()
    queued = [(record.key, record.value["event"]["type"]) for record in await bench.queued()]
    assert queued == [("a/|000000000001", "gap"), ("b/|000000000001", "gap")]


def test_an_entry_survives_its_stored_form() -> None:
    """A stored entry is equal to the entry that is read."""
    entry = OutboxEntry(pushed(1, previous="sha256:" + "0" * 64), 12.5, "ci", is_replay=True)
    assert OutboxEntry.of(entry.stored()) == entry
