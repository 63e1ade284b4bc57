"""Unfinished bodies of one address fill no memory: neither buffers that nobody reads, nor partial documents."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.web import BaseRequest, Response, StreamResponse

from registry_proxy.edge import incoming
from registry_proxy.edge.server import run_public
from registry_proxy.http import connections
from registry_proxy.http.connections import ConnectionLimits
from tests.support.fakes.listeners import any_connections
from tests.support.fakes.public import PublicBench
from tests.support.waiting import until

MAX = 128
CROWD = MAX // 8 // 8
"""The number of unfinished bodies of one address that are read into large buffers."""

PATCH = b"PATCH /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"


@asynccontextmanager
async def sending(
    port: int, head: bytes, content: bytes, count: int = 1
) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Send the beginning of many requests, as far as the server reads, and keep them so for the length of the block."""
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.transport.abort)
            writer.write(head + content)
            streams.append((reader, writer))
        yield streams


async def test_buffers_of_many_unfinished_bodies_are_small() -> None:
    """A few waiting bodies of one address have large buffers, here and in the kernel; the others have small ones."""
    waiting: list[BaseRequest] = []
    is_over = asyncio.Event()

    async def handle(request: BaseRequest) -> StreamResponse:
        waiting.append(request)
        await is_over.wait()
        return Response()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = await run_public(handle, [listening], any_connections(ConnectionLimits(connections_max=MAX)))
        port = listening.getsockname()[1]
        async with sending(port, PATCH, bytes(1 << 20), CROWD):
            await until(lambda: len(waiting) == CROWD)
            async with sending(port, PATCH, bytes(1 << 20), 8):
                await until(lambda: len(waiting) == CROWD + 8)
                limits = [request.content.get_read_buffer_limits()[1] for request in waiting]
                own = [request.transport.get_extra_info("socket") for request in waiting if request.transport]
                kernel = [each.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for each in own]
                is_over.set()
        await server.drain(1, 0)
    assert (min(limits[:CROWD]), max(limits[CROWD:])) == (512 * 1024, 32 * 1024)
    assert min(kernel[:CROWD]) > 2 * max(kernel[CROWD:])


async def test_documents_in_part_have_a_bound_for_each_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form beyond the unfinished bytes that one address may have is 429; its earlier forms can still be completed."""
    monkeypatch.setattr(connections, "HELD_MAX_BYTES", 100_000)
    monkeypatch.setattr(incoming, "DRAIN_SECONDS", 0.1)
    head = b"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    async with PublicBench(tmp_path).serving() as public:
        owners = public.connections._owners
        async with sending(public.port, head, b"a" * 60_000) as [(first, writer)]:
            await until(lambda: any(each.held_bytes == 60_000 for each in owners.values()))
            async with sending(public.port, head, b"a" * 60_000) as [(second, _)]:
                assert (await second.readline()).startswith(b"HTTP/1.1 429 ")
                writer.write(b"a" * 40_000)
                assert (await first.readline()).startswith(b"HTTP/1.1 400 ")
                assert not any(each.held_bytes for each in owners.values())
