"""Exceptions of the admin API: contents of an upstream that are lost, or that a replica refuses."""

from collections.abc import Mapping
from typing import Annotated

from aiohttp import web
from pydantic import Field

from registry_proxy.api.models import Body, Document, Page, Text
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.requests import PAGE, read_page
from registry_proxy.ports.journal import ContentException
from registry_proxy.upkeep.upstreams import Upstream, find_upstream


class ExceptionDocument(Document):
    """A manifest, tag or blob that cannot be everywhere: lost, or refused by the named replicas, with the reason."""

    repository: Text
    kind: str
    name: str
    lost: Annotated[bool, Field(validation_alias="is_lost")]
    refused: dict[str, str]
    dismissed: Annotated[bool, Field(validation_alias="is_dismissed")]


class ChosenBody(Body):
    """A choice of exceptions: those of one repository, of one tag or digest, or all."""

    repository: str | None = None
    name: str | None = None


class DismissalDocument(Document):
    """The number of exceptions that were dismissed."""

    dismissed: int


class ForgottenDocument(Document):
    """The number of lost contents that were forgotten."""

    forgotten: int


class ExceptionResource:
    """The handlers of exceptions."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams

    @Endpoint(
        "GET /upstreams/{name}/exceptions",
        "List contents that are lost or refused by a replica",
        Page[ExceptionDocument],
        query=PAGE,
    )
    async def list_exceptions(self, request: web.Request) -> web.Response:
        page = read_page(request)
        name, upstream = find_upstream(request, self._upstreams)
        return page.answer({str(one.key): one for one in await upstream.repairs.exceptions.list(name)}, _document)

    @Endpoint("POST /upstreams/{name}/dismiss", "Stop counting and reporting exceptions")
    async def dismiss_exceptions(self, request: web.Request, body: ChosenBody) -> DismissalDocument:
        """Dismiss exceptions: they stay in force, and are neither counted nor listed any more."""
        name, upstream = find_upstream(request, self._upstreams)
        count = await upstream.repairs.exceptions.dismiss(name, body.repository, body.name)
        return DismissalDocument(dismissed=count)

    @Endpoint("POST /upstreams/{name}/forget", "Forget lost contents, as if they had been deleted")
    async def forget_lost(self, request: web.Request, body: ChosenBody) -> ForgottenDocument:
        """Forget lost contents: images that were deleted after the backup that was restored, for example."""
        name, upstream = find_upstream(request, self._upstreams)
        count = await upstream.repairs.exceptions.forget(name, body.repository, body.name)
        return ForgottenDocument(forgotten=count)


def _document(one: ContentException) -> ExceptionDocument:
    key = one.key
    return ExceptionDocument.of(one, repository=key.routed.repository, kind=key.kind, name=key.name)
