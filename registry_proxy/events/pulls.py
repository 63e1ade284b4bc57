"""The pulls that subscriptions ask for: noted in memory while a request is answered, stored a second later."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from registry_proxy.events.outbox import StoreOutbox
from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.metrics import DeliveryAttempt, Observer
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor, EventType
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.descriptor import Descriptor

NOTES_MAX = 1000
"""Number of pulls that a worker keeps until they are stored; it drops the others."""

OUTBOX_MAX = 10_000
"""Number of events in the outbox beyond which pulls are dropped: pushes and deletions come first."""

_AT_ONCE = 200
_STORE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Pull:
    """One pull."""

    routed: RoutedRepository
    tag: str
    descriptor: Descriptor
    actor: Actor
    at: float


class NotedPulls:
    """Notes pulls, and stores them in batches while ``run`` goes on (ports.outbox.PullLog).

    Args:
        store: holds the outbox.
        subscriptions: as they are now.
        outbox: makes the entries.
        observer: receives the number of dropped pulls.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        subscriptions: CurrentSubscriptions,
        outbox: StoreOutbox,
        observer: Observer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._outbox = outbox
        self._observer = observer
        self._clock = clock
        self._notes: list[_Pull] = []
        self._dropped_count = 0
        self.is_wanted = False

    def note(self, routed: RoutedRepository, tag: str, descriptor: Descriptor, actor: Actor) -> None:
        if len(self._notes) < NOTES_MAX:
            self._notes.append(_Pull(routed, tag, descriptor, actor, self._clock()))
        else:
            self._dropped_count += 1

    async def run(self) -> None:
        """Store the noted pulls every second until cancelled, and then the last ones."""
        try:
            while True:
                await self._store_notes()
                await asyncio.sleep(_STORE_SECONDS)
        finally:
            await self._store_notes()

    async def _store_notes(self) -> None:
        """Store the noted pulls; they stay noted while the store is away."""
        try:
            subscriptions = await self._subscriptions.current()
            self.is_wanted = any(each.asks_for(EventType.PULL) for each in subscriptions)
            if self._notes and await self._store.count(Table.OUTBOX) > OUTBOX_MAX:
                self._dropped_count += len(self._notes)
                self._notes.clear()
            while batch := self._notes[:_AT_ONCE]:
                changes = [await self._entry(each) for each in batch]
                await self._store.commit([change for change in changes if change is not None])
                del self._notes[: len(batch)]
        except StoreUnavailableError:
            return
        if self._dropped_count:
            self._observer.observe(DeliveryAttempt("dropped", self._dropped_count))
            self._dropped_count = 0

    async def _entry(self, pull: _Pull) -> Change | None:
        descriptor = pull.descriptor
        return await self._outbox.entry(
            EventType.PULL,
            pull.routed,
            pull.actor,
            at=pull.at,
            tag=pull.tag,
            digest=str(descriptor.digest),
            media_type=descriptor.media_type,
            size_bytes=descriptor.size_bytes,
        )
