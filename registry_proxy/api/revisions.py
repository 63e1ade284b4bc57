"""Preconditions of writes (RFC 9110, section 13.1): the revision that may be replaced, and the retry on a conflict."""

import re
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from aiohttp import web

from registry_proxy.api.answers import format_etag
from registry_proxy.api.problems import ProblemError, changed_meanwhile
from registry_proxy.directory.revise import RevisionConflictError
from registry_proxy.ports.store import retried

_ETAG = re.compile(r'\s*(?:W/)?"[^"]*"\s*')


class Revised(Protocol):
    """A stored value, with its revision."""

    @property
    def revision(self) -> int: ...


_R = TypeVar("_R", bound=Revised)
_T = TypeVar("_T")


def expected_revision(request: web.Request, current: int | None) -> int | None:
    """Return the revision that a write may replace: None for any, 0 for "must not exist".

    Args:
        request: with If-Match or ``If-None-Match: *``, or neither.
        current: the revision that is stored; None when there is none.

    Raises:
        ProblemError: 412 when the precondition does not hold.
    """
    if (if_match := request.headers.get("If-Match")) is not None:
        tags = {"*"} if if_match.strip() == "*" else {tag.strip() for tag in _ETAG.findall(if_match)}
        if current is None or not tags & {"*", format_etag(current)}:
            raise changed_meanwhile()
        return current
    if request.headers.get("If-None-Match", "").strip() == "*":
        if current is not None:
            raise ProblemError(412, f"{request.match_info.get('name', 'it')} exists already")
        return 0
    return None


async def patched(
    request: web.Request, read: Callable[[], Awaitable[_R]], write: Callable[[_R, int], Awaitable[_T]]
) -> _T:
    """Return the result of ``write``; read and written anew after a change in between that If-Match does not forbid.

    Args:
        request: with If-Match or without.
        read: gives the stored value.
        write: judges what was read, and changes it only in the revision that it is given.

    Raises:
        ProblemError: 412 when the precondition does not hold.
        StoreUnavailableError: it changed too often.
    """

    async def attempt() -> _T:
        current = await read()
        expected_revision(request, current.revision)
        return await write(current, current.revision)

    return await (attempt() if "If-Match" in request.headers else retried(attempt, RevisionConflictError))
