"""Reading and writing the replicas of an upstream."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Protocol

from registry_proxy.ports.content import ByteStream
from registry_proxy.ports.journal import Pause
from registry_proxy.ports.names import ContentKind
from registry_proxy.protocol.descriptor import Descriptor, Manifest
from registry_proxy.protocol.reference import Digest, Repository, Tag
from registry_proxy.protocol.referrers import Referrer


@dataclass(frozen=True, slots=True)
class HeldReferrers:
    """The referrers of a manifest that an upstream holds.

    ``listed`` are the entries that its referrers API gives, ``tagged`` those under the fallback tag. ``tags`` are the
    digests that this tag is at the replicas, None where it does not exist. ``needs_tag``: whether some replica
    has no such API, or is not known to have one.
    """

    listed: Sequence[Referrer]
    tagged: Sequence[Referrer]
    tags: frozenset[Digest | None]
    needs_tag: bool


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
    async def list_tags(self, repository: Repository) -> Sequence[Tag]:
        """Return all tags, sorted."""

    async def list_repositories(self) -> Sequence[Repository]:
        """Return all repositories, sorted."""


class UpstreamReader(RegistryReader, Protocol):
    """Reading from all replicas of an upstream."""

    async def list_referrers(self, repository: Repository, digest: Digest) -> HeldReferrers:
        """Return what every replica holds; UpstreamUnavailableError where the list might miss something."""


class RegistryWriter(Protocol):
    """Writing to ONE replica. Locations are path and query only, on the replica's own base URL."""

    async def start_upload(self, repository: Repository) -> str: ...
    async def append_upload(self, location: str, body: AsyncIterator[bytes], size_bytes: int | None) -> str:
        """PATCH; returns the next location. Never repeated into the same session: what arrived of it is not known."""

    async def holds_upload(self, location: str, size_bytes: int) -> bool:
        """Tell whether the session is there, and has exactly so many bytes, one at least."""

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

    async def fetch_referrers(self, repository: Repository, digest: Digest) -> Sequence[Referrer] | None:
        """Return the entries of what refers to a manifest (spec, "Listing Referrers"); None without that API."""


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


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica as the admin API shows it; ``reason`` is empty when there is nothing to explain.

    It misses ``pending`` keys, and cannot have ``refused`` others.
    ``keeps_apart``: whether it answers for a content only in the repositories that hold it, None while unknown.
    ``pause`` is there while it is paused.
    """

    name: str
    url: str
    state: ReplicaState
    reason: str
    latency_seconds: float | None
    pending: int
    refused: int
    keeps_apart: bool | None
    pause: Pause | None = None


class UpstreamStatus(Protocol):
    """The replicas of one upstream; ``refresh`` brings the counts of ``status`` and ``lost`` up to date."""

    @property
    def lost(self) -> int: ...
    async def refresh(self) -> None: ...
    def status(self) -> Sequence[ReplicaStatus]: ...
    def warnings(self) -> Sequence[str]: ...
