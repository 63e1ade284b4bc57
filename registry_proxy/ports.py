"""The ports between the layers: Protocols, and the plain values that cross them.

Everything that can fail raises ``spec.errors.RegistryError`` (an answer of the protocol) or one of the errors below.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, Protocol

from registry_proxy.spec.descriptor import Descriptor, Manifest
from registry_proxy.spec.reference import Digest, Repository, Tag
from registry_proxy.spec.scope import Action

# ---------------------------------------------------------------- errors


class UpstreamUnavailableError(Exception):
    """No replica could answer: down, or behind where a current one is needed. Becomes a 503, never a 404."""


class UpstreamLimitError(UpstreamUnavailableError):
    """A registry asked us to wait (429), and no other one could answer. Becomes a 429, at once.

    Args:
        reason: for the log, with the replica's name.
        words: what the registry said to people, "" for nothing.
        retry_after_seconds: how long it asked us to wait.
    """

    outcome = "429"

    def __init__(self, reason: str, words: str, retry_after_seconds: float) -> None:
        super().__init__(reason)
        self.words = words
        self.retry_after_seconds = retry_after_seconds


class AbsenceUnknownError(UpstreamUnavailableError):
    """The replicas that answered do not hold it, the others could not be asked: neither a 404 nor its contrary.

    Where a false "absent" costs no more than an upload (HEAD before a push), it may be taken for one.
    """


class CacheUnavailableError(Exception):
    """The cache cannot take this content (no space, too big, read-only disk, I/O error): pass it through instead."""


class FillFailedError(Exception):
    """A fill ended without its content. The cause is the ``__cause__``; readers of it must not complete their body."""


class FillLostError(FillFailedError):
    """A fill ended, or a file cannot be read, for a reason of this node's disk: the rest may be had from upstream."""


class WrongContentError(FillFailedError):
    """What a source sent is not the content asked for: other length, or other digest.

    It is raised inside the source's context, where ``sender`` ("upstream/replica") is filled in.

    Args:
        reason: for the log and the detail of a 502.
        is_proven: all of it came from this one source, complete as announced: nobody else can be to blame.
    """

    def __init__(self, reason: str, *, is_proven: bool) -> None:
        super().__init__(reason)
        self.is_proven = is_proven
        self.sender: str | None = None


class StoreUnavailableError(Exception):
    """The store cannot be reached, or used. Becomes a 503 wherever the store is needed."""


class ConflictError(Exception):
    """A precondition of a ``Store.commit`` does not hold; nothing was changed."""


# ---------------------------------------------------------------- names


@dataclass(frozen=True, slots=True)
class RoutedRepository:
    """A repository as its upstream names it; the key of membership, tags and journal."""

    upstream: str
    repository: Repository

    def __str__(self) -> str:
        return f"{self.upstream}/{self.repository}"


class ContentKind(StrEnum):
    """What a digest is asked for as; label of metrics and part of the membership key."""

    BLOB = "blob"
    MANIFEST = "manifest"


class CacheResult(StrEnum):
    """The value of X-Cache in lower case: from disk, fetched for this request, or following another's fetch."""

    HIT = "hit"
    MISS = "miss"
    LATCH = "latch"


class StaleReason(StrEnum):
    """Why a tag could not be asked for, and is answered as it was: a label, and a word of the configuration."""

    UNAVAILABLE = "unavailable"  # no answer, 5xx, 429
    REFUSED = "refused"  # 401, 403, or no answer of a registry
    ABSENT = "absent"  # 404


class Router(Protocol):
    """Which upstream a repository lies in, by the longest prefix of whole components."""

    def canonical(self, repository: Repository, source_host: str | None) -> Repository:
        """Return the name under which rights are judged: that of the path, or of the route that serves ``ns``.

        Raises:
            RegistryError: NAME_UNKNOWN for an ``ns`` that no route serves.
        """

    def route(self, canonical: Repository) -> RoutedRepository:
        """Return where it lies. Raises RegistryError NAME_UNKNOWN when no route matches."""

    def local_name(self, routed: RoutedRepository) -> Repository | None:
        """Return the canonical name that ``route`` maps to ``routed``; None when none does."""

    def may_lead(self, pattern: str, upstream: str) -> bool:
        """Tell whether some repository that matches a pattern of grants may lie in an upstream."""

    @property
    def upstreams(self) -> Sequence[str]: ...


