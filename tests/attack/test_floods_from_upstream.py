"""A replica that sends unrequested bytes without end is disconnected, at no cost in time or memory for others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest

from registry_proxy.protocol.reference import digest_of
from registry_proxy.replica.failure import ReplicaFailedError
from tests.support.fakes.upstream import REPOSITORY, open_client
from tests.support.waiting import until

INFORMATIONAL = b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000


class Flooding:
    """A server that answers each request with ``head`` and then ``flood`` repeatedly until the client disconnects."""

    def __init__(self, head: bytes, flood: bytes) -> None:
        self._head = head
        self._flood = flood
        self.sent_bytes = 0
        self.left = 0
        self.may_flood = asyncio.Event()
        self.may_flood.set()
        self.url = ""

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            try:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(self._head)
                await self.may_flood.wait()
                while self._flood:
                    writer.write(self._flood)
                    self.sent_bytes += len(self._flood)
                    await writer.drain()
            except (OSError, asyncio.IncompleteReadError):
                self.left += 1

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Flooding"]:
        """Serve on a free port."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self


async def test_a_flood_of_informational_answers_fails_the_request() -> None:
    """The request fails after a few of them: other requests get the loop meanwhile, and no deadline has to pass."""
    async with (
        Flooding(b"", INFORMATIONAL).serving() as server,
        open_client(server.url) as client,
    ):
        with pytest.raises(ReplicaFailedError, match="no HTTP"):
            await client.stat_blob(REPOSITORY, digest_of(b"x"))
        await until(lambda: server.left == 1)
    assert server.sent_bytes < 20_000_000  # the size of two sockets' buffers, and not five seconds of the flood


async def test_a_few_informational_answers_are_taken() -> None:
    """A registry may say that it is still at work (RFC 9110, 15.2)."""
    digest = digest_of(b"x")
    early = b"HTTP/1.1 102 Processing\r\n\r\n" * 8
    head = f"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDocker-Content-Digest: {digest}\r\n\r\n".encode()
    async with Flooding(early + head, b"").serving() as server, open_client(server.url) as client:
        server.may_flood.clear()
        assert (await client.stat_blob(REPOSITORY, digest)).size_bytes == 5
        server.may_flood.set()


UNASKED = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * 1_000


@pytest.mark.parametrize("behind", [b"", UNASKED])
async def test_answers_for_which_nobody_asked_end_the_connection(behind: bytes) -> None:
    """Bytes after an answer are neither read nor kept while the connection rests, and the answer is valid."""
    digest = digest_of(b"x")
    head = f"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDocker-Content-Digest: {digest}\r\n\r\n".encode()
    async with Flooding(head + behind, UNASKED).serving() as server, open_client(server.url) as client:
        server.may_flood.clear()
        assert (await client.stat_blob(REPOSITORY, digest)).size_bytes == 5
        server.may_flood.set()
        await until(lambda: server.left == 1)
    assert server.sent_bytes < 20_000_000  # the size of two sockets' buffers
