"""After the store came back without what it held: the replicas are compared, and nothing is let go until then.

A store that is empty, or older than a node has seen it, says of nobody that he misses something. So its word releases
no copy that a node keeps for a replica. ``StoreWatch`` notices it, and leaves the record that is worked off here.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.repair import Comparison
from registry_proxy.ports.replicas import ReplicaSet
from registry_proxy.ports.store import LOSS_KEY, Change, Store, Table
from registry_proxy.repair.verify import Verifier
from registry_proxy.replication.journal import Journal

_LOOK_SECONDS = 1.0
_PAUSE_AFTER_FAILURE_SECONDS = 60.0

_log = logging.getLogger(__name__)


async def loss_warnings(store: Store, upstreams: Sequence[str]) -> Sequence[str]:
    """Return, in words, that the store came back without what it held, and what that means; [] where it did not.

    Args:
        store: of the node.
        upstreams: those whose replicas can differ.
    """
    try:
        record = await store.get(Table.META, LOSS_KEY)
    except StoreUnavailableError:
        return []
    if record is None:
        return []
    waiting = ", ".join(name for name in upstreams if name not in record.value["compared"])
    when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(record.value["noticed_at"]))
    message = (
        f"the store came back empty or older than it was (noticed {when}): users, grants, and the record of pushes are "
        "those it has now. Restore a backup where they are gone. Copies are kept until the replicas were compared; "
        f"not compared yet: {waiting}"
    )
    return [message]


class Recovery:
    """Compares the replicas of one upstream after the store was lost, and has repaired what differs.

    Args:
        replica_set: the replicas, which can differ.
        store: knows of the loss.
        journal: what each replica misses.
        verifier: compares.
        upstreams: all upstreams whose replicas can differ: with the last one the loss is over.
    """

    def __init__(
        self,
        *,
        replica_set: ReplicaSet,
        store: Store,
        journal: Journal,
        verifier: Verifier,
        upstreams: Sequence[str],
    ) -> None:
        self._replica_set = replica_set
        self._store = store
        self._journal = journal
        self._verifier = verifier
        self._upstreams = upstreams

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            with contextlib.suppress(StoreUnavailableError, ConflictError):  # or another node is at it
                if await self._is_due() and not await self.recover():
                    await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)

    async def _is_due(self) -> bool:
        record = await self._store.get(Table.META, LOSS_KEY)
        if record is None or self._replica_set.upstream in record.value["compared"]:
            return False
        return all(self._replica_set.is_writable(client.name) for client in self._replica_set.replicas)

    async def recover(self) -> bool:
        """Compare the replicas, which are up, until they differ in nothing; return False where they go on to.

        Raises:
            StoreUnavailableError: it does not answer, or another process compares.
        """
        upstream = self._replica_set.upstream
        async with self._store.lease(f"comparison of {upstream} after a loss"):
            await self._journal.roster.note()
            if await self._compare(mend=True) is None or not await self._is_repaired():
                return False
            found = await self._compare(mend=False)
            if found is None or found.differing:
                return False
            return await self._conclude(upstream)

    async def _compare(self, *, mend: bool) -> Comparison | None:
        comparison = self._verifier.new()
        await self._verifier.compare(comparison, mend=mend)
        if comparison.error:
            _log.warning("upstream %s: after the loss of the store: %s", self._replica_set.upstream, comparison.error)
            return None
        if not mend and comparison.differing:
            _log.warning(
                "upstream %s: the store was lost, and its replicas differ in %d contents that nobody can decide about: "
                "see `registry-proxy replica verify %s`",
                self._replica_set.upstream,
                comparison.differing,
                self._replica_set.upstream,
            )
        return comparison

    async def _is_repaired(self) -> bool:
        """Wait for the repair of what was found to be missing; return False where a replica goes down meanwhile."""
        upstream = self._replica_set.upstream
        while True:
            marks = await self._journal.current.marks()
            names = [client.name for client in self._replica_set.replicas]
            if not any(marks.pending(name, upstream) for name in names):
                return True
            if not all(map(self._replica_set.is_writable, names)):
                return False
            await asyncio.sleep(_LOOK_SECONDS)

    async def _conclude(self, upstream: str) -> bool:
        record = await self._store.get(Table.META, LOSS_KEY)
        if record is None:
            return True
        compared = sorted({*record.value["compared"], upstream})
        value = None if set(self._upstreams) <= set(compared) else {**record.value, "compared": compared}
        await self._store.commit([Change(Table.META, LOSS_KEY, value, record.revision)])
        _log.info("upstream %s: its replicas were compared after the loss of the store", upstream)
        return True
