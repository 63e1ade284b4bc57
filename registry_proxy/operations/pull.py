"""Pulling manifests and blobs (spec, "Pull"): from the cache when the repository holds the digest, else upstream.

A digest is global, the right to read it is not: bytes leave only when a replica, or our own commit, said that THIS
repository holds them (its membership). A tag is asked for, a digest is cached for ever.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from registry_proxy.files.hashing import hash_file
from registry_proxy.operations.flight import SingleFlight
from registry_proxy.operations.holdings import MEMBERSHIP_FRESH_SECONDS, Holdings
from registry_proxy.operations.passthrough import PassThrough
from registry_proxy.operations.tags import RecordedTags, TagResolver, TagRules
from registry_proxy.ports.content import BlobCache, BlobReader, ByteStream, Membership, Memberships, OpenSource
from registry_proxy.ports.errors import CacheUnavailableError, FillFailedError, FillLostError, UpstreamUnavailableError
from registry_proxy.ports.metrics import CacheFailure, CacheRequest, Observer
from registry_proxy.ports.names import CacheResult, ContentKind, RoutedRepository
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.protocol.byterange import ByteRange, parse_range
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor, Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Tag

if TYPE_CHECKING:
    from hashlib import _Hash

FAR_RANGE_BYTES = 32 * 1024 * 1024
"""A range that starts further than this beyond the bytes at hand is fetched by itself."""

_FOREIGN_FAILURES_MAX = 3


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest to serve; ``warning`` is the value of a Warning header where the tag could not be asked for."""

    manifest: Manifest
    result: CacheResult
    warning: str | None


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """The answer to a HEAD of a manifest; fields as in ``ManifestAnswer``."""

    descriptor: Descriptor
    result: CacheResult
    warning: str | None


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """A blob to serve: ``content`` is closed by whoever got the answer; ``byte_range`` None means the whole.

    ``rest`` opens, at an offset of the content, what a ``BlobReader`` could not give because the disk failed. Entering
    raises as ``Pull``, and FillLostError where it could not be told any more whether the whole would be right.
    """

    descriptor: Descriptor
    result: CacheResult
    content: BlobReader | PassThrough
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


@dataclass(frozen=True, slots=True)
class _Learned:
    descriptor: Descriptor
    was_fetched: bool


@dataclass(frozen=True, slots=True)
class _Fetched:
    manifest: Manifest
    was_here: bool


