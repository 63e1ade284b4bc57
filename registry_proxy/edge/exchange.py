"""One request and what becomes known about it; bodies; error answers."""

import asyncio
import json
import logging
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp.http import HttpVersion11
from aiohttp.web import BaseRequest, RequestPayloadError, Response, StreamResponse

from registry_proxy.http.guarded import GuardedConnection
from registry_proxy.http.limits import scattered
from registry_proxy.ports.errors import (
    CacheUnavailableError,
    FillFailedError,
    StoreUnavailableError,
    UpstreamLimitError,
    UpstreamUnavailableError,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError, bad_gateway, format_errors, unavailable
from registry_proxy.tasks import run_while

_T = TypeVar("_T")
_CLOSE_WAIT = 8
"""State of a connection whose other end has closed (TCP_CLOSE_WAIT of Linux)."""

SMALL_BODY_SECONDS = 10.0
"""How long a small body may take, for each MiB that it may have; up to half as long again (``scattered``)."""

STALL_SECONDS = 300.0
"""How long a client may neither send nor take a byte."""

DRAIN_MAX_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 10.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Exchange:
    """A request on its way: ``path`` and ``raw_query`` as received; the rest is filled in by the steps.

    ``route`` is one of a closed set, the label of metrics. ``address`` is the client's, also behind a trusted proxy.
    ``answer_headers`` go with whatever is answered.
    """

    request: BaseRequest
    path: str
    raw_query: str
    address: str
    route: str = "unknown"
    subject: str = ""
    awaits_continue: bool = False
    sent_bytes: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Exchange], Awaitable[StreamResponse]]


def make_exchange(request: BaseRequest, address: str) -> Exchange:
    """Return the exchange of a request."""
    path, _, raw_query = request.raw_path.partition("?")
    if not path.startswith("/"):
        # The absolute form, which servers must take (RFC 9112, 3.2.2): its authority says nothing here.
        _, _, rest = path.partition("://")
        path = "/" + rest.partition("/")[2]
    awaits_continue = request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue"
    return Exchange(request, path, raw_query, address, awaits_continue=awaits_continue)


async def read_body(exchange: Exchange) -> AsyncIterator[bytes]:
    """Yield the request's body; a client that waits to be asked for it is asked first (RFC 9110, 10.1.1).

    Raises:
        RegistryError: SIZE_INVALID when the body cannot be read as HTTP.
        ConnectionError: the client left, or sent nothing for five minutes.
    """
    try:
        while True:
            async with asyncio.timeout(STALL_SECONDS):
                chunk = await _read_chunk(exchange)
            if not chunk:
                return
            yield chunk
    except TimeoutError as error:
        raise ConnectionResetError("the client sent nothing for too long") from error


async def _read_chunk(exchange: Exchange) -> bytes:
    """Return what has come of the body; nothing at its end. Raises as ``read_body``."""
    request = exchange.request
    if exchange.awaits_continue:
        exchange.awaits_continue = False
        if request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if request.transport is None:
        raise ConnectionResetError("the client left")
    try:
        return await request.content.readany()
    except RequestPayloadError as error:
        raise RegistryError(ErrorCode.SIZE_INVALID, "the request's body is not well-formed HTTP") from error


async def read_small_body(exchange: Exchange, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        RegistryError: SIZE_INVALID, 413, as soon as it is known to be larger than ``max_bytes``; 408 when it is held
            back, for longer than ``SMALL_BODY_SECONDS`` for each MiB that it may have, or a little more;
            TOOMANYREQUESTS where the owner of the address has too many bytes on their way.
    """
    too_large = RegistryError(
        ErrorCode.SIZE_INVALID,
        f"the body is larger than the {max_bytes} bytes that are taken",
        detail={"limit": max_bytes},
        status=413,
    )
    if (exchange.request.content_length or 0) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    seconds = SMALL_BODY_SECONDS * max(1.0, max_bytes / 2**20)
    try:
        async with asyncio.timeout(scattered(seconds)):
            while chunk := await _read_chunk(exchange):
                size += len(chunk)
                if size > max_bytes:
                    raise too_large
                if not _hold(exchange, len(chunk)):
                    message = "too much of other requests from your address is on its way: try again later"
                    raise RegistryError(ErrorCode.TOOMANYREQUESTS, message, headers={"Retry-After": "10"})
                chunks.append(chunk)
    except TimeoutError:
        message = f"the body did not come within {seconds:g} s; nothing was changed"
        raise RegistryError(ErrorCode.SIZE_INVALID, message, detail={"received": size}, status=408) from None
    return b"".join(chunks)


def _hold(exchange: Exchange, size_bytes: int) -> bool:
    protocol = exchange.request.protocol
    return not isinstance(protocol, GuardedConnection) or protocol.hold(size_bytes)


async def unless_left(exchange: Exchange, answer: Coroutine[Any, Any, _T]) -> _T:
    """Return what a coroutine returns that may take long; end it when the client leaves.

    Raises:
        ConnectionError: there is nobody to answer any more.
    """

    def check() -> None:
        if _has_left(exchange.request.transport):
            raise ConnectionResetError("the client left")

    return await run_while(check, answer, "answer")


def _has_left(transport: asyncio.BaseTransport | None) -> bool:
    """Tell whether a connection is over, or its client has sent all that it ever will.

    A client that closes its end alone is answered as others are, if that does not take long.
    """
    if transport is None or transport.is_closing():
        return True
    pseudo = transport.get_extra_info("socket")
    if pseudo is None or pseudo.fileno() < 0:
        return True
    with socket.fromfd(pseudo.fileno(), pseudo.family, pseudo.type) as connection:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT


async def drain_body(exchange: Exchange) -> bool:
    """Read and drop what the client still sends, within bounds; return whether the body ended.

    containerd 1.6 hangs when it is refused while it sends. Who waits for a 100 sends nothing, and is not waited for.
    """
    content = exchange.request.content
    if exchange.awaits_continue:
        return False
    size = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while not content.at_eof() and size <= DRAIN_MAX_BYTES:
                size += len(await content.readany())
    except (TimeoutError, ConnectionError, RuntimeError, RequestPayloadError):
        return False
    return content.at_eof()


def as_registry_error(error: Exception) -> RegistryError:
    """Return what the client is told about an error: the one place where the errors of the ports get their status."""
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
            return RegistryError(ErrorCode.UNKNOWN, "the proxy made a mistake; its log tells which")


def _too_many_requests(error: UpstreamLimitError) -> RegistryError:
    seconds = max(1, math.ceil(error.retry_after_seconds))
    return RegistryError(
        ErrorCode.TOOMANYREQUESTS,
        f"the upstream registry takes no more requests for now: {error.words or 'it does not say why'}",
        detail={"reason": str(error), "retry_after_seconds": seconds},
        headers={"Retry-After": str(seconds)},
    )


def error_response(error: RegistryError) -> Response:
    """Return the answer of an error."""
    return Response(
        status=error.status,
        body=format_errors(error.code.value, error.message, error.detail),
        headers={**error.headers, "Content-Type": "application/json"},
    )


def json_response(value: object, headers: dict[str, str] | None = None) -> Response:
    """Return a 200 with a JSON body."""
    return Response(body=json.dumps(value).encode(), headers={"Content-Type": "application/json", **(headers or {})})
