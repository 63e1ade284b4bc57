"""Events of replicas: one for each change of the whole cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from registry_proxy.events.outbox import StoreOutbox
from registry_proxy.events.replica_watch import DOWN_SECONDS, QUIET_SECONDS, ReplicaWatch
from registry_proxy.ports.outbox import EventType, OutboxEntry
from registry_proxy.ports.replicas import ReplicaState, ReplicaStatus
from registry_proxy.ports.store import Table
from tests.events.support import Bench

DOWN, REPAIRED = EventType.REPLICA_DOWN, EventType.REPLICA_REPAIRED


@dataclass
class Upstream:
    """An upstream with one replica, as a node sees it."""

    state: ReplicaState = ReplicaState.UP
    lost: int = 0

    async def refresh(self) -> None:
        """Change nothing: the state is known."""

    def warnings(self) -> Sequence[str]:
        return ()

    def status(self) -> Sequence[ReplicaStatus]:
        url, reason = "http://a", "no answer"
        return [ReplicaStatus("a", url, self.state, reason, None, pending=0, refused=0, keeps_apart=None)]


@dataclass
class Nodes:
    """Some nodes over one store, and a clock."""

    bench: Bench
    upstreams: list[Upstream] = field(default_factory=list)
    watches: list[ReplicaWatch] = field(default_factory=list)
    now: float = 1_700_000_000.0

    def start(self, state: ReplicaState = ReplicaState.UP) -> Upstream:
        """Start a node that sees the replica in a state."""
        outbox = StoreOutbox(self.bench.subscriptions, lambda routed: routed.repository)
        upstream = Upstream(state)
        bench, reader = self.bench, {"main": upstream}
        self.upstreams.append(upstream)
        self.watches.append(ReplicaWatch(bench.store, bench.changes, outbox, reader, lambda: self.now))
        return upstream

    async def let_pass(self, seconds: float) -> None:
        """Advance the clock; every node looks each second."""
        for _ in range(round(seconds)):
            self.now += 1.0
            for watch in self.watches:
                await self.bench.changes.check()
                await watch.look()

    async def events(self) -> list[EventType]:
        """Return the types of the events so far, oldest first."""
        records = sorted(await self.bench.store.list(Table.OUTBOX), key=lambda each: each.revision)
        return [OutboxEntry.of(record.value).event.type for record in records]


async def test_each_change_is_one_event_for_all_nodes(bench: Bench) -> None:
    """Down, and repaired once nothing is missed any more; both nodes see it, one reports it."""
    await bench.subscribe(events=["replica_down", "replica_repaired"], repository="team/**")
    nodes = Nodes(bench)
    first, second = nodes.start(), nodes.start()
    await nodes.let_pass(60)
    assert await nodes.events() == []
    first.state = second.state = ReplicaState.DOWN
    await nodes.let_pass(60)
    assert await nodes.events() == [DOWN]
    first.state = second.state = ReplicaState.BEHIND
    await nodes.let_pass(60)
    assert await nodes.events() == [DOWN]
    first.state = second.state = ReplicaState.UP
    await nodes.let_pass(60)
    assert await nodes.events() == [DOWN, REPAIRED]
    (event,) = [
        entry.event
        for entry in map(OutboxEntry.of, (record.value for record in await bench.store.list(Table.OUTBOX)))
        if entry.event.type is DOWN
    ]
    assert event.detail == {"upstream": "main", "replica": "a", "state": "down", "reason": "no answer"}


async def test_a_node_that_starts_reports_nothing_known(bench: Bench) -> None:
    """A replica that was reported as down is not reported again, nor is a repaired one."""
    await bench.subscribe(events=["replica_down", "replica_repaired"])
    nodes = Nodes(bench)
    nodes.start(ReplicaState.DOWN)
    await nodes.let_pass(DOWN_SECONDS + 1)
    nodes.watches.clear()
    upstream = nodes.start(ReplicaState.DOWN)
    await nodes.let_pass(60)
    assert await nodes.events() == [DOWN]
    upstream.state = ReplicaState.UP
    await nodes.let_pass(60)
    nodes.watches.clear()
    nodes.start()
    await nodes.let_pass(60)
    assert await nodes.events() == [DOWN, REPAIRED]


async def test_a_replica_that_comes_and_goes_is_down_once(bench: Bench) -> None:
    """It is repaired when no node has seen it down for a while; a short failure is no event."""
    await bench.subscribe(events=["replica_down", "replica_repaired"])
    nodes = Nodes(bench)
    upstream = nodes.start()
    for _ in range(10):
        upstream.state = ReplicaState.DOWN
        await nodes.let_pass(DOWN_SECONDS - 2)
        upstream.state = ReplicaState.UP
        await nodes.let_pass(2)
    assert await nodes.events() == []
    for _ in range(10):
        upstream.state = ReplicaState.DOWN
        await nodes.let_pass(DOWN_SECONDS + 5)
        upstream.state = ReplicaState.UP
        await nodes.let_pass(QUIET_SECONDS - 12)
    assert await nodes.events() == [DOWN]


async def test_a_replica_that_one_node_cannot_reach_stays_down(bench: Bench) -> None:
    """Nodes with different views do not report contradictory events in turns."""
    await bench.subscribe(events=["replica_down", "replica_repaired"])
    nodes = Nodes(bench)
    nodes.start(ReplicaState.DOWN)
    nodes.start(ReplicaState.UP)
    await nodes.let_pass(300)
    assert await nodes.events() == [DOWN]
    assert len(await bench.store.list(Table.META, "reported_down/")) == 1


async def test_a_change_without_a_subscription_is_no_event_later(bench: Bench) -> None:
    """A later subscription gets only later changes."""
    nodes = Nodes(bench)
    nodes.start(ReplicaState.DOWN)
    await nodes.let_pass(60)
    await bench.subscribe(events=["replica_down"])
    await nodes.let_pass(60)
    assert await nodes.events() == []
