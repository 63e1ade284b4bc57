"""Uploads of blobs: whose they are, their bytes on this node, and their sessions at the replicas."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.protocol.byterange import ByteRange
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.reference import Digest, Repository

UPLOAD_LIFETIME_SECONDS = 24 * 3600
"""How long an upload may take from its opening to the start of its last request; no request extends it."""


@dataclass(frozen=True, slots=True)
class Uploader:
    """The subject that an upload belongs to, and its generation: what was begun before a revocation has ended."""

    subject: str
    generation: int


@dataclass(frozen=True, slots=True)
class UploadRef:
    """An upload as a request names it: ``session_id`` from the path, ``state`` from the query."""

    routed: RoutedRepository
    uploader: Uploader
    session_id: str
    state: str | None


@dataclass(frozen=True, slots=True)
class UploadBody:
    """The bytes of one request; ``size_bytes`` is its Content-Length and ``chunk`` its Content-Range, when given."""

    pieces: AsyncIterator[bytes]
    size_bytes: int | None = None
    chunk: ByteRange | None = None


@dataclass(frozen=True, slots=True)
class UploadSession:
    """An upload between two requests.

    ``offset`` is how many bytes it has, ``sha256`` their hash in hexadecimal, ``locations`` where each replica that
    has the same bytes goes on with it, ``node_id`` the node that spooled them all. Once a request came to a node that
    misses the earlier bytes, no node has them all: ``node_id`` is empty, and with the next byte so is ``sha256``.
    ``opened_at`` is in Unix seconds; 0 until its first state was signed.
    """

    session_id: str
    offset: int
    sha256: str
    locations: Mapping[str, str]
    node_id: str = ""
    opened_at: int = 0


class UploadSessions(Protocol):
    """Turns a session into the state of a Location and back."""

    async def sign(self, routed: RoutedRepository, uploader: Uploader, session: UploadSession) -> str: ...
    async def verify(
        self, routed: RoutedRepository, uploader: Uploader, session_id: str, state: str | None
    ) -> UploadSession:
        """Return the session of a state that we wrote for this uploader, repository and session.

        Raises:
            RegistryError: BLOB_UPLOAD_UNKNOWN, also when the session is older than ``UPLOAD_LIFETIME_SECONDS``.
        """


class SpoolReader(Protocol):
    """One sender of an upload: what it has not read yet is kept for it."""

    async def read(self, offset: int) -> bytes:
        """Return the next piece from an offset on, when it has come; b"" at the end of the request.

        Raises:
            CacheUnavailableError: it is not here any more, or this sender was too slow.
        """

    def close(self) -> None: ...


class SpoolFile(Protocol):
    """The bytes of one upload as they come in; the senders to the replicas read it behind the writer.

    One writer at a time. ``size_bytes`` is how far the upload is. This node's part begins at ``start_offset``:
    0, unless another node received what comes before. ``is_whole`` while all of it is on this node's disk: where that
    has no room for more, the upload goes on without it, and the writer waits for the senders.
    """

    @property
    def start_offset(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def is_whole(self) -> bool: ...
    def open_reader(self, offset: int) -> SpoolReader:
        """Follow the writer from an offset on, or from a later one."""

    async def write(self, chunk: bytes) -> None: ...
    async def wait_beyond(self, offset: int) -> bool:
        """Return True when ``size_bytes > offset``; False when the writer finished the request at or before it."""

    def finish_request(self) -> None:
        """Wake the readers: no more bytes come with this request."""

    async def digest(self, algorithm: str) -> Digest | None:
        """Return the digest of all bytes so far, from the running hash or in a thread; None where neither has all."""

    async def commit(self, digest: Digest) -> None:
        """Make it the cache's committed content of ``digest``: fsync, rename. The caller has compared the digest.

        Raises:
            CacheUnavailableError: the disk fails, or does not have it all.
        """

    def close(self, note: bytes | None = None) -> None:
        """Release it, keeping the file for the next request of the session.

        Args:
            note: how the upload is cancelled at the replicas, should nobody go on with it.
        """

    def discard(self) -> None:
        """Remove it."""


class Spool(Protocol):
    """The uploads of a node. ``node_id`` differs from those of all other nodes, for as long as its uploads are kept."""

    @property
    def node_id(self) -> str: ...
    def create(self, session_id: str, uploader: Uploader) -> SpoolFile:
        """Start an upload, without the cache where that has no space.

        Raises:
            RegistryError: BLOB_UPLOAD_INVALID when another request has just done so.
        """

    def create_tail(self, session_id: str, uploader: Uploader, offset: int) -> SpoolFile:
        """Go on for one request, without the cache, with an upload whose first ``offset`` bytes are not here."""

    def reopen(self, session_id: str, uploader: Uploader) -> SpoolFile | None:
        """Open an upload for its next request; None when this node does not have it.

        Raises:
            RegistryError: BLOB_UPLOAD_INVALID when another request is writing to it.
        """

    def mark_ended(self, session_id: str, committed: Digest | None = None) -> bool:
        """Remember as long as a Location is valid that an upload is over; return False when it was, in another way.

        Args:
            session_id: the upload.
            committed: what it became; None for a cancelled one.
        """

    def has_ended(self, session_id: str, committed: Digest | None = None) -> bool:
        """Tell whether an upload ended at this node in another way than by becoming ``committed``."""

    def take_gone(self) -> Sequence[bytes]:
        """Return the notes of the uploads that were removed since because nobody went on with them, each once."""

    def sweep(self) -> int:
        """Remove the uploads that nobody went on with for six hours; return how many."""

    def pin(self, digest: Digest) -> None:
        """Keep a committed content from eviction until ``unpin``: some replica does not have it yet."""

    def unpin(self, digest: Digest) -> None: ...
    def pinned(self, min_age_seconds: float) -> Sequence[Digest]:
        """Return what was pinned at least so long ago, also what is no longer here."""

    def holds(self, digest: Digest) -> bool:
        """Tell whether a content is committed on the node's disk."""