class Pull:
    """The verbs of pulling.

    Every method raises RegistryError (404 only when every current replica said so), and UpstreamUnavailableError
    or FillFailedError when the upstream could not, or did not rightly, answer.

    Args:
        readers: by upstream; wait for a replica to come back.
        impatient_readers: by upstream; do not wait: used where something older can stand in.
        cache: bytes on local disk.
        memberships: which repository holds what.
        holdings: whether an answer of the upstream is one about the repository.
        observer: is told hits and misses.
        tag_rules: by upstream, how long a tag is answered without asking, and what it is answered in spite of.
        records: the records of tags; None for none.
    """

    def __init__(
        self,
        *,
        readers: Mapping[str, RegistryReader],
        impatient_readers: Mapping[str, RegistryReader],
        cache: BlobCache,
        memberships: Memberships,
        holdings: Holdings,
        observer: Observer,
        tag_rules: Mapping[str, TagRules],
        records: RecordedTags | None = None,
    ) -> None:
        self._readers = readers
        self._impatient_readers = impatient_readers
        self._cache = cache
        self._memberships = memberships
        self._holdings = holdings
        self._observer = observer
        self._tags = TagResolver(
            readers=readers,
            impatient_readers=impatient_readers,
            memberships=memberships,
            observer=observer,
            rules=tag_rules,
            records=records,
            content=self._find_manifest,
        )
        self._fetches: SingleFlight[_Fetched] = SingleFlight()
        self._learning: SingleFlight[_Learned] = SingleFlight()
        self._questions: SingleFlight[Descriptor] = SingleFlight()

    # ------------------------------------------------------------ manifests

    async def get_manifest(self, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> ManifestAnswer:
        """Return the manifest with its exact bytes and media type."""
        if isinstance(tag_or_digest, Digest):
            manifest, result = await self._manifest(routed, tag_or_digest)
            warning = None
        else:
            manifest, result, warning = await self._tagged_manifest(routed, tag_or_digest)
        self._observer.observe(CacheRequest(ContentKind.MANIFEST, result))
        return ManifestAnswer(manifest, result, warning)

    def describe_now(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> Descriptor | None:
        """Return what a HEAD tells where it is a hit that nobody has to be asked for, else None."""
        membership = self._fresh(routed, digest, kind)
        return None if membership is None else membership.descriptor

    def read_now(
        self, routed: RoutedRepository, kind: ContentKind, digest: Digest, max_bytes: int
    ) -> tuple[Descriptor, bytes] | None:
        """Return a content that is a hit and small enough to be sent from memory, else None; counts nothing.

        Args:
            routed: the repository.
            kind: what it is asked for as.
            digest: of the content.
            max_bytes: how large it may be.
        """
        membership = self._fresh(routed, digest, kind)
        if membership is None or membership.descriptor.size_bytes > max_bytes:
            return None
        body = self._cache.read_small(digest, only_on_disk=kind is ContentKind.BLOB)
        if body is None or len(body) != membership.descriptor.size_bytes:
            return None
        return membership.descriptor, body

    def read_cached_manifest(self, routed: RoutedRepository, digest: Digest) -> Manifest | None:
        """Return a manifest that the repository is known to hold and that is here, else None; counts nothing."""
        membership = self._fresh(routed, digest)
        body = None if membership is None else self._cache.read_small(digest)
        return None if membership is None or body is None else Manifest(membership.descriptor, body)

    async def head_manifest(self, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> ManifestHead:
        """Return the manifest's descriptor; a tag costs the upstream at most one HEAD."""
        if isinstance(tag_or_digest, Digest):
            membership = self._fresh(routed, tag_or_digest)
            if membership is not None:
                return ManifestHead(membership.descriptor, CacheResult.HIT, None)
            manifest, result = await self._manifest(routed, tag_or_digest)
            return ManifestHead(manifest.descriptor, result, None)
        resolved = await self._tags.resolve(routed, tag_or_digest)
        membership = self._fresh(routed, resolved.digest)
        descriptor = resolved.descriptor if membership is None else membership.descriptor
        result = CacheResult.MISS if resolved.was_asked else CacheResult.HIT
        return ManifestHead(descriptor, result, resolved.warning)

    async def _tagged_manifest(self, routed: RoutedRepository, tag: Tag) -> tuple[Manifest, CacheResult, str | None]:
        resolved = await self._tags.resolve(routed, tag)
        try:
            manifest, result = await self._manifest(routed, resolved.digest)
        except RegistryError as error:
            if error.status != 404:
                raise
            # The tag was moved or deleted, and what it was is gone, since a replica named it: ask once more.
            self._memberships.forget_tag(routed, tag)
            resolved = await self._tags.resolve(routed, tag)
            manifest, result = await self._manifest(routed, resolved.digest)
        return manifest, result, resolved.warning

    async def _manifest(self, routed: RoutedRepository, digest: Digest) -> tuple[Manifest, CacheResult]:
        membership = self._fresh(routed, digest)
        if membership is not None and (body := self._cache.read_small(digest)) is not None:
            return Manifest(membership.descriptor, body), CacheResult.HIT
        fetched, is_first = await self._fetches.run((routed, digest), lambda: self._fetch_manifest(routed, digest))
        if fetched.was_here:
            return fetched.manifest, CacheResult.HIT
        return fetched.manifest, CacheResult.MISS if is_first else CacheResult.LATCH

    async def _fetch_manifest(self, routed: RoutedRepository, digest: Digest) -> _Fetched:
        """Fetch it, which learns the membership; where a membership has only aged, what is here can stand in."""
        known = self._memberships.find(routed, ContentKind.MANIFEST, digest)
        body = None if known is None else self._cache.read_small(digest)
        asked_at = self._memberships.moment(routed)
        readers = self._readers if body is None else self._impatient_readers
        try:
            reader = readers[routed.upstream]
            manifest = await self._holdings.ask(
                routed, ContentKind.MANIFEST, digest, lambda: reader.fetch_manifest(routed.repository, digest)
            )
        except (RegistryError, UpstreamUnavailableError) as error:
            if isinstance(error, RegistryError) and error.status == 404:
                self._memberships.forget(routed, ContentKind.MANIFEST, digest)
                raise
            if known is None or body is None:
                raise
            return _Fetched(Manifest(known.descriptor, body), was_here=True)
        await self._cache.store(digest, manifest.body)
        self._memberships.remember(routed, ContentKind.MANIFEST, manifest.descriptor, asked_at=asked_at)
        return _Fetched(manifest, was_here=False)

    async def _find_manifest(self, routed: RoutedRepository, digest: Digest) -> Descriptor | None:
        """Return the descriptor of a manifest that can be served; None where it cannot."""
        try:
            manifest, _ = await self._manifest(routed, digest)
        except (RegistryError, UpstreamUnavailableError):
            return None
        return manifest.descriptor

    def _fresh(
        self, routed: RoutedRepository, digest: Digest, kind: ContentKind = ContentKind.MANIFEST
    ) -> Membership | None:
        membership = self._memberships.find(routed, kind, digest)
        return membership if membership is not None and membership.age_seconds < MEMBERSHIP_FRESH_SECONDS else None

    # ------------------------------------------------------------ blobs

    async def head_blob(self, routed: RoutedRepository, digest: Digest) -> tuple[Descriptor, CacheResult]:
        """Return the blob's descriptor; costs the upstream at most one HEAD and no body."""
        known = await self._known(routed, digest)
        if known is not None:
            return known, CacheResult.HIT
        descriptor, _ = await self._questions.run((routed, digest), lambda: self._ask(routed, digest))
        return descriptor, CacheResult.MISS

    async def open_blob(self, routed: RoutedRepository, digest: Digest, range_header: str | None) -> BlobAnswer:
        """Open a blob for sending.

        Args:
            routed: the repository.
            digest: the blob.
            range_header: the request's Range, None for none.

        Raises:
            RegistryError: RANGE_INVALID with the Content-Range of a 416, besides those of the class.
        """
        known = await self._known(routed, digest)
        learned_by: CacheResult | None = None
        if known is None:
            work = (routed, digest)
            learned, is_first = await self._learning.run(work, lambda: self._learn(routed, digest))
            known = learned.descriptor
            if learned.was_fetched:
                learned_by = CacheResult.MISS if is_first else CacheResult.LATCH
        answer = await self._open(routed, known, range_header, learned_by)
        self._observer.observe(CacheRequest(ContentKind.BLOB, answer.result))
        return answer

    async def fill_blob(self, routed: RoutedRepository, digest: Digest) -> BlobReader:
        """Have a blob that the repository holds filled, without a client; the reader follows, and the caller closes it.

        Raises:
            CacheUnavailableError: the cache cannot take it.
        """
        if await self._known(routed, digest) is None:
            await self._learning.run((routed, digest), lambda: self._learn(routed, digest))
        reader, _ = await self._fill(self._source(routed, digest))
        return reader

    async def _known(self, routed: RoutedRepository, digest: Digest) -> Descriptor | None:
        """Return what the membership says, asked for again when it is old; None when there is none."""
        membership = self._memberships.find(routed, ContentKind.BLOB, digest)
        if membership is None or membership.age_seconds < MEMBERSHIP_FRESH_SECONDS:
            return None if membership is None else membership.descriptor
        old = membership.descriptor
        descriptor, _ = await self._questions.run((routed, digest), lambda: self._ask(routed, digest, old))
        return descriptor

    async def _ask(self, routed: RoutedRepository, digest: Digest, old: Descriptor | None = None) -> Descriptor:
        """Learn the membership by one HEAD; what was known before stands when nobody answers."""
        readers = self._readers if old is None else self._impatient_readers
        asked_at = self._memberships.moment(routed)
        try:
            reader = readers[routed.upstream]
            descriptor = await self._holdings.ask(
                routed, ContentKind.BLOB, digest, lambda: reader.stat_blob(routed.repository, digest)
            )
        except (RegistryError, UpstreamUnavailableError) as error:
            if isinstance(error, RegistryError) and error.status == 404:
                self._memberships.forget(routed, ContentKind.BLOB, digest)
                raise
            if old is None:
                raise
            return old
        return self._remember(routed, digest, descriptor.size_bytes, asked_at)

    async def _learn(self, routed: RoutedRepository, digest: Digest) -> _Learned:
        """Learn the membership: by a HEAD when the bytes are here or on their way, else by the fill's own GET."""
        if self._cache.is_filling(digest) or is_committed(self._cache, digest):
            return _Learned(await self._ask(routed, digest), was_fetched=False)
        source, asked_at = self._source(routed, digest), self._memberships.moment(routed)
        size_bytes = await self._holdings.ask(routed, ContentKind.BLOB, digest, lambda: self._begin_fill(source))
        if source.has_answered and size_bytes is not None:
            return _Learned(self._remember(routed, digest, size_bytes, asked_at), was_fetched=True)
        # Another worker, for another repository, was quicker: what its replica said counts only there.
        return _Learned(await self._ask(routed, digest), was_fetched=False)

    async def _begin_fill(self, source: _RepositorySource) -> int | None:
        """Have a blob filled and return its size; None where neither the cache takes it nor the upstream tells."""
        try:
            reader, _ = await self._fill(source)
        except CacheUnavailableError:
            return source.size_bytes
        # The fill goes on without it; each client opens a reader of its own.
        reader.close()
        return reader.size_bytes

    async def _open(
        self, routed: RoutedRepository, known: Descriptor, range_header: str | None, learned_by: CacheResult | None
    ) -> BlobAnswer:
        digest, asked_at = known.digest, self._memberships.moment(routed)
        reader, result = await self._cache.open_checked(digest), CacheResult.HIT
        if reader is None:
            try:
                reader, result = await self._fill(self._source(routed, digest))
            except CacheUnavailableError:
                return await self._pass_through(routed, known, parse_range(range_header, known.size_bytes))
            except RegistryError as error:
                if error.status == 404:
                    self._memberships.forget(routed, ContentKind.BLOB, digest)
                raise
        try:
            if known.size_bytes != reader.size_bytes:
                known = self._remember(routed, digest, reader.size_bytes, asked_at)
            byte_range = parse_range(range_header, reader.size_bytes)
        except BaseException:
            reader.close()
            raise
        if byte_range is not None and byte_range.first > reader.available_bytes + FAR_RANGE_BYTES:
            reader.close()
            return await self._pass_through(routed, known, byte_range)
        rest = partial(self._rest, routed, known, reader, byte_range)
        return BlobAnswer(known, learned_by or result, reader, byte_range, rest)

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
                return await self._cache.open_or_fill(source.digest, source)
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
                self._memberships.forget(routed, ContentKind.BLOB, known.digest)
            raise
        return BlobAnswer(known, CacheResult.MISS, stream, byte_range, _no_rest)

    def _source(self, routed: RoutedRepository, digest: Digest) -> _RepositorySource:
        return _RepositorySource(self._readers[routed.upstream], routed, digest)

    def _remember(self, routed: RoutedRepository, digest: Digest, size_bytes: int, asked_at: int) -> Descriptor:
        descriptor = Descriptor(BLOB_MEDIA_TYPE, digest, size_bytes)
        self._memberships.remember(routed, ContentKind.BLOB, descriptor, asked_at=asked_at)
        return descriptor


def is_committed(cache: BlobCache, digest: Digest) -> bool:
    """Tell whether a content is complete and verified in the cache; counts as a use for eviction."""
    reader = cache.open_committed(digest)
    if reader is None:
        return False
    reader.close()
    return True


def _no_rest(_: int) -> AbstractAsyncContextManager[ByteStream]:
    raise AssertionError("a stream goes on by itself")


def _hash_beginning(fd: int, size_bytes: int, digest: Digest) -> "_Hash":
    hasher = digest.hasher()
    if hash_file(fd, hasher, 0, size_bytes) < size_bytes:
        raise OSError("the file is shorter than it was")
    return hasher
