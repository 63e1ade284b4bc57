"""The composition root: the only file that imports every package."""

import contextlib

from aiohttp import web

from registry_proxy.settings import Settings
from registry_proxy.worker import WorkerContext


async def prepare(settings: Settings, admin_password: str | None) -> str | None:
    """Make the node ready, once, before its workers start."""
    del settings, admin_password
    return None


async def run_worker(settings: Settings, context: WorkerContext) -> None:
    """Serve until the supervisor says drain."""
    del settings
    async with contextlib.AsyncExitStack() as stack:
        for listener in filter(None, (context.public_socket, context.admin_socket)):
            site_app = web.Application()
            site_app.router.add_get("/healthz", _health)
            runner = web.AppRunner(site_app, access_log=None, shutdown_timeout=context.drain_seconds)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.SockSite(runner, listener).start()
        context.ready()
        await context.draining.wait()


async def _health(_: web.Request) -> web.Response:
    return web.json_response({})
