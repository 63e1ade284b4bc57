"""Manifests in the admin API: purging what must not come back."""

from collections.abc import Callable
from typing import Annotated

from aiohttp import web
from pydantic import Field

from registry_proxy.admission.auth import CALLER
from registry_proxy.api.models import Body, Document, Text
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import Fault, ProblemError, invalid
from registry_proxy.history.purge import Purge
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import RESERVED_PREFIX, Repository, parse_digest, parse_repository
from registry_proxy.tasks import request_id

_REASON_MAX = 1000
_USER_AGENT_MAX = 512


class PurgeManifestBody(Body):
    """A manifest that must not come back, and why."""

    repository: str
    digest: str
    reason: Annotated[str, Field(min_length=1, max_length=_REASON_MAX)]


class PurgedManifestDocument(Document):
    """A manifest that is purged.

    ``blobs`` are deleted with it, ``shared_blobs`` are named by other manifests of the repository, ``undeleted_blobs``
    are not deleted by the registries. ``children`` of an index stay. The bytes go with the registries' next collection.
    """

    digest: Text
    blobs: list[Text]
    shared_blobs: list[Text]
    undeleted_blobs: list[Text]
    children: list[Text]


class ManifestResource:
    """The handlers of manifests."""

    def __init__(
        self,
        purge: Purge,
        route: Callable[[Repository], RoutedRepository],
        client_address: Callable[[web.BaseRequest], str],
    ) -> None:
        self._purge = purge
        self._route = route
        self._client_address = client_address

    @Endpoint("POST /manifests/purge", "Remove a manifest for good", statuses=(200,))
    async def purge_manifest(self, request: web.Request, body: PurgeManifestBody) -> PurgedManifestDocument:
        """Delete a manifest, its tags and keepers, and the blobs that nothing else in its repository names."""
        try:
            repository, digest = parse_repository(body.repository), parse_digest(body.digest)
        except RegistryError as error:
            raise invalid([Fault("", error.message)]) from None
        if repository.startswith(RESERVED_PREFIX):
            raise ProblemError(404, f"there is no repository {repository}")
        agent = request.headers.get("User-Agent", "")[:_USER_AGENT_MAX]
        actor = Actor(request[CALLER].subject, self._client_address(request), request_id.get(), agent)
        purged = await self._purge.purge(self._route(repository), digest, actor, body.reason)
        return PurgedManifestDocument(
            digest=str(purged.digest),
            blobs=list(map(str, purged.blobs)),
            shared_blobs=list(map(str, purged.shared_blobs)),
            undeleted_blobs=list(map(str, purged.undeleted_blobs)),
            children=list(map(str, purged.children)),
        )
