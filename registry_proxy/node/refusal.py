"""Answers for workers that cannot: every request gets a 503 that says why."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

_HEAD_SECONDS = 5.0
_RETRY_SECONDS = 10


@asynccontextmanager
async def refusing(listeners: Sequence[socket.socket], reason: str) -> AsyncIterator[None]:
    """Refuse what comes in on some listeners for the length of a with block; they stay open behind it."""
    error = {"code": "UNAVAILABLE", "message": reason, "detail": {"reason": reason}}
    body = json.dumps({"errors": [error]}).encode()
    fields = (
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nRetry-After: {_RETRY_SECONDS}\r\n"
        "Docker-Distribution-API-Version: registry/2.0\r\nConnection: close"
    )
    head = f"HTTP/1.1 503 Service Unavailable\r\n{fields}\r\n\r\n".encode()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_HEAD_SECONDS):
                asked = await reader.readuntil(b"\r\n\r\n")
                writer.write(head if asked.startswith(b"HEAD ") else head + body)
                await writer.drain()
        writer.close()

    # Duplicates: a server closes its socket, and the workers that come next need this one.
    servers = [await asyncio.start_server(refuse, sock=listener.dup()) for listener in listeners]
    try:
        yield
    finally:
        for server in servers:
            server.close()
