"""Answers of the admin API: a document with its status, entity tag and warnings."""

from collections.abc import Sequence

from aiohttp import web

from registry_proxy.api.models import Document


def answer(
    document: Document, status: int = 200, *, revision: int | None = None, warnings: Sequence[str] = ()
) -> web.Response:
    """Return a document as JSON, with the revision of what it shows as its ETag."""
    headers = {} if revision is None else {"ETag": format_etag(revision)}
    return web.json_response(document.as_json(), status=status, headers={**headers, **warned(warnings)})


def warned(warnings: Sequence[str]) -> dict[str, str]:
    """Return a ``Warning`` header for objects that have no effect yet (RFC 7234, section 5.5)."""
    return {"Warning": ", ".join(f'299 - "{warning}"' for warning in warnings)} if warnings else {}


def format_etag(revision: int) -> str:
    """Return the entity tag of a revision."""
    return f'"{revision}"'
