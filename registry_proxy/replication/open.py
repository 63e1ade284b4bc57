"""Opening the record of writes, which other nodes write to as well, and the writes of a worker to its replicas."""

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass

from registry_proxy.operations.fallback_tags import FallbackTags
from registry_proxy.operations.manifests import ManifestWriter
from registry_proxy.operations.proofs import HoldingProofs
from registry_proxy.ports.content import BlobCache, Holdings
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Outbox
from registry_proxy.ports.replicas import RegistryReader, ReplicaSet, UpstreamReader
from registry_proxy.ports.rules import ImageRules
from registry_proxy.ports.store import Store, StoreChanges, Table
from registry_proxy.ports.tags import TagRecord
from registry_proxy.ports.uploads import Spool
from registry_proxy.protocol.reference import Digest, Tag, parse_digest
from registry_proxy.replication.absence import AbsenceProof, forget_comparison
from registry_proxy.replication.deletions import DeletionReplication, DeletionsElsewhere
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.manifests import ManifestReplication, count_recorded_tags, recorded_repositories
from registry_proxy.replication.pushed import PushedBlobs
from registry_proxy.replication.seen import SeenMoves
from registry_proxy.replication.sessions import SignedSessions
from registry_proxy.replication.tag_records import read_record
from registry_proxy.replication.uploads import UploadReplication
from registry_proxy.tasks import running


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """The upstreams, and how much of each is on record.

    Args:
        replicas: the names of the replicas of each upstream.
        guarded: the upstreams whose replicas can differ.
        recorded: the upstreams of which every write is on record.
        is_only_node: whether no other node shares the store.
    """

    replicas: Mapping[str, Sequence[str]]
    guarded: Sequence[str]
    recorded: Sequence[str]
    is_only_node: bool


@dataclass(frozen=True, slots=True)
class Records:
    """The record of the writes through all nodes. Its methods raise StoreUnavailableError."""

    options: RecordOptions
    store: Store
    journal: Journal
    proof: AbsenceProof
    changes: StoreChanges

    async def repositories(self) -> Collection[RoutedRepository]:
        """Return the repositories with a manifest or tag on record."""
        return await recorded_repositories(self.store)

    async def manifests(self, routed: RoutedRepository) -> Collection[Digest]:
        """Return the manifests of a repository that are on record."""
        records = await self.store.list(Table.MANIFESTS, f"{routed}|")
        return [parse_digest(record.key.rpartition("|")[2]) for record in records]

    async def tag(self, routed: RoutedRepository, tag: Tag) -> TagRecord:
        """Return the state of a tag that is on record."""
        return await read_record(self.store, IntentKey(routed, IntentKind.TAG, tag))

    async def count_tags(self, routed: RoutedRepository) -> int:
        """Return how many tags of a repository are on record."""
        return await count_recorded_tags(self.store, routed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTools:
    """The collaborators of writes and of repair.

    Args:
        records: see ``open_records``.
        replica_sets: by upstream.
        readers: by upstream.
        impatient_readers: by upstream; they wait for no replica to come back.
        cache: holds the contents that are sent.
        holdings: which repositories hold them.
        pins: keeps what replicas miss.
        observer: receives what was repaired.
        outbox: makes the events of writes.
        rules: judge the writes of clients.
    """

    records: Records
    replica_sets: Mapping[str, ReplicaSet]
    readers: Mapping[str, UpstreamReader]
    impatient_readers: Mapping[str, RegistryReader]
    cache: BlobCache
    holdings: Holdings
    pins: Spool
    observer: Observer
    outbox: Outbox
    rules: ImageRules


class Writes:
    """The writes to replicas, and what decides about them."""

    def __init__(self, tools: ReplicaTools) -> None:
        records, replica_sets, cache = tools.records, tools.replica_sets, tools.cache
        store, journal = records.store, records.journal
        self.seen = SeenMoves(store, replica_sets)
        self.sessions = SignedSessions(store, records.changes.losses)
        self.uploads = UploadReplication(replica_sets=replica_sets, journal=journal, cache=cache, pins=tools.pins)
        manifests = ManifestReplication(
            replica_sets=replica_sets,
            store=store,
            journal=journal,
            cache=cache,
            holdings=tools.holdings,
            uploads=self.uploads,
            outbox=tools.outbox,
        )
        self.proofs = HoldingProofs(
            readers=tools.readers,
            separations={name: each.separation for name, each in replica_sets.items()},
            holdings=tools.holdings,
            cache=cache,
            recorded=records.manifests,
            pushed=PushedBlobs(store),
        )
        self.manifests = ManifestWriter(
            replicas=manifests,
            proofs=self.proofs,
            cache=cache,
            holdings=tools.holdings,
            spool=tools.pins,
            rules=tools.rules,
        )
        self.fallback_tags = FallbackTags(readers=tools.readers, writer=self.manifests)
        self.deletions = DeletionReplication(
            replica_sets=replica_sets,
            readers=tools.readers,
            store=store,
            journal=journal,
            outbox=tools.outbox,
            rules=tools.rules,
        )


@contextlib.asynccontextmanager
async def open_records(
    options: RecordOptions, store: Store, changes: StoreChanges, observer: Observer, holdings: Holdings
) -> AsyncIterator[Records]:
    """Keep the record for the length of a with block.

    Args:
        options: the upstreams.
        store: holds the record.
        changes: knows when another worker or node may have written to it.
        observer: receives how many keys each replica is behind in.
        holdings: forgets what other nodes have deleted.
    """
    async with contextlib.AsyncExitStack() as stack:
        if not options.is_only_node:
            following = DeletionsElsewhere(store, changes, holdings).run()
            await stack.enter_async_context(running(following, "deletions through other nodes"))
        journal = Journal(store, changes, observer, options.replicas, guarded=options.guarded)
        with contextlib.suppress(StoreUnavailableError):  # a worker that takes another one's place while it is away
            await journal.roster.note()
            await journal.current.marks()  # the gauges say from the start which replica is behind
            for name in options.replicas:
                if name not in options.recorded:
                    await forget_comparison(store, name)
        yield Records(options, store, journal, AbsenceProof(store, changes, journal), changes)
