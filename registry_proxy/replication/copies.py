"""Bringing to one replica what the others, or this node's cache, have: the bytes of a repair."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping

from registry_proxy.ports import (
    BlobCache,
    ContentKind,
    Memberships,
    RegistryReader,
    ReplicaClient,
    RoutedRepository,
)
from registry_proxy.replication.uploads import read_range
from registry_proxy.spec.descriptor import BLOB_MEDIA_TYPE, Descriptor, Manifest, parse_manifest
from registry_proxy.spec.errors import RegistryError
from registry_proxy.spec.reference import Digest, Tag


async def has(question: Awaitable[object]) -> bool:
    """Tell whether a replica has what it is asked for: False for a 404."""
    try:
        await question
    except RegistryError as error:
        if error.status != 404:
            raise
        return False
    return True


def may_lack_content(error: RegistryError) -> bool:
    """Tell whether a registry may have refused a manifest because it lacks a blob or a child that the manifest names.

    The code does not decide it: zot says MANIFEST_INVALID, others BLOB_UNKNOWN or NAME_UNKNOWN.
    """
    return error.status in {400, 404}


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


class Copies:
    """Sends contents of an upstream to one of its replicas.

    The sources are our cache, as far as the repository is known to hold the content (else a manifest that names a
    digest would bring any blob of the cache into its repository), and then the other replicas. Who receives a content
    compares its digest.

    Every method raises RegistryError (404 when it is certain that nobody has the content) and UpstreamUnavailableError.

    Args:
        readers: by upstream.
        cache: of this node.
        memberships: which repository holds what of it.
        pace: of all bytes of blobs.
        copied: is told of the bytes of each blob that was sent: upstream, replica, bytes.
    """

    def __init__(
        self,
        *,
        readers: Mapping[str, RegistryReader],
        cache: BlobCache,
        memberships: Memberships,
        pace: Pace,
        copied: Callable[[str, str, int], None],
    ) -> None:
        self._readers = readers
        self._cache = cache
        self._memberships = memberships
        self._pace = pace
        self._copied = copied

    async def copy_blob(self, client: ReplicaClient, routed: RoutedRepository, digest: Digest) -> None:
        """Send a blob."""
        size_bytes = await self._copy_cached(client, routed, digest)
        if size_bytes is None:
            reader, repository = self._readers[routed.upstream], routed.repository
            known = await reader.stat_blob(repository, digest)
            async with reader.open_blob(repository, digest) as stream:
                await client.push_blob(repository, known, lambda: self._pace.spread(stream))
            size_bytes = known.size_bytes
        self._copied(routed.upstream, client.name, size_bytes)

    async def _copy_cached(self, client: ReplicaClient, routed: RoutedRepository, digest: Digest) -> int | None:
        if self._memberships.find(routed, ContentKind.BLOB, digest) is None:
            return None
        reader = self._cache.open_committed(digest)
        if reader is None:
            return None
        size_bytes = reader.size_bytes
        try:
            await client.push_blob(
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
        """Send a manifest, under ``tag`` when given; what it refers to and the replica lacks goes before it."""
        manifest = await self._manifest(routed, digest)
        try:
            await client.put_manifest(routed.repository, tag or digest, manifest)
        except RegistryError as error:
            if not may_lack_content(error):
                raise
            links = parse_manifest(manifest.body, manifest.descriptor.media_type)
            for blob in links.blobs:
                if not await has(client.stat_blob(routed.repository, blob.digest)):
                    await self.copy_blob(client, routed, blob.digest)
            for child in links.manifests:
                if not await has(client.fetch_manifest(routed.repository, child.digest)):
                    await self.copy_manifest(client, routed, child.digest)
            await client.put_manifest(routed.repository, tag or digest, manifest)

    async def _manifest(self, routed: RoutedRepository, digest: Digest) -> Manifest:
        known = self._memberships.find(routed, ContentKind.MANIFEST, digest)
        body = None if known is None else self._cache.read_small(digest)
        if known is not None and body is not None:
            return Manifest(known.descriptor, body)
        return await self._readers[routed.upstream].fetch_manifest(routed.repository, digest)
