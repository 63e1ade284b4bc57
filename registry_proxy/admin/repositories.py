"""Repositories of the admin API: those that were pushed through the proxy, or are in the cache of this node."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass

from aiohttp import web

from registry_proxy.api.models import Document, Page
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.requests import PAGE, parse_page, read_query
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Repository

_FILTERS = (*PAGE, "prefix")


@dataclass(frozen=True, slots=True)
class KnownRepositories:
    """Sources of the names of repositories, without asking a registry.

    Args:
        recorded: those that something was pushed to.
        count_tags: returns how many tags of one are on record.
        cached: those that this node holds something of; waits for the disk.
        local_name: says under which name one is known here; None when no route leads to it any more.
    """

    recorded: Callable[[], Awaitable[Collection[RoutedRepository]]]
    count_tags: Callable[[RoutedRepository], Awaitable[int]]
    cached: Callable[[], Iterable[RoutedRepository]]
    local_name: Callable[[RoutedRepository], Repository | None]


class RepositoryDocument(Document):
    """A known repository; ``tags_on_record`` counts tags pushed through the proxy, ``cached`` is about this node."""

    name: str
    upstream: str
    tags_on_record: int
    cached: bool


class RepositoryResource:
    """The handler over what is known."""

    def __init__(self, known: KnownRepositories) -> None:
        self._known = known

    @Endpoint(
        "GET /repositories",
        "List repositories that were pushed through the proxy or are cached here",
        Page[RepositoryDocument],
        query=_FILTERS,
    )
    async def list_repositories(self, request: web.Request) -> web.Response:
        query = read_query(request, _FILTERS)
        page, prefix = parse_page(query), query.get("prefix", "")
        recorded = await self._known.recorded()
        cached = await asyncio.to_thread(lambda: set(self._known.cached()))
        items: dict[str, tuple[str, RoutedRepository]] = {}
        for routed in {*recorded, *cached}:
            name = self._known.local_name(routed)
            if name is not None and name.startswith(prefix):
                items[name] = name, routed
        answer = page.cut(items, lambda item: item)
        counts = await asyncio.gather(*(self._known.count_tags(routed) for _, routed in answer["items"]))
        answer["items"] = [
            RepositoryDocument(
                name=name, upstream=routed.upstream, tags_on_record=count, cached=routed in cached
            ).as_json()
            for (name, routed), count in zip(answer["items"], counts, strict=True)
        ]
        return web.json_response(answer)
