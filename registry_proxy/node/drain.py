"""The drain of a worker: its listeners take nothing new, and the requests that run get their time to end."""

import asyncio
from typing import Protocol

from registry_proxy.config.model import DrainSettings
from registry_proxy.node.listeners import refuse_new_connections
from registry_proxy.node.worker import Ending, WorkerContext
from registry_proxy.tasks import running

_HANDSHAKE_SECONDS = 0.05
"""Time for connections that are under way to arrive before the address is closed."""

_IDLE_SECONDS_STOPPING, _IDLE_SECONDS_REPLACED = 1.0, 5.0
"""Time for which an idle connection stays open without a last answer: its next request may be on its way."""


class Drains(Protocol):
    """A listener that is being served."""

    async def drain(self, timeout_seconds: float, idle_seconds: float) -> None:
        """Take no new connections, let running requests end within the time, then cut what is left."""
        ...


async def drain(context: WorkerContext, limits: DrainSettings, public: Drains, admin: Drains | None) -> None:
    """End the listeners of a worker, whose ``ending`` is set; return when all their requests have ended."""
    if context.ending.is_replaced:
        await _drain_replaced(context.ending, limits, public, admin)
    else:
        await _drain_stopping(context, limits, public, admin)


async def _drain_replaced(ending: Ending, limits: DrainSettings, public: Drains, admin: Drains | None) -> None:
    """Drain while other workers serve the same sockets; a stop of the service shortens it."""
    try:
        async with (
            asyncio.timeout(None) as limit,
            running(_limit_at_stop(ending, limit, limits.timeout_seconds), "wait for a stop"),
            asyncio.TaskGroup() as draining,
        ):
            if admin is not None:
                draining.create_task(admin.drain(limits.reload_timeout_seconds, _IDLE_SECONDS_REPLACED))
            draining.create_task(public.drain(limits.reload_timeout_seconds, _IDLE_SECONDS_REPLACED))
    except TimeoutError:
        await public.drain(0, 0)


async def _drain_stopping(context: WorkerContext, limits: DrainSettings, public: Drains, admin: Drains | None) -> None:
    await asyncio.sleep(limits.delay_seconds)
    for listener in context.public_sockets:
        refuse_new_connections(listener)
    await asyncio.sleep(_HANDSHAKE_SECONDS)
    ends_at = asyncio.get_running_loop().time() + limits.timeout_seconds
    await public.drain(limits.timeout_seconds, _IDLE_SECONDS_STOPPING)
    if admin is not None:  # last: it tells how the node does
        await admin.drain(ends_at - asyncio.get_running_loop().time(), _IDLE_SECONDS_STOPPING)


async def _limit_at_stop(ending: Ending, limit: asyncio.Timeout, seconds: float) -> None:
    await ending.wait_for_stop()
    limit.reschedule(asyncio.get_running_loop().time() + seconds)
