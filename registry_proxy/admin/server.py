"""The HTTP server of the admin listener: aiohttp's own, which also lets the requests that are on their way arrive."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong
from aiohttp.typedefs import Handler as RequestHandler

from registry_proxy.admission.auth import OPS_PATHS
from registry_proxy.api.problems import ProblemError
from registry_proxy.http.certificate import Certificate
from registry_proxy.http.connections import Connections
from registry_proxy.http.drain import drain
from registry_proxy.http.guarded import Guard, GuardedConnection
from registry_proxy.http.handler import Handler, RefusedHeadError
from registry_proxy.http.listening import Listening, listen
from registry_proxy.http.whole_answer import whole_answer

_LAST_BYTES_SECONDS = 0.5
_HEALTH = tuple(f"{method} {path} ".encode() for method in ("GET", "HEAD") for path in OPS_PATHS)


_IS_CLOSING = web.AppKey("is_closing", asyncio.Event)
"""Whether each answer is the last on its connection."""


class AdminServer:
    """A listener that is being served; see ``serving_admin``."""

    def __init__(self, app: web.Application, server: web.Server, listener: Listening) -> None:
        self._app = app
        self._server = server
        self._listener = listener

    async def drain(self, timeout_seconds: float, idle_seconds: float) -> None:
        """Accept no new connections; answer requests on open ones, each as the last of its connection.

        See ``http.drain``.
        """
        self._app[_IS_CLOSING].set()
        await drain(self._server, [self._listener], timeout_seconds, idle_seconds)


def _busy() -> bytes:
    """Return the whole answer to a request for which there is no connection to spare."""
    return _whole(503, "the admin listener has too many connections to serve one more: try again", "Retry-After: 1")


def _refuse(error: HttpProcessingError) -> bytes:
    """Return the whole answer to bytes that cannot be read, or are refused; aiohttp's repeats and logs them."""
    if isinstance(error, LineTooLong):
        return _whole(431, f"a line of the request is longer than {error.args[1]} bytes: send less in it")
    if isinstance(error, RefusedHeadError):
        return _whole(error.code, error.message)
    return _whole(400, "the request cannot be read as HTTP")


def _whole(status: int, message: str, *fields: str) -> bytes:
    body = ProblemError(status, message).response().body
    assert isinstance(body, bytes)  # noqa: S101 - a document of ours
    return whole_answer(status, "application/problem+json", body, *fields)


@web.middleware
async def _end_when_closing(request: web.Request, handler: RequestHandler) -> web.StreamResponse:
    """Close the connection behind the answer once the listener is closed."""
    response = await handler(request)
    if request.app[_IS_CLOSING].is_set():
        response.force_close()
    return response


@contextlib.asynccontextmanager
async def serving_admin(
    app: web.Application, listener: socket.socket, connections: Connections, certificate: Certificate | None = None
) -> AsyncIterator[AdminServer]:
    """Serve an application on a bound socket, over TLS with a certificate; requests that run at the end are cut."""
    app[_IS_CLOSING] = asyncio.Event()
    app.middlewares.insert(0, _end_when_closing)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LAST_BYTES_SECONDS)
    try:
        await runner.setup()
        manager = runner.server
        assert manager is not None  # noqa: S101 - it is set up
        guard = Guard(connections, _HEALTH, _busy, _refuse, partial(Handler, manager))
        server = await listen(partial(GuardedConnection, guard), listener, connections, certificate)
        try:
            yield AdminServer(app, manager, server)
        finally:
            server.close()
    finally:
        await runner.cleanup()
