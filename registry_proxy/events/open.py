"""Opening the events of a worker."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from registry_proxy.events.deliveries import Deliveries, DeliveryLimits
from registry_proxy.events.outbox import StoreOutbox
from registry_proxy.events.pulls import NotedPulls
from registry_proxy.events.receivers import HttpSender, ReceiverLimits
from registry_proxy.events.record import DeliveryRecord
from registry_proxy.events.replica_watch import ReplicaWatch
from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import UpstreamStatus
from registry_proxy.ports.store import Store, StoreChanges
from registry_proxy.protocol.reference import Repository


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a worker: ``outbox`` and ``pulls`` for its requests, the others for the one that is the admin's."""

    outbox: StoreOutbox
    pulls: NotedPulls
    replica_watch: ReplicaWatch
    deliveries: Deliveries
    record: DeliveryRecord


@contextlib.asynccontextmanager
async def open_events(
    limits: ReceiverLimits,
    store: Store,
    changes: StoreChanges,
    *,
    local_name: Callable[[RoutedRepository], Repository | None],
    upstreams: Mapping[str, UpstreamStatus],
    observer: Observer,
) -> AsyncIterator[Events]:
    """Open the events for the length of a with block.

    Args:
        limits: the hosts that deliveries may reach.
        store: holds subscriptions and deliveries.
        changes: tells when another process has changed them.
        local_name: see StoreOutbox.
        upstreams: see ReplicaWatch.
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
        outbox = StoreOutbox(subscriptions, local_name)
        yield Events(
            outbox=outbox,
            pulls=NotedPulls(store, subscriptions, outbox, observer),
            replica_watch=ReplicaWatch(store, changes, outbox, upstreams),
            deliveries=deliveries,
            record=DeliveryRecord(store),
        )
