"""Upstreams and the cache of the admin API: what stands behind this node, and what lies on its disk."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from registry_proxy.ports import CacheResult, ContentKind, ReloadOutcome, ReplicaState
from registry_proxy.spec.errors import RegistryError
from registry_proxy.spec.reference import Digest, Repository, parse_digest, parse_repository
from registry_proxy.web.admin_requests import EmptyBody, PurgeBody, format_time, read_body, read_page, read_query
from registry_proxy.web.problems import Fault, ProblemError

_CACHE_REQUESTS = "registry_proxy_cache_requests_total"


class ReplicaStatus(Protocol):
    """How one replica is doing; ``latency_seconds`` is that of the last answer, None before the first.

    ``reason`` says why it is not up, "" when it is.
    """

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def state(self) -> ReplicaState: ...
    @property
    def reason(self) -> str: ...
    @property
    def latency_seconds(self) -> float | None: ...
    @property
    def pending(self) -> int: ...


class Upstream(Protocol):
    """The replicas of one upstream; ``refresh`` brings what ``status`` says is pending up to date."""

    async def refresh(self) -> None: ...
    def status(self) -> Sequence[ReplicaStatus]: ...


class RepairStatus(Protocol):
    """How the repair of one replica goes, as far as this node does it: keys, and seconds since the epoch."""

    @property
    def is_running(self) -> bool: ...
    @property
    def started_at(self) -> float | None: ...
    @property
    def done(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def error(self) -> str: ...


class Repairs(Protocol):
    """Repairs the replicas of one upstream."""

    def status(self, replica: str) -> RepairStatus: ...
    def wake(self) -> None: ...


class CachedBlob(Protocol):
    """One content of the cache; ``used_at`` in seconds since the epoch, ``protected`` from eviction."""

    @property
    def digest(self) -> Digest: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def used_at(self) -> float: ...
    @property
    def protected(self) -> bool: ...


class Cache(Protocol):
    """The blob cache as an administrator sees it; what is pinned is not purged."""

    def stats(self) -> Mapping[str, int]: ...
    async def list_blobs(self, after: Digest | None, limit: int) -> Sequence[CachedBlob]: ...
    async def verify(self) -> Sequence[Digest]: ...
    async def purge(self, digests: Collection[Digest] | None) -> int: ...


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _replica_document(replica: ReplicaStatus, repair: RepairStatus) -> dict[str, Any]:
    started_at = None if repair.started_at is None else int(repair.started_at)
    return {
        "name": replica.name,
        "url": _without_credentials(replica.url),
        "state": replica.state,
        "reason": replica.reason,
        "latency_seconds": replica.latency_seconds,
        "pending": replica.pending,
        "repair": {
            "running": repair.is_running,
            "started_at": format_time(started_at),
            "done": repair.done,
            "failed": repair.failed,
            "error": repair.error,
        },
    }


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
    """The handlers over what this node stands on."""

    def __init__(
        self,
        *,
        upstreams: Mapping[str, Upstream],
        repairers: Mapping[str, Repairs],
        cache: Cache,
        purge_repository: Callable[[Repository], Collection[Digest]],
        render_metrics: Callable[[], bytes],
        reload: Callable[[], Awaitable[ReloadOutcome]],
    ) -> None:
        self._upstreams = upstreams
        self._repairers = repairers
        self._cache = cache
        self._purge_repository = purge_repository
        self._render_metrics = render_metrics
        self._reload = reload
        self._verifying = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, below /admin/v1."""
        return [
            web.get("/upstreams", self.list_upstreams),
            web.get("/upstreams/{name}", self.get_upstream),
            web.post("/upstreams/{name}/repair", self.repair_upstream),
            web.get("/cache", self.get_cache),
            web.get("/cache/blobs", self.list_blobs),
            web.post("/cache/verify", self.verify_cache),
            web.post("/cache/purge", self.purge_cache),
            web.post("/reload", self.reload_configuration),
        ]

    async def reload_configuration(self, _: web.Request) -> web.Response:
        outcome = await self._reload()
        if outcome.faults:
            faults = [Fault("", fault) for fault in outcome.faults]
            raise ProblemError(422, "the configuration is not reloaded, the old one stays in force", faults=faults)
        if outcome.failure:
            raise ProblemError(503, f"the configuration is not reloaded, the old one stays in force: {outcome.failure}")
        return web.json_response({"generation": outcome.generation})

    async def list_upstreams(self, request: web.Request) -> web.Response:
        page = read_page(read_query(request, ("limit", "after")))
        return web.json_response(page.cut({name: await self._upstream_document(name) for name in self._upstreams}))

    async def get_upstream(self, request: web.Request) -> web.Response:
        read_query(request)
        return web.json_response(await self._upstream_document(self._upstream_name(request)))

    async def repair_upstream(self, request: web.Request) -> web.Response:
        """Have what is pending tried at once; how it goes is in the upstream's document."""
        name = self._upstream_name(request)
        await read_body(request, EmptyBody)
        self._repairers[name].wake()
        return web.json_response(await self._upstream_document(name), status=202)

    def _upstream_name(self, request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in self._upstreams:
            raise ProblemError(404, f"there is no upstream {name[:100]!r}; there are: {', '.join(self._upstreams)}")
        return name

    async def _upstream_document(self, name: str) -> dict[str, Any]:
        await self._upstreams[name].refresh()
        repairs = self._repairers[name]
        replicas = self._upstreams[name].status()
        return {"name": name, "replicas": [_replica_document(one, repairs.status(one.name)) for one in replicas]}

    async def get_cache(self, request: web.Request) -> web.Response:
        read_query(request)
        stats = self._cache.stats()
        requests = count_cache_requests(await asyncio.to_thread(self._render_metrics))
        ratios = {kind: _hit_ratio(counts) for kind, counts in requests.items()}
        document = {
            "size_bytes": stats["committed_bytes"],
            "max_size_bytes": stats["max_size_bytes"],
            "entries": stats["entries"],
            "filling_bytes": stats["filling_bytes"],
            "pinned_bytes": stats["pinned_bytes"],
            "requests": requests,
            "hit_ratios": ratios,
        }
        return web.json_response(document)

    async def list_blobs(self, request: web.Request) -> web.Response:
        page = read_page(read_query(request, ("limit", "after")))
        after = _read_digest(page.after, "?after") if page.after else None
        blobs = await self._cache.list_blobs(after, page.limit + 1)
        items = [
            {
                "digest": str(blob.digest),
                "size_bytes": blob.size_bytes,
                "used_at": format_time(int(blob.used_at)),
                "protected": blob.protected,
            }
            for blob in blobs[: page.limit]
        ]
        more = len(blobs) > page.limit
        return web.json_response({"items": items, "next": items[-1]["digest"] if more else None})

    async def verify_cache(self, _: web.Request) -> web.Response:
        if self._verifying.locked():
            raise ProblemError(409, "the cache is being verified already")
        async with self._verifying:
            bad = await self._cache.verify()
        return web.json_response({"bad": [str(digest) for digest in bad]})

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
        return web.json_response({"removed": await self._cache.purge(digests)})


def _read_digest(text: str, pointer: str) -> Digest:
    try:
        return parse_digest(text)
    except RegistryError as error:
        raise _invalid(pointer, error) from None


def _invalid(pointer: str, error: RegistryError) -> ProblemError:
    return ProblemError(400, "some values are not valid", faults=[Fault(pointer, error.message)])
