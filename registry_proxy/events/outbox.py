"""The outbox: events in the commit that caused them, so that none is lost with a process (ports.outbox.Outbox)."""

import time
import uuid
from collections.abc import Callable
from typing import Any

from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor, EventType, OutboxEntry, RegistryEvent
from registry_proxy.ports.store import Change, Table
from registry_proxy.protocol.reference import Repository


def outbox_change(entry: OutboxEntry) -> Change:
    """Return the change that stores a new entry."""
    event = entry.event
    return Change(Table.OUTBOX, f"{event.repository}|{event.id}|{entry.subscription}", entry.stored(), expect=0)


class StoreOutbox:
    """Makes entries.

    Args:
        subscriptions: what none of them takes is not stored.
        local_name: returns the canonical name of a repository, None where no route leads to it.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        subscriptions: CurrentSubscriptions,
        local_name: Callable[[RoutedRepository], Repository | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._subscriptions = subscriptions
        self._local_name = local_name
        self._clock = clock

    async def entry(self, kind: EventType, routed: RoutedRepository, actor: Actor, **fields: Any) -> Change | None:
        subscriptions = await self._subscriptions.current()
        name = self._local_name(routed) if subscriptions else None
        if name is None:
            return None
        fields = {"at": self._clock(), **fields}
        event = RegistryEvent(id=str(uuid.uuid4()), type=kind, repository=name, actor=actor, **fields)
        return await self.announced(event)

    async def announced(self, event: RegistryEvent) -> Change | None:
        """Return the change that puts an event into the outbox; None where no subscription takes it.

        Raises:
            StoreUnavailableError: which subscriptions there are cannot be known.
        """
        if not any(subscription.takes(event) for subscription in await self._subscriptions.current()):
            return None
        return outbox_change(OutboxEntry(event))
