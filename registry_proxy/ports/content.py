"""Bytes: streams, the blob cache, the spool, and which repository holds which digest."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from registry_proxy.ports.names import CacheResult, ContentKind, RoutedRepository
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.reference import Digest, Repository, Tag


class ByteStream(Protocol):
    """Bytes that arrive once, in order: the body of an upstream answer, or of a client's request.

    ``offset`` is where the first byte lies in the content; ``size_bytes`` the size of the WHOLE content, None when
    the sender did not say. Iterating raises ``UpstreamUnavailableError`` when the sender dies, stalls or cuts.
    The opener closes it; closing twice is fine.
    """

    @property
    def offset(self) -> int: ...
    @property
    def size_bytes(self) -> int | None: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


class BlobReader(Protocol):
    """A file with a watermark: bytes below ``available_bytes`` may be sent from ``fd``.

    The descriptor belongs to the reader, is read with an explicit offset (sendfile, pread), and stays good when the
    blob is evicted. ``verified`` is True once the digest of the whole was right; until then the tail is held back.
    """

    @property
    def fd(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def available_bytes(self) -> int: ...
    @property
    def verified(self) -> bool: ...

    async def wait_beyond(self, offset: int) -> None:
        """Return when ``available_bytes > offset``, at once if it is already.

        Raises:
            FillFailedError: the content will never be complete here.
            FillLostError: as above, and only the disk is to blame.
        """

    def close(self) -> None:
        """Close the descriptor; twice is fine."""


OpenSource = Callable[[int], "AbstractAsyncContextManager[ByteStream]"]
"""Opens a content at an offset. Entering raises what the upstream answered (RegistryError 404, ...) or
UpstreamUnavailableError. The stream it gives may start before the offset asked for (a replica that ignores Range):
its ``offset`` tells; never after it."""

_IDLE_STREAMS_MAX = 3
_MEAGRE_STREAMS_MAX = 10
_MEAGRE_BYTES = 64 * 1024
_PAUSE_SECONDS = 0.05


class Reopenings:
    """The budget of one content for streams that break off, which a source could spend by giving a byte in each.

    Streams that bring at least 64 KiB are free. Of those that bring less, ten in a row are too many, and so are three
    that bring nothing.
    """

    def __init__(self) -> None:
        self._idle = self._meagre = 0

    def broke_off(self, gained_bytes: int) -> float | None:
        """Count a stream; return how many seconds to wait before the next one is opened, None to give up."""
        self._idle = 0 if gained_bytes else self._idle + 1
        self._meagre = 0 if gained_bytes >= _MEAGRE_BYTES else self._meagre + 1
        if self._idle >= _IDLE_STREAMS_MAX or self._meagre >= _MEAGRE_STREAMS_MAX:
            return None
        return _PAUSE_SECONDS * max(self._idle, self._meagre - 1)


class BlobCache(Protocol):
    """Content-addressed bytes on local disk, verified before anything else may call them committed."""

    def open_committed(self, digest: Digest) -> BlobReader | None:
        """Open what is complete and verified; None when it is not here. Counts as a use for eviction."""

    async def open_checked(self, digest: Digest) -> BlobReader | None:
        """As ``open_committed``, for sending: up to 64 KiB compared with its digest, of larger ones a sample is."""

    def read_small(self, digest: Digest, *, only_on_disk: bool = False) -> bytes | None:
        """Return a committed content of at most 4 MiB, compared with its digest since it was read from disk; else None.

        With ``only_on_disk`` it must be on disk, untouched, at this moment, though its bytes may come from memory.
        """

    async def open_or_fill(self, digest: Digest, source: OpenSource) -> tuple[BlobReader, CacheResult]:
        """Open what is committed, and ``fill`` what is not."""

    async def fill(self, digest: Digest, source: OpenSource) -> tuple[BlobReader, CacheResult]:
        """Open a content that was not here a moment ago, starting or joining the one fetch of it.

        Returns as soon as the size is known and, for content up to the hold-back, it is verified. The fill goes on
        when the reader is closed or the caller is cancelled.

        Raises:
            RegistryError: what the upstream said to the first request (such as BLOB_UNKNOWN).
            UpstreamUnavailableError, FillFailedError: nothing to serve.
            CacheUnavailableError: the cache cannot take it; the caller passes the content through.
        """

    async def store(self, digest: Digest, content: bytes) -> None:
        """Commit a small content whose digest the caller has checked. A full disk is no error: it is not kept."""

    def is_filling(self, digest: Digest) -> bool:
        """Tell whether a fill of it is running on this node."""

    def drop(self, digest: Digest) -> None:
        """Remove a content from disk and memory; readers that have it open are not cut."""


@dataclass(frozen=True, slots=True)
class Holding:
    """The fact that a repository holds a digest, learned from a replica or from our own acknowledged commit.

    ``descriptor`` carries the media type (of a manifest, exactly as stored; of a blob application/octet-stream) and
    the size in bytes. ``age_seconds`` since it was last confirmed.
    """

    descriptor: Descriptor
    age_seconds: float


@dataclass(frozen=True, slots=True)
class CachedTag:
    """The value of a tag when a replica last named it, or a push through us made it.

    ``recorded`` is the revision that the tag's record in the store had before that was asked, 0 without a record; None
    when it could not be known. ``version`` changes whenever the entry is written.
    """

    descriptor: Descriptor
    age_seconds: float
    recorded: int | None
    version: object = field(compare=False)

    @property
    def digest(self) -> Digest:
        """The descriptor that the tag was."""
        return self.descriptor.digest


class Holdings(Protocol):
    """Contents and last tags of each repository: small files, seen by every worker of the node at once."""

    def find(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> Holding | None: ...
    def moment(self, routed: RoutedRepository) -> int:
        """Return what ``remember`` is given as ``asked_at``, to be taken before a replica is asked."""

    def remember(
        self, routed: RoutedRepository, kind: ContentKind, descriptor: Descriptor, *, asked_at: int | None = None
    ) -> None:
        """Note that a repository holds it: for an answer of a replica, unless something of it was deleted meanwhile.

        Args:
            routed: repository as named at the upstream.
            kind: what the digest was asked for as.
            descriptor: what it holds.
            asked_at: the ``moment`` before the replica was asked; None for what a push through us made true.
        """

    def forget(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> None: ...
    def end(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> None:
        """Forget what was deleted, also as far as somebody learns it at this moment."""

    def manifests_of(self, routed: RoutedRepository) -> Sequence[Digest]:
        """Return the manifests that a repository is known to hold, those confirmed last first."""

    def contents_of(self, upstream: str, kind: ContentKind) -> Iterator[tuple[Repository, Digest]]:
        """Give the contents of a kind that repositories of an upstream are known to hold; in a thread."""

    def has_tag_on(self, routed: RoutedRepository, digest: Digest) -> bool:
        """Tell whether a cached tag of the repository is ``digest``."""

    def find_tag(self, routed: RoutedRepository, tag: Tag) -> CachedTag | None: ...

    def remember_tag(
        self,
        routed: RoutedRepository,
        tag: Tag,
        descriptor: Descriptor,
        *,
        recorded: int | None,
        unless_changed_from: object,
    ) -> bool:
        """Write what a replica said, unless a push or another answer came between: then change nothing, return False.

        Args:
            routed: repository as named at the upstream.
            tag: the tag.
            descriptor: what it is.
            recorded: as in ``CachedTag``.
            unless_changed_from: ``CachedTag.version`` read before the replica was asked, None when there was none.
        """

    def move_tag(self, routed: RoutedRepository, tag: Tag, descriptor: Descriptor, *, recorded: int) -> None:
        """Write what a push through us made it: wins over every answer that was asked for before."""

    def forget_tag(self, routed: RoutedRepository, tag: Tag) -> None: ...
    def end_tag(self, routed: RoutedRepository, tag: Tag) -> None:
        """Forget a tag that was deleted; ``moment`` changes first, which a reader that learns it just now can see."""

    def doubt_all(self) -> None:
        """Have everything that was remembered until now asked for again."""

    def forget_tags_of(self, routed: RoutedRepository, digest: Digest) -> list[Tag]:
        """Remove every cached tag that is ``digest``; return them."""


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """One committed content as an administrator sees it.

    ``used_at`` is when it was used last, in seconds since the epoch, exact to a minute; ``protected`` tells that
    eviction leaves it: some replica does not have it yet, or its repository is pinned.
    """

    digest: Digest
    size_bytes: int
    used_at: float
    protected: bool
