"""The basis of tests of the upstream side: clients and replica sets on given servers, and scripted marks."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from registry_proxy.ports.journal import Marks, Moment, Pause
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import StorageKind
from registry_proxy.protocol.reference import Digest, Repository, Tag
from registry_proxy.replica.client import HttpReplicaClient
from registry_proxy.replica.connections import ReplicaAddress, ReplicaConnections, Timeouts
from registry_proxy.upstream.failover import FailoverReader, ProvesAbsent
from registry_proxy.upstream.replicas import Inspect, UpstreamConfig, UpstreamReplicas
from tests.support.fakes.memory import MemoryHoldings, RecordingObserver

REPOSITORY = Repository("team/app")
PATIENT = Timeouts(connect=5, first_byte=10, stall=10, probe=10, commit=10)
HASTY = Timeouts(connect=0.5, first_byte=0.5, stall=0.5, probe=1.5, commit=0.5)


@asynccontextmanager
async def open_client(
    url: str,
    *,
    timeouts: Timeouts = PATIENT,
    observer: RecordingObserver | None = None,
    may_wrap: bool = False,
    **address: Any,
) -> AsyncIterator[HttpReplicaClient]:
    """Open a client of the replica ``a`` at a URL; ``address`` are further fields of ReplicaAddress."""
    connections = ReplicaConnections()
    try:
        replica = ReplicaAddress("main", "a", url, **address)
        yield HttpReplicaClient(replica, timeouts, connections, observer or RecordingObserver(), may_wrap=may_wrap)
    finally:
        await connections.aclose()


@dataclass
class ScriptedMarks:
    """``Marks``, and the source of them, as a test sets them: sets of (replica, tag or digest), and of replicas."""

    tags: set[tuple[str, str]] = field(default_factory=set)
    tombstones: set[tuple[str, Digest]] = field(default_factory=set)
    behind: set[str] = field(default_factory=set)
    refusals: set[tuple[str, Tag | Digest]] = field(default_factory=set)
    paused: Pause | None = None
    newcomers: set[str] = field(default_factory=set)
    writes: int = 0
    written: Collection[Repository] | None = None
    """The repositories of all writes since the beginning; None where they are not known."""

    async def marks(self, *, of_all_nodes: bool = False) -> Marks:  # noqa: ARG002 - there is one node
        return self

    def moment(self) -> Moment:
        return Moment(self.writes, ())

    def written_since(self, moment: Moment, upstream: str, *, leave_intents: bool) -> Collection[Repository] | None:  # noqa: ARG002 - there is one
        return self.written if self.writes != moment.number else ()

    def misses_tag(self, replica: str, routed: RoutedRepository, tag: Tag) -> bool:  # noqa: ARG002 - set for one repository
        return (replica, tag) in self.tags

    def misses_any(self, replica: str, routed: RoutedRepository) -> bool:  # noqa: ARG002 - set for one repository
        """Tell whether it misses anything."""
        named = {replica for replica, _ in self.tags} | {replica for replica, _ in self.tombstones}
        return replica in self.behind | named

    def has_tombstone(self, replica: str, routed: RoutedRepository, digest: Digest) -> bool:  # noqa: ARG002 - set for one repository
        return (replica, digest) in self.tombstones

    def why_new(self, replica: str, upstream: str) -> str:  # noqa: ARG002 - set for one upstream
        return "it is new" if replica in self.newcomers else ""

    def refuses(self, replica: str, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> bool:  # noqa: ARG002 - set for one repository
        return (replica, tag_or_digest) in self.refusals

    def refused(self, replica: str, upstream: str) -> int:  # noqa: ARG002 - there is one
        return sum(name == replica for name, _ in self.refusals)

    def lost(self, upstream: str) -> int:  # noqa: ARG002 - nothing is
        return 0

    def pause(self, upstream: str) -> Pause | None:  # noqa: ARG002 - there is one
        return self.paused

    def pending(self, replica: str, upstream: str) -> int:
        return int(self.misses_any(replica, RoutedRepository(upstream, REPOSITORY)))


@asynccontextmanager
async def open_replicas(
    urls: Sequence[str],
    *,
    marks: ScriptedMarks | None = None,
    storage: StorageKind = StorageKind.INDEPENDENT,
    timeouts: Timeouts = PATIENT,
    observer: RecordingObserver | None = None,
    remembered: MemoryHoldings | None = None,
    read_only: bool = True,
    inspect: Inspect | None = None,
    **address: Any,
) -> AsyncIterator[UpstreamReplicas]:
    """Start the replicas ``a``, ``b``, ... of upstream ``main`` at these URLs; read-only, nothing is pushed to them."""
    addresses = [ReplicaAddress("main", "abcdefgh"[i], url, **address) for i, url in enumerate(urls)]
    config = UpstreamConfig("main", addresses, storage=storage, timeouts=timeouts, read_only=read_only)
    replicas = UpstreamReplicas(
        config, marks or ScriptedMarks(), observer or RecordingObserver(), remembered or MemoryHoldings(), inspect
    )
    await replicas.start()
    try:
        yield replicas
    finally:
        await replicas.aclose()


@asynccontextmanager
async def open_reader(
    urls: Sequence[str],
    *,
    marks: ScriptedMarks | None = None,
    patience_seconds: float = 0,
    proves_absent: ProvesAbsent | None = None,
    **options: Any,
) -> AsyncIterator[FailoverReader]:
    """Open a reader over replicas started as by ``open_replicas``."""
    marks = marks or ScriptedMarks()
    async with open_replicas(urls, marks=marks, **options) as replicas:
        yield FailoverReader(replicas, marks, patience_seconds, proves_absent)


async def read_all(stream: Any) -> bytes:
    """Return the bytes of a stream."""
    return b"".join([chunk async for chunk in stream])
