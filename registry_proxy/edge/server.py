"""The HTTP server of the public listener: aiohttp's protocol, with further limits and manners."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from registry_proxy.edge.answer import error_answer
from registry_proxy.edge.exchange import as_registry_error
from registry_proxy.http.certificate import Certificate
from registry_proxy.http.connections import Connections
from registry_proxy.http.drain import drain
from registry_proxy.http.guarded import AnswerNow, Guard, GuardedConnection
from registry_proxy.http.handler import Handler, RefusedHeadError
from registry_proxy.http.limits import LINE_MAX_BYTES
from registry_proxy.http.listening import Listening, listen
from registry_proxy.http.whole_answer import whole_answer
from registry_proxy.protocol.errors import ErrorCode, RegistryError, format_errors

_FIELDS_MAX = 64
_TOO_MANY_FIELDS = "Too many headers received"  # aiohttp has no type for it

_HEALTH = (b"GET /healthz ", b"HEAD /healthz ")


class _Handler(Handler):
    """A handler whose requests answer all their errors themselves, but for the end of their connection."""

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,  # noqa: ARG002 - its signature
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """Answer an error in our form; aiohttp's would be plain text."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionResetError("the answer was cut")
        answer = error_answer(as_registry_error(exc if isinstance(exc, Exception) else RuntimeError(message)))
        headers = {**answer.headers, "Server": "registry-proxy"}
        response = web.Response(status=answer.status, headers=headers, body=answer.body)
        response.force_close()
        return response


def _busy() -> bytes:
    message = "this node has too many connections to serve one more: try again"
    return _whole(RegistryError(ErrorCode.UNAVAILABLE, message, headers={"Retry-After": "1"}))


def _refuse(error: HttpProcessingError) -> bytes:
    """Return the whole answer to bytes that cannot be read, or are refused."""
    if isinstance(error, LineTooLong):
        return _whole(_too_long(int(error.args[1])))
    status, message, detail = 400, "the request cannot be read as HTTP", None
    if isinstance(error, RefusedHeadError):
        status, message = error.code, error.message
    elif error.message == _TOO_MANY_FIELDS:
        status, message = 431, f"the request has more than {_FIELDS_MAX} header fields: send fewer"
        detail = {"limit": _FIELDS_MAX}
    return _whole(RegistryError(ErrorCode.UNSUPPORTED, message, detail=detail, status=status))


def _too_long(limit: int) -> RegistryError:
    """Return the 414 of a URL, or the 431 (RFC 6585) of a header field; their limits differ."""
    what, status = ("URL", 414) if limit == LINE_MAX_BYTES else ("header field", 431)
    message = f"a {what} of the request is longer than {limit} bytes: send less in it"
    return RegistryError(ErrorCode.UNSUPPORTED, message, detail={"limit": limit}, status=status)


def _whole(error: RegistryError) -> bytes:
    body = format_errors(error.code.value, error.message, error.detail)
    return whole_answer(
        error.status, "application/json", body, *(f"{key}: {value}" for key, value in error.headers.items())
    )


class _Request(BaseRequest):
    """A request whose answer says that the connection closes once the listener does."""

    server: "_Server"

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open behind the answer."""
        return not self.server.is_draining and super().keep_alive


class _Server(web.Server):
    """Makes our requests."""

    def __init__(self, handler: Callable[[BaseRequest], Awaitable[StreamResponse]]) -> None:
        super().__init__(handler, request_factory=self._make_our_request)
        self.is_draining = False

    def _make_our_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> BaseRequest:
        request = _Request(message, payload, protocol, writer, task, asyncio.get_running_loop())
        request.server = self
        return request


class PublicServer:
    """Listeners that are being served; see ``run_public``."""

    def __init__(self, server: _Server, guard: Guard, listeners: Sequence[Listening]) -> None:
        self._server = server
        self._guard = guard
        self._listeners = listeners

    async def drain(self, timeout_seconds: float, idle_seconds: float) -> None:
        """Take no new connections, let running requests end within the time, close all; see ``drain``."""
        self._server.is_draining = True
        self._guard.answer_now = None  # it does not tell that an answer is the last
        await drain(self._server, self._listeners, timeout_seconds, idle_seconds)


async def run_public(
    handler: Callable[[BaseRequest], Awaitable[StreamResponse]],
    listening: Sequence[socket.socket],
    connections: Connections,
    answer_now: AnswerNow | None = None,
    certificate: Certificate | None = None,
) -> PublicServer:
    """Serve the handler on bound sockets until ``drain``, over TLS where there is a certificate.

    Requests that ``answer_now`` answers never reach the handler.
    """
    server = _Server(handler)

    def make_handler(connection: GuardedConnection) -> Handler:
        # Blobs are stored as they are sent: a body must never be unpacked on its way.
        return _Handler(
            server, connection, max_line_size=LINE_MAX_BYTES, max_headers=_FIELDS_MAX, auto_decompress=False
        )

    guard = Guard(connections, _HEALTH, _busy, _refuse, make_handler, answer_now)
    make = partial(GuardedConnection, guard)
    listeners = [await listen(make, each, connections, certificate) for each in listening]
    return PublicServer(server, guard, listeners)
