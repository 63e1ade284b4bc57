"""The ports in memory, for unit tests: they record the calls, and wait and fail as a test says."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from registry_proxy.operations.proofs import HoldingProofs
from registry_proxy.ports.content import (
    BlobCache,
    BlobReader,
    ByteStream,
    CachedTag,
    Holding,
    Holdings,
    OpenSource,
)
from registry_proxy.ports.errors import (
    AbsenceUnknownError,
    CacheUnavailableError,
    FillFailedError,
    UpstreamUnavailableError,
)
from registry_proxy.ports.events import AskedRight, AuditEvent
from registry_proxy.ports.metrics import MetricEvent
from registry_proxy.ports.names import CacheResult, ContentKind, RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.replicas import RegistryReader, Separation
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, OCI_MANIFEST, Descriptor, Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import RESERVED_PREFIX, Digest, Repository, Tag, digest_of

_Event = TypeVar("_Event", bound=MetricEvent)


class MemoryStream:
    """A content that arrives in chunks; may be cut after some bytes, or held at a gate."""

    def __init__(self, content: bytes, offset: int, *, cut_at: int | None = None, gate: asyncio.Event | None) -> None:
        self._content = content
        self.offset = offset
        self.size_bytes: int | None = len(content)
        self._cut_at = cut_at
        self._gate = gate

    async def __aiter__(self) -> AsyncIterator[bytes]:
        position = self.offset
        end = len(self._content) if self._cut_at is None else self._cut_at
        while position < end:
            if self._gate is not None and position > self.offset:
                await self._gate.wait()
            chunk = self._content[position : min(position + 100_000, end)]
            position += len(chunk)
            yield chunk
        if self._cut_at is not None:
            raise UpstreamUnavailableError("cut")

    async def aclose(self) -> None:
        """Close nothing."""


@dataclass
class MemoryReader:
    """A ``RegistryReader`` over dictionaries: ``requests`` holds (method, repository, object) in order."""

    tags: dict[tuple[str, str], Digest] = field(default_factory=dict)
    manifests: dict[tuple[str, Digest], Manifest] = field(default_factory=dict)
    blobs: dict[tuple[str, Digest], bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    is_down: bool = False
    is_in_doubt: bool = False
    refuses_credentials: bool = False
    ignores_offset: bool = False
    cuts: list[int] = field(default_factory=list)
    gate: asyncio.Event | None = None
    body_gate: asyncio.Event | None = None
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)

    def add_blob(self, repository: str, content: bytes) -> Digest:
        digest = digest_of(content)
        self.blobs[repository, digest] = content
        return digest

    def add_manifest(self, repository: str, body: bytes, tag: str | None = None) -> Digest:
        digest = digest_of(body)
        self.manifests[repository, digest] = Manifest(Descriptor(OCI_MANIFEST, digest, len(body)), body)
        if tag is not None:
            self.tags[repository, tag] = digest
        return digest

    def count(self, method: str) -> int:
        return sum(request[0] == method for request in self.requests)

    async def _answer(self, method: str, repository: str, what: object = "") -> None:
        self.requests.append((method, repository, str(what)))
        self.was_asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.is_down:
            raise UpstreamUnavailableError("down")
        if self.is_in_doubt:
            raise AbsenceUnknownError("a: does not hold it; b: down")
        if self.refuses_credentials:
            raise RegistryError(ErrorCode.UNAVAILABLE, "credentials refused", status=502)

    async def resolve_tag(self, repository: Repository, tag: Tag) -> Descriptor:
        await self._answer("resolve_tag", repository, tag)
        digest = self.tags.get((repository, tag))
        if digest is None:
            raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, "no such tag")
        return self.manifests[repository, digest].descriptor

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        await self._answer("fetch_manifest", repository, digest)
        manifest = self.manifests.get((repository, digest))
        if manifest is not None:
            return manifest
        if (repository, digest) in self.blobs:  # as docker-registry 2.8.2
            raise UpstreamUnavailableError("it answers 500")
        raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, "no such manifest")

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        await self._answer("stat_blob", repository, digest)
        content = self.blobs.get((repository, digest))
        if content is None:
            raise RegistryError(ErrorCode.BLOB_UNKNOWN, "no such blob")
        return Descriptor(BLOB_MEDIA_TYPE, digest, len(content))

    def open_blob(
        self, repository: Repository, digest: Digest, offset: int = 0
    ) -> AbstractAsyncContextManager[ByteStream]:
        return self._open_blob(repository, digest, offset)

    @asynccontextmanager
    async def _open_blob(self, repository: Repository, digest: Digest, offset: int) -> AsyncIterator[ByteStream]:
        await self._answer("open_blob", repository, offset)
        content = self.blobs.get((repository, digest))
        if content is None:
            raise RegistryError(ErrorCode.BLOB_UNKNOWN, "no such blob")
        cut_at = self.cuts.pop(0) if self.cuts else None
        yield MemoryStream(content, 0 if self.ignores_offset else offset, cut_at=cut_at, gate=self.body_gate)

    async def list_tags(self, repository: Repository) -> list[Tag]:
        await self._answer("list_tags", repository)
        return sorted(Tag(tag) for name, tag in self.tags if name == repository)

    async def list_repositories(self) -> list[Repository]:
        await self._answer("list_repositories", "")
        return sorted({Repository(name) for name, _ in self.tags if not name.startswith(RESERVED_PREFIX)})


class MemoryFile:
    """A ``BlobReader`` over a memory file that may still be growing."""

    def __init__(self, growing: "GrowingFile") -> None:
        self._growing = growing
        self.fd = os.dup(growing.fd)
        self.is_closed = False
        growing.readers.append(self)

    @property
    def size_bytes(self) -> int:
        return self._growing.size_bytes

    @property
    def available_bytes(self) -> int:
        return self._growing.available_bytes

    @property
    def verified(self) -> bool:
        return self._growing.available_bytes == self._growing.size_bytes

    async def wait_beyond(self, offset: int) -> None:
        await self._growing.wait_beyond(offset)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            os.close(self.fd)


class GrowingFile:
    """A file with a watermark that a test, or a fill, moves."""

    def __init__(self, size_bytes: int, content: bytes = b"") -> None:
        self.fd = os.memfd_create("blob")
        self.size_bytes = size_bytes
        self.available_bytes = 0
        self.readers: list[MemoryFile] = []
        self.has_failed = False
        self._moved = asyncio.Event()
        self.write(content)

    def write(self, content: bytes) -> None:
        os.pwrite(self.fd, content, self.available_bytes)
        self.available_bytes += len(content)
        self._wake()

    def fail(self) -> None:
        self.has_failed = True
        self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def wait_beyond(self, offset: int) -> None:
        while self.available_bytes <= offset:
            if self.has_failed:
                raise FillFailedError("the fill failed")
            await self._moved.wait()

    def close(self) -> None:
        os.close(self.fd)


class MemoryCache:
    """A ``BlobCache`` in memory; ``is_full`` makes it refuse, ``drop`` evicts. Close it: it holds descriptors."""

    def __init__(self) -> None:
        self.files: dict[Digest, GrowingFile] = {}
        self.filling: dict[Digest, asyncio.Task[None]] = {}
        self._opened: dict[Digest, asyncio.Future[GrowingFile]] = {}
        self.is_full = False
        self.hides_fills = False

    def add(self, content: bytes) -> Digest:
        digest = digest_of(content)
        self.files[digest] = GrowingFile(len(content), content)
        return digest

    def open_committed(self, digest: Digest) -> BlobReader | None:
        return self._open(digest)

    async def open_checked(self, digest: Digest) -> BlobReader | None:
        return self._open(digest)

    def _open(self, digest: Digest) -> BlobReader | None:
        file = self.files.get(digest)
        return None if file is None else MemoryFile(file)

    def read_small(self, digest: Digest, *, only_on_disk: bool = False) -> bytes | None:  # noqa: ARG002 - all is "on disk"
        file = self.files.get(digest)
        return None if file is None or file.size_bytes > 4 * 1024 * 1024 else os.pread(file.fd, file.size_bytes, 0)

    async def open_or_fill(self, digest: Digest, source: OpenSource) -> tuple[BlobReader, CacheResult]:
        if (committed := self.open_committed(digest)) is not None:
            return committed, CacheResult.HIT
        return await self.fill(digest, source)

    async def fill(self, digest: Digest, source: OpenSource) -> tuple[BlobReader, CacheResult]:
        if self.is_full:
            raise CacheUnavailableError("full")
        result = CacheResult.LATCH
        if digest not in self.filling:
            result = CacheResult.MISS
            self._opened[digest] = asyncio.get_running_loop().create_future()
            self.filling[digest] = asyncio.get_running_loop().create_task(self._fill(digest, source))
        return MemoryFile(await asyncio.shield(self._opened[digest])), result

    async def _fill(self, digest: Digest, source: OpenSource) -> None:
        opened = self._opened[digest]
        file: GrowingFile | None = None
        try:
            async with source(0) as stream:
                assert stream.size_bytes is not None
                file = GrowingFile(stream.size_bytes)
                opened.set_result(file)
                async for chunk in stream:
                    file.write(chunk)
            self.files[digest] = file
        except (RegistryError, UpstreamUnavailableError) as error:
            if file is not None:
                file.fail()
            elif not opened.cancelled():
                opened.set_exception(error)
                opened.exception()
        finally:
            del self.filling[digest], self._opened[digest]

    async def store(self, digest: Digest, content: bytes) -> None:
        if not self.is_full:
            self.files[digest] = GrowingFile(len(content), content)

    def is_filling(self, digest: Digest) -> bool:
        return digest in self.filling and not self.hides_fills

    def drop(self, digest: Digest) -> None:
        file = self.files.pop(digest, None)
        if file is not None:
            file.close()

    @property
    def open_readers(self) -> int:
        return sum(not reader.is_closed for file in self.files.values() for reader in file.readers)

    async def aclose(self) -> None:
        await asyncio.gather(*self.filling.values())
        for digest in list(self.files):
            self.drop(digest)


class MemoryHoldings:
    """``Holdings`` in dictionaries; ``age_seconds`` is the age of all of them."""

    def __init__(self) -> None:
        self.entries: dict[tuple[RoutedRepository, ContentKind, Digest], Descriptor] = {}
        self.tags: dict[tuple[RoutedRepository, Tag], CachedTag] = {}
        self.ages: dict[Digest, float] = {}
        self.deleted = 0
        self.tag_age_seconds = 0.0

    def find(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> Holding | None:
        descriptor = self.entries.get((routed, kind, digest))
        return None if descriptor is None else Holding(descriptor, self.ages.get(digest, 0.0))

    def moment(self, routed: RoutedRepository) -> int:  # noqa: ARG002 - of all
        return self.deleted

    def remember(
        self, routed: RoutedRepository, kind: ContentKind, descriptor: Descriptor, *, asked_at: int | None = None
    ) -> None:
        if asked_at in {None, self.deleted}:
            self.entries[routed, kind, descriptor.digest] = descriptor
            self.ages.pop(descriptor.digest, None)

    def forget(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> None:
        self.entries.pop((routed, kind, digest), None)

    def end(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> None:
        self.deleted += 1
        self.forget(routed, kind, digest)

    def manifests_of(self, routed: RoutedRepository) -> list[Digest]:
        return [key[2] for key in self.entries if key[:2] == (routed, ContentKind.MANIFEST)]

    def has_tag_on(self, routed: RoutedRepository, digest: Digest) -> bool:
        return any(key[0] == routed and entry.digest == digest for key, entry in self.tags.items())

    def contents_of(self, upstream: str, kind: ContentKind) -> Iterator[tuple[Repository, Digest]]:
        """Give the contents of a kind of an upstream."""
        for routed, of_kind, digest in self.entries:
            if routed.upstream == upstream and of_kind is kind:
                yield routed.repository, digest

    def forget_answers(self, upstream: str, kind: ContentKind) -> None:
        """Forget everything of a kind: this fake does not know of pushes."""
        for key in [key for key in self.entries if key[0].upstream == upstream and key[1] is kind]:
            del self.entries[key]

    def find_tag(self, routed: RoutedRepository, tag: Tag) -> CachedTag | None:
        entry = self.tags.get((routed, tag))
        return None if entry is None else replace(entry, age_seconds=self.tag_age_seconds)

    def remember_tag(
        self,
        routed: RoutedRepository,
        tag: Tag,
        descriptor: Descriptor,
        *,
        recorded: int | None,
        unless_changed_from: object,
    ) -> bool:
        entry = self.tags.get((routed, tag))
        if (None if entry is None else entry.version) is not unless_changed_from:
            return False
        self._write_tag(routed, tag, descriptor, recorded)
        return True

    def move_tag(self, routed: RoutedRepository, tag: Tag, descriptor: Descriptor, *, recorded: int) -> None:
        self._write_tag(routed, tag, descriptor, recorded)

    def _write_tag(self, routed: RoutedRepository, tag: Tag, descriptor: Descriptor, recorded: int | None) -> None:
        self.tags[routed, tag] = CachedTag(descriptor, 0.0, recorded, object())
        self.tag_age_seconds = 0.0

    def forget_tag(self, routed: RoutedRepository, tag: Tag) -> None:
        self.tags.pop((routed, tag), None)

    def end_tag(self, routed: RoutedRepository, tag: Tag) -> None:
        self.deleted += 1
        self.forget_tag(routed, tag)

    def doubt_all(self) -> None:
        self.entries.clear()
        self.tags.clear()

    def forget_tags_of(self, routed: RoutedRepository, digest: Digest) -> list[Tag]:
        found = [key[1] for key, entry in self.tags.items() if key[0] == routed and entry.digest == digest]
        for tag in found:
            self.forget_tag(routed, tag)
        return found


@dataclass
class ScriptedSeparation:
    """A ``Separation`` with scripted answers; by default of replicas that keep repositories apart."""

    mixed: set[ContentKind] = field(default_factory=set)

    def is_mixed(self, kind: ContentKind) -> bool:
        return kind in self.mixed

    def is_apart(self, kind: ContentKind) -> bool:
        return kind not in self.mixed

    def is_settled(self, kind: ContentKind) -> bool:  # noqa: ARG002 - nothing is left to ask
        return True

    async def verify(self, kind: ContentKind) -> None:
        """Ask nothing."""

    async def can_believe(self, replica: str, kind: ContentKind) -> bool:  # noqa: ARG002 - they are all alike
        return kind not in self.mixed


class MemoryPushedBlobs:
    """``PushedBlobs`` in a set."""

    def __init__(self) -> None:
        self.noted: set[tuple[RoutedRepository, Digest]] = set()

    async def note(self, routed: RoutedRepository, digest: Digest) -> None:
        self.noted.add((routed, digest))

    async def has(self, routed: RoutedRepository, digest: Digest) -> bool:
        return (routed, digest) in self.noted

    async def forget(self, routed: RoutedRepository, digest: Digest) -> None:
        self.noted.discard((routed, digest))


def holdings_of(
    reader: RegistryReader,
    holdings: Holdings,
    cache: BlobCache,
    separation: Separation | None = None,
    recorded: Sequence[Digest] = (),
) -> HoldingProofs:
    """Return the ``HoldingProofs`` of upstream ``main``."""

    async def manifests(_: RoutedRepository) -> Sequence[Digest]:
        return recorded

    return HoldingProofs(
        readers={"main": reader},
        separations={"main": separation or ScriptedSeparation()},
        holdings=holdings,
        cache=cache,
        recorded=manifests,
        pushed=MemoryPushedBlobs(),
    )


class MemoryAudit:
    """An ``AuditLog`` that keeps its events."""

    def __init__(self, *, records_pulls: bool = False) -> None:
        self.events: list[AuditEvent] = []
        self.questions: list[AskedRight] = []
        self.records_pulls = records_pulls

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)

    async def written(self) -> None:
        pass

    def asked(self, right: AskedRight) -> None:
        self.questions.append(right)


class MemoryPulls:
    """A ``PullLog`` that keeps its notes."""

    def __init__(self) -> None:
        self.is_wanted = False
        self.notes: list[tuple[str, str, Digest, Actor]] = []

    def note(self, routed: RoutedRepository, tag: str, descriptor: Descriptor, actor: Actor) -> None:
        self.notes.append((str(routed), tag, descriptor.digest, actor))


class RecordingObserver:
    """An ``Observer`` that keeps its events."""

    def __init__(self) -> None:
        self.events: list[MetricEvent] = []

    def observe(self, event: MetricEvent, /) -> None:
        self.events.append(event)

    def found(self, event_class: type[_Event], *fields: object) -> list[_Event]:
        """Return the events of a class that begin with the given fields, in the order in which they came."""
        same_class = [event for event in self.events if isinstance(event, event_class)]
        return [event for event in same_class if event[: len(fields)] == fields]

    def count(self, event_class: type[MetricEvent], *fields: object) -> int:
        """Return the number of events that ``found`` returns."""
        return len(self.found(event_class, *fields))

    def total(self, event_class: type[MetricEvent], *fields: object) -> float:
        """Return the sum of the last fields of these events."""
        return sum(event[-1] for event in self.found(event_class, *fields))  # type: ignore[misc]  # those of bytes

    def last(self, event_class: type[MetricEvent], *fields: object) -> object:
        """Return the last field of the last of these events."""
        return self.found(event_class, *fields)[-1][-1]
