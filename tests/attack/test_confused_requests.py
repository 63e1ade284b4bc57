"""Requests that cannot be read, or be read in two ways, are refused, and cost no memory meanwhile."""

import asyncio
import itertools
import re
import select
import socket
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry_proxy.http.guarded import GuardedConnection
from registry_proxy.http.handler import Handler
from registry_proxy.protocol.reference import digest_of
from tests.support.fakes.public import PublicBench, read_to_end
from tests.support.waiting import until

CONTENT = b"a layer " * 1000
D = digest_of(CONTENT)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /healthz HTTP/0.9\r\n\r\n", b"400"),
        (b"GET /healthz\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", b"505"),
        (b"GET /healthz HTTP/1.2\r\nHost: x\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
async def test_only_http_1_is_answered(public: PublicBench, head: bytes, status: bytes) -> None:
    """Other versions are refused in HTTP/1.1, also after a request that is answered."""
    assert (await public.raw(head)).data.startswith(b"HTTP/1.1 %b " % status)
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len(b'{"status": "ok"}'))
    writer.write(head)
    answer = await read_to_end(reader)
    assert answer.startswith(b"HTTP/1.1 %b " % status)
    assert b"aiohttp" not in answer
    writer.close()


@pytest.mark.parametrize(
    "first",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["upgrade", "connect"],
)
async def test_an_upgrade_is_no_way_past_the_bounds(public: PublicBench, first: bytes) -> None:
    """Bytes after an upgrade request are refused; later requests count as all others do."""
    behind = b"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
    answers = (await public.raw(first + behind)).data
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in answers
    assert b"HTTP/1.1 400 " in (await public.raw(first * 6000)).data
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    for _ in range(2):
        writer.write(first)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}")
    writer.write(behind)
    await until(lambda: any(owner.unfinished for owner in public.connections._owners.values()))
    writer.close()


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_a_body_with_an_upgrade_is_read(public: PublicBench, protocol: str) -> None:
    """A client that offers another protocol with its form is answered in HTTP/1.1, and its connection goes on."""
    fields = f"Host: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nContent-Length: 8\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    for _ in range(2):
        writer.write(f"POST /auth/token HTTP/1.1\r\n{fields}".encode())
        writer.write(b"grant")
        await asyncio.sleep(0.05)
        writer.write(b"_ty")
        async with asyncio.timeout(30):
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
        assert answer.startswith(b"HTTP/1.1 400 ")
    writer.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x01" * 250_000,
        b"GET /nothing HTTP/1.1\r\nHost: x\r\n" + b"X-Long: %b\r\n" % (b"y" * 15_000) * 40 + b"\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: x\r\n" + b"X-Y: z\r\n" * 30_000,
    ],
    ids=["garbage", "long requests", "a head without end"],
)
async def test_bytes_behind_a_request_cost_little_memory(public: PublicBench, garbage: bytes) -> None:
    """While a request is answered, further bytes of its client are not kept."""
    public.reader.gate = asyncio.Event()
    public.reader.add_blob("team/app", CONTENT)
    public.allow("pull")
    request = public.request(f"GET /v2/team/app/blobs/{D}")
    tracemalloc.start()
    try:
        connections = [await asyncio.open_connection("127.0.0.1", public.port) for _ in range(5)]
        sent = 0
        for _, writer in connections:
            writer.transport.set_write_buffer_limits(high=0)
            writer.write(request.replace(b"Connection: close\r\n", b""))
        await public.reader.was_asked.wait()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(40):
            for _, writer in connections:
                if writer.transport.get_write_buffer_size() == 0:
                    writer.write(garbage)
                    sent += len(garbage)
            await asyncio.sleep(0.005)
        kept = tracemalloc.get_traced_memory()[0] - before
        kept -= sum(writer.transport.get_write_buffer_size() for _, writer in connections)
    finally:
        tracemalloc.stop()
    assert kept < 5 * 1_500_000, sent
    public.reader.gate.set()
    for reader, writer in connections:
        assert await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(CONTENT)) == CONTENT
        writer.close()


