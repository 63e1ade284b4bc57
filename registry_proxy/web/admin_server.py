"""The HTTP server of the admin listener: aiohttp's own, which also lets the requests that are on their way arrive."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

_DRAINING = web.AppKey("draining", asyncio.Event)
_LOOK_SECONDS = 0.1


class AdminServer:
    """A listener that is being served; see ``serving_admin``."""

    def __init__(self, runner: web.AppRunner, site: web.SockSite) -> None:
        self._runner = runner
        self._site = site

    async def drain(self, idle_seconds: float) -> None:
        """Take no new connections; answer what comes meanwhile on those that there are, and tell that it was the last.

        Args:
            idle_seconds: how long a connection may rest that was not told yet that it closes.
        """
        self._runner.app[_DRAINING].set()
        await self._site.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(idle_seconds):
                while self._runner.server and self._runner.server.connections:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(_LOOK_SECONDS)


@web.middleware
async def _tell_the_last(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Close a connection behind its answer once the listener is closed."""
    response = await handler(request)
    if request.app[_DRAINING].is_set():
        response.force_close()
    return response


@contextlib.asynccontextmanager
async def serving_admin(
    app: web.Application, listener: socket.socket, timeout_seconds: float
) -> AsyncIterator[AdminServer]:
    """Serve an application on a bound socket; requests that still run at the end have ``timeout_seconds``."""
    app[_DRAINING] = asyncio.Event()
    app.middlewares.insert(0, _tell_the_last)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=timeout_seconds)
    try:
        await runner.setup()
        site = web.SockSite(runner, listener)
        await site.start()
        yield AdminServer(runner, site)
    finally:
        await runner.cleanup()