# ---------------------------------------------------------------- bytes


class ByteStream(Protocol):
    """Bytes that arrive once, in order: the body of an upstream answer, or of a client's request.

    ``offset`` is where the first byte lies in the content; ``size_bytes`` the size of the WHOLE content, None when
    the sender did not say. Iterating raises ``UpstreamUnavailableError`` when the sender dies, stalls or cuts.
    Whoever opened it closes it; closing twice is fine.
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


class BlobCache(Protocol):
    """Content-addressed bytes on local disk, verified before anything else may call them committed."""

    def open_committed(self, digest: Digest) -> BlobReader | None:
        """Open what is complete and verified; None when it is not here. Counts as a use for eviction."""

    async def open_checked(self, digest: Digest) -> BlobReader | None:
        """As ``open_committed``, for sending: a sample of these is read and compared with its digest first."""

    def read_small(self, digest: Digest, *, only_on_disk: bool = False) -> bytes | None:
        """Return a committed content of at most 1 MiB from memory or disk; None when absent or larger.

        With ``only_on_disk`` it must be on disk, untouched, at this moment, though its bytes may come from memory.
        """

    async def open_or_fill(self, digest: Digest, source: OpenSource) -> tuple[BlobReader, CacheResult]:
        """Open a content, starting or joining the one fetch of it.

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


