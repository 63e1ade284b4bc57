"""Probes: the time until a replica is known to be up, down, or in another state."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from registry_proxy.ports.journal import Pause
from registry_proxy.ports.metrics import ReplicaInState, ReplicaPaused, ReplicaPending
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet, ReplicaState
from registry_proxy.protocol.reference import digest_of
from registry_proxy.replica.failure import ReplicaFailedError
from registry_proxy.upstream import replicas as replicas_module
from registry_proxy.upstream.replicas import UpstreamReplicas
from tests.conftest import StartRegistry
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import HASTY, REPOSITORY, ScriptedMarks, open_replicas
from tests.support.waiting import until


def states(replicas: UpstreamReplicas) -> dict[str, ReplicaState]:
    """Return the state of each replica."""
    return {one.name: one.state for one in replicas.status()}


async def test_every_state_is_known_after_the_start() -> None:
    """Each replica was probed once when ``start`` returns; a slow one delays it by one deadline only."""
    async with (
        FakeRegistry() as up,
        FakeRegistry(basic=("ann", "right")) as refused,
        FakeRegistry() as html,
        FakeRegistry() as black_hole,
    ):
        html.inject(Fault(html=True))
        black_hole.inject(Fault(stall=True))
        gone = FakeRegistry()
        await gone.start()
        await gone.stop()
        urls = [one.url for one in (up, refused, html, black_hole, gone)]
        observer = RecordingObserver()
        async with open_replicas(urls, timeouts=HASTY, observer=observer, username="ann", password="wrong") as replicas:
            assert states(replicas) == {
                "a": ReplicaState.UP,
                "b": ReplicaState.CREDENTIALS_REFUSED,
                "c": ReplicaState.NOT_A_REGISTRY,
                "d": ReplicaState.DOWN,
                "e": ReplicaState.DOWN,
            }
            assert [replicas.is_writable(name) for name in "abcde"] == [True, False, False, False, False]
            assert all(one.reason for one in replicas.status()[1:])
            assert replicas.status()[0].latency_seconds is not None
            assert "wrong" not in repr(replicas.status())
            assert observer.count(ReplicaInState, "main", "c", ReplicaState.NOT_A_REGISTRY) > 0


async def test_a_real_registry_that_dies_and_returns(start_registry: StartRegistry) -> None:
    """A failed request marks it down immediately; a probe soon after its return restores it, and wakes all waiters."""
    registry = start_registry()
    async with open_replicas([registry.url]) as replicas:
        registry.stop()
        with pytest.raises(ReplicaFailedError) as failed:
            await replicas.client("a").stat_blob(REPOSITORY, digest_of(b"x"))
        replicas.report_failure("a", failed.value)
        assert states(replicas) == {"a": ReplicaState.DOWN}
        changes = replicas.changes
        registry.start()
        assert await replicas.wait_for_change(10, changes)
        assert states(replicas) == {"a": ReplicaState.UP}


async def test_a_suspicion_is_probed_at_once() -> None:
    """A cut body does not mark it down; the following probe does when it is gone."""
    async with FakeRegistry() as registry, open_replicas([registry.url]) as replicas:
        replicas.report_failure("a", ReplicaFailedError("a: cut", "cut"))
        assert states(replicas) == {"a": ReplicaState.UP}
        await registry.wait_for("GET", "^/v2/$", count=2)
        registry.inject(Fault(status=500))
        replicas.report_failure("a", ReplicaFailedError("a: cut", "cut"))
        await until(lambda: states(replicas) == {"a": ReplicaState.DOWN})


async def test_corrected_credentials_are_noticed() -> None:
    """A replica that refused us is still probed, and is up once it accepts the credentials."""
    async with FakeRegistry() as registry:
        refusal = registry.inject(Fault(status=403))
        async with open_replicas([registry.url]) as replicas:
            assert states(replicas) == {"a": ReplicaState.CREDENTIALS_REFUSED}
            changes = replicas.changes
            registry.faults.remove(refusal)
            assert await replicas.wait_for_change(10, changes)
            assert states(replicas) == {"a": ReplicaState.UP}


async def test_waiting_for_a_change_ends_with_the_time() -> None:
    """Without a change the wait returns False; a change after ``since`` and before the wait is not missed."""
    async with FakeRegistry() as registry, open_replicas([registry.url]) as replicas:
        before = replicas.changes
        assert not await replicas.wait_for_change(0.01, before)
        replicas.report_failure("a", ReplicaFailedError("a: gone", "connect"))
        assert await replicas.wait_for_change(0, before)


async def test_behind_is_up_with_marks() -> None:
    """A replica that misses something is shown as behind, with the number; it can be written to."""
    marks = ScriptedMarks(behind={"a"})
    observer = RecordingObserver()
    async with FakeRegistry() as registry, open_replicas([registry.url], marks=marks, observer=observer) as replicas:
        [status] = replicas.status()
        assert (status.state, status.pending) == (ReplicaState.BEHIND, 1)
        assert replicas.is_writable("a")
        assert observer.last(ReplicaPending, "main", "a") == 1
        marks.behind.clear()
        await until(lambda: states(replicas) == {"a": ReplicaState.UP})
        assert observer.last(ReplicaPending, "main", "a") == 0


async def test_a_replica_that_returns_is_behind_from_its_first_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that a replica missed while it was down make it `behind`, never `up` until the next report."""
    monkeypatch.setattr(replicas_module, "_REPORT_SECONDS", 3600)
    marks, observer = ScriptedMarks(), RecordingObserver()
    async with FakeRegistry() as registry, open_replicas([registry.url], marks=marks, observer=observer) as replicas:
        replicas.report_failure("a", ReplicaFailedError("a: gone", "connect"))
        marks.behind.add("a")
        await until(lambda: states(replicas) != {"a": ReplicaState.DOWN})
        assert states(replicas) == {"a": ReplicaState.BEHIND}
        assert observer.last(ReplicaInState, "main", "a") == ReplicaState.BEHIND


