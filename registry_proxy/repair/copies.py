"""Bringing to one replica what the others, or this node's cache, have: the bytes of a repair."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from registry_proxy.operations.contents import ask, find_cached_manifest, has, links_of, parts_of
from registry_proxy.ports.content import BlobCache, Holdings
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.metrics import Observer, RepairedBytes
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import RegistryReader, ReplicaClient, ReplicaSet
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor, Manifest, ManifestLinks
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag
from registry_proxy.replication.refusals import (
    FinalRefusalError,
    final_refusal,
    judge_blob,
    may_be_final,
    may_lack_content,
)
from registry_proxy.replication.upload_stream import read_range

_DEPTH_MAX = 16
"""How deep indexes are followed at once: what lies deeper is a key of its own, and goes before the next round."""


async def is_nowhere(replica_set: ReplicaSet, question: Callable[[ReplicaClient], Awaitable[object]]) -> bool:
    """Tell whether every configured replica answers 404 now; one that is away, or fails, proves nothing."""
    for client in replica_set.replicas:
        try:
            if not replica_set.is_writable(client.name) or await has(question(client)):
                return False
        except (RegistryError, UpstreamUnavailableError):
            return False
    return True


class Pace:
    """Spreads bytes over time.

    Args:
        bytes_per_second: 0 for as fast as it goes.
        clock: monotonic, in seconds.
    """

    def __init__(self, bytes_per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._free_at = 0.0

    def delay_seconds(self, size_bytes: int) -> float:
        """Return how long to wait before these bytes go, and take note that they do."""
        if not self._bytes_per_second:
            return 0.0
        now = self._clock()
        self._free_at = max(self._free_at, now) + size_bytes / self._bytes_per_second
        return self._free_at - now

    async def spread(self, pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Give the same pieces, each in its time."""
        async for piece in pieces:
            if delay := self.delay_seconds(len(piece)):
                await asyncio.sleep(delay)
            yield piece


@dataclass(frozen=True, slots=True)
class _Errand:
    """A manifest on its way to a replica with all its parts.

    ``parts`` are those that were dealt with, and why the replica cannot have one, "" where it has it: indexes may share
    children, and to ask for each by each way to it would double with each level. ``depth`` is that of the nesting.
    """

    client: ReplicaClient
    routed: RoutedRepository
    parts: dict[Digest, str] = field(default_factory=dict)
    depth: int = 0


