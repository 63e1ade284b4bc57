"""This node of the admin API: its configuration."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from registry_proxy.api.models import Document
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import Fault, ProblemError
from registry_proxy.ports.events import ReloadOutcome


class ReloadDocument(Document):
    """The generation of the workers that serve with the current configuration."""

    generation: int


class NodeResource:
    """The handler of this node; ``reload`` starts workers with the configuration as its file is now."""

    def __init__(self, reload: Callable[[], Awaitable[ReloadOutcome]]) -> None:
        self._reload = reload

    @Endpoint("POST /reload", "Read the configuration again")
    async def reload_configuration(self, _: web.Request) -> ReloadDocument:
        outcome = await self._reload()
        if outcome.faults:
            faults = [Fault("", fault) for fault in outcome.faults]
            raise ProblemError(422, "the configuration is not reloaded, the old one stays in force", faults=faults)
        if outcome.failure:
            raise ProblemError(503, f"the configuration is not reloaded, the old one stays in force: {outcome.failure}")
        return ReloadDocument(generation=outcome.generation)
