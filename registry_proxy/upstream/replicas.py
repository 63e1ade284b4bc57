"""The replicas of one upstream: their clients, their health, and the probing that keeps it true."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Protocol

from registry_proxy.ports.errors import StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.journal import MarkSource, Pause
from registry_proxy.ports.metrics import (
    HedgedRequest,
    HedgeWinner,
    Observer,
    ReplicaInState,
    ReplicaPaused,
    ReplicaPending,
    WrongContent,
)
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet, ReplicaState, ReplicaStatus, StorageKind
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.replica.client import HttpReplicaClient
from registry_proxy.replica.connections import ReplicaAddress, ReplicaConnections, Timeouts
from registry_proxy.tasks import Wakeup, end_all, repeat, spawn
from registry_proxy.upstream.doubts import LIE_SECONDS, Doubts
from registry_proxy.upstream.health import ReplicaHealth
from registry_proxy.upstream.hedging import Hedging
from registry_proxy.upstream.retries import Retries
from registry_proxy.upstream.separation import Remembered, Separation

PROBE_SECONDS = 10.0
PROBE_SECONDS_WHILE_NOT_UP = 1.0
PROBE_PAUSE_SECONDS = 1.0
"""Least time between two probes, however often requests give reason for one."""

_REPORT_SECONDS = 1.0
_LONG_PAUSE_HOURS = 1.0
_LOOK_AGAIN_SECONDS = 120.0
"""Time after which a replica that keeps repositories apart is asked again: it may be another program by then."""

_JITTER = 0.1

_log = logging.getLogger(__name__)


class Inspect(Protocol):
    """Looks whether a replica that answers is still what it was; returns whether that could be done.

    ``is_returning``: it was not looked at since it came back.
    """

    async def __call__(self, replica_set: ReplicaSet, client: ReplicaClient, *, is_returning: bool) -> bool: ...


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """The parts of an upstream.

    ``write_quorum`` counts over the configured replicas. ``can_differ``: they may come to hold different things by
    our writes. ``is_recorded``: every tag that one of them may miss is on record.
    """

    name: str
    replicas: Sequence[ReplicaAddress]
    storage: StorageKind = StorageKind.INDEPENDENT
    read_only: bool = False
    write_quorum: int = 1
    timeouts: Timeouts = field(default_factory=Timeouts)
    mixes_repositories: bool = False
    can_differ: bool = False
    is_recorded: bool = False


@dataclass(slots=True)
class _WatchedReplica:
    address: ReplicaAddress
    client: HttpReplicaClient
    health: ReplicaHealth
    suspicion: asyncio.Event = field(default_factory=asyncio.Event)
    probed_at: float = float("-inf")
    is_inspected: bool = False
    pending: int = 0
    refused: int = 0
    why_new: str = ""
    pause: Pause | None = None

    @property
    def state(self) -> ReplicaState:
        return ReplicaState.BEHIND if self.health.is_up and self.pending else self.health.state


class UpstreamReplicas:
    """A ``ReplicaSet`` that probes its replicas between ``start`` and ``aclose``.

    Args:
        config: the replicas.
        marks: what each replica misses: makes ``behind`` of ``up``.
        observer: receives states, pending marks and requests.
        remembered: what this node remembers of their answers.
        inspect: looks whether a replica that answers is still what it was, before it counts as up.
    """

    def __init__(
        self,
        config: UpstreamConfig,
        marks: MarkSource,
        observer: Observer,
        remembered: Remembered,
        inspect: Inspect | None = None,
    ) -> None:
        self.upstream = config.name
        self.storage = config.storage
        self.read_only = config.read_only
        self.write_quorum = config.write_quorum
        self._config = config
        self._inspect = inspect
        self._marks = marks
        self._observer = observer
        self.doubts = Doubts(time.monotonic)
        self.retries = Retries(time.monotonic)
        self.hedging = Hedging()
        self.separation = Separation(
            config.name,
            [address.name for address in config.replicas],
            is_known_mixed=config.mixes_repositories,
            may_push=not config.read_only,
            remembered=remembered,
            observer=observer,
            clients=lambda: [each.client for each in self._watched.values() if each.health.is_up],
            is_writable=self.is_writable,
        )
        self._watched: dict[str, _WatchedReplica] = {}
        self._closing = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.lost = 0
        """Number of keys that no replica has any more, at the last ``refresh`` or a second ago."""

        self.changes = 0
        """Number of changes of a replica's state: for ``wait_for_change``."""

        self._changed = Wakeup()

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Probe each replica once, then go on in the background.

        Raises:
            OSError, ssl.SSLError: a ``ca_file`` cannot be used.
        """
        try:
            for address in self._config.replicas:
                connections = ReplicaConnections()
                self._closing.push_async_callback(connections.aclose)
                client = HttpReplicaClient(
                    address,
                    self._config.timeouts,
                    connections,
                    self._observer,
                    may_wrap=not self._config.read_only,
                )
                self._watched[address.name] = _WatchedReplica(
                    address, client, ReplicaHealth(address.name, time.monotonic)
                )
            await asyncio.gather(*(self._probe(watched) for watched in self._watched.values()))
            for watched in self._watched.values():
                if watched.health.state is ReplicaState.DOWN:  # as before the first probe: no change was noted
                    self._log_state(watched)
            with suppress(TimeoutError):  # what is not known by then is asked with the first answer
                async with asyncio.timeout(self._config.timeouts.probe):
                    await self.separation.look()
            await self.refresh()
        except BaseException:
            await self._closing.aclose()
            raise
        name, look = self.upstream, self.separation.look
        self._tasks = [spawn(self._watch(watched), f"probe {name}/{key}") for key, watched in self._watched.items()]
        self._tasks.append(spawn(repeat(self.refresh, _REPORT_SECONDS), f"report {name}"))
        self._tasks.append(spawn(repeat(look, _LOOK_AGAIN_SECONDS), f"separation {name}"))

    async def aclose(self) -> None:
        """Stop probing and close every connection."""
        await end_all(self._tasks)
        self._tasks.clear()
        await self._closing.aclose()

    # ------------------------------------------------------------ ReplicaSet

    @property
    def replicas(self) -> Sequence[HttpReplicaClient]:
        return [watched.client for watched in self._watched.values()]

    def is_writable(self, replica: str) -> bool:
        watched = self._watched[replica]
        return watched.health.is_up and watched.pause is None

    def report_failure(self, replica: str, error: Exception) -> None:
        watched = self._watched[replica]
        was = watched.health.state
        if watched.health.request_failed(error):
            watched.suspicion.set()
        self._note_change(watched, was)

    # ------------------------------------------------------------ for reading

    def report_lie(self, replica: str, key: str) -> None:
        """Hold it against a replica that it sent something else than ``key``, the digest it was asked for."""
        self.doubts.lied(replica, key)
        self._observer.observe(WrongContent(self.upstream, replica))
        _log.error(
            "replica %s/%s sent wrong bytes for %s, and gets no request for it for %.0f s",
            self.upstream,
            replica,
            key,
            LIE_SECONDS,
        )

    def report_slow(self, replica: str) -> None:
        """Ask it last for a while, and look at once whether it is there at all."""
        self.doubts.slow(replica)
        self._watched[replica].suspicion.set()

    def report_hedged(self, winner: HedgeWinner) -> None:
        """Count a question that was put to a second replica as well."""
        self._observer.observe(HedgedRequest(self.upstream, winner))

    def report_success(self, replica: str) -> None:
        """Tell health that a request was answered, with a 404 maybe."""
        self._watched[replica].health.request_succeeded()

    def client(self, replica: str) -> HttpReplicaClient:
        """Return the client of a replica."""
        return self._watched[replica].client

    def health(self) -> Mapping[str, ReplicaHealth]:
        """Return the health of every configured replica, by name."""
        return {name: watched.health for name, watched in self._watched.items()}

    async def wait_for_change(self, timeout_seconds: float, since: int) -> bool:
        """Wait until a replica changes its state; return False when the time is over first.

        Args:
            timeout_seconds: how long to wait at most.
            since: ``changes`` as it was before.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self.changes == since:
                    await self._changed.wait()
        return self.changes != since

    def status(self) -> list[ReplicaStatus]:
        """Return every replica, in configured order; counts are of the last ``refresh``, or a second old."""
        return [
            ReplicaStatus(
                name=name,
                url=watched.address.url,
                state=watched.state,
                reason=watched.health.explain() or watched.why_new,
                latency_seconds=watched.health.latency_seconds,
                pending=watched.pending,
                refused=watched.refused,
                keeps_apart=self.separation.keeps_apart(name),
                pause=watched.pause,
            )
            for name, watched in self._watched.items()
        ]

    def warnings(self) -> Sequence[str]:
        """Return, in words, which replica is paused for so long that it may have been forgotten."""
        pauses = [watched.pause for watched in self._watched.values() if watched.pause is not None]
        hours = {pause: (time.time() - pause.since) / 3600 for pause in pauses}
        return [
            f"replica {pause.replica} of upstream {self.upstream} is paused for {age:.1f} hours, by {pause.by}"
            for pause, age in hours.items()
            if age >= _LONG_PAUSE_HOURS
        ]

    # ------------------------------------------------------------ probing

    async def _watch(self, watched: _WatchedReplica) -> None:
        while True:
            interval = PROBE_SECONDS if watched.health.is_up else PROBE_SECONDS_WHILE_NOT_UP
            with suppress(TimeoutError):
                async with asyncio.timeout(interval * random.uniform(1 - _JITTER, 1 + _JITTER)):  # noqa: S311 - spread
                    await watched.suspicion.wait()
            await asyncio.sleep(watched.probed_at + PROBE_PAUSE_SECONDS - time.monotonic())
            watched.suspicion.clear()
            await self._probe(watched)

    async def _probe(self, watched: _WatchedReplica) -> None:
        was = watched.health.state
        started_at = time.monotonic()
        try:
            await watched.client.probe()
            if watched.health.is_silent:
                await watched.client.probe_storage()
        except (RegistryError, UpstreamUnavailableError) as error:
            watched.health.probe_failed(error)
        else:
            latency_seconds = time.monotonic() - started_at
            await self._inspect_now(watched)
            if not watched.health.is_up:  # it comes back: what it missed meanwhile makes it `behind` at once
                await self._read_marks([watched])
            watched.health.probe_succeeded(latency_seconds)
        watched.probed_at = time.monotonic()
        self._note_change(watched, was)

    async def _inspect_now(self, watched: _WatchedReplica) -> None:
        if self._inspect is not None:
            is_returning = not (watched.is_inspected and watched.health.is_up)
            watched.is_inspected = not is_returning
            with suppress(TimeoutError):  # what is not known by then is looked at with the next probe
                async with asyncio.timeout(self._config.timeouts.probe):
                    is_inspected = await self._inspect(self, watched.client, is_returning=is_returning)
                    watched.is_inspected = watched.is_inspected or is_inspected

    def _log_state(self, watched: _WatchedReplica) -> None:
        health = watched.health
        state = f"{health.state} ({health.reason})" if health.reason else health.state
        level = logging.INFO if health.is_up else logging.WARNING
        _log.log(level, "replica %s/%s: %s", self.upstream, watched.client.name, state)

    def _note_change(self, watched: _WatchedReplica, was: ReplicaState) -> None:
        health = watched.health
        if health.state is was:
            return
        self._log_state(watched)
        self._observer.observe(ReplicaInState(self.upstream, watched.client.name, watched.state))
        self.changes += 1
        self._changed.notify()

    async def refresh(self) -> None:
        """Have ``status`` know what is pending at this moment, and tell the observer."""
        await self._read_marks(list(self._watched.values()))
        for name, watched in self._watched.items():
            self._observer.observe(ReplicaPaused(self.upstream, name, watched.pause is not None))
            self._observer.observe(ReplicaPending(self.upstream, name, watched.pending))
            self._observer.observe(ReplicaInState(self.upstream, name, watched.state))

    async def _read_marks(self, those: Sequence[_WatchedReplica]) -> None:
        """Take what these replicas miss from the marks; without the store it stays as it was."""
        with suppress(StoreUnavailableError):
            marks = await self._marks.marks()
            self.lost = marks.lost(self.upstream)
            pause = marks.pause(self.upstream)
            for watched in those:
                name = watched.client.name
                watched.pending = marks.pending(name, self.upstream)
                watched.why_new = marks.why_new(name, self.upstream)
                watched.refused = marks.refused(name, self.upstream)
                watched.pause = pause if pause is not None and pause.replica == name else None
