"""An object that replicas stall on, cut or fail with costs only its own clients."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.metrics import ReplicaInState
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of
from registry_proxy.replica.connections import Timeouts
from registry_proxy.replica.failure import ReplicaFailedError
from registry_proxy.upstream.failover import FailoverReader
from registry_proxy.upstream.replicas import UpstreamReplicas
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, ScriptedMarks, open_replicas
from tests.support.waiting import until

POISONED = Repository("eve/app")
QUICK = Timeouts(connect=5, first_byte=0.2, stall=0.2, probe=1, commit=1)


@asynccontextmanager
async def pair(*, observer: RecordingObserver) -> AsyncIterator[tuple[list[FakeRegistry], UpstreamReplicas]]:
    """Start two registries with one good tag, and the replicas of an upstream made of them."""
    async with FakeRegistry() as a, FakeRegistry() as b:
        for registry in (a, b):
            registry.add_manifest(REPOSITORY, b"{}", "1")
        async with open_replicas([a.url, b.url], timeouts=QUICK, observer=observer) as replicas:
            yield [a, b], replicas


def times_down(observer: RecordingObserver) -> int:
    """Return how often a replica was reported as down."""
    return sum(event.state is ReplicaState.DOWN for event in observer.found(ReplicaInState))


async def ask(reader: FailoverReader, digest: Digest) -> None:
    """Ask for a digest that no replica serves."""
    with pytest.raises(UpstreamUnavailableError):
        await reader.fetch_manifest(POISONED, digest)


async def test_an_object_that_both_stall_on_takes_neither_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that never answer for one digest, and receive no other requests, stay writable."""
    monkeypatch.setattr("registry_proxy.upstream.health.ANSWERS_SECONDS", 0.0)
    observer = RecordingObserver()
    async with pair(observer=observer) as (registries, replicas):
        digest = digest_of(b"poison")
        for registry in registries:
            registry.inject(Fault(str(digest), stall=True))
        reader = FailoverReader(replicas, ScriptedMarks(), 0)
        for _ in range(3):
            await ask(reader, digest)
        assert times_down(observer) == 0
        assert all(replicas.is_writable(name) for name in "ab")


async def test_a_storage_that_hangs_takes_its_replica_down() -> None:
    """A registry whose /v2/ answers while all contents hang is marked as down, and returns with its storage."""
    observer = RecordingObserver()
    async with pair(observer=observer) as (registries, replicas):
        hung = registries[0].inject(Fault("/v2/.+", stall=True))
        reader = FailoverReader(replicas, ScriptedMarks(), 0)

        async def read_on() -> None:
            number = 0
            while True:
                number += 1
                repository = Repository(f"team/app{number % 3}")
                with pytest.raises(UpstreamUnavailableError):
                    await reader.fetch_manifest(repository, digest_of(b"%d" % number))

        reading = asyncio.ensure_future(read_on())  # noqa: TID251 - ended below
        await until(lambda: replicas.status()[0].state is ReplicaState.DOWN, timeout_seconds=30)
        assert replicas.status()[1].state is ReplicaState.UP
        registries[0].faults.remove(hung)
        registries[0].release()
        await until(lambda: replicas.status()[0].state is ReplicaState.UP, timeout_seconds=30)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(cut_after=0)], ids=["500", "cut"])
async def test_a_poisoned_digest_is_asked_for_less_and_less(fault: Fault) -> None:
    """Repeated requests for a digest that every replica fails with reach the replicas less and less often."""
    observer = RecordingObserver()
    async with pair(observer=observer) as (registries, replicas):
        digest = digest_of(b"poison")
        for registry in registries:
            registry.inject(Fault(str(digest), status=fault.status, cut_after=fault.cut_after))
        reader = FailoverReader(replicas, ScriptedMarks(), 2)
        for _ in range(2):
            await ask(reader, digest)
        asked = sum(registry.count("GET", f"manifests/{digest}") for registry in registries)
        assert asked <= 10, "with a try each half second it was 16 and more"
        assert times_down(observer) == 0
        assert (await reader.resolve_tag(REPOSITORY, Tag("1"))).digest == digest_of(b"{}")


async def test_tries_of_a_repository_share_a_budget() -> None:
    """Many poisoned digests of one repository share a few retries; another repository is retried as usual."""
    observer = RecordingObserver()
    async with pair(observer=observer) as (registries, replicas):
        for registry in registries:
            registry.inject(Fault(f"{POISONED}/", status=500))
        reader = FailoverReader(replicas, ScriptedMarks(), 1)
        digests = [digest_of(b"%d" % number) for number in range(100)]
        await asyncio.gather(*(ask(reader, digest) for digest in digests))
        asked = sum(registry.count("GET", f"{POISONED}/manifests/") for registry in registries)
        assert asked <= 2 * len(digests) + 2 * 40
        for registry in registries:
            registry.inject(Fault(f"{REPOSITORY}/", status=500, times=2))
        # A longer patience: on a busy machine the hundred requests may have marked both as down.
        patient = FailoverReader(replicas, ScriptedMarks(), 30)
        assert (await patient.resolve_tag(REPOSITORY, Tag("1"))).digest == digest_of(b"{}")


async def test_a_replica_that_refuses_connections_of_data_is_probed_in_peace() -> None:
    """Failures to connect while probes succeed cause one probe a second, not one per failure."""
    observer = RecordingObserver()
    async with pair(observer=observer) as (registries, replicas):
        before, began = registries[0].count("GET", "^/v2/$"), time.monotonic()
        for _ in range(200):
            replicas.report_failure("a", ReplicaFailedError("a: no connection", "connect"))
            await asyncio.sleep(0.005)
        assert registries[0].count("GET", "^/v2/$") - before <= 3 + (time.monotonic() - began)
