"""Errors of the admin listener: RFC 9457 problem documents for every fault."""

import http
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aiohttp import web
from pydantic import Field

from registry_proxy.access.credentials import TooManyLoginsError
from registry_proxy.access.faults import InvalidError
from registry_proxy.api.models import Document
from registry_proxy.directory.revise import NotFoundError, RevisionConflictError
from registry_proxy.directory.users import LastAdminError
from registry_proxy.ports.errors import FillFailedError, StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.protocol.errors import ErrorCode, RegistryError

_log = logging.getLogger(__name__)
_RETRY_AFTER_SECONDS = "5"
_KEPT_HEADERS = ("Allow", "Retry-After")
FAULTS_MAX = 100
"""Limit of the faults that one answer lists."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FaultDocument(Document):
    """One fault of a request; ``pointer`` leads into the body (RFC 6901, section 6), "" for a fault elsewhere."""

    pointer: str
    detail: str


class ProblemDocument(Document):
    """The reason for which a request failed (RFC 9457); ``errors`` lists all faults of the request."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    errors: list[FaultDocument] = Field(default_factory=list, min_length=1)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a request.

    ``pointer`` is a JSON pointer as a URI fragment (RFC 6901, section 6) into the body, "" when it is elsewhere.
    """

    pointer: str
    detail: str


class ProblemError(Exception):
    """An error answer of the admin API.

    Args:
        status: of HTTP.
        detail: a sentence for the sender of the request; never holds a secret.
        faults: all faults of the body; the first ``FAULTS_MAX`` are listed, with the number of others.
        more_faults: how many there are that are not in ``faults``.
        headers: sent along.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        more_faults: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = tuple(faults[:FAULTS_MAX])
        if more := more_faults + len(faults) - len(self.faults):
            self.faults += (Fault("", f"and {more} more"),)
        self.headers = headers or {}

    def response(self) -> web.Response:
        """Return it as an answer (RFC 9457, section 3)."""
        title = http.HTTPStatus(self.status).phrase
        document = ProblemDocument(type="about:blank", title=title, status=self.status, detail=self.detail)
        if self.faults:
            document.errors = [FaultDocument.of(fault) for fault in self.faults]
        return web.Response(
            status=self.status,
            body=json.dumps(document.model_dump(exclude_unset=True)).encode(),
            content_type="application/problem+json",
            headers=self.headers,
        )


def pointer_to(location: Sequence[str | int]) -> str:
    """Return the pointer to a place in the body, ``#/actions/0``."""
    return "#" + "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in location)


def invalid(faults: Sequence[Fault]) -> ProblemError:
    """Return the 400 for a request whose values are not all valid."""
    return ProblemError(400, "some values are not valid", faults=faults)


def changed_meanwhile() -> ProblemError:
    """Return the 412 for a write that would undo another one."""
    return ProblemError(412, "it is not, or not any more, as If-Match says")


def too_many_logins(error: TooManyLoginsError) -> ProblemError:
    """Return the 429 for a login, or a new password, that has to wait."""
    return ProblemError(429, f"it was not checked: {error}", headers={"Retry-After": str(error.retry_after_seconds)})


def _from_input(error: InvalidError) -> ProblemError:
    # A name stands in the path, not in the body.
    return invalid(
        [
            Fault("", f"{field}: {text}") if field == "name" else Fault(pointer_to([field]), text)
            for field, text in error.faults
        ]
    )


def _from_http(error: web.HTTPException) -> ProblemError:
    headers = {name: error.headers[name] for name in _KEPT_HEADERS if name in error.headers}
    match error.status:
        case 404:
            detail = "there is nothing at this path"
        case 405:
            detail = f"this path takes {error.headers.get('Allow', 'no such method')}"
        case 413:
            detail = "the body is larger than this path takes"
        case _:
            detail = error.reason
    return ProblemError(error.status, detail, headers=headers)


def _from_failure(error: Exception) -> ProblemError:
    """Return the problem for an error of what the service stands on; an unexpected one keeps its text to the log."""
    patience = {"Retry-After": _RETRY_AFTER_SECONDS}
    match error:
        case RegistryError():
            headers = {name: error.headers[name] for name in _KEPT_HEADERS if name in error.headers}
            status = 403 if error.code is ErrorCode.DENIED else error.status
            return ProblemError(status, error.message, headers=headers)
        case UpstreamUnavailableError() | FillFailedError():
            return ProblemError(503, f"no registry could answer: {error}", headers=patience)
        case StoreUnavailableError():
            return ProblemError(503, "the store cannot be reached; nothing was changed", headers=patience)
        case OSError():
            return ProblemError(503, f"a disk or a connection of the node failed: {error.strerror or error}")
        case _:
            return ProblemError(500, "registry-proxy failed at this request; its log says why")


def as_problem(error: Exception) -> ProblemError:
    """Return the problem for an error; an unexpected one keeps its text to the log."""
    match error:
        case ProblemError():
            return error
        case web.HTTPException():
            return _from_http(error)
        case NotFoundError():
            return ProblemError(404, str(error))
        case InvalidError():
            return _from_input(error)
        case LastAdminError():
            return ProblemError(409, str(error))
        case RevisionConflictError():
            return changed_meanwhile()
        case TooManyLoginsError():
            return too_many_logins(error)
        case _:
            return _from_failure(error)


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document, and log the unexpected ones."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 -- the border: nobody above would answer
        problem = as_problem(error)
        if isinstance(error, OSError):
            _log.error("%s %s failed: %s", request.method, request.path, error)
        elif problem.status == 500:
            _log.error("%s %s failed", request.method, request.path, exc_info=error)
        return problem.response()
