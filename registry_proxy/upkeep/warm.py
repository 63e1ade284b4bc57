"""Warming of the cache by the admin API: an image is brought into it in the background; its progress can be read."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Annotated

from aiohttp import web
from cachetools import FIFOCache
from pydantic import Field

from registry_proxy.api.models import Body, Document, Text
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import Fault, ProblemError, invalid
from registry_proxy.api.requests import read_query
from registry_proxy.operations.warm import Warmer, WarmProgress
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.platform import Platform, parse_platform
from registry_proxy.protocol.reference import Digest, Repository, Tag, parse_repository, parse_tag_or_digest
from registry_proxy.tasks import spawn

_REMEMBERED = 1000
_AT_ONCE = 4


class WarmBody(Body):
    """An image to bring into the cache; of an index only the named platforms, such as linux/amd64."""

    repository: str
    reference: str = "latest"
    platforms: Annotated[list[str], Field(max_length=100)] = []


class WarmingDocument(Document):
    """Progress of the warming of an image; ``error`` is the reason for an early end, else ""."""

    id: str
    image: str
    digest: Text | None
    blobs_total: int
    blobs_done: int
    bytes_total: int
    bytes_done: int
    done: Annotated[bool, Field(validation_alias="is_done")]
    error: str


class WarmResource:
    """The handlers; what was begun is remembered by this process alone."""

    def __init__(self, warmer: Warmer, route: Callable[[Repository], RoutedRepository]) -> None:
        self._warmer = warmer
        self._route = route
        self._jobs: FIFOCache[str, WarmProgress] = FIFOCache(_REMEMBERED)
        self._running: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @Endpoint("POST /cache/warm", "Start bringing an image into the cache", statuses=(202,))
    async def warm(self, _: web.Request, body: WarmBody) -> WarmingDocument:
        """Begin; 202 with the id to ask for its progress by."""
        routed, reference, platforms = self._parse(body)
        job, progress = uuid.uuid4().hex, WarmProgress(f"{body.repository}:{body.reference}")
        if isinstance(reference, Digest):
            progress.image = f"{body.repository}@{body.reference}"
        self._jobs[job] = progress
        task = spawn(self._run(routed, reference, platforms, progress), f"warming of {progress.image}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return WarmingDocument.of(progress, id=job)

    @Endpoint("GET /cache/warm/{id}", "Show the progress of a warming")
    async def get_progress(self, request: web.Request) -> WarmingDocument:
        read_query(request)
        job = request.match_info["id"]
        if (progress := self._jobs.get(job)) is None:
            raise ProblemError(404, "this node knows no such warming; a restart forgets them")
        return WarmingDocument.of(progress, id=job)

    async def _run(
        self,
        routed: RoutedRepository,
        reference: Tag | Digest,
        platforms: frozenset[Platform],
        progress: WarmProgress,
    ) -> None:
        async with self._turns:
            await self._warmer.warm(routed, reference, platforms, progress)

    def _parse(self, body: WarmBody) -> tuple[RoutedRepository, Tag | Digest, frozenset[Platform]]:
        """Return what is meant. Raises ProblemError 400 that names every fault."""
        faults: list[Fault] = []
        routed: RoutedRepository | None = None
        reference: Tag | Digest | None = None
        try:
            routed = self._route(parse_repository(body.repository))
        except RegistryError as error:
            faults.append(Fault("#/repository", error.message))
        try:
            reference = parse_tag_or_digest(body.reference)
        except RegistryError as error:
            faults.append(Fault("#/reference", error.message))
        platforms = [parse_platform(text) for text in body.platforms]
        faults += [
            Fault(f"#/platforms/{index}", "expected os/architecture, such as linux/amd64 or linux/arm/v7")
            for index, platform in enumerate(platforms)
            if platform is None
        ]
        if faults or routed is None or reference is None:
            raise invalid(faults)
        return routed, reference, frozenset(platform for platform in platforms if platform is not None)
