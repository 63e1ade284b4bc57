"""Pulling blobs (spec, "Pull"): from the cache when the repository holds the digest, else upstream."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from registry_proxy.files.hashing import hash_file
from registry_proxy.operations.ask import Ask, answer_of
from registry_proxy.operations.contents import is_committed
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


class BlobAnswer(NamedTuple):
    """A blob to serve; ``byte_range`` None means the whole.

    ``content`` is the whole of a small blob, or is closed by whoever got the answer. ``rest`` opens, at an offset of
    the content, the bytes that a ``BlobReader`` could not give because the disk failed. Entering raises as ``Pull``,
    and FillLostError where it could not be told any more whether the whole would be right.
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
    """The reader of the fill that a client began, until the client takes it; closed where that has left meanwhile."""

    def __init__(self) -> None:
        self._reader: BlobReader | None = None
        self._is_left = False

    def give(self, reader: BlobReader) -> None:
        if self._is_left:
            reader.close()
        else:
            self._reader = reader

    def take(self) -> BlobReader | None:
        reader, self._reader = self._reader, None
        return reader

    def leave(self) -> None:
        self._is_left = True
        if (reader := self.take()) is not None:
            reader.close()


@dataclass(frozen=True, slots=True)
class _Learned:
    descriptor: Descriptor
    was_fetched: bool


