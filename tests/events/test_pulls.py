"""Pulls: noted for subscriptions to them, stored in batches, and bounded."""

from collections.abc import Iterator
from typing import Any

import pytest

from registry_proxy.events import pulls
from registry_proxy.events.outbox import StoreOutbox
from registry_proxy.events.pulls import NotedPulls
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.metrics import DeliveryAttempt
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import EventType, OutboxEntry, RegistryEvent
from registry_proxy.ports.store import Table
from registry_proxy.protocol.descriptor import OCI_MANIFEST, Descriptor
from registry_proxy.protocol.reference import Repository, digest_of
from registry_proxy.tasks import running
from tests.events.support import ANN, Bench
from tests.support.waiting import until

APP = RoutedRepository("main", Repository("team/app"))
IMAGE = Descriptor(OCI_MANIFEST, digest_of(b"image"), 700)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pulls, "_STORE_SECONDS", 0.01)
    return iter(())


def noted(bench: Bench, **fields: Any) -> NotedPulls:
    """Return the notes of a worker."""
    outbox = StoreOutbox(bench.subscriptions, lambda routed: routed.repository)
    return NotedPulls(bench.store, bench.subscriptions, outbox, bench.observer, **fields)


async def in_outbox(bench: Bench) -> list[RegistryEvent]:
    """Return the events in the outbox."""
    return [OutboxEntry.of(record.value).event for record in await bench.store.list(Table.OUTBOX)]


async def test_pulls_are_wanted_while_a_subscription_asks_for_them(bench: Bench) -> None:
    """A subscription to pushes does not ask, nor does a disabled one."""
    await bench.subscribe("pushes")
    log = noted(bench)
    async with running(log.run(), "pulls"):
        await bench.subscribe("off", events=["pull"], enabled=False)
        await bench.subscribe("on", events=["pull"])
        await until(lambda: log.is_wanted)
        await bench.subscribe("on", events=["push"])
        await until(lambda: not log.is_wanted)


async def test_the_end_of_a_worker_stores_what_was_noted(bench: Bench) -> None:
    """The event has the user, the image and the time; no subscription takes the other repository."""
    await bench.subscribe(events=["pull"], repository="team/**")
    log = noted(bench, clock=lambda: 1_700_000_000.0)
    async with running(log.run(), "pulls"):
        await until(lambda: log.is_wanted)
        log.note(APP, "v1", IMAGE, ANN)
        log.note(RoutedRepository("main", Repository("other/app")), "v1", IMAGE, ANN)
    (event,) = await in_outbox(bench)
    assert (event.type, event.repository, event.tag, event.at) == (EventType.PULL, "team/app", "v1", 1_700_000_000.0)
    assert (event.digest, event.size_bytes, event.actor) == (str(IMAGE.digest), 700, ANN)


async def test_more_than_may_be_noted_are_dropped_and_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and so is the outbox: pushes come first."""
    await bench.subscribe(events=["pull"])
    monkeypatch.setattr(pulls, "NOTES_MAX", 3)
    log = noted(bench)
    for _ in range(5):
        log.note(APP, "", IMAGE, ANN)
    async with running(log.run(), "pulls"):
        await until(lambda: bench.observer.total(DeliveryAttempt, "dropped") == 2)
        assert len(await in_outbox(bench)) == 3
        monkeypatch.setattr(pulls, "OUTBOX_MAX", 2)
        log.note(APP, "", IMAGE, ANN)
        await until(lambda: bench.observer.total(DeliveryAttempt, "dropped") == 3)
    assert len(await in_outbox(bench)) == 3


async def test_pulls_wait_while_the_store_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulls noted in an outage are stored when the store is back."""
    await bench.subscribe(events=["pull"])
    log, attempts = noted(bench), 0
    commit = bench.store.commit

    async def away(*_: object, **__: object) -> int:
        nonlocal attempts
        attempts += 1
        raise StoreUnavailableError("away")

    async with running(log.run(), "pulls"):
        await until(lambda: log.is_wanted)
        monkeypatch.setattr(bench.store, "commit", away)
        log.note(APP, "v1", IMAGE, ANN)
        await until(lambda: attempts > 1)
        monkeypatch.setattr(bench.store, "commit", commit)
    assert [event.tag for event in await in_outbox(bench)] == ["v1"]
