"""Events of replicas: one for all nodes when a replica is down, and one when it is up again and misses nothing.

A record in META says that a replica was reported as down. Each node that finds it down renews the record, and the
replica counts as repaired only when no node has done so for a while: a replica that comes and goes makes one event.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from registry_proxy.events.outbox import StoreOutbox
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.outbox import EventType, RegistryEvent
from registry_proxy.ports.replicas import ReplicaState, ReplicaStatus, UpstreamStatus
from registry_proxy.ports.store import Change, Record, Store, StoreChanges, Table
from registry_proxy.tasks import repeat

DOWN_SECONDS = 10.0
"""Time for which a node finds a replica down before it is reported."""

QUIET_SECONDS = 30.0
"""Time for which no node may have found it down before it is reported as repaired."""

_RENEWED_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_PREFIX = "reported_down/"
_USABLE = frozenset({ReplicaState.UP, ReplicaState.BEHIND})


class ReplicaWatch:
    """Reports the replicas that this node finds down, and those that are repaired.

    Args:
        store: holds what was reported, for all nodes.
        changes: tells when another node has reported something.
        outbox: makes the entries.
        upstreams: the replicas, by upstream.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        changes: StoreChanges,
        outbox: StoreOutbox,
        upstreams: Mapping[str, UpstreamStatus],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._changes = changes
        self._outbox = outbox
        self._upstreams = upstreams
        self._clock = clock
        self._down_since: dict[str, float] = {}
        self._reported: Mapping[str, Record] = {}
        self._version = -1

    async def run(self) -> None:
        """Look every second until cancelled."""
        await repeat(self.look, _LOOK_SECONDS, StoreUnavailableError, at_once=True)

    async def look(self) -> None:
        """Look at all replicas once. Raises StoreUnavailableError."""
        if self._version != (version := self._changes.version(Table.META)):
            self._reported = {record.key: record for record in await self._store.list(Table.META, _PREFIX)}
            self._version = version
        for upstream, replicas in self._upstreams.items():
            for status in replicas.status():
                with suppress(ConflictError):  # another node came first
                    await self._judge(upstream, status)

    async def _judge(self, upstream: str, status: ReplicaStatus) -> None:
        key, now = f"{_PREFIX}{upstream}/{status.name}", self._clock()
        record = self._reported.get(key)
        if status.state not in _USABLE:
            is_sure = now - self._down_since.setdefault(key, now) >= DOWN_SECONDS
            is_reported_lately = record is not None and now - record.value["seen_at"] < _RENEWED_SECONDS
            if is_sure and not is_reported_lately:
                await self._commit(
                    Change(Table.META, key, {"seen_at": now}, expect=0 if record is None else record.revision),
                    [] if record is not None else [_event(EventType.REPLICA_DOWN, upstream, status, now)],
                )
            return
        self._down_since.pop(key, None)
        is_well = status.state is ReplicaState.UP
        if record is not None and is_well and now - record.value["seen_at"] >= QUIET_SECONDS:
            await self._commit(
                Change(Table.META, key, None, expect=record.revision),
                [_event(EventType.REPLICA_REPAIRED, upstream, status, now)],
            )

    async def _commit(self, report: Change, events: Sequence[RegistryEvent]) -> None:
        entries = [await self._outbox.announced(event) for event in events]
        await self._store.commit([report, *(entry for entry in entries if entry is not None)])


def _event(kind: EventType, upstream: str, status: ReplicaStatus, now: float) -> RegistryEvent:
    detail = {"upstream": upstream, "replica": status.name, "state": status.state.value, "reason": status.reason}
    return RegistryEvent(id=str(uuid.uuid4()), type=kind, at=now, detail=detail)
