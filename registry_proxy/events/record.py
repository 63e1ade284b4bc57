"""The deliveries as an administrator sees them: listed, tested, and replayed."""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter

from registry_proxy.events.delivery import DeliveryState, ListedDelivery, key_of, listed
from registry_proxy.events.outbox import outbox_change
from registry_proxy.ports.errors import ConflictError
from registry_proxy.ports.outbox import Actor, EventType, OutboxEntry, RegistryEvent
from registry_proxy.ports.store import Change, Record, Store, Table

_TABLES = {
    DeliveryState.QUEUED: Table.DELIVERIES,
    DeliveryState.DELIVERED: Table.DELIVERED,
    DeliveryState.DEAD: Table.DEAD_LETTERS,
}


class DeliveryRecord:
    """The deliveries of all subscriptions. Its methods raise StoreUnavailableError.

    Args:
        store: holds them.
        clock: seconds since the epoch.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def page(
        self,
        subscriptions: Sequence[str] | None,
        state: DeliveryState | None,
        limit: int,
        *,
        after: str = "",
        is_shown: Callable[[ListedDelivery], bool] = lambda _: True,
    ) -> tuple[Sequence[ListedDelivery], bool]:
        """Return some deliveries by subscription, repository and number, and whether there are more.

        Args:
            subscriptions: only those of these; None for all.
            state: only those in this one; None for all.
            limit: number of deliveries.
            after: only those behind this key.
            is_shown: tells which deliveries may be seen.
        """
        tables = [(each, _TABLES[each]) for each in ([state] if state is not None else DeliveryState)]
        shown: list[ListedDelivery] = []
        for prefix in [""] if subscriptions is None else sorted(f"{name}/" for name in subscriptions):
            begin, is_left = after, True
            while is_left and len(shown) <= limit:
                found = [
                    (record.key, listed(record, each))
                    for each, table in tables
                    for record in await self._store.list(table, prefix, after=begin, limit=limit + 1)
                ]
                found = sorted(found, key=itemgetter(0))[: limit + 1]
                shown += [delivery for _, delivery in found if is_shown(delivery)]
                is_left = len(found) > limit
                begin = found[-1][0] if is_left else begin
        return shown[:limit], len(shown) > limit

    async def get(self, delivery_id: str) -> ListedDelivery | None:
        """Return a delivery; None for one that is not on record."""
        record, state = await self._find(delivery_id)
        return None if record is None else listed(record, state)

    async def replay(self, delivery_id: str) -> ListedDelivery | None:
        """Queue the event of a delivery once more, marked as a replay; None for one that is not on record.

        A dead letter leaves the list of these. A delivery that is queued is left as it is.
        """
        record, state = await self._find(delivery_id)
        if record is None:
            return None
        delivery = listed(record, state)
        if state is not DeliveryState.QUEUED:
            entry = OutboxEntry(delivery.delivery.event, subscription=delivery.subscription, is_replay=True)
            changes = [outbox_change(entry)]
            if state is DeliveryState.DEAD:
                changes.append(Change(Table.DEAD_LETTERS, record.key, None, expect=record.revision))
            try:
                await self._store.commit(changes)
            except ConflictError:  # somebody else replays it
                return delivery
        return delivery

    async def dismiss(self, delivery_id: str) -> ListedDelivery | None:
        """Take a dead letter from the record; return the delivery, None for one that is not on record.

        A delivery that is none is left as it is.
        """
        record, state = await self._find(delivery_id)
        if record is None:
            return None
        if state is DeliveryState.DEAD:
            with suppress(ConflictError):  # it was replayed, or dismissed, meanwhile
                await self._store.commit([Change(Table.DEAD_LETTERS, record.key, None, expect=record.revision)])
        return listed(record, state)

    async def test(self, subscription: str, actor: Actor) -> RegistryEvent:
        """Queue an event for one subscription that says only that it is a test; return it."""
        event = RegistryEvent(
            id=str(uuid.uuid4()),
            type=EventType.PUSH,
            at=self._clock(),
            repository="registry-proxy/test",
            tag="test",
            digest=f"sha256:{'0' * 64}",
            actor=actor,
            detail={"test": True},
        )
        await self._store.commit([outbox_change(OutboxEntry(event, subscription=subscription))])
        return event

    async def _find(self, delivery_id: str) -> tuple[Record | None, DeliveryState]:
        key = key_of(delivery_id)
        for state, table in _TABLES.items() if key is not None else ():
            if (record := await self._store.get(table, key or "")) is not None:
                return record, state
        return None, DeliveryState.QUEUED
