"""After the store came back without what it held: the replicas are compared, and nothing is let go until then.

A store that is empty, or older than a node has seen it, says of nobody that he misses something. So its word releases
no copy that a node keeps for a replica. ``StoreWatch`` notices it, and leaves the record that is worked off here.

No registry lists its manifests without a tag: those of which each node knows are put on record again, or a replica that
is compared later would not get them.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from registry_proxy.operations.contents import unless_absent
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.repair import Comparison
from registry_proxy.ports.replicas import ReplicaSet
from registry_proxy.ports.store import LOSS_KEY, Change, Record, Store, Table
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Repository, parse_digest
from registry_proxy.repair.inspection import Inspection
from registry_proxy.repair.verify import Verifier
from registry_proxy.replication.fanout import are_all_up
from registry_proxy.replication.intents import intent_of
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.manifests import manifest_record, write_lease

_LOOK_SECONDS = 1.0
_PAUSE_AFTER_FAILURE_SECONDS = 60.0
_NOTICING_SECONDS = 5.0
"""No comparison begins before: every node that is up has noticed the loss by then, and puts on record what it knows."""

_KNOWN_AT_ONCE = 500

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


@dataclass(slots=True, kw_only=True)
class Recovery:
    """Compares the replicas of one upstream after the store was lost, and has repaired what differs.

    Args:
        replica_set: the replicas, which can differ.
        store: knows of the loss.
        journal: what each replica misses.
        verifier: compares.
        upstreams: all upstreams whose replicas can differ: with the last one the loss is over.
        inspection: recognises a replica that is put back from a copy, or wiped.
        known: returns the manifests that this node knows repositories of an upstream to hold; called in a thread.
    """

    replica_set: ReplicaSet
    store: Store
    journal: Journal
    verifier: Verifier
    upstreams: Sequence[str]
    inspection: Inspection
    known: Callable[[str], Iterable[tuple[Repository, Digest]]]
    _noticed_at: float = 0.0
    _remembered_at: float = 0.0

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            with contextlib.suppress(StoreUnavailableError, ConflictError):  # or another node is at it
                if await self._is_due() and not await self.recover():
                    await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)

    async def _is_due(self) -> bool:
        """Put on record what this node knows, once for each loss; return whether the replicas are to be compared."""
        loss = await self.store.get(Table.META, LOSS_KEY)
        if loss is not None:
            self._noticed_at = loss.value["noticed_at"]
        if not are_all_up(self.replica_set):
            return False
        if self._remembered_at != self._noticed_at:  # also where another node has compared them meanwhile
            noticed_at = self._noticed_at
            await self.remember()
            self._remembered_at = noticed_at
            return False
        if loss is None or self.replica_set.upstream in loss.value["compared"]:
            return False
        return not 0 <= time.time() - self._noticed_at < _NOTICING_SECONDS

    # ------------------------------------------------------------ what this node knows

    async def remember(self) -> None:
        """Put the manifests on record that this node knows, a replica has, and nobody has deleted.

        Where there were any the replicas are compared once more.

        Raises:
            StoreUnavailableError: some of them may not be on record.
        """
        upstream = self.replica_set.upstream
        known = [
            IntentKey(RoutedRepository(upstream, repository), IntentKind.MANIFEST, str(digest))
            for repository, digest in await asyncio.to_thread(lambda: list(self.known(upstream)))
        ]
        count = 0
        for first in range(0, len(known), _KNOWN_AT_ONCE):
            batch = known[first : first + _KNOWN_AT_ONCE]
            records = await self.store.get_all([(Table.MANIFESTS, f"{key.routed}|{key.name}") for key in batch])
            for key, record in zip(batch, records, strict=True):
                if record is None:
                    count += await self._remember(key)
        if count:
            _log.info("upstream %s: %d manifests are on record again after the loss of the store", upstream, count)
            loss = {"noticed_at": time.time(), "compared": []}
            await self.store.commit([Change(Table.META, LOSS_KEY, loss)])

    async def _remember(self, key: IntentKey) -> bool:
        digest = parse_digest(key.name)
        async with write_lease(self.store, key.routed, digest):
            record, deleted = await self.store.get_all([(Table.INTENTS, str(key)), (Table.DELETIONS, str(key))])
            intent = intent_of(record)
            if deleted is not None or (intent is not None and intent.digest is None):
                return False
            descriptor = await self._find(key.routed.repository, digest)
            if descriptor is None:
                return False
            await self.store.commit([manifest_record(key.routed, descriptor, expect=0)])
            return True

    async def _find(self, repository: Repository, digest: Digest) -> Descriptor | None:
        for client in self.replica_set.replicas:
            with contextlib.suppress(RegistryError, UpstreamUnavailableError):  # it cannot be asked for this one
                manifest = await unless_absent(client.fetch_manifest(repository, digest))
                if manifest is not None:
                    return manifest.descriptor
        return None

    # ------------------------------------------------------------ comparing

    async def recover(self) -> bool:
        """Compare the replicas, which are up, until they differ in nothing; return False where they go on to.

        Raises:
            StoreUnavailableError: it does not answer, or another process compares.
        """
        upstream = self.replica_set.upstream
        async with self.store.lease(f"comparison of {upstream} after a loss"):
            loss = await self.store.get(Table.META, LOSS_KEY)
            if loss is None or upstream in loss.value["compared"]:
                return True  # another node came first
            await self.journal.roster.note()
            await self.inspection.leave_sentinels(self.replica_set, renew=True)
            if await self._compare(repair=True) is None or not await self._is_repaired():
                return False
            found = await self._compare(repair=False)
            if found is None or found.differing:
                return False
            await self._conclude(loss)
            return True

    async def _compare(self, *, repair: bool) -> Comparison | None:
        comparison = self.verifier.new()
        await self.verifier.compare(comparison, repair=repair)
        if comparison.error:
            _log.warning("upstream %s: after the loss of the store: %s", self.replica_set.upstream, comparison.error)
            return None
        if not repair and comparison.differing:
            _log.warning(
                "upstream %s: the store was lost, and its replicas differ in %d contents that nobody can decide about: "
                "see `registry-proxy replica verify %s`",
                self.replica_set.upstream,
                comparison.differing,
                self.replica_set.upstream,
            )
        return comparison

    async def _is_repaired(self) -> bool:
        """Wait for the repair of what was found to be missing; return False where a replica goes down meanwhile."""
        upstream = self.replica_set.upstream
        while True:
            marks = await self.journal.current.marks()
            names = [client.name for client in self.replica_set.replicas]
            if not any(marks.pending(name, upstream) for name in names):
                return True
            if not are_all_up(self.replica_set):
                return False
            await asyncio.sleep(_LOOK_SECONDS)

    async def _conclude(self, compared: Record) -> None:
        """Note that the replicas were compared after a loss; not where another loss was noticed meanwhile."""
        upstream, loss = self.replica_set.upstream, await self.store.get(Table.META, LOSS_KEY)
        if loss is None or loss.value["noticed_at"] != compared.value["noticed_at"]:
            return
        names = sorted({*loss.value["compared"], upstream})
        value = None if set(self.upstreams) <= set(names) else {**loss.value, "compared": names}
        await self.store.commit([Change(Table.META, LOSS_KEY, value, loss.revision)])
        _log.info("upstream %s: its replicas were compared after the loss of the store", upstream)
