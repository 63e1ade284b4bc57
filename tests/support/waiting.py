"""Waiting for something to become true."""

import asyncio
import socket
from collections.abc import Callable


async def until(condition: Callable[[], bool], timeout_seconds: float = 30) -> None:
    """Return when the condition holds; raise TimeoutError when it does not in time."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():  # noqa: ASYNC110 - other processes change it, and nothing tells of that
            await asyncio.sleep(0.01)


def refuses(port: int) -> bool:
    """Tell whether a port has no listener."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
