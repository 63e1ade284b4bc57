"""The cache of this node, of the admin API."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from registry_proxy.api.models import Body, Document, Page, Text, WholeSeconds
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import Fault, ProblemError, invalid
from registry_proxy.api.requests import PAGE, read_page, read_query
from registry_proxy.ports.content import CachedBlob
from registry_proxy.ports.names import CacheResult, ContentKind
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Repository, parse_digest, parse_repository

_CACHE_REQUESTS = "registry_proxy_cache_requests_total"


class Cache(Protocol):
    """The blob cache as an administrator sees it; what is pinned is not purged."""

    def stats(self) -> Mapping[str, int]: ...
    async def list_blobs(self, after: Digest | None, limit: int) -> Sequence[CachedBlob]: ...
    async def verify(self) -> Sequence[Digest]: ...
    async def purge(self, digests: Collection[Digest] | None) -> int: ...


def count_cache_requests(exposition: bytes) -> dict[str, dict[str, int]]:
    """Return how many requests the cache had, by kind and result, out of the metrics of all workers."""
    counts = {kind.value: {result.value: 0 for result in CacheResult} for kind in ContentKind}
    for family in text_string_to_metric_families(exposition.decode()):
        for sample in family.samples:
            if sample.name == _CACHE_REQUESTS:
                counts[sample.labels["kind"]][sample.labels["result"]] += int(sample.value)
    return counts


def _hit_ratio(counts: Mapping[str, int]) -> float | None:
    total = sum(counts.values())
    return counts[CacheResult.HIT] / total if total else None


class CacheDocument(Document):
    """The cache of this node; requests and hit ratios by kind of content, a ratio null before the first request."""

    size_bytes: int
    max_size_bytes: int
    entries: int
    filling_bytes: int
    pinned_bytes: int
    requests: dict[str, dict[str, int]]
    hit_ratios: dict[str, float | None]


class CachedBlobDocument(Document):
    """One content of the cache."""

    digest: Text
    size_bytes: int
    used_at: WholeSeconds
    protected: bool


class CacheVerificationDocument(Document):
    """Digests whose content did not match; the files are in quarantine."""

    bad: list[str]


class PurgeBody(Body):
    """Content to remove from the cache: one digest, all that one repository holds, or everything."""

    digest: str | None = None
    repository: str | None = None


class PurgeDocument(Document):
    """The number of entries that were removed."""

    removed: int


class CacheResource:
    """The handlers of the cache."""

    def __init__(
        self,
        *,
        cache: Cache,
        purge_repository: Callable[[Repository], Collection[Digest]],
        render_metrics: Callable[[], bytes],
    ) -> None:
        self._cache = cache
        self._purge_repository = purge_repository
        self._render_metrics = render_metrics
        self._verifying = asyncio.Lock()

    @Endpoint("GET /cache", "Show size and hit ratios of the cache of this node")
    async def get_cache(self, request: web.Request) -> CacheDocument:
        read_query(request)
        stats = self._cache.stats()
        requests = count_cache_requests(await asyncio.to_thread(self._render_metrics))
        ratios = {kind: _hit_ratio(counts) for kind, counts in requests.items()}
        return CacheDocument(
            size_bytes=stats["committed_bytes"],
            max_size_bytes=stats["max_size_bytes"],
            entries=stats["entries"],
            filling_bytes=stats["filling_bytes"],
            pinned_bytes=stats["pinned_bytes"],
            requests=requests,
            hit_ratios=ratios,
        )

    @Endpoint("GET /cache/blobs", "List cached contents", query=PAGE)
    async def list_blobs(self, request: web.Request) -> Page[CachedBlobDocument]:
        page = read_page(request)
        with _fault_at("?after"):
            after = parse_digest(page.after) if page.after else None
        blobs = await self._cache.list_blobs(after, page.limit + 1)
        items = [CachedBlobDocument.of(blob) for blob in blobs[: page.limit]]
        more = len(blobs) > page.limit
        return Page[CachedBlobDocument](items=items, next=items[-1].digest if more else None)

    @Endpoint("POST /cache/verify", "Read the cache, and move corrupted content into quarantine")
    async def verify_cache(self, _: web.Request) -> CacheVerificationDocument:
        if self._verifying.locked():
            raise ProblemError(409, "a verification of the cache runs already")
        async with self._verifying:
            bad = await self._cache.verify()
        return CacheVerificationDocument(bad=list(map(str, bad)))

    @Endpoint("POST /cache/purge", "Remove some or all content from the cache")
    async def purge_cache(self, _: web.Request, body: PurgeBody) -> PurgeDocument:
        digests: Collection[Digest] | None = None
        if body.digest is not None and body.repository is not None:
            raise ProblemError(400, "expected a digest or a repository, or neither for everything")
        if body.digest is not None:
            with _fault_at("#/digest"):
                digests = [parse_digest(body.digest)]
        elif body.repository is not None:
            with _fault_at("#/repository"):
                digests = await asyncio.to_thread(self._purge_repository, parse_repository(body.repository))
        return PurgeDocument(removed=await self._cache.purge(digests))


@contextmanager
def _fault_at(pointer: str) -> Iterator[None]:
    """Report text that is no digest or repository as a fault of this field."""
    try:
        yield
    except RegistryError as error:
        raise invalid([Fault(pointer, error.message)]) from None