class PullBlobs:
    """The verbs of pulling blobs; errors and arguments as ``Pull``."""

    def __init__(
        self,
        *,
        readers: Mapping[str, RegistryReader],
        impatient_readers: Mapping[str, RegistryReader],
        cache: BlobCache,
        holdings: Holdings,
        proofs: HoldingProofs,
        observer: Observer,
    ) -> None:
        self._readers = readers
        self._impatient_readers = impatient_readers
        self._cache = cache
        self._holdings = holdings
        self._proofs = proofs
        self._observer = observer
        self._learning: SingleFlight[_Learned] = SingleFlight()
        self._questions: SingleFlight[Descriptor] = SingleFlight()

    def find_blob_head(self, routed: RoutedRepository, digest: Digest) -> BlobHead | Ask[BlobHead]:
        """Return a blob's descriptor where nobody has to be asked for it; else the way to it."""
        holding = self._holdings.find(routed, ContentKind.BLOB, digest)
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
        holding = self._holdings.find(routed, ContentKind.BLOB, digest)
        body = None if holding is None else self._read_small_blob(holding)
        if holding is None or body is None:
            return Ask(partial(self._ask_blob, routed, digest, holding, range_header))
        byte_range = parse_range(range_header, len(body))
        self._observer.observe(_HIT)
        return BlobAnswer(holding.descriptor, CacheResult.HIT, body, byte_range, _no_rest)

    async def open_blob(self, routed: RoutedRepository, digest: Digest, range_header: str | None) -> BlobAnswer:
        """Open a blob for sending; arguments and errors as ``find_blob``."""
        return await answer_of(self.find_blob(routed, digest, range_header))

    def _read_small_blob(self, holding: Holding) -> bytes | None:
        descriptor = holding.descriptor
        if holding.age_seconds >= HOLDING_FRESH_SECONDS or descriptor.size_bytes > SMALL_BYTES:
            return None
        body = self._cache.read_small(descriptor.digest, only_on_disk=True)
        return body if body is not None and len(body) == descriptor.size_bytes else None

    async def _ask_blob(
        self, routed: RoutedRepository, digest: Digest, holding: Holding | None, range_header: str | None
    ) -> BlobAnswer:
        if holding is not None:
            known = await self._confirmed(routed, holding)
            answer = await self._open(routed, known, range_header)
        else:
            answer = await self._open_unknown(routed, digest, range_header)
        self._observer.observe(CacheRequest(ContentKind.BLOB, answer.result))
        return answer

    async def _open_unknown(self, routed: RoutedRepository, digest: Digest, range_header: str | None) -> BlobAnswer:
        """Open a blob that the repository is not known to hold; a client that begins its fill reads from it at once."""
        known, learned_by, reader = await self._learn_once(routed, digest)
        if reader is not None:
            return await self._serve(routed, known, reader, CacheResult.MISS, range_header)
        return await self._open(routed, known, range_header, learned_by)

    async def fill_blob(self, routed: RoutedRepository, digest: Digest) -> BlobReader:
        """Have a blob that the repository holds filled, without a client; the reader follows, and the caller closes it.

        Raises:
            CacheUnavailableError: the cache cannot take it.
        """
        holding = self._holdings.find(routed, ContentKind.BLOB, digest)
        reader = None
        if holding is not None:
            await self._confirmed(routed, holding)
        else:
            _, _, reader = await self._learn_once(routed, digest)
        reader = reader or self._cache.open_committed(digest)
        if reader is None:
            reader, _ = await self._fill(self._source(routed, digest))
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
        readers = self._readers if old is None else self._impatient_readers
        asked_at = self._holdings.moment(routed)
        try:
            reader = readers[routed.upstream]
            descriptor = await self._proofs.ask(
                routed, ContentKind.BLOB, digest, lambda: reader.stat_blob(routed.repository, digest)
            )
        except (RegistryError, UpstreamUnavailableError) as error:
            if isinstance(error, RegistryError) and error.status == 404:
                self._holdings.forget(routed, ContentKind.BLOB, digest)
                raise
            if old is None:
                raise
            return old
        return self._remember(routed, digest, descriptor.size_bytes, asked_at)

    async def _learn_once(
        self, routed: RoutedRepository, digest: Digest
    ) -> tuple[Descriptor, CacheResult | None, BlobReader | None]:
        """Learn the holding, one client for all.

        Return the descriptor; how a fill taught it, None for a HEAD; and the reader of the fill that this client began.
        """
        place = _ReaderPlace()
        try:
            learned, is_first = await self._learning.run((routed, digest), lambda: self._learn(routed, digest, place))
        except BaseException:
            place.leave()
            raise
        result = CacheResult.MISS if is_first else CacheResult.LATCH
        return learned.descriptor, result if learned.was_fetched else None, place.take()

    async def _learn(self, routed: RoutedRepository, digest: Digest, place: "_ReaderPlace") -> _Learned:
        """Learn the holding: by a HEAD when the bytes are here or on their way, else by the fill's own GET."""
        if self._cache.is_filling(digest) or is_committed(self._cache, digest):
            return _Learned(await self._ask(routed, digest), was_fetched=False)
        source, asked_at = self._source(routed, digest), self._holdings.moment(routed)
        size_bytes = await self._proofs.ask(routed, ContentKind.BLOB, digest, lambda: self._begin_fill(source, place))
        if source.has_answered and size_bytes is not None:
            return _Learned(self._remember(routed, digest, size_bytes, asked_at), was_fetched=True)
        # Another worker, for another repository, was quicker: what its replica said counts only there.
        return _Learned(await self._ask(routed, digest), was_fetched=False)

    async def _begin_fill(self, source: _RepositorySource, place: "_ReaderPlace") -> int | None:
        """Have a blob filled and return its size; None where neither the cache takes it nor the upstream tells."""
        try:
            reader, _ = await self._fill(source)
        except CacheUnavailableError:
            return source.size_bytes
        if source.has_answered:
            place.give(reader)
        else:
            reader.close()
        return reader.size_bytes

    async def _open(
        self,
        routed: RoutedRepository,
        known: Descriptor,
        range_header: str | None,
        learned_by: CacheResult | None = None,
    ) -> BlobAnswer:
        digest, asked_at = known.digest, self._holdings.moment(routed)
        reader, result = await self._cache.open_checked(digest), CacheResult.HIT
        if reader is None:
            try:
                reader, result = await self._fill(self._source(routed, digest))
            except CacheUnavailableError:
                return await self._pass_through(routed, known, parse_range(range_header, known.size_bytes))
            except RegistryError as error:
                if error.status == 404:
                    self._holdings.forget(routed, ContentKind.BLOB, digest)
                raise
        if known.size_bytes != reader.size_bytes:
            known = self._remember(routed, digest, reader.size_bytes, asked_at)
        return await self._serve(routed, known, reader, learned_by or result, range_header)

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
        self._observer.observe(CacheFailure("read"))
        if reader.verified:  # a file that cannot be read stands in the way of one that can
            self._cache.drop(known.digest)
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
                return await self._cache.fill(source.digest, source)
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
        try:
            await stream.open()
        except RegistryError as error:
            if error.status == 404:
                self._holdings.forget(routed, ContentKind.BLOB, known.digest)
            raise
        return BlobAnswer(known, CacheResult.MISS, stream, byte_range, _no_rest)

    def _source(self, routed: RoutedRepository, digest: Digest) -> _RepositorySource:
        return _RepositorySource(self._readers[routed.upstream], routed, digest)

    def _remember(self, routed: RoutedRepository, digest: Digest, size_bytes: int, asked_at: int) -> Descriptor:
        descriptor = Descriptor(BLOB_MEDIA_TYPE, digest, size_bytes)
        self._holdings.remember(routed, ContentKind.BLOB, descriptor, asked_at=asked_at)
        return descriptor


def _no_rest(_: int) -> AbstractAsyncContextManager[ByteStream]:
    raise AssertionError("a stream goes on by itself")


def _hash_beginning(fd: int, size_bytes: int, digest: Digest) -> "_Hash":
    hasher = digest.hasher()
    if hash_file(fd, hasher, 0, size_bytes) < size_bytes:
        raise OSError("the file is shorter than it was")
    return hasher
