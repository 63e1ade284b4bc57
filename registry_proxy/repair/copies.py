"""Bringing to one replica what the others, or this node's cache, have: the bytes of a repair."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from registry_proxy.operations.contents import find_cached_manifest, is_committed
from registry_proxy.ports.content import BlobCache, Holdings
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.metrics import Observer, RepairedBytes
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import RegistryReader, ReplicaClient, ReplicaSet
from registry_proxy.protocol.descriptor import Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Tag
from registry_proxy.replication.refusals import FinalRefusalError, judging_blob
from registry_proxy.replication.tag_records import held_at
from registry_proxy.replication.transfer import PartAbsentError, Transfer
from registry_proxy.replication.upload_stream import read_range, send_cached


async def is_nowhere(replica_set: ReplicaSet, key: IntentKey) -> bool:
    """Tell whether every configured replica answers 404 now; one that is away, or fails, proves nothing."""
    for client in replica_set.replicas:
        try:
            if not replica_set.is_writable(client.name) or await held_at(client, key) is not None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
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

    replica_sets: Mapping[str, ReplicaSet]
    readers: Mapping[str, RegistryReader]
    cache: BlobCache
    holdings: Holdings
    pace: Pace
    observer: Observer

    async def copy_blob(self, client: ReplicaClient, routed: RoutedRepository, digest: Digest) -> None:
        """Send a blob. Raises FinalRefusalError where the replica will never take it."""
        size_bytes, repository = None, routed.repository
        if self.holdings.find(routed, ContentKind.BLOB, digest) is not None:
            with judging_blob(digest):
                size_bytes = await send_cached(self.cache, client, repository, digest, self._read_range)
        if size_bytes is None:
            reader = self.readers[routed.upstream]
            known = await reader.stat_blob(repository, digest)
            async with reader.open_blob(repository, digest) as stream:
                with judging_blob(digest):
                    await client.push_blob(repository, known, lambda: self.pace.spread(stream))
            size_bytes = known.size_bytes
        self.observer.observe(RepairedBytes(routed.upstream, client.name, size_bytes))

    def _read_range(self, fd: int, size_bytes: int) -> AsyncIterator[bytes]:
        return self.pace.spread(read_range(fd, size_bytes))

    async def copy_manifest(
        self, client: ReplicaClient, routed: RoutedRepository, digest: Digest, tag: Tag | None = None
    ) -> None:
        """Send a manifest, under ``tag`` when given; its parts that the replica misses go before it.

        Raises:
            FinalRefusalError: the replica has all of these parts that it can have, and refuses the manifest.
        """
        transfer = Transfer(self.replica_sets[routed.upstream], client, routed, self._send_part)
        await transfer.put(tag or digest, await self._manifest(routed, digest))

    async def _send_part(self, transfer: Transfer, kind: ContentKind, digest: Digest) -> None:
        try:
            if kind is ContentKind.BLOB:
                await self.copy_blob(transfer.client, transfer.routed, digest)
            else:
                await transfer.put(digest, await self._manifest(transfer.routed, digest))
        except FinalRefusalError:
            raise
        except (RegistryError, UpstreamUnavailableError) as error:
            if not await self.is_lost(transfer.routed, kind, digest):
                raise
            raise PartAbsentError("no replica has it") from error

    async def is_lost(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        """Tell whether a content cannot be had: every configured replica says so now, and so does this cache."""
        if self.holdings.find(routed, kind, digest) is not None and is_committed(self.cache, digest):
            return False
        return await is_nowhere(self.replica_sets[routed.upstream], IntentKey(routed, IntentKind(kind), str(digest)))

    async def _manifest(self, routed: RoutedRepository, digest: Digest) -> Manifest:
        cached = find_cached_manifest(self.holdings, self.cache, routed, digest)
        return cached or await self.readers[routed.upstream].fetch_manifest(routed.repository, digest)
