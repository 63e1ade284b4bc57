"""One request and what becomes known about it; small bodies; errors as clients see them."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from multidict import CIMultiDictProxy

from registry_proxy.http.limits import CLIENT_LEFT, scattered
from registry_proxy.ports.errors import (
    CacheUnavailableError,
    FillFailedError,
    StoreUnavailableError,
    UpstreamLimitError,
    UpstreamUnavailableError,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError, bad_gateway, unavailable
from registry_proxy.tasks import run_while

_T = TypeVar("_T")

SMALL_BODY_SECONDS = 10.0
"""How long a small body may take, for each MiB that it may have; up to half as long again (``scattered``)."""

_log = logging.getLogger(__name__)


Source = Literal["cache", "upstream"]
"""The place that a content comes from."""


class Client(Protocol):
    """The sender of a request."""

    @property
    def remote(self) -> str | None:
        """Its address, or that of the proxy before us."""

    @property
    def sockname(self) -> object:
        """The address and port that it connected to; None where the connection has ended."""

    @property
    def body_bytes(self) -> int | None:
        """The size of the body that it announced; None for none, or for a size that is known at its end."""

    async def read_chunk(self) -> bytes:
        """Return what has come of the body, nothing at its end; raises as ``read_body``, but waits for ever."""

    def read_body(self) -> AsyncIterator[bytes]:
        """Yield the body; a client that waits to be asked for it is asked first (RFC 9110, 10.1.1).

        Raises:
            RegistryError: SIZE_INVALID when the body cannot be read as HTTP.
            ConnectionError: the client left, or sent nothing for five minutes.
        """

    def hold(self, size_bytes: int) -> bool:
        """Count bytes of a small body until all of it has come; return False where its owner has too many."""

    def has_left(self) -> bool:
        """Tell whether its connection is over, or it has sent all that it ever will."""


@dataclass(slots=True)
class Exchange:
    """A request on its way: ``path`` and ``raw_query`` as received; the last fields are filled in by the steps.

    ``address`` is the client's, also behind a trusted proxy. ``route`` is one of a closed set, the label of metrics.
    ``answer_headers`` go with every answer. ``status`` is that of the answer once it was written whole,
    ``sent_bytes`` the size of the content that was sent, and ``source`` the place that it came from.
    """

    method: str
    path: str
    raw_query: str
    headers: CIMultiDictProxy[str]
    client: Client
    address: str
    route: str = "unknown"
    subject: str = ""
    status: int = CLIENT_LEFT
    source: Source | None = None
    sent_bytes: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)

    @property
    def remote(self) -> str | None:
        """The address of the client, or of the proxy before us."""
        return self.client.remote


async def read_small_body(exchange: Exchange, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        RegistryError: SIZE_INVALID, 413, as soon as it is known to be larger than ``max_bytes``; 408 when it is held
            back, for longer than ``SMALL_BODY_SECONDS`` for each MiB that it may have, or a little more;
            TOOMANYREQUESTS where the owner of the address has too many bytes on their way.
    """
    too_large = RegistryError(
        ErrorCode.SIZE_INVALID,
        f"the body is larger than the limit of {max_bytes} bytes",
        detail={"limit": max_bytes},
        status=413,
    )
    if (exchange.client.body_bytes or 0) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    seconds = SMALL_BODY_SECONDS * max(1.0, max_bytes / 2**20)
    try:
        async with asyncio.timeout(scattered(seconds)):
            while chunk := await exchange.client.read_chunk():
                size += len(chunk)
                if size > max_bytes:
                    raise too_large
                if not exchange.client.hold(len(chunk)):
                    message = "too much of other requests from your address is on its way: try again later"
                    raise RegistryError(ErrorCode.TOOMANYREQUESTS, message, headers={"Retry-After": "10"})
                chunks.append(chunk)
    except TimeoutError:
        message = f"the body did not come within {seconds:g} s; nothing was changed"
        raise RegistryError(ErrorCode.SIZE_INVALID, message, detail={"received": size}, status=408) from None
    return b"".join(chunks)


async def unless_left(exchange: Exchange, answer: Coroutine[Any, Any, _T]) -> _T:
    """Return what a coroutine returns that may take long; end it when the client leaves.

    Raises:
        ConnectionError: there is nobody to answer any more.
    """

    def check() -> None:
        if exchange.client.has_left():
            raise ConnectionResetError("the client left")

    return await run_while(check, answer, "answer")


def as_registry_error(error: Exception) -> RegistryError:
    """Return an error as clients see it: the one place where the errors of the ports get their status."""
    match error:
        case RegistryError():
            return error
        case UpstreamLimitError():
            return _too_many_requests(error)
        case UpstreamUnavailableError():
            return unavailable("no replica of the upstream can answer now", detail={"reason": str(error)})
        case FillFailedError():
            reason = str(error.__cause__ or error)
            return bad_gateway("the upstream did not send the content it announced", detail={"reason": reason})
        case CacheUnavailableError():
            return unavailable("this node has no room for the content now", detail={"reason": str(error)})
        case StoreUnavailableError():
            text = "the store of rights and of pending writes cannot be reached now; try again"
            return unavailable(text, detail={"reason": "the store is away"})
        case _:
            _log.error("a request failed", exc_info=error)
            return RegistryError(ErrorCode.UNKNOWN, "the proxy failed at this request; its log has the cause")


def _too_many_requests(error: UpstreamLimitError) -> RegistryError:
    seconds = max(1, math.ceil(error.retry_after_seconds))
    return RegistryError(
        ErrorCode.TOOMANYREQUESTS,
        f"the upstream registry accepts no more requests for now: {error.words or 'it does not say why'}",
        detail={"reason": str(error), "retry_after_seconds": seconds},
        headers={"Retry-After": str(seconds)},
    )
