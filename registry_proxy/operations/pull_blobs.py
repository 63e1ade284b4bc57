"""Pulling blobs (spec, "Pull"): from the cache when the repository holds the digest, else upstream."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from registry_proxy.files.hashing import hash_file
from registry_proxy.operations.ask import Ask, answer_of
from registry_proxy.operations.flight import SingleFlight
from registry_proxy.operations.passthrough import PassThrough
from registry_proxy.operations.proofs import HOLDING_FRESH_SECONDS, HoldingProofs
from registry_proxy.ports.content import BlobCache, BlobReader, ByteStream, Holding, Holdings, OpenSource
from registry_proxy.ports.errors import CacheUnavailableError, FillFailedError, FillLostError, UpstreamUnavailableError
from registry_proxy.ports.metrics import CacheFailure, CacheRequest, Observer
from registry_proxy.ports.names import CacheResult, ContentKind, RoutedRepository
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.protocol.byterange import ByteRange, parse_range
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest

if TYPE_CHECKING:
    from hashlib import _Hash

SMALL_BYTES = 64 * 1024
"""Up to here one write from memory, header included, is cheaper than sendfile."""

FAR_RANGE_BYTES = 32 * 1024 * 1024
"""A range that starts further than this beyond the bytes at hand is fetched by itself."""

_FOREIGN_FAILURES_MAX = 3
_HIT = CacheRequest(ContentKind.BLOB, CacheResult.HIT)  # made once: most requests end with it


_Opened = tuple[BlobReader, CacheResult]


class BlobAnswer(NamedTuple):
    """A blob to serve; ``byte_range`` None means the whole.

    ``content`` is the whole of a small blob, or is closed by its receiver. ``rest`` opens, at an offset of
    the content, the bytes that a ``BlobReader`` could not give because the disk failed. Entering raises as ``Pull``,
    and FillLostError where nothing can show any more that the whole would be right.
    """

    descriptor: Descriptor
    result: CacheResult
    content: bytes | BlobReader | PassThrough
    byte_range: ByteRange | None
    rest: OpenSource


class _RepositorySource:
    """A blob of one repository as the source of a fill; remembers whether it was asked and what it said."""

    def __init__(self, reader: RegistryReader, routed: RoutedRepository, digest: Digest) -> None:
        self._reader = reader
        self._routed = routed
        self.digest = digest
        self.was_asked = False
        self.has_answered = False
        self.size_bytes: int | None = None

    @asynccontextmanager
    async def __call__(self, offset: int) -> AsyncIterator[ByteStream]:
        self.was_asked = True
        async with self._reader.open_blob(self._routed.repository, self.digest, offset) as stream:
            self.has_answered = True
            self.size_bytes = stream.size_bytes
            yield stream


class BlobHead(NamedTuple):
    """The answer to a HEAD of a blob."""

    descriptor: Descriptor
    result: CacheResult


class _ReaderPlace:
    """The reader that a look-up opened, until its client takes it; closed where that has left meanwhile."""

    def __init__(self) -> None:
        self._opened: _Opened | None = None
        self._is_left = False

    def give(self, opened: _Opened) -> None:
        self._opened = opened
        if self._is_left:
            self.leave()

    def take(self) -> _Opened | None:
        opened, self._opened = self._opened, None
        return opened

    def leave(self) -> None:
        self._is_left = True
        if (opened := self.take()) is not None:
            opened[0].close()


@dataclass(frozen=True, slots=True)
class _Learned:
    descriptor: Descriptor
    was_fetched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PullBlobs:
    """The verbs of pulling blobs; errors and arguments as ``Pull``."""

    readers: Mapping[str, RegistryReader]
    impatient_readers: Mapping[str, RegistryReader]
    cache: BlobCache
    holdings: Holdings
    proofs: HoldingProofs
    observer: Observer
    _learning: SingleFlight[_Learned] = field(default_factory=SingleFlight, init=False)
    _questions: SingleFlight[Descriptor] = field(default_factory=SingleFlight, init=False)

    def find_blob_head(self, routed: RoutedRepository, digest: Digest) -> BlobHead | Ask[BlobHead]:
        """Return a blob's descriptor where nobody has to be asked for it; else the way to it."""
        holding = self.holdings.find(routed, ContentKind.BLOB, digest)
        if holding is None or holding.age_seconds >= HOLDING_FRESH_SECONDS:
            return Ask(partial(self._ask_blob_head, routed, digest, holding))
        return BlobHead(holding.descriptor, CacheResult.HIT)

    async def head_blob(self, routed: RoutedRepository, digest: Digest) -> BlobHead:
        """Return the blob's descriptor; costs the upstream at most one HEAD and no body."""
        return await answer_of(self.find_blob_head(routed, digest))

    async def _ask_blob_head(self, routed: RoutedRepository, digest: Digest, known: Holding | None) -> BlobHead:
        if known is not None:
            return BlobHead(await self._confirmed(routed, known), CacheResult.HIT)
        descriptor, _ = await self._questions.run((routed, digest), lambda: self._ask(routed, digest))
        return BlobHead(descriptor, CacheResult.MISS)

    def find_blob(
        self, routed: RoutedRepository, digest: Digest, range_header: str | None
    ) -> BlobAnswer | Ask[BlobAnswer]:
        """Return a small blob, counted as a hit, where it is here; else the way to it.

        Args:
            routed: the repository.
            digest: the blob.
            range_header: the request's Range, None for none.

        Raises:
            RegistryError: RANGE_INVALID with the Content-Range of a 416; by the way to it, besides those of the class.
        """
        holding = self.holdings.find(routed, ContentKind.BLOB, digest)
        body = None if holding is None else self._read_small_blob(holding)
        if holding is None or body is None:
            return Ask(partial(self._ask_blob, routed, digest, holding, range_header))
        byte_range = parse_range(range_header, len(body))
        self.observer.observe(_HIT)
        return BlobAnswer(holding.descriptor, CacheResult.HIT, body, byte_range, _no_rest)

    async def open_blob(self, routed: RoutedRepository, digest: Digest, range_header: str | None) -> BlobAnswer:
        """Open a blob for sending; arguments and errors as ``find_blob``."""
        return await answer_of(self.find_blob(routed, digest, range_header))

    def _read_small_blob(self, holding: Holding) -> bytes | None:
        descriptor = holding.descriptor
        if holding.age_seconds >= HOLDING_FRESH_SECONDS or descriptor.size_bytes > SMALL_BYTES:
            return None
        body = self.cache.read_small(descriptor.digest, only_on_disk=True)
        return body if body is not None and len(body) == descriptor.size_bytes else None

    async def _ask_blob(
        self, routed: RoutedRepository, digest: Digest, holding: Holding | None, range_header: str | None
    ) -> BlobAnswer:
        answer = await self._open(routed, digest, holding, range_header)
        self.observer.observe(CacheRequest(ContentKind.BLOB, answer.result))
        return answer

    async def fill_blob(self, routed: RoutedRepository, digest: Digest) -> BlobReader:
        """Have a blob that the repository holds filled, without a client; the reader follows, and the caller closes it.

        Raises:
            CacheUnavailableError: the cache cannot take it.
        """
        _, _, opened = await self._learn_once(routed, digest, self.holdings.find(routed, ContentKind.BLOB, digest))
        reader, _ = opened or await self._open_reader(routed, digest)
        return reader

    async def _confirmed(self, routed: RoutedRepository, holding: Holding) -> Descriptor:
        """Return what the holding says, asked for again when it is old."""
        descriptor = holding.descriptor
        if holding.age_seconds < HOLDING_FRESH_SECONDS:
            return descriptor
        work = (routed, descriptor.digest)
        confirmed, _ = await self._questions.run(work, lambda: self._ask(routed, descriptor.digest, descriptor))
        return confirmed

    async def _ask(self, routed: RoutedRepository, digest: Digest, old: Descriptor | None = None) -> Descriptor:
        """Learn the holding by one HEAD; what was known before stands when nobody answers."""
        readers = self.readers if old is None else self.impatient_readers
        asked_at = self.holdings.moment(routed)
        try:
            reader = readers[routed.upstream]
            with self._forgetting(routed, digest):
                descriptor = await self.proofs.ask(
                    routed, ContentKind.BLOB, digest, lambda: reader.stat_blob(routed.repository, digest)
                )
        except (RegistryError, UpstreamUnavailableError) as error:
            if old is None or (isinstance(error, RegistryError) and error.status == 404):
                raise
            return old
        return self._remember(routed, digest, descriptor.size_bytes, asked_at)

    async def _learn_once(
        self, routed: RoutedRepository, digest: Digest, holding: Holding | None
    ) -> tuple[Descriptor, CacheResult | None, _Opened | None]:
        """Learn the holding where it is not known, one client for all.

        Return the descriptor; how a fill taught it, None for a HEAD; and, to the first client, the reader of it.
        """
        if holding is not None:
            return await self._confirmed(routed, holding), None, None
        place = _ReaderPlace()
        try:
            learned, is_first = await self._learning.run((routed, digest), lambda: self._learn(routed, digest, place))
        except BaseException:
            place.leave()
            raise
        result = CacheResult.MISS if is_first else CacheResult.LATCH
        return learned.descriptor, result if learned.was_fetched else None, place.take()

    async def _learn(self, routed: RoutedRepository, digest: Digest, place: _ReaderPlace) -> _Learned:
        """Learn the holding: by a HEAD when the bytes are here or on their way, else by the fill's own GET."""
        is_filling = self.cache.is_filling(digest)
        committed = None if is_filling else await self.cache.open_checked(digest)
        if committed is not None:
            place.give((committed, CacheResult.HIT))
        if is_filling or committed is not None:
            return _Learned(await self._ask(routed, digest), was_fetched=False)
        source, asked_at = self._source(routed, digest), self.holdings.moment(routed)
        size_bytes = await self.proofs.ask(routed, ContentKind.BLOB, digest, lambda: self._begin_fill(source, place))
        if source.has_answered and size_bytes is not None:
            return _Learned(self._remember(routed, digest, size_bytes, asked_at), was_fetched=True)
        # Another worker, for another repository, was quicker: what its replica said counts only there.
        return _Learned(await self._ask(routed, digest), was_fetched=False)

    async def _begin_fill(self, source: _RepositorySource, place: _ReaderPlace) -> int | None:
        """Have a blob filled and return its size; None where neither the cache takes it nor the upstream tells."""
        try:
            opened = await self._fill(source)
        except CacheUnavailableError:
            return source.size_bytes
        place.give(opened)
        return opened[0].size_bytes

    async def _open(
        self, routed: RoutedRepository, digest: Digest, holding: Holding | None, range_header: str | None
    ) -> BlobAnswer:
        known, learned_by, opened = await self._learn_once(routed, digest, holding)
        asked_at = self.holdings.moment(routed)
        try:
            reader, result = opened or await self._open_reader(routed, digest)
        except CacheUnavailableError:
            return await self._pass_through(routed, known, parse_range(range_header, known.size_bytes))
        if known.size_bytes != reader.size_bytes:
            known = self._remember(routed, digest, reader.size_bytes, asked_at)
        return await self._serve(routed, known, reader, learned_by or result, range_header)

    async def _open_reader(self, routed: RoutedRepository, digest: Digest) -> _Opened:
        """Open a blob that the repository holds. Raises CacheUnavailableError where the cache cannot take it."""
        reader = await self.cache.open_checked(digest)
        if reader is not None:
            return reader, CacheResult.HIT
        with self._forgetting(routed, digest):
            return await self._fill(self._source(routed, digest))

    @contextmanager
    def _forgetting(self, routed: RoutedRepository, digest: Digest) -> Iterator[None]:
        """Forget the holding when the upstream says that it is none."""
        try:
            yield
        except RegistryError as error:
            if error.status == 404:
                self.holdings.forget(routed, ContentKind.BLOB, digest)
            raise

    async def _serve(
        self,
        routed: RoutedRepository,
        known: Descriptor,
        reader: BlobReader,
        result: CacheResult,
        range_header: str | None,
    ) -> BlobAnswer:
        """Return the answer that sends from a reader; it is closed where there is none."""
        try:
            byte_range = parse_range(range_header, reader.size_bytes)
        except BaseException:
            reader.close()
            raise
        if byte_range is not None and byte_range.first > reader.available_bytes + FAR_RANGE_BYTES:
            reader.close()
            return await self._pass_through(routed, known, byte_range)
        rest = partial(self._rest, routed, known, reader, byte_range)
        return BlobAnswer(known, result, reader, byte_range, rest)

    @asynccontextmanager
    async def _rest(
        self,
        routed: RoutedRepository,
        known: Descriptor,
        reader: BlobReader,
        byte_range: ByteRange | None,
        offset: int,
    ) -> AsyncIterator[ByteStream]:
        self.observer.observe(CacheFailure("read"))
        if reader.verified:  # a file that cannot be read stands in the way of one that can
            self.cache.drop(known.digest)
        hasher = None
        if byte_range is None:
            try:
                hasher = await asyncio.to_thread(_hash_beginning, reader.fd, offset, known.digest)
            except OSError as error:
                raise FillLostError("what was sent cannot be read any more") from error
        last = known.size_bytes - 1 if byte_range is None else byte_range.last
        source = self._source(routed, known.digest)
        stream = PassThrough(source, known.digest, known.size_bytes, ByteRange(offset, last), hasher)
        try:
            await stream.open()
            yield stream
        finally:
            await stream.aclose()

    async def _fill(self, source: _RepositorySource) -> tuple[BlobReader, CacheResult]:
        for _ in range(_FOREIGN_FAILURES_MAX):
            try:
                return await self.cache.fill(source.digest, source)
            except (RegistryError, UpstreamUnavailableError, FillFailedError):
                # The fill that was joined may be of another repository, in another upstream: its failure says
                # nothing about this one.
                if source.was_asked:
                    raise
        raise UpstreamUnavailableError(f"the fetches of {source.digest} by others failed")

    async def _pass_through(
        self, routed: RoutedRepository, known: Descriptor, byte_range: ByteRange | None
    ) -> BlobAnswer:
        stream = PassThrough(self._source(routed, known.digest), known.digest, known.size_bytes, byte_range)
        with self._forgetting(routed, known.digest):
            await stream.open()
        return BlobAnswer(known, CacheResult.MISS, stream, byte_range, _no_rest)

    def _source(self, routed: RoutedRepository, digest: Digest) -> _RepositorySource:
        return _RepositorySource(self.readers[routed.upstream], routed, digest)

    def _remember(self, routed: RoutedRepository, digest: Digest, size_bytes: int, asked_at: int) -> Descriptor:
        descriptor = Descriptor(BLOB_MEDIA_TYPE, digest, size_bytes)
        self.holdings.remember(routed, ContentKind.BLOB, descriptor, asked_at=asked_at)
        return descriptor


def _no_rest(_: int) -> AbstractAsyncContextManager[ByteStream]:
    raise AssertionError("a stream goes on by itself")


def _hash_beginning(fd: int, size_bytes: int, digest: Digest) -> "_Hash":
    hasher = digest.hasher()
    if hash_file(fd, hasher, 0, size_bytes) < size_bytes:
        raise OSError("the file is shorter than it was")
    return hasher
