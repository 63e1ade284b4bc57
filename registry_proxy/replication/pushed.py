"""The blobs pushed to each repository lately: for upstreams whose replicas answer for a blob in any repository.

Between a push of a blob and that of the manifest that names it nothing else proves that the repository holds it, and
the two may come through two nodes.
"""

import time
from collections.abc import Callable

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.reference import Digest

LIFETIME_SECONDS = 24 * 3600.0
"""Time that a pushed blob may wait for its manifest."""


class PushedBlobs:
    """Implements ``operations.proofs.PushedBlobs`` in the store. Its methods raise StoreUnavailableError."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def note(self, routed: RoutedRepository, digest: Digest) -> None:
        """Record a push, and drop the records of the repository that have expired."""
        now = self._clock()
        records = await self._store.list(Table.PUSHED_BLOBS, f"{routed}|")
        expired = [record.key for record in records if record.value["pushed_at"] < now - LIFETIME_SECONDS]
        noted = Change(Table.PUSHED_BLOBS, f"{routed}|{digest}", {"pushed_at": now})
        await self._store.commit(
            [noted, *(Change(Table.PUSHED_BLOBS, key, None) for key in expired if key != noted.key)]
        )

    async def has(self, routed: RoutedRepository, digest: Digest) -> bool:
        """Tell whether a blob was pushed to the repository lately."""
        record = await self._store.get(Table.PUSHED_BLOBS, f"{routed}|{digest}")
        return record is not None and record.value["pushed_at"] >= self._clock() - LIFETIME_SECONDS

    async def forget(self, routed: RoutedRepository, digest: Digest) -> None:
        """Drop the record of a blob that was deleted."""
        await self._store.commit([Change(Table.PUSHED_BLOBS, f"{routed}|{digest}", None)])