class Copies:
    """Sends contents of an upstream to one of its replicas.

    The sources are our cache, as far as the repository is known to hold the content (else a manifest that names a
    digest would bring any blob of the cache into its repository), and then the other replicas. The receiving registry
    compares the digest.

    Every method raises RegistryError (404 when it is certain that nobody has the content) and UpstreamUnavailableError.

    Args:
        replica_sets: by upstream.
        readers: by upstream.
        cache: of this node.
        holdings: which repository holds what of it.
        pace: of all bytes of blobs.
        observer: receives an event for each blob that was sent.
    """

    def __init__(
        self,
        *,
        replica_sets: Mapping[str, ReplicaSet],
        readers: Mapping[str, RegistryReader],
        cache: BlobCache,
        holdings: Holdings,
        pace: Pace,
        observer: Observer,
    ) -> None:
        self._replica_sets = replica_sets
        self._readers = readers
        self._cache = cache
        self._holdings = holdings
        self._pace = pace
        self._observer = observer

    async def copy_blob(self, client: ReplicaClient, routed: RoutedRepository, digest: Digest) -> None:
        """Send a blob."""
        size_bytes = await self._copy_cached(client, routed, digest)
        if size_bytes is None:
            reader, repository = self._readers[routed.upstream], routed.repository
            known = await reader.stat_blob(repository, digest)
            async with reader.open_blob(repository, digest) as stream:
                await _push(client, repository, known, lambda: self._pace.spread(stream))
            size_bytes = known.size_bytes
        self._observer.observe(RepairedBytes(routed.upstream, client.name, size_bytes))

    async def _copy_cached(self, client: ReplicaClient, routed: RoutedRepository, digest: Digest) -> int | None:
        if self._holdings.find(routed, ContentKind.BLOB, digest) is None:
            return None
        reader = self._cache.open_committed(digest)
        if reader is None:
            return None
        size_bytes = reader.size_bytes
        try:
            await _push(
                client,
                routed.repository,
                Descriptor(BLOB_MEDIA_TYPE, digest, size_bytes),
                lambda: self._pace.spread(read_range(reader.fd, size_bytes)),
            )
        finally:
            reader.close()
        return size_bytes

    async def copy_manifest(
        self, client: ReplicaClient, routed: RoutedRepository, digest: Digest, tag: Tag | None = None
    ) -> None:
        """Send a manifest, under ``tag`` when given; what it refers to and the replica lacks goes before it.

        Raises:
            FinalRefusalError: the replica has all of these parts that it can have, and refuses the manifest.
        """
        await self._send(_Errand(client, routed), digest, tag)

    async def _send(self, errand: _Errand, digest: Digest, tag: Tag | None = None) -> None:
        client, routed = errand.client, errand.routed
        manifest = await self._manifest(routed, digest)
        try:
            await client.put_manifest(routed.repository, tag or digest, manifest)
        except RegistryError as error:
            if not may_lack_content(error):
                raise (final_refusal(error) if may_be_final(error) else error) from error
        else:
            return
        if errand.depth >= _DEPTH_MAX:
            raise UpstreamUnavailableError(f"{digest} lies {errand.depth} indexes deep: the ones below go first")
        absent = await self._copy_parts(replace(errand, depth=errand.depth + 1), links_of(manifest))
        try:
            await client.put_manifest(routed.repository, tag or digest, manifest)
        except RegistryError as error:
            raise (final_refusal(error, absent) if may_be_final(error) else error) from error

    async def _copy_parts(self, errand: _Errand, links: ManifestLinks) -> dict[Digest, str]:
        """Send what a manifest refers to and the replica lacks; return what it cannot have, and why."""
        parts = parts_of(links)
        for kind, digest in parts:
            if digest not in errand.parts:
                errand.parts[digest] = await self._copy_part(errand, kind, digest)
        return {digest: errand.parts[digest] for _, digest in parts if errand.parts[digest]}

    async def _copy_part(self, errand: _Errand, kind: ContentKind, digest: Digest) -> str:
        """Send a part unless it is there; return why the replica cannot have it, "" when it has it now."""
        client, routed = errand.client, errand.routed
        if await has(ask(client, routed.repository, kind, digest)):
            return ""
        try:
            if kind is ContentKind.BLOB:
                await self.copy_blob(client, routed, digest)
            else:
                await self._send(errand, digest)
        except FinalRefusalError as error:
            return error.reason
        except (RegistryError, UpstreamUnavailableError):
            if not await self.is_lost(routed, kind, digest):
                raise
            return "no replica has it"
        return ""

    async def is_lost(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        """Tell whether a content cannot be had: every configured replica says so now, and this cache lacks it, too."""
        replica_set = self._replica_sets[routed.upstream]
        if self._is_cached(routed, kind, digest):
            return False
        return await is_nowhere(replica_set, lambda client: ask(client, routed.repository, kind, digest))

    def _is_cached(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        reader = None
        if self._holdings.find(routed, kind, digest) is not None:
            reader = self._cache.open_committed(digest)
        if reader is not None:
            reader.close()
        return reader is not None

    async def _manifest(self, routed: RoutedRepository, digest: Digest) -> Manifest:
        cached = find_cached_manifest(self._holdings, self._cache, routed, digest)
        return cached or await self._readers[routed.upstream].fetch_manifest(routed.repository, digest)


async def _push(
    client: ReplicaClient, repository: Repository, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]
) -> None:
    try:
        await client.push_blob(repository, descriptor, body)
    except RegistryError as error:
        raise judge_blob(error, descriptor.digest) from error
