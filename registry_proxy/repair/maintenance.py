"""Maintenance: a replica is taken out of writes and repair, as for its own garbage collection (docs/decisions/45).

A pause is a record in the store. A write stores its intents first and looks for the pause then; a pause is
stored first, and open intents are looked for then. So of a write and a pause that meet, one always sees the other.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from registry_proxy.ports.errors import ConflictError
from registry_proxy.ports.journal import Pause, PauseRefusedError
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet, StorageKind
from registry_proxy.ports.store import Store, Table
from registry_proxy.protocol.reference import Digest, parse_digest
from registry_proxy.repair.canary import is_remembered, leave_canary, remove_canary
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.pauses import change_of_pause, find_pause, parse_pause, pause_key, repair_lease

KNOWN_SECONDS = 2.0
"""After this time every process that can reach the store knows of a pause, and sends the replica no blobs either."""

_LEASE_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Maintenance:
    """Pauses and resumes the replicas of one upstream.

    Args:
        replica_set: the replicas.
        store: holds the pause, for all nodes.
        journal: knows what is being written, and what each replica misses.
        clock: seconds since the epoch.
    """

    def __init__(
        self, *, replica_set: ReplicaSet, store: Store, journal: Journal, clock: Callable[[], float] = time.time
    ) -> None:
        self._replica_set = replica_set
        self._store = store
        self._journal = journal
        self._clock = clock

    async def find(self) -> Pause | None:
        """Return the pause of one of the replicas that are configured. Raises StoreUnavailableError."""
        pause = await find_pause(self._store, self._replica_set.upstream)
        return pause if pause is not None and self._is_configured(pause.replica) else None

    async def pause(self, replica: str, reason: str, by: str) -> None:
        """Take a replica out of writes and repair, on all nodes, until ``resume``.

        Args:
            replica: its name.
            reason: shown to people.
            by: the typed subject that asked for it.

        Raises:
            PauseRefusedError: the others could not do without it, or it without them.
            StoreUnavailableError: it may be paused, or not.
        """
        upstream = self._replica_set.upstream
        record = await self._store.get(Table.META, pause_key(upstream))
        current = parse_pause(record)
        if current is not None and self._is_configured(current.replica):
            raise PauseRefusedError(
                f"replica {current.replica} of {upstream} is paused already, by {current.by}: resume it first"
            )
        self._check_kind()
        await self._check_current(replica)
        canary = await leave_canary(self._client(replica))
        value = {
            "replica": replica,
            "reason": reason,
            "by": by,
            "since": self._clock(),
            "canary": None if canary is None else str(canary),
        }
        try:
            await self._store.commit([change_of_pause(upstream, value, record)])
        except ConflictError as error:
            raise PauseRefusedError(f"another replica of {upstream} was paused at this moment") from error
        _log.warning("replica %s/%s is paused by %s: %s", upstream, replica, by, reason or "no reason given")

    async def resume(self, replica: str, by: str, *, force: bool = False) -> None:
        """End the pause of a replica: repair brings it what it missed, and it is written to again.

        Args:
            replica: its name.
            by: the typed subject that asked for it.
            force: also where the registry answers for a blob that it does not have any more.

        Raises:
            PauseRefusedError: it is not paused, or may not be written to without ``force``.
            StoreUnavailableError: it may still be paused.
        """
        upstream = self._replica_set.upstream
        record = await self._store.get(Table.META, pause_key(upstream))
        pause = parse_pause(record)
        if pause is None or pause.replica != replica:
            raise PauseRefusedError(f"replica {replica} of {upstream} is not paused")
        if record is not None and record.value.get("canary") is not None and not force:
            await self._check_memory(replica, parse_digest(record.value["canary"]))
        try:
            await self._store.commit([change_of_pause(upstream, None, record)])
        except ConflictError as error:
            raise PauseRefusedError(f"somebody else resumed replica {replica} of {upstream} just now") from error
        _log.warning("replica %s/%s is resumed by %s", upstream, replica, by)

    async def _check_memory(self, replica: str, canary: Digest) -> None:
        """Refuse to write to a registry that takes what was collected for there."""
        client = self._client(replica)
        if await is_remembered(client, canary):
            raise PauseRefusedError(
                f"replica {replica} of {self._replica_set.upstream} answers for a blob that its garbage collection "
                "removed: restart the registry, which remembers blobs, and resume it then"
            )
        await remove_canary(client, canary)

    def _client(self, replica: str) -> ReplicaClient:
        return next(client for client in self._replica_set.replicas if client.name == replica)

    async def is_quiet(self, pause: Pause) -> bool:
        """Tell whether all writes to a paused replica have ended that began before its pause was known.

        Raises:
            StoreUnavailableError: it cannot be known.
        """
        if self._clock() < pause.since + KNOWN_SECONDS:
            return False
        return not await self._journal.is_writing(pause, self._replica_set.upstream) and await self._is_unrepaired(
            pause
        )

    async def _is_unrepaired(self, pause: Pause) -> bool:
        """Tell that no repair goes on: one that takes the lease after us looks for the pause first."""
        try:
            async with (
                asyncio.timeout(_LEASE_SECONDS),
                repair_lease(self._store, self._replica_set.upstream, pause.replica),
            ):
                return True
        except TimeoutError:
            return False

    # ------------------------------------------------------------ when it may not be

    def _is_configured(self, replica: str) -> bool:
        return any(client.name == replica for client in self._replica_set.replicas)

    def _check_kind(self) -> None:
        upstream = self._replica_set.upstream
        if self._replica_set.read_only:
            raise PauseRefusedError(f"upstream {upstream} is read-only: nothing is written to its replicas anyway")
        if self._replica_set.storage is StorageKind.SHARED:
            raise PauseRefusedError(
                f"the replicas of {upstream} share one storage, and the others would go on writing to it: make all "
                "registries read-only while it is collected"
            )

    async def _check_current(self, replica: str) -> None:
        """Refuse to pause a replica that is not current, or whose absence leaves too few, or none that is current."""
        upstream, marks = self._replica_set.upstream, await self._journal.current.marks(of_all_nodes=True)
        if not self._replica_set.is_writable(replica):
            raise PauseRefusedError(f"replica {replica} of {upstream} is not up")
        if pending := marks.pending(replica, upstream):
            raise PauseRefusedError(
                f"replica {replica} of {upstream} is behind in {pending} keys: wait until it is repaired"
            )
        names = [client.name for client in self._replica_set.replicas if client.name != replica]
        others = [name for name in names if self._replica_set.is_writable(name)]
        if len(others) < self._replica_set.write_quorum:
            raise PauseRefusedError(
                f"without replica {replica} of {upstream} too few replicas are up for a push: {len(others)} of "
                f"write_quorum {self._replica_set.write_quorum}"
            )
        if all(marks.pending(other, upstream) for other in others):
            raise PauseRefusedError(
                f"no other replica of {upstream} is current: {replica} may be the only one that holds something. Wait "
                "until another one is repaired"
            )