async def test_a_replica_that_is_compared_says_why() -> None:
    """A newcomer is up and behind, with its reason."""
    marks = ScriptedMarks(behind={"a"}, newcomers={"a"})
    async with FakeRegistry() as registry, open_replicas([registry.url], marks=marks) as replicas:
        [status] = replicas.status()
        assert (status.state, status.reason) == (ReplicaState.BEHIND, "it is new")


async def test_a_paused_replica_is_up_and_not_written_to() -> None:
    """The pause is noticed without a request, counted as 1 and then 0, and warned of after an hour."""
    marks, observer = ScriptedMarks(), RecordingObserver()
    async with FakeRegistry() as registry, open_replicas([registry.url], marks=marks, observer=observer) as replicas:
        assert observer.last(ReplicaPaused, "main", "a") is False
        marks.paused = Pause("a", "", "user:ann", time.time() - 1800, 1)
        await until(lambda: not replicas.is_writable("a"))
        assert states(replicas) == {"a": ReplicaState.UP}
        assert observer.last(ReplicaPaused, "main", "a") is True
        assert replicas.warnings() == []
        marks.paused = replace(marks.paused, since=time.time() - 2 * 3600)
        await replicas.refresh()
        assert replicas.warnings() == ["replica a of upstream main is paused for 2.0 hours, by user:ann"]
        marks.paused = None
        await until(lambda: replicas.is_writable("a"))
        assert observer.last(ReplicaPaused, "main", "a") is False


async def test_a_ca_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    """A bad ``ca_file`` is an error at the start, and nothing is left open."""
    with pytest.raises(OSError, match=r"ca\.pem|No such file"):
        async with open_replicas(["https://127.0.0.1:1"], ca_file=tmp_path / "ca.pem"):
            raise AssertionError("started")


async def test_closing_ends_every_probe() -> None:
    """After ``aclose`` no task is left, also when a probe is on its way."""
    async with FakeRegistry() as registry:
        before = asyncio.all_tasks()
        async with open_replicas([registry.url]) as replicas:
            registry.inject(Fault(stall=True))
            replicas.report_failure("a", ReplicaFailedError("a: cut", "cut"))
            await registry.wait_for("GET", "^/v2/$", count=2)
        left = {task.get_name() for task in asyncio.all_tasks() - before}
        assert not {name for name in left if name.startswith(("probe", "report"))}


async def test_an_inspection_that_was_cut_short_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica counts as returning until an inspection was completed: in time, and with the store available."""
    monkeypatch.setattr(replicas_module, "PROBE_PAUSE_SECONDS", 0.0)
    returning: list[bool] = []

    async def inspect(replica_set: ReplicaSet, client: ReplicaClient, *, is_returning: bool) -> bool:
        returning.append(is_returning)
        if len(returning) == 1:
            await asyncio.Event().wait()
        return len(returning) > 2

    async with FakeRegistry() as registry, open_replicas([registry.url], timeouts=HASTY, inspect=inspect) as replicas:
        while len(returning) < 4:
            replicas.report_slow("a")
            await asyncio.sleep(0.01)
    assert returning[:4] == [True, True, True, False]
