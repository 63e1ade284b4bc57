"""Run one write at several replicas: who is asked, when it is enough, what became of it."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from registry_proxy.ports.errors import UpstreamLimitError, UpstreamUnavailableError
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet, StorageKind
from registry_proxy.protocol.errors import ErrorCode, RegistryError, unavailable
from registry_proxy.replication.refusals import FinalRefusalError
from registry_proxy.tasks import end_all, spawn

GRACE_SECONDS = 10.0
"""How long a slow replica may hold up an answer that the quorum has already decided."""

_log = logging.getLogger(__name__)

Lane = Sequence[ReplicaClient]
"""Replicas of which one has to take the write: the first, or the next when it cannot be reached."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a write: the names of the replicas that confirmed it, and why each of the others did not."""

    confirmed: frozenset[str]
    failures: Mapping[str, Exception]

    @property
    def is_refused(self) -> bool:
        """Tell whether every replica that was asked answered, and none took it: the write is wrong, not the replica."""
        refusals = [e for e in self.failures.values() if isinstance(e, RegistryError) and e.status < 500]
        return not self.confirmed and bool(refusals) and len(refusals) == len(self.failures)

    @property
    def refused(self) -> Mapping[str, str]:
        """The replicas that will never take it, and why."""
        return {name: e.reason for name, e in self.failures.items() if isinstance(e, FinalRefusalError)}

    def first_refusal(self) -> RegistryError | None:
        """Return an answer of the protocol among the failures, one that is final where there is one."""
        answers = [error for error in self.failures.values() if isinstance(error, RegistryError)]
        final = [error.refusal for error in answers if isinstance(error, FinalRefusalError)]
        return next(iter([*final, *answers]), None)

    def first_limit(self) -> UpstreamLimitError | None:
        """Return the first 429 among the failures."""
        return next((error for error in self.failures.values() if isinstance(error, UpstreamLimitError)), None)


def quorum_of(replica_set: ReplicaSet) -> int:
    """Return how many confirmations a write needs; one is all there is over shared storage."""
    return 1 if replica_set.storage is StorageKind.SHARED else replica_set.write_quorum


def check_writable(replica_set: ReplicaSet) -> None:
    """Refuse a write that is known to fail, before anything is done for it.

    Raises:
        RegistryError: DENIED (403) when the upstream is read-only, UNAVAILABLE (503) when too few replicas are up.
    """
    if replica_set.read_only:
        raise RegistryError(
            ErrorCode.DENIED,
            "this upstream is read-only: nothing can be pushed to it or deleted from it",
            detail={"upstream": replica_set.upstream},
            status=403,
        )
    writable = sum(replica_set.is_writable(client.name) for client in replica_set.replicas)
    if writable < quorum_of(replica_set):
        raise too_few(replica_set, writable)


def are_all_up(replica_set: ReplicaSet) -> bool:
    """Tell whether every replica can be written to now."""
    return all(replica_set.is_writable(client.name) for client in replica_set.replicas)


def too_few(replica_set: ReplicaSet, count: int) -> RegistryError:
    """Return the 503 of a write that fewer replicas than the quorum can hold."""
    return unavailable(
        "too few replicas of the upstream can be written to now; try again",
        detail={"upstream": replica_set.upstream, "write_quorum": quorum_of(replica_set), "writable": count},
    )


def _weight(replica: str, key: str) -> bytes:
    return hashlib.blake2b(f"{replica}|{key}".encode(), digest_size=8).digest()


def lanes_of(
    replica_set: ReplicaSet, key: str, first: Collection[str] = (), *, paused: str | None = None
) -> list[Lane]:
    """Return the replicas to write to: every writable one, or over shared storage one of them.

    Args:
        replica_set: the upstream's replicas.
        key: spreads the writes of an upstream over the replicas that share a store.
        first: replicas that come before others, because they already hold a part of the write.
        paused: a replica that is left out, also where ``replica_set`` does not know of its pause yet.
    """
    clients = [client for client in replica_set.replicas if client.name != paused]
    writable = [client for client in clients if replica_set.is_writable(client.name)]
    if replica_set.storage is StorageKind.INDEPENDENT:
        return [(client,) for client in writable]
    ordered = sorted(writable, key=lambda client: (client.name not in first, _weight(client.name, key)))
    return [ordered] if ordered else []


async def settle(tasks: Collection["asyncio.Task[bool]"], quorum: int, grace_seconds: float) -> None:
    """Return when all tasks ended, or ``grace_seconds`` after ``quorum`` of them returned True.

    Tasks that still run are cancelled and have ended on return, also when this is cancelled itself.
    """
    pending, confirmed = set(tasks), 0
    try:
        while pending and confirmed < quorum:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            confirmed += sum(task.result() for task in done)
        if pending:
            await asyncio.wait(pending, timeout=grace_seconds)
    finally:
        await end_all(tasks)


async def fan_out(
    replica_set: ReplicaSet,
    lanes: Sequence[Lane],
    operation: Callable[[ReplicaClient], Awaitable[None]],
    grace_seconds: float = GRACE_SECONDS,
) -> Outcome:
    """Run ``operation`` in all lanes at once; slow ones have ``grace_seconds`` past the quorum.

    A replica that could not be reached is reported to health; one that answered with an error of the protocol is not.
    Whether the quorum was reached is for the caller to judge.
    """
    confirmed: set[str] = set()
    failures: dict[str, Exception] = {}

    def fail(replica: str, error: Exception) -> None:
        failures[replica] = error
        replica_set.report_failure(replica, error)

    async def run(lane: Lane) -> bool:
        for client in lane:
            try:
                await operation(client)
            except UpstreamUnavailableError as error:
                fail(client.name, error)
            except RegistryError as error:
                failures[client.name] = error
                return False
            except asyncio.CancelledError:
                fail(client.name, UpstreamUnavailableError("did not confirm in time, while others did"))
                raise
            else:
                confirmed.add(client.name)
                return True
        return False

    tasks = [spawn(run(lane), f"write to {lane[0].name}") for lane in lanes]
    await settle(tasks, quorum_of(replica_set), grace_seconds)
    for replica, error in failures.items():
        if isinstance(error, FinalRefusalError):
            continue  # reported where it is recorded
        _log.warning("replica %s of %s did not take a write: %s", replica, replica_set.upstream, error)
    return Outcome(frozenset(confirmed), failures)


def require_quorum(replica_set: ReplicaSet, outcome: Outcome) -> Sequence[str]:
    """Return the configured replicas that miss an acknowledged write, and can have it; none over shared storage.

    Raises:
        RegistryError: without a quorum; what the replicas answered when all refused it, or so many for good that it
            can never be reached, else UNAVAILABLE (503).
        UpstreamLimitError: a replica asked us to wait, without a quorum.
    """
    quorum, refused = quorum_of(replica_set), outcome.refused
    if len(outcome.confirmed) < quorum:
        is_hopeless = len(replica_set.replicas) - len(refused) < quorum
        refusal = outcome.first_refusal() if outcome.is_refused or is_hopeless else None
        raise refusal or outcome.first_limit() or too_few(replica_set, len(outcome.confirmed))
    if replica_set.storage is StorageKind.SHARED:
        return []
    return [c.name for c in replica_set.replicas if c.name not in outcome.confirmed | refused.keys()]
