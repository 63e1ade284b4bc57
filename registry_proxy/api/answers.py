"""Answers of the admin API: a document with its status, entity tag and warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Generic, TypeVar

from aiohttp import web

from registry_proxy.api.models import Document

_D = TypeVar("_D", bound=Document)


@dataclass(frozen=True, slots=True)
class Answer(Generic[_D]):
    """The answer of an endpoint.

    Args:
        document: the object, sent as JSON.
        status: of HTTP; None for the first one of the endpoint.
        revision: of what the document shows, for the ETag.
        warnings: sent in a ``Warning`` header, for objects that have no effect yet (RFC 7234, section 5.5).
        headers: sent along.
    """

    document: _D
    _: KW_ONLY
    status: int | None = None
    revision: int | None = None
    warnings: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self, status: int) -> web.Response:
        """Return it for the listener; ``status`` where it has none of its own."""
        headers = dict(self.headers)
        if self.revision is not None:
            headers["ETag"] = format_etag(self.revision)
        if self.warnings:
            headers["Warning"] = ", ".join(f'299 - "{warning}"' for warning in self.warnings)
        return web.json_response(self.document.as_json(), status=self.status or status, headers=headers)


def format_etag(revision: int) -> str:
    """Return the entity tag of a revision."""
    return f'"{revision}"'
