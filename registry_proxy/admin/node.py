"""The cache of the admin API, what lies on this node's disk, and its configuration."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from registry_proxy.admin.bodies import PurgeBody
from registry_proxy.admin.documents import (
    CachedBlobDocument,
    CacheDocument,
    CacheVerificationDocument,
    Page,
    PurgeDocument,
    ReloadDocument,
)
from registry_proxy.admin.openapi import PAGE, Endpoint
from registry_proxy.admin.problems import Fault, ProblemError, invalid
from registry_proxy.admin.requests import format_time, read_body, read_page, read_query
from registry_proxy.ports.content import CachedBlob
from registry_proxy.ports.events import ReloadOutcome
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


class NodeResources:
    """The handlers over this node itself."""

    def __init__(
        self,
        *,
        cache: Cache,
        purge_repository: Callable[[Repository], Collection[Digest]],
        render_metrics: Callable[[], bytes],
        reload: Callable[[], Awaitable[ReloadOutcome]],
    ) -> None:
        self._cache = cache
        self._purge_repository = purge_repository
        self._render_metrics = render_metrics
        self._reload = reload
        self._verifying = asyncio.Lock()

    def routes(self) -> list[Endpoint]:
        """Return the routes, below /admin/v1."""
        return [
            Endpoint(
                "GET",
                "/cache",
                self.get_cache,
                "Show size and hit ratios of the cache of this node",
                {200: CacheDocument},
            ),
            Endpoint(
                "GET",
                "/cache/blobs",
                self.list_blobs,
                "List what is cached",
                {200: Page[CachedBlobDocument]},
                query=PAGE,
            ),
            Endpoint(
                "POST",
                "/cache/verify",
                self.verify_cache,
                "Read the cache, and put what rotted into quarantine",
                {200: CacheVerificationDocument},
            ),
            Endpoint(
                "POST",
                "/cache/purge",
                self.purge_cache,
                "Remove something, or all, from the cache",
                {200: PurgeDocument},
                body=PurgeBody,
            ),
            Endpoint(
                "POST", "/reload", self.reload_configuration, "Read the configuration again", {200: ReloadDocument}
            ),
        ]

    async def reload_configuration(self, _: web.Request) -> web.Response:
        outcome = await self._reload()
        if outcome.faults:
            faults = [Fault("", fault) for fault in outcome.faults]
            raise ProblemError(422, "the configuration is not reloaded, the old one stays in force", faults=faults)
        if outcome.failure:
            raise ProblemError(503, f"the configuration is not reloaded, the old one stays in force: {outcome.failure}")
        return web.json_response(ReloadDocument(generation=outcome.generation).as_json())

    async def get_cache(self, request: web.Request) -> web.Response:
        read_query(request)
        stats = self._cache.stats()
        requests = count_cache_requests(await asyncio.to_thread(self._render_metrics))
        ratios = {kind: _hit_ratio(counts) for kind, counts in requests.items()}
        document = CacheDocument(
            size_bytes=stats["committed_bytes"],
            max_size_bytes=stats["max_size_bytes"],
            entries=stats["entries"],
            filling_bytes=stats["filling_bytes"],
            pinned_bytes=stats["pinned_bytes"],
            requests=requests,
            hit_ratios=ratios,
        )
        return web.json_response(document.as_json())

    async def list_blobs(self, request: web.Request) -> web.Response:
        page = read_page(read_query(request, PAGE))
        after = _read_digest(page.after, "?after") if page.after else None
        blobs = await self._cache.list_blobs(after, page.limit + 1)
        items = [
            CachedBlobDocument(
                digest=str(blob.digest),
                size_bytes=blob.size_bytes,
                used_at=format_time(int(blob.used_at)),
                protected=blob.protected,
            )
            for blob in blobs[: page.limit]
        ]
        more = len(blobs) > page.limit
        document = Page[CachedBlobDocument](items=items, next=items[-1].digest if more else None)
        return web.json_response(document.as_json())

    async def verify_cache(self, _: web.Request) -> web.Response:
        if self._verifying.locked():
            raise ProblemError(409, "the cache is being verified already")
        async with self._verifying:
            bad = await self._cache.verify()
        return web.json_response(CacheVerificationDocument(bad=[str(digest) for digest in bad]).as_json())

    async def purge_cache(self, request: web.Request) -> web.Response:
        body = await read_body(request, PurgeBody)
        digests: Collection[Digest] | None = None
        if body.digest is not None and body.repository is not None:
            raise ProblemError(400, "expected a digest or a repository, or neither for everything")
        if body.digest is not None:
            digests = [_read_digest(body.digest, "#/digest")]
        elif body.repository is not None:
            try:
                repository = parse_repository(body.repository)
                digests = await asyncio.to_thread(self._purge_repository, repository)
            except RegistryError as error:
                raise _invalid("#/repository", error) from None
        return web.json_response(PurgeDocument(removed=await self._cache.purge(digests)).as_json())


def _read_digest(text: str, pointer: str) -> Digest:
    try:
        return parse_digest(text)
    except RegistryError as error:
        raise _invalid(pointer, error) from None


def _invalid(pointer: str, error: RegistryError) -> ProblemError:
    return invalid([Fault(pointer, error.message)])