class UploadStream(Protocol):
    """The senders that follow one request of an upload."""

    async def finish(self) -> Mapping[str, str]:
        """Wait until the quorum has caught up with the spool; return the next location of each that did."""

    async def abort(self) -> None: ...


class BlobReplicas(Protocol):
    """Writes blobs to the replicas of an upstream."""

    def check_writable(self, upstream: str) -> None: ...
    def follow(
        self, routed: RoutedRepository, file: SpoolFile, session: UploadSession, size_bytes: int | None
    ) -> UploadStream: ...
    async def commit(
        self, routed: RoutedRepository, descriptor: Descriptor, file: SpoolFile, locations: Mapping[str, str]
    ) -> Sequence[str]:
        """Commit at a quorum; return the names of the replicas that miss it."""

    async def commit_sessions(
        self, routed: RoutedRepository, descriptor: Descriptor, locations: Mapping[str, str]
    ) -> Sequence[str]:
        """Do as ``commit`` with what only the replicas have; what one of them misses is then pinned here."""

    async def record_missing(self, routed: RoutedRepository, digest: Digest, missing: Sequence[str]) -> None: ...
    async def is_everywhere(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        """Tell whether every replica that can be written to has a content, but for those on record as missing it."""

    async def mount(
        self, routed: RoutedRepository, source: Repository, digest: Digest, held: Descriptor | None
    ) -> tuple[Descriptor, Sequence[str]] | None: ...
    async def hold_upload(self, routed: RoutedRepository, session: UploadSession) -> bool:
        """Tell whether a replica can go on with an upload that no node has whole."""

    async def cancel(self, routed: RoutedRepository, locations: Mapping[str, str]) -> None: ...
    def note(self, routed: RoutedRepository, locations: Mapping[str, str]) -> bytes:
        """Return what ``cancel`` takes as a note, for an upload that may be abandoned."""


class PushedBlobs(Protocol):
    """The blobs that were pushed or mounted through any node, and that no manifest may name yet."""

    async def note(self, routed: RoutedRepository, digest: Digest) -> None: ...
    async def has(self, routed: RoutedRepository, digest: Digest) -> bool: ...
    async def forget(self, routed: RoutedRepository, digest: Digest) -> None: ...