async def test_the_beginning_of_a_head_is_not_forgotten(public: PublicBench) -> None:
    """Bytes after the beginning of a head belong to it, even if they look like a whole request."""
    public.reader.add_blob("team/app", CONTENT)
    public.allow("pull")
    hot = public.request(f"GET /v2/team/app/blobs/{D}").replace(b"Connection: close\r\n", b"")
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    for _ in range(2):
        writer.write(hot)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(CONTENT)) == CONTENT
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nX-Beginning: ")
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(16)
    writer.write(hot)
    assert b"404 Not Found" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_a_body_before_it_is_no_reason_to_answer_slowly(public: PublicBench) -> None:
    """After a body that ended at its length, requests are answered immediately again."""
    public.reader.add_blob("team/app", CONTENT)
    public.allow("pull")
    hot = public.request(f"GET /v2/team/app/blobs/{D}").replace(b"Connection: close\r\n", b"")
    assert public.server is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    form = b"grant_type=x"
    writer.write(b"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(form), form[:4]))
    await asyncio.sleep(0.01)
    writer.write(form[4:])
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 400 " in head
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    handler = public.server._server.connections[0]
    assert isinstance(handler, Handler)
    connection = handler.front
    assert isinstance(connection, GuardedConnection)
    assert connection._body_to_come == 0
    writer.write(hot + hot[:10])
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(len(CONTENT)) == CONTENT
    assert connection._body_to_come is None
    writer.close()


async def test_a_head_that_goes_on_for_ever_is_refused(public: PublicBench) -> None:
    """All fields together have a bound, whatever their number."""
    answer = await public.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-Long: %b\r\n" % (b"y" * 15_000) * 60)
    assert answer.status == 431


async def test_the_form_of_a_login_has_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a small body byte by byte gets 408 in our form, and the connection ends."""
    monkeypatch.setattr("registry_proxy.edge.exchange.SMALL_BODY_SECONDS", 0.3)
    async with PublicBench(tmp_path).serving() as public:
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        writer.write(b"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")

        async def drip() -> None:
            while not writer.is_closing():
                writer.write(b"g")
                await asyncio.sleep(0.05)

        dripping = asyncio.get_running_loop().create_task(drip())
        async with asyncio.timeout(8):
            answer = await read_to_end(reader)
        dripping.cancel()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"errors"' in answer


_NAMES = ["hot", "healthz", "form", "chunks", "nothing", "beginning", "empty line"]
_PIECES = st.lists(st.tuples(st.sampled_from(_NAMES), st.booleans()), min_size=1, max_size=6)
"""The bytes to send, and whether they go in one packet with the bytes before."""


async def test_a_stream_of_requests_is_read_in_one_way(tmp_path: Path) -> None:
    """In whatever packets requests come, the two readers of a connection never mix their bytes."""
    async with PublicBench(tmp_path).serving() as public:
        public.reader.add_blob("team/app", CONTENT)
        public.allow("pull")
        await public.raw(public.request(f"GET /v2/team/app/blobs/{D}"))
        hot = public.request(f"GET /v2/team/app/blobs/{D}").replace(b"Connection: close\r\n", b"")
        pieces = {
            "hot": hot,
            "healthz": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
            "form": b"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(hot), hot),
            "chunks": b"POST /auth/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
            % (len(hot), hot),
            "nothing": b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
            "beginning": b"GET /nothing HTTP/1.1\r\nX-Beginning: ",
            "empty line": b"\r\n",
        }
        statuses = {"hot": 200, "healthz": 200, "form": 400, "chunks": 400, "nothing": 404, "beginning": 404}

        def attack(sent: list[tuple[str, bool]], cuts: list[int]) -> None:
            data, places = b"", {0}
            for name, is_glued in sent:
                places |= set() if is_glued else {len(data)}
                data += pieces[name]
                if name == "beginning":  # of a head, to which the bytes that look like a request belong
                    places.add(len(data))
                    data += hot
            data += public.request("GET /healthz")
            places |= {len(data), *(cut % len(data) for cut in cuts)}
            with socket.create_connection(("127.0.0.1", public.port), 10) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for begin, end in itertools.pairwise(sorted(places)):
                    client.sendall(data[begin:end])
                    select.select([client], [], [], 0.005)  # an answer, or time enough to be read apart
                received = b"".join(iter(lambda: client.recv(1 << 16), b""))
            found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) [A-Z]", received)]
            assert found == [statuses[name] for name, _ in sent if name in statuses] + [200]

        attacked = settings(max_examples=40, deadline=None)(
            given(_PIECES, st.lists(st.integers(0, 10**6), max_size=2))(attack)
        )
        await asyncio.get_running_loop().run_in_executor(None, attacked)
