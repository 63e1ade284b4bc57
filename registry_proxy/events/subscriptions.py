"""The subscriptions as they are now, read again when one has changed."""

from collections.abc import Sequence

from registry_proxy.events.subscription import Subscription, subscription_of
from registry_proxy.ports.store import Store, StoreChanges, Table


class CurrentSubscriptions:
    """Remembers all subscriptions of a store."""

    def __init__(self, store: Store, changes: StoreChanges) -> None:
        self._store = store
        self._changes = changes
        self._version = -1
        self._known: Sequence[Subscription] = ()

    async def current(self) -> Sequence[Subscription]:
        """Return all subscriptions; costs nothing while none has changed. Raises StoreUnavailableError."""
        version = self._changes.version(Table.SUBSCRIPTIONS)
        if version != self._version:
            self._known = [subscription_of(record) for record in await self._store.list(Table.SUBSCRIPTIONS)]
            self._version = version
        return self._known
