"""Bodies of answers, sent on both event loops."""

import asyncio
import hashlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock

import pytest
import uvloop

from registry_proxy.operations.pull_blobs import SMALL_BYTES
from registry_proxy.ports.metrics import ClientRequest, SentBytes
from registry_proxy.protocol.reference import Digest, digest_of
from tests.support.fakes.memory import GrowingFile
from tests.support.fakes.public import PublicBench, read_to_end
from tests.support.waiting import until

Scenario = Callable[[PublicBench], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Scenario], None]:
    """Return a function that runs a scenario on a new loop."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with PublicBench(tmp_path).serving() as public:
                public.allow("pull")
                await scenario(public)
                # A handler may end a moment after its client: it closes its reader.
                await until(lambda: not (public.cache.open_readers))

        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return run


def hold(public: PublicBench, content: bytes) -> Digest:
    """Put a blob into the cache, known to the repository."""
    digest = public.cache.add(content)
    public.reader.add_blob("team/app", content)
    return digest


def growing(public: PublicBench, content: bytes, available_bytes: int) -> tuple[Digest, GrowingFile]:
    """Put a blob into the cache of which only a part has arrived."""
    digest = digest_of(content)
    public.reader.add_blob("team/app", content)
    file = public.cache.files[digest] = GrowingFile(len(content), content[:available_bytes])
    return digest, file


def test_64_mib_arrive_as_they_are(play: Callable[[Scenario], None]) -> None:
    """64 MiB are sent by the kernel, to four clients at a time, with every byte right."""
    content = os.urandom(1 << 20) * 64

    async def scenario(public: PublicBench) -> None:
        digest = hold(public, content)

        async def pull() -> str:
            seen = hashlib.sha256()
            async with public.session.get(f"/v2/team/app/blobs/{digest}", headers=public.bearer()) as response:
                async for chunk in response.content.iter_chunked(1 << 20):
                    seen.update(chunk)
            return seen.hexdigest()

        assert set(await asyncio.gather(*(pull() for _ in range(4)))) == {digest.hex}
        assert public.observer.total(SentBytes, "cache") == 4 * len(content)

    play(scenario)


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1])
def test_every_size_on_a_connection_that_is_kept(play: Callable[[Scenario], None], size: int) -> None:
    """The next request on the connection finds it clean."""
    content = os.urandom(size)

    async def scenario(public: PublicBench) -> None:
        digest = hold(public, content)
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        request = public.request(f"GET /v2/team/app/blobs/{digest}").replace(b"Connection: close\r\n", b"")
        # Pipelined too: the second answer must not overtake the rest of the first.
        writer.write(request * 3)
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head
            assert await reader.readexactly(size) == content
        writer.close()

    play(scenario)


def test_the_kernel_does_not_overtake_what_is_still_in_memory(play: Callable[[Scenario], None]) -> None:
    """Answers that still wait in memory for a slow client come before the file that follows them."""
    small, large = os.urandom(20_000), os.urandom(1 << 20)

    async def scenario(public: PublicBench) -> None:
        requests = [
            public.request(f"GET /v2/team/app/blobs/{hold(public, content)}").replace(b"Connection: close\r\n", b"")
            for content in (small, large)
        ]
        client = socket.socket()
        # A small window: the kernel soon takes no more, and answers wait in the transport's own buffer.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        client.connect(("127.0.0.1", public.port))
        reader, writer = await asyncio.open_connection(sock=client)
        try:
            writer.write((requests[0] * 300 + requests[1]) * 2)
            assert public.server is not None
            transports = public.server._server._connections
            # Nothing is read until the server has more to send than the kernel takes.
            await until(lambda: any(transport.get_write_buffer_size() for transport in transports.values()))
            for content in ([small] * 300 + [large]) * 2:
                assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(len(content)) == content
        finally:
            writer.close()

    play(scenario)


def test_a_range_of_a_large_file(play: Callable[[Scenario], None]) -> None:
    """The kernel starts and ends where the range does."""
    content = os.urandom(1 << 20)

    async def scenario(public: PublicBench) -> None:
        digest = hold(public, content)
        headers = {**public.bearer(), "Range": "bytes=100000-900000"}
        async with public.session.get(f"/v2/team/app/blobs/{digest}", headers=headers) as response:
            assert (response.status, await response.read()) == (206, content[100000:900001])

    play(scenario)


def test_a_filling_file_is_followed(play: Callable[[Scenario], None]) -> None:
    """Available bytes are sent immediately, the rest as it arrives."""
    content = os.urandom(1 << 20)

    async def scenario(public: PublicBench) -> None:
        digest, file = growing(public, content, 400_000)
        async with public.session.get(f"/v2/team/app/blobs/{digest}", headers=public.bearer()) as response:
            assert await response.content.readexactly(400_000) == content[:400_000]
            file.write(content[400_000:])
            assert await response.content.read() == content[400_000:]

    play(scenario)


def test_a_failed_fill_is_never_a_complete_body(play: Callable[[Scenario], None]) -> None:
    """The connection is closed short of Content-Length; before the first byte it is a 502."""
    content = os.urandom(1 << 20)

    async def scenario(public: PublicBench) -> None:
        digest, file = growing(public, content, 400_000)
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        writer.write(public.request(f"GET /v2/team/app/blobs/{digest}"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 1048576" in head
        file.fail()
        assert len(await read_to_end(reader)) <= 400_000
        writer.close()
        public.cache.drop(digest)
        digest, file = growing(public, content, 0)
        file.fail()
        async with public.session.get(f"/v2/team/app/blobs/{digest}", headers=public.bearer()) as response:
            assert (response.status, (await response.json())["errors"][0]["code"]) == (502, "UNAVAILABLE")
            assert "X-Cache" not in response.headers

    play(scenario)


def test_clients_that_leave_let_go_of_everything(play: Callable[[Scenario], None]) -> None:
    """Fifty aborted pulls leave no descriptor and no task."""
    content = os.urandom(1 << 20) * 16

    async def scenario(public: PublicBench) -> None:
        digest = hold(public, content)
        stalled, _ = growing(public, content + b"x", 100_000)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(50):
            reader, writer = await asyncio.open_connection("127.0.0.1", public.port, limit=1024)
            writer.write(public.request(f"GET /v2/team/app/blobs/{stalled if number % 2 else digest}"))
            await reader.readexactly(1000)
            writer.transport.abort()
        # A lost client is noticed when the next byte is due: for the stalled ones that is now.
        public.cache.files[stalled].write(content[100_000:] + b"x")
        await until(lambda: not (public.cache.open_readers or len(os.listdir("/proc/self/fd")) > before))
        assert not [task for task in asyncio.all_tasks() if "_handle_request" in repr(task)]

    play(scenario)


def test_a_client_that_stops_reading_is_dropped(play: Callable[[Scenario], None]) -> None:
    """Without progress for the stall time the connection is cut and the file closed."""
    content = os.urandom(1 << 20) * 64

    async def scenario(public: PublicBench) -> None:
        digest = hold(public, content)
        with mock.patch("registry_proxy.edge.send.STALL_SECONDS", 0.2):
            client = socket.create_connection(("127.0.0.1", public.port))
            client.sendall(public.request(f"GET /v2/team/app/blobs/{digest}"))
            await until(lambda: bool(public.observer.count(ClientRequest, "get_blob", "GET", 499)))
            client.close()

    play(scenario)


def test_a_slow_client_does_not_slow_another(play: Callable[[Scenario], None]) -> None:
    """While one client reads nothing, another receives everything."""
    content = os.urandom(1 << 20) * 32

    async def scenario(public: PublicBench) -> None:
        digest = hold(public, content)
        slow = socket.create_connection(("127.0.0.1", public.port))
        slow.sendall(public.request(f"GET /v2/team/app/blobs/{digest}"))
        async with public.session.get(f"/v2/team/app/blobs/{digest}", headers=public.bearer()) as response:
            assert len(await response.read()) == len(content)
        slow.close()

    play(scenario)


@pytest.mark.parametrize("is_lie", [False, True])
def test_a_full_disk_passes_through(play: Callable[[Scenario], None], *, is_lie: bool) -> None:
    """Content that the cache cannot hold arrives whole; with a wrong digest it is cut, or a 502 if it is small."""
    content = os.urandom(1 << 20)

    async def scenario(public: PublicBench) -> None:
        public.cache.is_full = True
        for size in (1 << 20, 1000):
            digest = public.reader.add_blob("team/app", content[:size])
            if is_lie:
                public.reader.blobs["team/app", digest] = bytes(size)
            answer = await public.raw(public.request(f"GET /v2/team/app/blobs/{digest}"))
            if not is_lie:
                assert (answer.status, answer.body) == (200, content[:size])
            elif size == 1000:
                assert answer.status == 502
            else:
                assert len(answer.body) < size

    play(scenario)
