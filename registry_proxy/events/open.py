"""Opening the events of a worker."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from registry_proxy.events.deliveries import Deliveries, DeliveryLimits
from registry_proxy.events.outbox import StoreOutbox
from registry_proxy.events.receivers import HttpSender, ReceiverLimits
from registry_proxy.events.record import DeliveryRecord
from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Store, StoreChanges
from registry_proxy.protocol.reference import Repository


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a worker: ``outbox`` for its writes, the others for the worker with the admin listener."""

    outbox: StoreOutbox
    deliveries: Deliveries
    record: DeliveryRecord


@contextlib.asynccontextmanager
async def open_events(
    limits: ReceiverLimits,
    store: Store,
    changes: StoreChanges,
    local_name: Callable[[RoutedRepository], Repository | None],
    observer: Observer,
) -> AsyncIterator[Events]:
    """Open the events for the length of a with block.

    Args:
        limits: whom deliveries may reach.
        store: holds subscriptions and deliveries.
        changes: tells when another process has changed them.
        local_name: see StoreOutbox.
        observer: see Deliveries.
    """
    async with contextlib.aclosing(HttpSender(limits)) as sender:
        subscriptions = CurrentSubscriptions(store, changes)
        deliveries = Deliveries(
            store=store,
            changes=changes,
            subscriptions=subscriptions,
            sender=sender,
            limits=DeliveryLimits(),
            observer=observer,
        )
        yield Events(StoreOutbox(subscriptions, local_name), deliveries, DeliveryRecord(store))
