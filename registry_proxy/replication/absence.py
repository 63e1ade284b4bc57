"""Proof by the record that a fallback tag of referrers is absent though a replica cannot be asked.

Clients that sign or attach GET a tag that normally does not exist (spec, "Referrers Tag Schema"). Every tag that was
pushed or deleted through us is on record. So a replica whose lists were once compared with the record and with the
other replicas holds no such tag that both miss, unless somebody pushed past us (docs/decisions/42).
"""

from collections.abc import Collection

from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Change, Store, StoreChanges, Table
from registry_proxy.protocol.reference import Tag, is_fallback_tag
from registry_proxy.replication.intents import record_of
from registry_proxy.replication.journal import Journal


class AbsenceProof:
    """Answers by the record whether replicas that cannot be asked may hold a fallback tag.

    Args:
        store: the record.
        changes: notices that the store is not the one it was.
        journal: the writes that are not at all replicas.
    """

    def __init__(self, store: Store, changes: StoreChanges, journal: Journal) -> None:
        self._store = store
        self._changes = changes
        self._journal = journal

    async def __call__(self, routed: RoutedRepository, tag: Tag, silent: Collection[str]) -> bool:
        """Tell whether the silent replicas cannot hold a fallback tag that a replica said to be absent just now."""
        if not is_fallback_tag(tag):
            return False
        try:
            await self._changes.check()
            record = await self._store.get(Table.COMPARED, routed.upstream)
            is_compared = record is not None and set(silent) <= set(record.value["names"])
            return is_compared and not await self._is_recorded(IntentKey(routed, IntentKind.TAG, tag))
        except StoreUnavailableError:
            return False

    async def _is_recorded(self, key: IntentKey) -> bool:
        """Tell whether a push through us made the tag, or may have. Raises StoreUnavailableError."""
        intent = await self._journal.find(key)
        is_intended = intent is not None and intent.digest is not None
        return is_intended or await self._store.get(*record_of(key)) is not None


async def forget_comparison(store: Store, upstream: str) -> None:
    """Remove what is on record of an upstream that others push to as well. Raises StoreUnavailableError."""
    if await store.get(Table.COMPARED, upstream) is not None:
        await store.commit([Change(Table.COMPARED, upstream, None)])
