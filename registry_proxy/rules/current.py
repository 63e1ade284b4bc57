"""The rules as they are now, read again when one has changed."""

from collections.abc import Sequence

from registry_proxy.ports.store import Store, StoreChanges, Table
from registry_proxy.rules.rule import Rule, rule_of


class CurrentRules:
    """Remembers all rules of a store."""

    def __init__(self, store: Store, changes: StoreChanges) -> None:
        self._store = store
        self._changes = changes
        self._version = -1
        self._known: Sequence[Rule] = ()

    async def current(self) -> Sequence[Rule]:
        """Return all rules; costs nothing while none has changed. Raises StoreUnavailableError."""
        version = self._changes.version(Table.RULES)
        if version != self._version:
            self._known = [rule_of(record) for record in await self._store.list(Table.RULES)]
            self._version = version
        return self._known
