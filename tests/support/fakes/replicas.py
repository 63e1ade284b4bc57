"""Replicas, a spool and the parts below pushes, in memory but for the store: for tests of faults."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from registry_proxy.events.outbox import StoreOutbox
from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.operations.contents import has, links_of
from registry_proxy.operations.fallback_tags import FallbackTags
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.manifests import ManifestWriter
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.push import Push, UploadAnswer
from registry_proxy.operations.referrers import Referrers
from registry_proxy.operations.tags import TagRules
from registry_proxy.ports.content import BlobCache, ByteStream, Holdings
from registry_proxy.ports.errors import AbsenceUnknownError, CacheUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.history import Cause
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.replicas import HeldReferrers, ReplicaClient, ReplicaSet, StorageKind
from registry_proxy.ports.store import Table
from registry_proxy.ports.uploads import Spool, UploadBody, Uploader, UploadRef
from registry_proxy.protocol.descriptor import Descriptor, Manifest, parse_manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of, fallback_tags
from registry_proxy.protocol.referrers import Referrer, describe_referrer
from registry_proxy.repair.verify import Verifier
from registry_proxy.replication.deletions import DeletionReplication
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.manifests import ManifestReplication
from registry_proxy.replication.sessions import SignedSessions
from registry_proxy.replication.uploads import UploadReplication
from registry_proxy.rules.open import open_rules
from registry_proxy.rules.reading import PushedImages
from registry_proxy.store.changes import StoreWatch
from registry_proxy.store.open import open_store
from registry_proxy.store.redis import RedisStore
from registry_proxy.store.sqlite import SqliteStore
from registry_proxy.upstream.referrers import ask_referrers, merge_replicas
from tests.support.fakes.memory import (
    MemoryCache,
    MemoryHoldings,
    MemoryReader,
    RecordingObserver,
    ScriptedSeparation,
    holdings_of,
)

REPOSITORY = Repository("team/app")
ROUTED = RoutedRepository("main", REPOSITORY)
ANN = Uploader("user:ann", 0)


def ref(at: UploadAnswer) -> UploadRef:
    """Return an upload of ANN, as its next request names it."""
    return UploadRef(ROUTED, ANN, at.session_id, at.state)


_T = TypeVar("_T")


@dataclass
class MemoryReplica(MemoryReader):
    """One replica: refuses manifests with missing blobs, ``refuses_with`` the code of docker-registry or another.

    ``has_referrers`` gives it the referrers API. With ``is_sparse`` it accepts an index with missing children.
    ``errors`` are raised by the methods they are named after, ``gates`` hold them until set, ``cut_after`` makes every
    upload die after that many bytes.
    """

    name: str = "a"
    uploads: dict[str, bytes] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    cut_after: int | None = None
    refuses_with: ErrorCode = ErrorCode.MANIFEST_BLOB_UNKNOWN
    is_sparse: bool = False
    has_referrers: bool = False
    received: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def _begin(self, method: str, repository: str, what: object = "") -> None:
        await self._answer(method, repository, what)
        if method in self.gates:
            await self.gates[method].wait()
        if method in self.errors:
            raise self.errors[method]

    async def fetch_referrers(self, repository: Repository, digest: Digest) -> list[Referrer] | None:
        await self._begin("fetch_referrers", repository, digest)
        if not self.has_referrers:
            return None
        held = [manifest for (name, _), manifest in self.manifests.items() if name == repository]
        subjects = [(manifest, links_of(manifest).manifest_subject) for manifest in held]
        return [describe_referrer(manifest) for manifest, of in subjects if of is not None and of.digest == digest]

    async def start_upload(self, repository: Repository) -> str:
        await self._begin("start_upload", repository)
        location = f"/v2/{repository}/blobs/uploads/{len(self.uploads)}-{len(self.requests)}"
        self.uploads[location] = b""
        return location

    async def append_upload(self, location: str, body: AsyncIterator[bytes], size_bytes: int | None) -> str:
        await self._begin("append_upload", location, size_bytes)
        content = self._take(location)
        async for piece in body:
            content += piece
            async with self.received:
                self.uploads[location] = content
                self.received.notify_all()
            if self.is_down or (self.cut_after is not None and len(content) > self.cut_after):
                raise UpstreamUnavailableError("the connection broke")
        following = f"{location}+"
        self.uploads[following] = self._take(location, content)
        return following

    def _take(self, location: str, content: bytes | None = None) -> bytes:
        if location not in self.uploads:
            raise RegistryError(ErrorCode.BLOB_UPLOAD_UNKNOWN, "no such upload")
        found = self.uploads.pop(location)
        return found if content is None else content

    async def wait_received(self, size_bytes: int) -> None:
        """Return once some upload holds that many bytes."""
        async with asyncio.timeout(30), self.received:
            await self.received.wait_for(lambda: any(len(body) >= size_bytes for body in self.uploads.values()))

    async def holds_upload(self, location: str, size_bytes: int) -> bool:
        await self._begin("holds_upload", location, size_bytes)
        return len(self.uploads.get(location, b"")) == size_bytes

    async def commit_upload(self, location: str, digest: Digest) -> None:
        await self._begin("commit_upload", location, digest)
        content = self._take(location)
        if not digest.matches(content):
            raise RegistryError(ErrorCode.DIGEST_INVALID, "not that digest")
        self.blobs[_repository_of(location), digest] = content

    async def cancel_upload(self, location: str) -> None:
        await self._begin("cancel_upload", location)
        self._take(location)

    async def push_blob(
        self, repository: Repository, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]
    ) -> None:
        await self._begin("push_blob", repository, descriptor.digest)
        content = b"".join([piece async for piece in body()])
        if not descriptor.digest.matches(content):
            raise RegistryError(ErrorCode.DIGEST_INVALID, "not that digest")
        self.blobs[repository, descriptor.digest] = content

    async def mount_blob(self, repository: Repository, digest: Digest, from_repository: Repository) -> bool:
        await self._begin("mount_blob", repository, digest)
        content = self.blobs.get((from_repository, digest))
        if content is None:
            return False
        self.blobs[repository, digest] = content
        return True

    async def put_manifest(self, repository: Repository, tag_or_digest: Tag | Digest, manifest: Manifest) -> None:
        await self._begin("put_manifest", repository, tag_or_digest)
        links = parse_manifest(manifest.body, manifest.descriptor.media_type)
        missing = [blob.digest for blob in links.blobs if (repository, blob.digest) not in self.blobs]
        if not self.is_sparse:
            missing += [child.digest for child in links.manifests if (repository, child.digest) not in self.manifests]
        if missing:
            detail = {"digest": str(missing[0])}
            raise RegistryError(self.refuses_with, "blob unknown to registry", detail=detail)
        self.manifests[repository, manifest.descriptor.digest] = manifest
        if isinstance(tag_or_digest, str):
            self.tags[repository, tag_or_digest] = manifest.descriptor.digest

    async def delete_manifest(self, repository: Repository, digest: Digest) -> None:
        await self._begin("delete_manifest", repository, digest)
        self.manifests.pop((repository, digest), None)
        for key in [key for key, value in self.tags.items() if value == digest and key[0] == repository]:
            del self.tags[key]

    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        await self._begin("delete_tag", repository, tag)
        self.tags.pop((repository, tag), None)

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        await self._begin("delete_blob", repository, digest)
        self.blobs.pop((repository, digest), None)


def _repository_of(location: str) -> str:
    return location.removeprefix("/v2/").partition("/blobs/")[0]


@dataclass
class MemoryReplicaSet:
    """The replicas of one upstream; a reported failure opens the circuit, as health does."""

    replicas: Sequence[ReplicaClient]
    write_quorum: int = 1
    storage: StorageKind = StorageKind.INDEPENDENT
    read_only: bool = False
    upstream: str = "main"
    separation: ScriptedSeparation = field(default_factory=ScriptedSeparation)
    down: set[str] = field(default_factory=set)

    def is_writable(self, replica: str) -> bool:
        return replica not in self.down

    def report_failure(self, replica: str, error: Exception) -> None:
        assert isinstance(error, UpstreamUnavailableError)
        self.down.add(replica)


class MemorySpoolReader:
    """A sender of a ``MemorySpoolFile``, which keeps everything."""

    def __init__(self, file: "MemorySpoolFile") -> None:
        self._file = file

    async def read(self, offset: int) -> bytes:
        file = self._file
        return os.pread(file.fd, file.size_bytes - offset, offset) if await file.wait_beyond(offset) else b""

    def close(self) -> None:
        """Keep nothing for it."""


class MemorySpoolFile:
    """An upload of ``MemorySpool``; once that is full, or without its beginning, it leaves nothing behind."""

    def __init__(self, spool: "MemorySpool", session_id: str, path: str, start_offset: int = 0) -> None:
        self._spool, self._session_id, self._path = spool, session_id, path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.size_bytes = os.fstat(self.fd).st_size + start_offset
        self.start_offset = start_offset
        self.has_left_disk = bool(start_offset) or (spool.is_full and not self.size_bytes)
        self._is_over = False
        self._moved = asyncio.Event()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def write(self, chunk: bytes) -> None:
        self.has_left_disk |= self._spool.is_full
        os.pwrite(self.fd, chunk, self.size_bytes)
        self.size_bytes += len(chunk)
        self._wake()

    @property
    def is_whole(self) -> bool:
        """Whether it is on the disk."""
        return not (self.size_bytes and self.has_left_disk)

    def open_reader(self, offset: int) -> MemorySpoolReader:  # noqa: ARG002 - it keeps everything
        return MemorySpoolReader(self)

    async def wait_beyond(self, offset: int) -> bool:
        while self.size_bytes <= offset and not self._is_over:
            await self._moved.wait()
        return self.size_bytes > offset

    def finish_request(self) -> None:
        self._is_over = True
        self._wake()

    async def digest(self, algorithm: str) -> Digest | None:
        if self.start_offset:
            return None
        hasher = Digest(algorithm, "").hasher()
        hasher.update(os.pread(self.fd, self.size_bytes, 0))
        return Digest(algorithm, hasher.hexdigest())

    async def commit(self, digest: Digest) -> None:
        if self._spool.is_full:
            raise CacheUnavailableError("no space left on device")
        content = os.pread(self.fd, self.size_bytes, 0)
        Path(self._path).unlink()
        self._spool.notes.pop(self._session_id, None)
        await self._spool.cache.store(digest, content)

    def close(self, note: bytes | None = None) -> None:
        if note is not None:
            self._spool.notes[self._session_id] = note
        if self.has_left_disk:
            Path(self._path).unlink(missing_ok=True)
        if self._spool.open.pop(self._session_id, None) is not None:
            os.close(self.fd)

    def discard(self) -> None:
        self._spool.notes.pop(self._session_id, None)
        self.close()
        Path(self._path).unlink(missing_ok=True)


class MemorySpool:
    """A ``Spool`` in a directory; ``is_full`` keeps nothing more; ``open`` must be empty at the end of a test."""

    def __init__(self, directory: str, cache: MemoryCache, node_id: str = "node") -> None:
        self._directory, self.cache, self.node_id = directory, cache, node_id
        self.open: dict[str, MemorySpoolFile] = {}
        self.pins: set[Digest] = set()
        self.ended: dict[str, Digest | None] = {}
        self.is_full = False
        self.notes: dict[str, bytes] = {}
        self.gone: list[bytes] = []

    def _path(self, session_id: str) -> str:
        return os.path.join(self._directory, session_id)

    @property
    def sessions(self) -> list[str]:
        """The uploads that have a file."""
        return os.listdir(self._directory)

    def create(self, session_id: str, uploader: Uploader) -> MemorySpoolFile:  # noqa: ARG002 - nothing is counted
        return self._open(session_id)

    def create_tail(self, session_id: str, uploader: Uploader, offset: int) -> MemorySpoolFile:  # noqa: ARG002 - as above
        self.open["tail"] = MemorySpoolFile(self, "tail", self._path("tail"), offset)
        return self.open["tail"]

    def _open(self, session_id: str) -> MemorySpoolFile:
        self.open[session_id] = MemorySpoolFile(self, session_id, self._path(session_id))
        return self.open[session_id]

    def sweep(self) -> int:
        self.gone += self.notes.values()
        self.notes.clear()
        return len(self.gone)

    def take_gone(self) -> list[bytes]:
        gone, self.gone = self.gone, []
        return gone

    def reopen(self, session_id: str, uploader: Uploader) -> MemorySpoolFile | None:  # noqa: ARG002 - as above
        if session_id in self.open:
            raise RegistryError(ErrorCode.BLOB_UPLOAD_INVALID, "another request writes to it")
        return self._open(session_id) if os.path.exists(self._path(session_id)) else None

    def mark_ended(self, session_id: str, committed: Digest | None = None) -> bool:
        if self.has_ended(session_id, committed):
            return False
        self.ended[session_id] = committed
        return True

    def has_ended(self, session_id: str, committed: Digest | None = None) -> bool:
        return session_id in self.ended and (committed is None or self.ended[session_id] != committed)

    def pin(self, digest: Digest) -> None:
        self.pins.add(digest)

    def unpin(self, digest: Digest) -> None:
        self.pins.discard(digest)

    def pinned(self, min_age_seconds: float) -> list[Digest]:  # noqa: ARG002 - all of them are old
        return sorted(self.pins, key=str)

    def holds(self, digest: Digest) -> bool:
        return digest in self.cache.files


@dataclass
class Pushing:
    """Push and Manage over one upstream ``main``, with everything below them accessible to a test."""

    push: Push
    manage: Manage
    journal: Journal
    store: SqliteStore | RedisStore
    changes: StoreWatch
    uploads: UploadReplication
    referrers: Referrers
    tags: FallbackTags

    async def upload(self, content: bytes, *, routed: RoutedRepository = ROUTED) -> Descriptor:
        """Push a blob as docker does: POST, one PATCH, PUT."""
        start = await self.push.start_upload(routed, ANN)
        sent = await self.push.append_upload(
            UploadRef(routed, ANN, start.session_id, start.state), UploadBody(body_of(content))
        )
        return await self.push.commit_upload(
            UploadRef(routed, ANN, sent.session_id, sent.state), digest_of(content), UploadBody(body_of(), 0)
        )

    async def put(
        self,
        tag: str | Digest,
        manifest: bytes,
        media_type: str,
        *,
        may_move: bool = True,
        actor: Actor | None = None,
    ) -> Descriptor:
        """PUT a manifest into ``ROUTED``."""
        slot = tag if isinstance(tag, Digest) else Tag(tag)
        cause = None if actor is None else Cause(actor)
        put = self.push.put_manifest(ROUTED, slot, media_type, manifest, may_move_tags=may_move, cause=cause)
        return (await put).descriptor

    async def intents(self) -> dict[str, list[str]]:
        """Return the open intents: the replicas that miss each key."""
        return {record.key: record.value["missing"] for record in await self.store.list(Table.INTENTS)}


@asynccontextmanager
async def pushing(
    directory: Path, replicas: ReplicaSet, spool: Spool, cache: BlobCache, holdings: Holdings
) -> AsyncIterator[Pushing]:
    """Assemble the package under test over a new store, as the application does."""
    async with AsyncExitStack() as stack:
        store, changes = await stack.enter_async_context(
            open_store(f"sqlite:///{directory / 'store.db'}", str(directory / "page"))
        )
        sets = {replicas.upstream: replicas}
        names = {replicas.upstream: [client.name for client in replicas.replicas]}
        journal = Journal(store, changes, RecordingObserver(), names, guarded=[replicas.upstream])
        outbox = StoreOutbox(CurrentSubscriptions(store, changes), lambda routed: routed.repository)
        uploads = UploadReplication(replica_sets=sets, journal=journal, cache=cache, pins=spool)
        manifests = ManifestReplication(
            replica_sets=sets,
            store=store,
            journal=journal,
            cache=cache,
            holdings=holdings,
            uploads=uploads,
            outbox=outbox,
        )
        reader = replicas.replicas[0]
        proofs = holdings_of(reader, holdings, cache, replicas.separation)
        readers = {replicas.upstream: _Replicas(replicas, journal)}
        images = PushedImages(cache, holdings, readers)
        rules = open_rules(store, changes, images, outbox, lambda routed: routed.repository, RecordingObserver())
        writer = ManifestWriter(
            replicas=manifests, proofs=proofs, cache=cache, holdings=holdings, spool=spool, rules=rules
        )
        pull = Pull(
            readers=readers,
            impatient_readers=readers,
            cache=cache,
            holdings=holdings,
            proofs=proofs,
            observer=RecordingObserver(),
            tag_rules={replicas.upstream: TagRules(0, frozenset())},
        )
        tags = FallbackTags(readers=readers, writer=writer)
        referrers = Referrers(pull=pull, tags=tags)
        push = Push(
            spool=spool,
            cache=cache,
            holdings=holdings,
            proofs=proofs,
            sessions=SignedSessions(store, changes.losses),
            blobs=uploads,
            writer=writer,
            referrers=referrers,
        )
        deletions = DeletionReplication(
            replica_sets=sets, readers=readers, store=store, journal=journal, outbox=outbox, rules=rules
        )
        yield Pushing(
            push,
            Manage(holdings=holdings, proofs=proofs, deletions=deletions, referrers=referrers),
            journal,
            store,
            changes,
            uploads,
            referrers,
            tags,
        )


class _Replicas(MemoryReader):
    """An ``UpstreamReader`` over all replicas: it serves what any of them has, and a 404 only when none is away."""

    def __init__(self, replicas: ReplicaSet, journal: Journal) -> None:
        super().__init__()
        self._replica_set, self._journal = replicas, journal

    async def resolve_tag(self, repository: Repository, tag: Tag) -> Descriptor:
        marks, routed = await self._journal.current.marks(), RoutedRepository(self._replica_set.upstream, repository)
        current = [one for one in self._replica_set.replicas if not marks.misses_tag(one.name, routed, tag)]
        return await self._first(current, lambda client: client.resolve_tag(repository, tag))

    async def list_tags(self, repository: Repository) -> list[Tag]:
        up = [one for one in self._replica_set.replicas if self._replica_set.is_writable(one.name)]
        return sorted({tag for one in up for tag in await one.list_tags(repository)})

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        return await self._first(self._replica_set.replicas, lambda client: client.fetch_manifest(repository, digest))

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        return await self._first(self._replica_set.replicas, lambda client: client.stat_blob(repository, digest))

    @asynccontextmanager
    async def _open_blob(self, repository: Repository, digest: Digest, offset: int) -> AsyncIterator[ByteStream]:
        holders = [one for one in self._replica_set.replicas if await has(one.stat_blob(repository, digest))]
        async with holders[0].open_blob(repository, digest, offset) as stream:
            yield stream

    async def list_referrers(self, repository: Repository, digest: Digest) -> HeldReferrers:
        """Ask all, or raise as for a tag where one is down."""
        tag, answers = fallback_tags(digest)[0], {}
        marks, routed = await self._journal.current.marks(), RoutedRepository(self._replica_set.upstream, repository)
        for client in self._replica_set.replicas:
            assert isinstance(client, MemoryReplica)
            if not self._replica_set.is_writable(client.name):
                raise AbsenceUnknownError(f"{client.name} is down")
            if not marks.misses_tag(client.name, routed, tag):
                answers[client.name] = await ask_referrers(client, repository, digest, tag)
        needs_tag = any(answer.listed is None for answer in answers.values())
        return merge_replicas(answers, lambda name, one: marks.has_tombstone(name, routed, one), needs_tag=needs_tag)

    async def _first(self, clients: Sequence[ReplicaClient], question: Callable[[ReplicaClient], Awaitable[_T]]) -> _T:
        unknown: RegistryError | None = None
        for client in clients:
            if not self._replica_set.is_writable(client.name):
                raise AbsenceUnknownError(f"{client.name} is down")
            try:
                return await question(client)
            except RegistryError as error:
                unknown = error
        assert unknown is not None
        raise unknown


async def body_of(*pieces: bytes) -> AsyncIterator[bytes]:
    """Give the pieces as the body of a request."""
    for piece in pieces:
        yield piece


@dataclass
class Bench:
    """A ``Pushing`` over two replicas, ``a`` and ``b``, in memory."""

    a: MemoryReplica
    b: MemoryReplica
    replicas: MemoryReplicaSet
    cache: MemoryCache
    holdings: MemoryHoldings
    spool: MemorySpool
    under_test: Pushing

    def verifier(self) -> Verifier:
        """Return a comparison of the replicas."""
        pushing = self.under_test
        return Verifier(replica_set=self.replicas, store=pushing.store, journal=pushing.journal, referrers=pushing.tags)


@asynccontextmanager
async def bench(directory: Path) -> AsyncIterator[Bench]:
    """Set up a ``Bench``; at the end no upload may be open."""
    a, b, cache, holdings = MemoryReplica(name="a"), MemoryReplica(name="b"), MemoryCache(), MemoryHoldings()
    with tempfile.TemporaryDirectory(dir=directory) as uploads:
        replicas, spool = MemoryReplicaSet([a, b]), MemorySpool(uploads, cache)
        async with pushing(directory, replicas, spool, cache, holdings) as under_test:
            yield Bench(a, b, replicas, cache, holdings, spool, under_test)
        assert spool.open == {}
    await cache.aclose()
