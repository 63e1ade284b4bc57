"""The HTTP server of the admin listener: aiohttp's own, which also lets the requests that are on their way arrive."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.typedefs import Handler

from registry_proxy.admin.ops import OPS_PATHS
from registry_proxy.api.problems import ProblemError
from registry_proxy.http.connections import Connections
from registry_proxy.http.guarded import Guard, GuardedConnection, RefusedHeadError
from registry_proxy.http.plain_port import plain_port
from registry_proxy.http.whole_answer import whole_answer

_LAST_BYTES_SECONDS = 0.5
_LOOK_SECONDS = 0.1
_HEALTH = tuple(f"{method} {path} ".encode() for method in ("GET", "HEAD") for path in OPS_PATHS)


@dataclass
class _Requests:
    """The number of requests being read or handled, and whether each is the last on its connection."""

    running: int = 0
    are_last: bool = False


_REQUESTS = web.AppKey("requests", _Requests)


class AdminServer:
    """A listener that is being served; see ``serving_admin``."""

    def __init__(self, runner: web.AppRunner, listener: asyncio.Server) -> None:
        self._runner = runner
        self._listener = listener

    async def drain(self, timeout_seconds: float, idle_seconds: float) -> None:
        """Take no new connections; answer what comes meanwhile on those that there are, and tell that it was the last.

        Args:
            timeout_seconds: what then still runs is cut.
            idle_seconds: how long a connection may rest that was not told yet that it closes.
        """
        requests, server = self._runner.app[_REQUESTS], self._runner.server
        requests.are_last = True
        self._listener.close()
        assert server is not None  # noqa: S101 - its runner is set up
        loop = asyncio.get_running_loop()
        rests_until = loop.time() + idle_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                # aiohttp's own end, which follows, would read no more of any body.
                while server.connections and (requests.running or loop.time() < rests_until):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(_LOOK_SECONDS)
                server.pre_shutdown()
                await server.shutdown(timeout_seconds)


class _Connection(GuardedConnection):
    """A connection. Bytes that are no HTTP get a problem document; aiohttp repeats them, and logs a traceback."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that cannot be read; other errors as aiohttp does."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong):
            problem = ProblemError(431, f"a line of the request is longer than {exc.args[1]} bytes: send less in it")
        elif isinstance(exc, RefusedHeadError):
            problem = ProblemError(exc.code, exc.message)
        else:
            problem = ProblemError(400, "the request cannot be read as HTTP")
        response = problem.response()
        response.headers["Server"] = "registry-proxy"
        response.force_close()
        return response


def _busy() -> bytes:
    """Return the whole answer to a request for which there is no connection to spare."""
    return _refuse(503, "the admin listener has too many connections to serve one more: try again", "Retry-After: 1")


def _refuse(status: int, message: str, *fields: str) -> bytes:
    """Return the whole answer to a request that is not read any further."""
    body = ProblemError(status, message).response().body
    assert isinstance(body, bytes)  # noqa: S101 - a document of ours
    return whole_answer(status, "application/problem+json", body, *fields)


@web.middleware
async def _count(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count a request; close its connection behind the answer once the listener is closed."""
    requests = request.app[_REQUESTS]
    requests.running += 1
    try:
        response = await handler(request)
    finally:
        requests.running -= 1
    if requests.are_last:
        response.force_close()
    return response


@contextlib.asynccontextmanager
async def serving_admin(
    app: web.Application, listener: socket.socket, connections: Connections
) -> AsyncIterator[AdminServer]:
    """Serve an application on a bound socket; requests that still run at the end are cut."""
    app[_REQUESTS] = _Requests()
    app.middlewares.insert(0, _count)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LAST_BYTES_SECONDS)
    loop = asyncio.get_running_loop()
    try:
        await runner.setup()
        manager = runner.server
        assert manager is not None  # noqa: S101 - it is set up

        guard = Guard(connections, _HEALTH, _busy, _refuse)

        def connection() -> _Connection:
            return _Connection(manager, guard, loop=loop)

        server = await loop.create_server(plain_port(connection), sock=listener)
        try:
            yield AdminServer(runner, server)
        finally:
            server.close()
    finally:
        await runner.cleanup()
