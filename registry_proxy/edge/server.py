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
from registry_proxy.http.whole_answer import whole_answer
from registry_proxy.protocol.errors import ErrorCode, RegistryError, format_errors
from registry_proxy.tasks import spawn

_FIELDS_MAX = 64
_TOO_MANY_FIELDS = "Too many headers received"  # aiohttp has no type for it
_READ_BUFFER_BYTES = 256 * 1024
_BACKLOG = 1024
_LAST_BYTES_SECONDS = 0.5
_LOOK_SECONDS = 0.1

_HEALTH = (b"GET /healthz ", b"HEAD /healthz ")
_log = logging.getLogger(__name__)


AnswerNow = Callable[[bytes, asyncio.Transport], bytes | None]
"""Takes what came on an idle connection; returns a whole answer, or None without having done anything."""


class _Protocol(GuardedConnection):
    """A connection. Gaps of aiohttp: half-closed clients, and our error bodies."""

    def __init__(self, manager: "_Server", guard: Guard, **options: Any) -> None:
        super().__init__(manager, guard, **options)
        self._server = manager

    @property
    def is_draining(self) -> bool:
        """Whether the listener is being closed."""
        return self._server.is_draining

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's own type; aiohttp narrows it to None
        """Keep a half-closed connection for its answer; a body that ended too early has no answer."""
        if self.is_idle() or self.has_body_to_come():
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


def _too_long(limit: int) -> RegistryError:
    """Return the 414 of a URL, or the 431 (RFC 6585) of a header field; their limits differ."""
    what, status = ("URL", 414) if limit == LINE_MAX_BYTES else ("header field", 431)
    message = f"a {what} of the request is longer than {limit} bytes: send less in it"
    return RegistryError(ErrorCode.UNSUPPORTED, message, detail={"limit": limit}, status=status)


def _busy() -> bytes:
    message = "this node has too many connections to serve one more: try again"
    return whole_answer(
        503, "application/json", format_errors(ErrorCode.UNAVAILABLE.value, message, {}), "Retry-After: 1"
    )


def _refuse(status: int, message: str) -> bytes:
    return whole_answer(status, "application/json", format_errors(ErrorCode.UNSUPPORTED.value, message, {}))


class _Request(BaseRequest):
    """A request whose answer says that the connection closes once the listener does."""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open behind the answer."""
        is_draining = isinstance(self.protocol, _Protocol) and self.protocol.is_draining
        return not is_draining and super().keep_alive


class _Server(web.Server):
    """Makes our connections."""

    def __init__(self, handler: Callable[[BaseRequest], Awaitable[StreamResponse]], guard: Guard) -> None:
        super().__init__(self._handle, request_factory=self._make_our_request)
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
            self._open.add(handler)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Count it."""
        super().connection_lost(handler, exc)
        if isinstance(handler, _Protocol):
            self._open.discard(handler)
        self._look_for_end()

    def __call__(self) -> _Protocol:
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
        closing = spawn(self._close_idle(idle_seconds), "closing of connections at rest")
        self._look_for_end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._ended.wait()
        closing.cancel()
        # What is left gets a moment for the end of its answer, then it is cut.
        await self.shutdown(_LAST_BYTES_SECONDS)

    async def _close_idle(self, idle_seconds: float) -> None:
        await asyncio.sleep(idle_seconds)
        while True:
            for connection in [*self._open]:
                connection.close_if_idle(self._loop.time() - idle_seconds)
            await asyncio.sleep(_LOOK_SECONDS)


class _Front(asyncio.Protocol):
    """Stands before a connection and looks at its bytes first; passes on all that ``answer_now`` does not answer."""

    def __init__(self, inner: _Protocol, answer_now: AnswerNow) -> None:
        self._inner = inner
        self._answer_now = answer_now

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        inner = self._inner
        transport = None if inner.is_draining else inner.quiet_transport()
        answer = None if transport is None else self._answer_now(data, transport)
        if transport is None or answer is None:
            inner.data_received(data)
        else:
            transport.write(answer)
            inner.answered_beside()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)


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
    server = _Server(handler, Guard(connections, _HEALTH, _busy, _refuse))
    loop = asyncio.get_running_loop()

    def connection() -> asyncio.Protocol:
        return server() if answer_now is None else _Front(server(), answer_now)

    listeners = [await loop.create_server(plain_port(connection), sock=each, backlog=_BACKLOG) for each in listening]
    return PublicServer(server, listeners)
