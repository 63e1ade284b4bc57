"""The end of a listener: its requests are answered, and its connections end."""

import asyncio
import contextlib
from collections.abc import Sequence

from aiohttp import web

from registry_proxy.http.guarded import GuardedConnection
from registry_proxy.http.handler import Handler
from registry_proxy.http.listening import Listening

_LAST_BYTES_SECONDS = 0.5
_LOOK_SECONDS = 0.1


async def drain(
    server: web.Server, listeners: Sequence[Listening], timeout_seconds: float, idle_seconds: float
) -> None:
    """Take no new connections, let running requests end; aiohttp's own shutdown would read no more of their bodies.

    A connection at rest stays for a moment: a request that is on its way is answered, and the answer says that it
    is the last. To close at once would leave clients without an answer, and few repeat a POST.

    Args:
        server: counts the connections.
        listeners: they are closed.
        timeout_seconds: what then still runs is cut.
        idle_seconds: how long a connection may rest whose client does not know yet that it closes.
    """
    for listener in listeners:
        listener.close()
    loop = asyncio.get_running_loop()
    closes_from = loop.time() + idle_seconds
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            while server.connections or any(each.has_handshakes for each in listeners):
                if (now := loop.time()) >= closes_from:
                    _close_idle(server, now - idle_seconds)
                await asyncio.sleep(_LOOK_SECONDS)
    # What is left gets a moment for the end of its answer, then it is cut.
    await server.shutdown(_LAST_BYTES_SECONDS)
    for listener in listeners:
        await listener.wait_closed()


def _close_idle(server: web.Server, until: float) -> None:
    for handler in server.connections:
        front = handler.front if isinstance(handler, Handler) else None
        if isinstance(front, GuardedConnection):
            front.close_if_idle(until)