class SpoolFile(Protocol):
    """The bytes of one upload as they come in; the senders to the replicas read it behind the writer.

    One writer at a time. ``size_bytes`` is how far the upload is. What may be read from ``fd`` up to there begins at
    ``start_offset``: 0, unless another node received what comes before; only a whole upload has a digest here.
    """

    @property
    def fd(self) -> int: ...
    @property
    def start_offset(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    async def write(self, chunk: bytes) -> None: ...
    async def wait_beyond(self, offset: int) -> bool:
        """Return True when ``size_bytes > offset``; False when the writer finished the request at or before it."""

    def finish_request(self) -> None:
        """Wake the readers: no more bytes come with this request."""

    async def digest(self, algorithm: str) -> Digest:
        """Return the digest of all bytes so far (in a thread, from the file, unless the running hash knows)."""

    async def commit(self, digest: Digest) -> None:
        """Make it the cache's committed content of ``digest``: fsync, rename. The caller has compared the digest."""

    def close(self) -> None:
        """Release it, keeping the file for the next request of the session."""

    def discard(self) -> None:
        """Remove it."""


class Spool(Protocol):
    """The uploads of a node. ``node_id`` tells it from all other nodes, for as long as its uploads are kept."""

    @property
    def node_id(self) -> str: ...
    def create(self, session_id: str) -> SpoolFile:
        """Start an upload. Raises CacheUnavailableError when there is no space."""

    def create_tail(self, offset: int) -> SpoolFile:
        """Give room to one request of an upload whose first ``offset`` bytes another node received.

        Its bytes lie in ``fd`` where they lie in the upload. It has no name, and is gone when it is closed.

        Raises:
            CacheUnavailableError: there is no space.
        """

    def reopen(self, session_id: str) -> SpoolFile | None:
        """Open an upload for its next request; None when this node does not have it.

        Raises:
            RegistryError: BLOB_UPLOAD_INVALID when another request is writing to it.
        """

    def mark_cancelled(self, session_id: str) -> None:
        """Remember for six hours that an upload was cancelled."""

    def is_cancelled(self, session_id: str) -> bool:
        """Tell whether an upload was cancelled at this node."""

    def pin(self, digest: Digest) -> None:
        """Keep a committed content from eviction until ``unpin``: some replica does not have it yet."""

    def unpin(self, digest: Digest) -> None: ...
    def pinned(self, min_age_seconds: float) -> Sequence[Digest]:
        """Return what was pinned at least so long ago, also what is no longer here."""

    def holds(self, digest: Digest) -> bool:
        """Tell whether a content is committed on the node's disk."""


@dataclass(frozen=True, slots=True)
class Membership:
    """That a repository holds a digest, learned from a replica or from our own acknowledged commit.

    ``descriptor`` carries the media type (of a manifest, exactly as stored; of a blob application/octet-stream) and
    the size in bytes. ``age_seconds`` since it was last confirmed.
    """

    descriptor: Descriptor
    age_seconds: float


@dataclass(frozen=True, slots=True)
class CachedTag:
    """What a tag was when a replica last said so, or a push through us made it.

    ``recorded`` is the revision that the tag's record in the store had before that was asked, 0 without a record; None
    when it could not be known. ``version`` changes whenever the entry is written.
    """

    descriptor: Descriptor
    age_seconds: float
    recorded: int | None
    version: object = field(compare=False)

    @property
    def digest(self) -> Digest:
        """What the tag was."""
        return self.descriptor.digest


class Memberships(Protocol):
    """What each repository holds and what its tags were: small files, seen by every worker of the node at once."""

    def find(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> Membership | None: ...
    def moment(self) -> int:
        """Return what ``remember`` is given as ``asked_at``, to be taken before a replica is asked."""

    def remember(
        self, routed: RoutedRepository, kind: ContentKind, descriptor: Descriptor, *, asked_at: int | None = None
    ) -> None:
        """Note that a repository holds it: for an answer of a replica, unless anything was deleted meanwhile.

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
        """Forget a tag that was deleted; ``moment`` changes first, so that whoever learns it just now can see it."""

    def forget_tags_of(self, routed: RoutedRepository, digest: Digest) -> list[Tag]:
        """Remove every cached tag that is ``digest``; return them."""


# ---------------------------------------------------------------- replicas


class RegistryReader(Protocol):
    """Reading from an upstream. One replica's client and the fail-over over all of them are both one.

    Each method raises RegistryError (404 codes only when it is certain), and UpstreamUnavailableError. The fail-over
    has its patience (how long it waits for a replica to come back before it raises that) from its constructor.
    """

    async def resolve_tag(self, repository: Repository, tag: Tag) -> Descriptor: ...
    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """Return a manifest whose bytes were compared with ``digest``."""

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor: ...
    def open_blob(
        self, repository: Repository, digest: Digest, offset: int = 0
    ) -> AbstractAsyncContextManager[ByteStream]: ...
    async def list_tags(self, repository: Repository) -> list[Tag]:
        """Return all tags, sorted."""

    async def list_repositories(self) -> list[Repository]:
        """Return all repositories, sorted."""


class RegistryWriter(Protocol):
    """Writing to ONE replica. Locations are path and query only, on the replica's own base URL."""

    async def start_upload(self, repository: Repository) -> str: ...
    async def append_upload(self, location: str, body: AsyncIterator[bytes], size_bytes: int | None) -> str:
        """PATCH; returns the next location. Never repeated into the same session: what arrived of it is not known."""

    async def commit_upload(self, location: str, digest: Digest) -> None: ...
    async def cancel_upload(self, location: str) -> None: ...
    async def push_blob(
        self, repository: Repository, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]
    ) -> None:
        """POST and one PUT with the whole body; ``body`` is called anew for each attempt."""

    async def mount_blob(self, repository: Repository, digest: Digest, from_repository: Repository) -> bool:
        """Return True on 201; on 202 the session is cancelled and False returned."""

    async def put_manifest(self, repository: Repository, tag_or_digest: Tag | Digest, manifest: Manifest) -> None: ...
    async def delete_manifest(self, repository: Repository, digest: Digest) -> None:
        """Delete; a 404 counts as done. Raises RegistryError UNSUPPORTED when the registry does not delete."""

    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        """Delete a tag, never a manifest that another tag may be on; errors as for a manifest."""

    async def delete_blob(self, repository: Repository, digest: Digest) -> None: ...


class ReplicaClient(RegistryReader, RegistryWriter, Protocol):
    """One replica: both sides, and the name it has in the configuration."""

    @property
    def name(self) -> str: ...


class ReplicaState(StrEnum):
    """The label ``state`` of registry_proxy_replica_state."""

    UP = "up"
    BEHIND = "behind"
    CREDENTIALS_REFUSED = "credentials_refused"
    NOT_A_REGISTRY = "not_a_registry"
    DOWN = "down"


class StorageKind(Enum):
    """Whether the replicas of an upstream each have a store of their own, or stand over one."""

    INDEPENDENT = "independent"
    SHARED = "shared"


class Separation(Protocol):
    """Whether the replicas of an upstream answer for a content only in the repositories that hold it."""

    def is_mixed(self, kind: ContentKind) -> bool:
        """Tell whether a replica was seen to answer for a repository that does not hold the content."""

    def is_apart(self, kind: ContentKind) -> bool:
        """Tell whether every replica was seen not to."""

    def is_settled(self, kind: ContentKind) -> bool:
        """Tell whether nothing is left to ask a replica that has answered until now."""

    async def verify(self, kind: ContentKind) -> None:
        """Ask the replicas that have answered and were not asked yet. Raises UpstreamUnavailableError."""

    async def can_believe(self, replica: str, kind: ContentKind) -> bool:
        """Tell whether a replica keeps repositories apart, asking it where that is not known."""


class ReplicaSet(Protocol):
    """The replicas of one upstream, as writers need them."""

    @property
    def upstream(self) -> str: ...
    @property
    def storage(self) -> StorageKind: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def write_quorum(self) -> int: ...
    @property
    def separation(self) -> Separation: ...
    @property
    def replicas(self) -> Sequence[ReplicaClient]:
        """All configured replicas, in configured order."""

    def is_writable(self, replica: str) -> bool:
        """Tell whether the circuit to it is closed: it is up, or was when last asked, and not paused."""

    def report_failure(self, replica: str, error: Exception) -> None:
        """Tell health that a request to it failed."""


# ---------------------------------------------------------------- journal


@dataclass(frozen=True, slots=True)
class Pause:
    """A replica that an administrator took out of writes and repair, as for its own garbage collection.

    ``revision`` is that of its record: a write whose intents are older did not know of it. ``since`` is in seconds
    since the epoch, ``by`` a typed subject.
    """

    replica: str
    reason: str
    by: str
    since: float
    revision: int


class PauseRefusedError(Exception):
    """A replica cannot be paused, or resumed, as things are; the text says why."""


class Marks(Protocol):
    """What each replica is known to miss: an immutable snapshot of the open intents."""

    def misses_tag(self, replica: str, routed: RoutedRepository, tag: Tag) -> bool: ...
    def misses_any(self, replica: str, routed: RoutedRepository) -> bool:
        """Its 404 counts only where this is False."""

    def has_tombstone(self, replica: str, routed: RoutedRepository, digest: Digest) -> bool:
        """Tell whether the replica still holds a manifest or blob that was deleted through us."""

    def pending(self, replica: str, upstream: str) -> int:
        """How many keys it is behind in."""

    def refuses(self, replica: str, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> bool:
        """Tell whether the replica cannot have this: it is not asked for it, and its 404 proves nothing."""

    def refused(self, replica: str, upstream: str) -> int:
        """Return the number of keys that it cannot have, less those that a person dismissed."""

    def lost(self, upstream: str) -> int:
        """Return the number of keys that no replica has any more, less those that a person dismissed."""

    def pause(self, upstream: str) -> Pause | None:
        """Return the pause of one of its replicas; there is one at most."""


class MarkSource(Protocol):
    """Gives the marks as they are now, including every write acknowledged on this node."""

    async def marks(self, *, of_all_nodes: bool = False) -> Marks:
        """Return the marks; with ``of_all_nodes`` what any node acknowledged until now counts, if the store answers."""


# ---------------------------------------------------------------- store


class Table(StrEnum):
    """The kinds of record in the store."""

    META = "meta"
    USERS = "users"
    GROUPS = "groups"
    GRANTS = "grants"
    SUBJECTS = "subjects"  # generations: survive the user, so that an old token never becomes good again
    KEYS = "keys"  # public halves of the token keys
    LOCATION_KEYS = "location_keys"  # HMAC keys of upload locations
    INTENTS = "intents"  # open writes: the journal
    MANIFESTS = "manifests"  # every manifest acknowledged through us
    TAGS = "tags"  # what each tag was last made through us
    ROBOTS = "robots"
    SECRETS = "secrets"  # of robots, personal and refresh tokens: hashes only
    REVOKED_TOKENS = "revoked_tokens"  # by token id, until they would have expired
    AUDIT_HEADS = "audit_heads"  # the signed ends of the audit logs, by node and process
    PUSHED_BLOBS = "pushed_blobs"  # where replicas mix repositories: what no manifest may name yet
    DELETIONS = "deletions"  # of content: until every node has surely forgotten that a repository held it
    COMPARED = (
        "compared"  # by upstream: replicas whose fallback tags are on record, or at all others; see store.changes
    )


@dataclass(frozen=True, slots=True)
class Record:
    """A stored value. ``revision`` is the sequence number of the commit that wrote it: it only ever rises."""

    key: str
    value: Mapping[str, Any]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One write of a commit. ``value`` None deletes.

    ``expect`` is a precondition: None for none, 0 for "must not exist", else the revision it must have.
    """

    table: Table
    key: str
    value: Mapping[str, Any] | None
    expect: int | None = None


class Store(Protocol):
    """Records in tables, changed several at a time, atomically and durably.

    Every method raises StoreUnavailableError when it cannot be reached.
    """

    async def get(self, table: Table, key: str) -> Record | None: ...
    async def list(self, table: Table, prefix: str = "") -> list[Record]:
        """Return the records whose key starts with ``prefix``, by key."""

    async def heads(self, table: Table, prefix: str = "") -> Sequence[str]:
        """Return what stands before the first ``|`` in the keys that ``list`` would return, each once.

        Costs a look-up for each of them, however many keys begin with it.
        """

    async def count(self, table: Table, prefix: str = "") -> int:
        """Return how many records ``list`` would return."""

    async def commit(self, changes: Sequence[Change], *, versions: Mapping[Table, int] = MappingProxyType({})) -> int:
        """Apply all changes or none; return the new sequence number, the revision of every record written.

        Args:
            changes: what is written; where there are none, nothing is compared either.
            versions: of tables that may not have changed, as ``versions`` told them; 0 for one that it did not tell.

        Raises:
            ConflictError: an ``expect`` does not hold, or a table has another version.
        """

    async def versions(self) -> Mapping[Table, int]:
        """Return for each table the sequence number of its last change; 0 or absent where there was none."""

    def lease(self, key: str) -> AbstractAsyncContextManager[None]:
        """Hold an exclusive lease on ``key``, over all workers (SQLite) or all nodes (Redis); waits for it.

        Raises:
            StoreUnavailableError: not obtained within 30 s.
        """

    async def aclose(self) -> None: ...


class StoreChanges(Protocol):
    """Knows cheaply when a table may have changed, in this worker, another one, or another node."""

    def version(self, table: Table) -> int:
        """Return a number that differs from an earlier one whenever the table may have changed; costs under 1 us."""

    async def check(self) -> None:
        """Have ``version`` know what every node committed until now. Raises StoreUnavailableError."""


# ---------------------------------------------------------------- events


class Observer(Protocol):
    """Is told what happens; Prometheus is one. Values of all labels come from closed sets."""

    def cache_request(self, kind: ContentKind, result: CacheResult) -> None: ...
    def sent_bytes(self, source: str, size_bytes: int) -> None:
        """``source`` is cache or upstream."""

    def upstream_request(self, upstream: str, replica: str, method: str, outcome: str, duration_seconds: float) -> None:
        """``outcome`` is 2xx, 3xx, 4xx, 429, 5xx, connect, timeout, stall, cut or mismatch."""

    def replica_state(self, upstream: str, replica: str, state: ReplicaState) -> None: ...
    def replica_pending(self, upstream: str, replica: str, count: int) -> None: ...
    def replica_refused(self, upstream: str, replica: str, count: int) -> None:
        """Note how many keys a replica cannot have."""

    def replica_paused(self, upstream: str, replica: str, *, is_paused: bool) -> None: ...
    def lost_contents(self, upstream: str, count: int) -> None:
        """Note how many keys no replica of an upstream has any more."""

    def lost_copies(self, upstream: str, count: int) -> None:
        """Note how many contents that a replica misses this node kept for it, and no longer has."""

    def repositories_mixed(self, upstream: str, replica: str, is_mixed: bool) -> None:  # noqa: FBT001 - a gauge's value
        """Note whether a replica answers for a content in repositories that do not hold it."""

    def hedged(self, upstream: str, winner: str) -> None:
        """Note a question put to a second replica as well; ``winner`` is first, later, or none without an answer."""

    def decision(self, action: str, result: str) -> None:
        """``result`` is allow, deny or would_deny."""

    def request(self, route: str, method: str, status: int, duration_seconds: float) -> None: ...
    def cache_bytes(self, state: str, size_bytes: int) -> None:
        """``state`` is committed, filling or pinned."""

    def cache_error(self, reason: str) -> None:
        """``reason`` is write, read, evict, full, mismatch (a replica sent wrong content) or rot (it went bad here)."""

    def wrong_content(self, upstream: str, replica: str) -> None:
        """Note that a replica sent something else than the digest it was asked for."""

    def scrubbed(self, size_bytes: int) -> None:
        """Note how much committed content was read and compared."""

    def policy_current(self, at: float) -> None:
        """Note when this worker last knew that it decides by what the store holds, in seconds since the epoch."""

    def scrub_ended(self, ended_at: float) -> None:
        """Note when the scrub's last round ended, in seconds since the epoch."""

    def repaired(self, upstream: str, replica: str, outcome: str) -> None:
        """Note a key that a replica missed. ``outcome`` is copied, deleted, refused, lost, given_up or failed."""

    def repaired_bytes(self, upstream: str, replica: str, size_bytes: int) -> None:
        """Note the size of a blob that was sent to a replica that missed it."""

    def cache_evicted(self, size_bytes: int) -> None: ...
    def stale_answer(self, reason: StaleReason) -> None:
        """Note that a tag was answered as it was, because it could not be asked for."""

    def login(self, outcome: str) -> None:
        """``outcome`` is ok, refused, limited or unavailable (an issuer, or LDAP, does not answer)."""

    def audit_dropped(self, sink: str, count: int) -> None:
        """Note that events did not reach the audit log; ``sink`` is file, stdout, syslog or decisions."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something that shall be known later: who did, or was refused, what. No field may hold a secret.

    Args:
        action: what it is: login, pull, push, delete, or a resource of the admin API and its method (``users.put``).
        outcome: ok, refused (credentials), limited, denied (a right) or failed.
        subject: typed, such as ``user:ann``; of a login that was refused, whom it claimed to be.
        address: the client's.
        repository: the canonical name.
        tag: where one is named.
        digest: where one is named or made.
        rule: the id of the grant that decided, or the reason, also that of a login which its answer does not tell.
        detail: what else there is, as JSON has it.
    """

    action: str
    outcome: str
    subject: str = ""
    address: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""
    rule: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


AskedRight = tuple[str, str, Action, str | None]
"""A question that was decided: subject, canonical repository, action, tag."""


class AuditLog(Protocol):
    """Remembers events; no method fails, and only ``written`` waits."""

    @property
    def records_pulls(self) -> bool:
        """Whether it wants to be told of each pull that was allowed."""

    def record(self, event: AuditEvent) -> None:
        """Take an event of the request that is being answered."""

    async def written(self) -> None:
        """Wait until the events recorded so far survive the end of this process, for a second at most."""

    def asked(self, right: AskedRight) -> None:
        """Take a question that was decided, so that another policy can be asked it as well."""


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """What became of reading the configuration again.

    ``generation`` is that of the workers that serve now, from 1. ``faults`` are those of the configuration, each with
    its place; ``failure`` is why workers did not start with it. With either the old workers serve on, with the old one.
    """

    generation: int
    faults: tuple[str, ...] = ()
    failure: str = ""
