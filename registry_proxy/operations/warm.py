"""Filling the cache before anybody asks: the blobs of a manifest that is being pulled, and images by command."""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from registry_proxy.operations.contents import links_of
from registry_proxy.operations.pull import Pull
from registry_proxy.ports.errors import CacheUnavailableError, FillFailedError, UpstreamUnavailableError
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.descriptor import Descriptor, Manifest, ManifestLinks, parse_manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.platform import Platform, platforms_of
from registry_proxy.protocol.reference import Digest, Tag
from registry_proxy.tasks import spawn

_AT_ONCE = 3
"""How many blobs are fetched ahead at a time: as many as docker fetches by itself."""

_QUEUE_MAX = 200
_REMEMBERED_PULLS = 4096

_log = logging.getLogger(__name__)


async def fill_whole(pull: Pull, routed: RoutedRepository, digest: Digest) -> int:
    """Have a whole blob in the cache; return its size in bytes.

    Raises:
        RegistryError, UpstreamUnavailableError, FillFailedError: it cannot be had.
        CacheUnavailableError: the cache cannot take it.
    """
    reader = await pull.blobs.fill_blob(routed, digest)
    try:
        while not reader.verified:
            await reader.wait_beyond(reader.available_bytes)
        return reader.size_bytes
    finally:
        reader.close()


class Prefetch:
    """Begins to fill the blobs of an image as soon as its first blob is requested, each worker for its own clients.

    Only what somebody pulls is fetched ahead: GET of a manifest, then GET of one of its blobs by the same subject. A
    HEAD or a poller of manifests begins nothing, nor does an index, only the image that is chosen from it. Holdings are
    judged as for a client.

    Args:
        pull: the verbs of pulling.
    """

    def __init__(self, pull: Pull) -> None:
        self._pull = pull
        self._pulled: OrderedDict[tuple[str, RoutedRepository], Digest] = OrderedDict()
        self._queue: deque[tuple[RoutedRepository, Digest]] = deque(maxlen=_QUEUE_MAX)
        self._workers: set[asyncio.Task[None]] = set()

    def manifest_sent(self, subject: str, routed: RoutedRepository, digest: Digest) -> None:
        """Take note that a subject got a manifest."""
        self._pulled[subject, routed] = digest
        if len(self._pulled) > _REMEMBERED_PULLS:
            self._pulled.popitem(last=False)

    def blob_asked(self, subject: str, routed: RoutedRepository, digest: Digest) -> None:
        """Begin with the other blobs of the image whose manifest the subject got last, if this one is of it."""
        manifest_digest = self._pulled.get((subject, routed))
        if manifest_digest is None:
            return
        manifest = self._pull.read_cached_manifest(routed, manifest_digest)
        blobs = [] if manifest is None else _blobs_of(manifest)
        if digest not in blobs:
            return
        del self._pulled[subject, routed]
        self._queue.extend((routed, blob) for blob in blobs if blob != digest)
        for _ in range(min(_AT_ONCE - len(self._workers), len(self._queue))):
            worker = spawn(self._work(), "prefetch")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        while self._queue:
            routed, digest = self._queue.popleft()
            try:
                await fill_whole(self._pull, routed, digest)
            except (RegistryError, UpstreamUnavailableError, FillFailedError, CacheUnavailableError) as error:
                _log.info("%s of %s was not fetched ahead: %s", digest, routed, error)


def _blobs_of(manifest: Manifest) -> list[Digest]:
    return [blob.digest for blob in links_of(manifest).blobs]


@dataclass(slots=True)
class WarmProgress:
    """Progress of the warming of one image. Bytes are those of its blobs; ``error`` is why it ended early."""

    image: str
    digest: Digest | None = None
    blobs_total: int = 0
    blobs_done: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    is_done: bool = False
    error: str = ""
    _seen: set[Digest] = field(default_factory=set)

    def add(self, blobs: Iterable[Descriptor]) -> list[Descriptor]:
        """Add the blobs that are new to the total; return them."""
        new = list({blob.digest: blob for blob in blobs if blob.digest not in self._seen}.values())
        self._seen.update(blob.digest for blob in new)
        self.blobs_total += len(new)
        self.bytes_total += sum(blob.size_bytes for blob in new)
        return new


FindReferrers = Callable[[RoutedRepository, Digest], Awaitable[Sequence[Digest]]]


@dataclass(frozen=True, slots=True)
class Warmer:
    """Brings whole images into the cache, with their signatures and other referrers.

    Args:
        pull: the verbs of pulling.
        find_referrers: returns the manifests that refer to one.
    """

    pull: Pull
    find_referrers: FindReferrers

    async def warm(
        self,
        routed: RoutedRepository,
        tag_or_digest: Tag | Digest,
        platforms: frozenset[Platform],
        progress: WarmProgress,
    ) -> None:
        """Fill a manifest, all that it refers to, and all that refers to it; errors end up in ``progress``.

        Args:
            routed: the repository.
            tag_or_digest: the image.
            platforms: of an index only these images; none for all.
            progress: is brought up to date as it goes.
        """
        try:
            answer = await self.pull.get_manifest(routed, tag_or_digest)
            progress.digest = answer.manifest.descriptor.digest
            blobs = progress.add(await self._find_blobs(routed, answer.manifest, platforms))
            for blob in blobs:
                progress.bytes_done += await fill_whole(self.pull, routed, blob.digest)
                progress.blobs_done += 1
        except RegistryError as error:
            progress.error = error.message
        except (UpstreamUnavailableError, FillFailedError, CacheUnavailableError) as error:
            progress.error = str(error)
        finally:
            progress.is_done = True

    async def _find_blobs(
        self, routed: RoutedRepository, manifest: Manifest, platforms: frozenset[Platform]
    ) -> list[Descriptor]:
        """Return the blobs of an image and of its referrers; each manifest counts once, by however many ways."""
        blobs: list[Descriptor] = []
        seen = {manifest.descriptor.digest}
        waiting = [(manifest, False)]
        while waiting:
            each, is_referrer = waiting.pop()
            links = links_of(each) if is_referrer else parse_manifest(each.body, each.descriptor.media_type)
            blobs += links.blobs
            children = {} if is_referrer else _chosen(each, links, platforms)
            referrers = await self.find_referrers(routed, each.descriptor.digest)
            for digest in (*children, *referrers):
                if digest not in seen:
                    seen.add(digest)
                    answer = await self.pull.get_manifest(routed, digest)
                    waiting.append((answer.manifest, digest not in children))
        return blobs


def _chosen(manifest: Manifest, links: ManifestLinks, platforms: frozenset[Platform]) -> Mapping[Digest, None]:
    """Return the images of an index that are for some platforms, all for none. Raises MANIFEST_UNKNOWN for no image."""
    stated = platforms_of(manifest.body) if platforms and links.manifests else {}
    chosen = [
        child.digest
        for child in links.manifests
        if not platforms or any(wanted.matches(stated.get(str(child.digest))) for wanted in platforms)
    ]
    if platforms and links.manifests and not chosen:
        raise RegistryError(
            ErrorCode.MANIFEST_UNKNOWN,
            f"the index has no image for {', '.join(sorted(map(str, platforms)))}",
            detail={"digest": str(manifest.descriptor.digest)},
        )
    return dict.fromkeys(chosen)  # in their order, and quickly looked up
