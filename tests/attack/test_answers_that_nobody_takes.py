"""Clients that send requests and never read the answers hold no connections or files that others need."""

import asyncio
import socket
from pathlib import Path

import pytest

from registry_proxy.http import connections
from registry_proxy.http.connections import ConnectionLimits, Patience
from registry_proxy.protocol.reference import digest_of
from tests.support.fakes.public import PublicBench
from tests.support.waiting import until

LAYER = b"a layer " * 2_000_000
MAX = 16


async def ask(public: PublicBench, request: bytes, address: str) -> socket.socket:
    """Send a request from an address, with a small receive buffer that nobody reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(0)
    client.bind((address, 0))
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", public.port))
    await loop.sock_sendall(client, request)
    return client


async def test_pulls_that_nobody_reads_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One address that fills all connections with unread blobs locks nobody out, and leaves no file open."""
    monkeypatch.setattr(connections, "_FULL_PATIENCE", Patience(1, 1, 1, 0.2))
    async with PublicBench(tmp_path, limits=ConnectionLimits(connections_max=MAX)).serving() as public:
        public.reader.add_blob("team/app", LAYER)
        public.allow("pull")
        request = public.request(f"GET /v2/team/app/blobs/{digest_of(LAYER)}")
        clients = [await ask(public, request, "127.0.0.2") for _ in range(MAX)]
        owner, loop = public.connections._owners["127.0.0.2"], asyncio.get_running_loop()
        await until(lambda: sum(one.stalls(loop.time(), 0.3) for one in owner.connections) == MAX)
        assert (await public.raw(public.request("GET /v2/"))).data.startswith(b"HTTP/1.1 200 ")
        await until(lambda: public.cache.open_readers == 0)
        for client in clients:
            client.close()


async def test_small_answers_that_nobody_reads_end(tmp_path: Path) -> None:
    """A connection with request after request without credentials, and no answer read, is closed after a while."""
    async with PublicBench(tmp_path, limits=ConnectionLimits(answer_seconds=0.3)).serving() as public:
        with await ask(public, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", "127.0.0.2") as client:
            client.settimeout(60)
            with pytest.raises(ConnectionError):
                await asyncio.to_thread(send_without_end, client)


def send_without_end(client: socket.socket) -> None:
    """Send requests until the connection ends."""
    while True:
        client.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
