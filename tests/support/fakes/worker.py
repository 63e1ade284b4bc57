"""A worker that the supervisor can start instead of ours, and that misbehaves on demand.

It answers one line for one line: ``pid``, ``slow`` (answers after ``go`` came on the same connection), ``inside``,
``reload``.
The first route's prefix decides its start: ``broken/``, ``never-ready/``, ``unprepared/`` or ``made-up/``.
"""

import asyncio
import functools
import json
import os
import signal
import sys
from dataclasses import asdict

from registry_proxy.config.model import Settings
from registry_proxy.node import worker


async def _answer(
    running: set[asyncio.Task[None] | None],
    context: worker.WorkerContext,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    running.add(asyncio.current_task())
    try:
        while line := (await reader.readline()).decode().strip():
            if line == "slow":
                writer.write(b"started\n")
                await reader.readline()
            answer: object = os.getpid()
            if line == "inside":
                answer = json.dumps(
                    {"environment": sorted(os.environ), "argv": sys.argv, "slot": context.slot, "id": context.process}
                )
            elif line == "reload":
                answer = json.dumps(asdict(await context.reload()))
            writer.write(f"{answer}\n".encode())
            if line == "slow":
                break
    except ConnectionError:
        pass
    finally:
        running.discard(asyncio.current_task())
        writer.close()


async def run_worker(settings: Settings, context: worker.WorkerContext) -> None:
    """Serve until drained, as the real one does."""
    behaviour = settings.routes[0].prefix
    if behaviour == "broken/":
        raise OSError("the disk is on fire")
    running: set[asyncio.Task[None] | None] = set()
    servers = [
        await asyncio.start_server(functools.partial(_answer, running, context), sock=listener)
        for listener in (*context.public_sockets, context.admin_socket)
        if listener is not None
    ]
    if behaviour != "never-ready/":
        context.ready()
    await context.ending.wait()
    for server in servers:
        server.close()
    if behaviour == "undrainable/":
        await asyncio.Event().wait()
    drain = settings.drain
    seconds = drain.reload_timeout_seconds if context.ending.is_replaced else drain.timeout_seconds
    await asyncio.wait_for(asyncio.gather(*(task for task in running if task)), seconds)


async def prepare(settings: Settings, admin_password: str | None) -> str | None:
    """Generate a password where none is given."""
    if settings.routes[0].prefix == "unprepared/":
        raise OSError("the store is of a newer version")
    if settings.routes[0].prefix == "dying/":
        os.kill(os.getpid(), signal.SIGKILL)
    return None if admin_password else "made-up"
