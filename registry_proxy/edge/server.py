"""The HTTP server of the public listener: aiohttp's protocol, with the limits and manners it lacks."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from registry_proxy.edge.answer import error_answer
from registry_proxy.http.connections import Connections
from registry_proxy.http.guarded import Guard, GuardedConnection, RefusedHeadError
from registry_proxy.http.limits import LINE_MAX_BYTES
from registry_proxy.http.plain_port import plain_port
from registry_proxy.protocol.errors import ErrorCode, RegistryError, format_errors
from registry_proxy.tasks import spawn

_FIELDS_MAX = 64
_TOO_MANY_FIELDS = "Too many headers received"  # aiohttp has no type for it
_READ_BUFFER_BYTES = 256 * 1024
_BACKLOG = 1024
_LAST_BYTES_SECONDS = 0.5
_LOOK_SECONDS = 0.1

_HEALTH = (b"GET /healthz ", b"HEAD /healthz ")
_BUSY_BODY = format_errors(
    ErrorCode.UNAVAILABLE.value, "this node has too many connections to serve one more: try again", {}
)
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Server: registry-proxy\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)

_log = logging.getLogger(__name__)


AnswerNow = Callable[[bytes, asyncio.Transport], bytes | None]
"""Takes what came on an idle connection; returns a whole answer, or None without having done anything."""


class _Protocol(GuardedConnection):
    """A connection. What aiohttp leaves open: half-closed clients, our error bodies, answers without a task."""

    def __init__(self, manager: "_Server", guard: Guard, **options: Any) -> None:
        super().__init__(manager, guard, **options)
        self._server = manager
        self.answered_at = 0.0
        """When the last request on it was answered, by the loop's clock."""

    @property
    def is_draining(self) -> bool:
        """Whether the listener is being closed."""
        return self._server.is_draining

    def data_received(self, data: bytes) -> None:
        if self._server.answer_now is None or not self._answer_now(data, self._server.answer_now):
            super().data_received(data)

    def _answer_now(self, data: bytes, answer_now: AnswerNow) -> bool:
        """Answer a whole request on an idle connection in place of aiohttp, which then never sees it."""
        transport = self.transport
        if (
            self._header_timer is not None  # it is new, or aiohttp holds the beginning of a header
            or self._body_to_come != 0  # or something came behind the last request
            or self._waiter is None
            or self._waiter.done()
            or self._messages
            or self._payload_parser is not None
            or self._upgraded
            or self._force_close
            or self._close
            or transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size()
            or self._server.is_draining
        ):
            return False
        answer = answer_now(data, transport)
        if answer is None:
            return False
        transport.write(answer)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        return True

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's own type; aiohttp narrows it to None
        """Keep a half-closed connection for its answer; a body that ended too early has no answer."""
        if self._is_at_rest():
            return None
        bodies = [body for _, body in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        if not all(body.is_eof() for body in bodies):
            return None
        self.close()
        return True

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """Answer what is no HTTP in our form; aiohttp's would be plain text, and a traceback in the log."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionResetError("the answer was cut")
        if isinstance(exc, LineTooLong):
            error = _too_long(int(exc.args[1]))
        elif message == _TOO_MANY_FIELDS:
            text = f"the request has more than {_FIELDS_MAX} header fields: send fewer"
            error = RegistryError(ErrorCode.UNSUPPORTED, text, detail={"limit": _FIELDS_MAX}, status=431)
        elif isinstance(exc, RefusedHeadError):
            error = RegistryError(ErrorCode.UNSUPPORTED, exc.message, status=exc.code)
        elif status == 400:
            error = RegistryError(ErrorCode.UNSUPPORTED, "the request cannot be read as HTTP", status=400)
        else:
            _log.error("a request failed outside of its handler: %s", message, exc_info=exc)
            error = RegistryError(ErrorCode.UNKNOWN, "the proxy made a mistake; its log tells which")
        answer = error_answer(error)
        assert isinstance(answer.body, bytes)  # noqa: S101 - a document of ours
        headers = {**answer.headers, "Server": "registry-proxy"}
        response = web.Response(status=answer.status, headers=headers, body=answer.body)
        response.force_close()
        return response

    def expect_no_body(self) -> None:
        """Do not wait for the rest of a body that the client was never asked for."""
        self._lingering_time = 0.0

    def close_if_idle(self, seconds: float) -> None:
        """Close the connection if no request has been answered on it for so long."""
        if self._is_at_rest() and self._loop.time() >= self.answered_at + seconds:
            self.force_close()

    def _is_at_rest(self) -> bool:
        is_waiting = self._waiter is not None and not self._waiter.done()
        return not self._messages and (is_waiting or self._request_count == 0)


def _too_long(limit: int) -> RegistryError:
    """Return the 414 of a URL, or the 431 (RFC 6585) of a header field; their limits differ."""
    what, status = ("URL", 414) if limit == LINE_MAX_BYTES else ("header field", 431)
    message = f"a {what} of the request is longer than {limit} bytes: send less in it"
    return RegistryError(ErrorCode.UNSUPPORTED, message, detail={"limit": limit}, status=status)


def expect_no_body(request: BaseRequest) -> None:
    """Close the connection right behind the answer: the client waits for a 100 that does not come."""
    if isinstance(request.protocol, _Protocol):
        request.protocol.expect_no_body()


class _Request(BaseRequest):
    """A request whose answer says that the connection closes once the listener does."""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open behind the answer."""
        is_draining = isinstance(self.protocol, _Protocol) and self.protocol.is_draining
        return not is_draining and not self._message.should_close


class _Server(web.Server):
    """Makes our connections."""

    def __init__(
        self,
        handler: Callable[[BaseRequest], Awaitable[StreamResponse]],
        guard: Guard,
        answer_now: AnswerNow | None,
    ) -> None:
        super().__init__(self._handle, request_factory=self._make_our_request)
        self.answer_now = answer_now
        self.is_draining = False
        self._handler = handler
        self._guard = guard
        self._open: set[_Protocol] = set()
        self._running = 0
        self._ended = asyncio.Event()

    def _make_our_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count it."""
        super().connection_made(handler, transport)
        if isinstance(handler, _Protocol):
            handler.answered_at = self._loop.time()
            self._open.add(handler)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Count it."""
        super().connection_lost(handler, exc)
        if isinstance(handler, _Protocol):
            self._open.discard(handler)
        self._look_for_end()

    def __call__(self) -> RequestHandler:
        return _Protocol(
            self,
            self._guard,
            loop=self._loop,
            # Blobs are stored as they are sent: a body must never be unpacked on its way.
            auto_decompress=False,
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=LINE_MAX_BYTES,
            max_headers=_FIELDS_MAX,
        )

    async def _handle(self, request: BaseRequest) -> StreamResponse:
        self._running += 1
        try:
            return await self._handler(request)
        finally:
            self._running -= 1
            if isinstance(request.protocol, _Protocol):
                request.protocol.answered_at = self._loop.time()
            self._look_for_end()

    def _look_for_end(self) -> None:
        if self.is_draining and not self._open and not self._running:
            self._ended.set()

    async def drain(self, timeout_seconds: float, idle_seconds: float) -> None:
        """Let running requests end; aiohttp's own shutdown would stop reading their bodies at once.

        A connection at rest stays for ``idle_seconds``: a request that is on its way is answered, and told that it was
        the last. To close at once would leave clients without an answer, and few repeat a POST.
        """
        self.is_draining = True
        started_at = self._loop.time()
        for connection in self._open:
            connection.answered_at = max(connection.answered_at, started_at)
        closing = spawn(self._close_idle(idle_seconds), "closing of connections at rest")
        self._look_for_end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._ended.wait()
        closing.cancel()
        # What is left gets a moment for the end of its answer, then it is cut.
        await self.shutdown(_LAST_BYTES_SECONDS)

    async def _close_idle(self, idle_seconds: float) -> None:
        while True:
            for connection in [*self._open]:
                connection.close_if_idle(idle_seconds)
            await asyncio.sleep(_LOOK_SECONDS)


class PublicServer:
    """Listeners that are being served; see ``run_public``."""

    def __init__(self, server: _Server, listeners: Sequence[asyncio.Server]) -> None:
        self._server = server
        self._listeners = listeners

    async def drain(self, timeout_seconds: float, idle_seconds: float) -> None:
        """Take no new connections, let running requests end within the time, close all.

        Args:
            timeout_seconds: what then still runs is cut.
            idle_seconds: how long a connection may rest that was not told yet that it closes.
        """
        for listener in self._listeners:
            listener.close()
        await self._server.drain(timeout_seconds, idle_seconds)
        for listener in self._listeners:
            await listener.wait_closed()


async def run_public(
    handler: Callable[[BaseRequest], Awaitable[StreamResponse]],
    listening: Sequence[socket.socket],
    connections: Connections,
    answer_now: AnswerNow | None = None,
) -> PublicServer:
    """Serve the handler on bound sockets until ``drain``; requests that ``answer_now`` answers never reach it."""
    server = _Server(handler, Guard(connections, _HEALTH, _BUSY), answer_now)
    loop = asyncio.get_running_loop()
    listeners = [await loop.create_server(plain_port(server), sock=each, backlog=_BACKLOG) for each in listening]
    return PublicServer(server, listeners)
