"""A store with subscriptions, and a sender with scripted answers."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from registry_proxy.events.composition import ComposedRequest, compose
from registry_proxy.events.delivery import Delivery
from registry_proxy.events.outbox import outbox_change
from registry_proxy.events.sender import ReceiverAnswer
from registry_proxy.events.subscription import Subscription
from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.ports.outbox import Actor, EventType, OutboxEntry, RegistryEvent
from registry_proxy.ports.store import Change, Record, Table
from registry_proxy.store.changes import StoreWatch
from registry_proxy.store.open import open_store
from registry_proxy.store.redis import RedisStore
from registry_proxy.store.sqlite import SqliteStore
from tests.support.fakes.memory import RecordingObserver

ANN = Actor("user:ann", "192.0.2.1", "request-1", "docker/27", "registry.example:5000", "https")


@dataclass
class Bench:
    """The store of one node."""

    store: SqliteStore | RedisStore
    changes: StoreWatch
    subscriptions: CurrentSubscriptions
    observer: RecordingObserver = field(default_factory=RecordingObserver)

    async def subscribe(self, name: str = "ci", **fields: Any) -> Subscription:
        """Store a subscription."""
        subscription = Subscription(name=name, **{"url": "http://127.0.0.1:9/hook", **fields})
        await self.store.commit([Change(Table.SUBSCRIPTIONS, name, subscription.stored())])
        return subscription

    async def put(self, *events: RegistryEvent, **entry: Any) -> int:
        """Put events into the outbox, one commit each; return the revision of the last."""
        revision = 0
        for event in events:
            revision = await self.store.commit([outbox_change(OutboxEntry(event, **entry))])
        return revision

    async def queued(self) -> list[Record]:
        """Return the waiting deliveries."""
        return await self.store.list(Table.DELIVERIES)


@asynccontextmanager
async def open_bench(directory: Path) -> AsyncIterator[Bench]:
    """Open an empty SQLite store."""
    async with open_store(f"sqlite:///{directory / 'store.db'}", str(directory / "page")) as (store, changes):
        yield Bench(store, changes, CurrentSubscriptions(store, changes))


def pushed(number: int, *, repository: str = "team/app", tag: str = "", **fields: Any) -> RegistryEvent:
    """Return the event of a push; another ``number`` gives another event."""
    return RegistryEvent(
        id=f"event-{number}",
        type=EventType.PUSH,
        at=1_700_000_000.0 + number,
        repository=repository,
        tag=tag or f"v{number}",
        digest=f"sha256:{number:064x}",
        media_type="application/vnd.oci.image.manifest.v1+json",
        size_bytes=700,
        actor=ANN,
        **fields,
    )


def pulled(*, tag: str = "v1") -> RegistryEvent:
    """Return the event of a pull."""
    return replace(pushed(1, tag=tag or "v1"), type=EventType.PULL, tag=tag)


def deleted(*, tag: str = "", digest: str = "") -> RegistryEvent:
    """Return the event of a deleted tag or manifest."""
    return RegistryEvent(
        id="event-0",
        type=EventType.DELETE,
        at=1_700_000_000.0,
        repository="team/app",
        tag=tag,
        digest=digest,
        actor=ANN,
    )


def composed(event: RegistryEvent, *, sent_at: float = 1_700_000_009.5, **fields: Any) -> ComposedRequest:
    """Return the request with an event for a subscription, the seventh of its lane."""
    subscription = Subscription(name="ci", **{"url": "https://ci.example/hook", **fields})
    return compose(subscription, 7, Delivery(event=event, queued_at=0.0), sent_at)


@dataclass
class ScriptedSender:
    """Records its requests; ``answer`` gives the answer, which is 200 without one."""

    answer: Callable[[Subscription, Delivery], ReceiverAnswer] = lambda *_: ReceiverAnswer(200, "")
    sent: list[tuple[str, int, RegistryEvent]] = field(default_factory=list)

    async def send(self, subscription: Subscription, number: int, delivery: Delivery) -> ReceiverAnswer:
        self.sent.append((subscription.name, number, delivery.event))
        return self.answer(subscription, delivery)

    def ids(self, subscription: str = "ci") -> list[str]:
        """Return the ids of the events sent to a subscription, in order."""
        return [event.id for name, _, event in self.sent if name == subscription]
