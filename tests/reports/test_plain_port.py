"""A TLS hello on a plain HTTP port is answered in HTTP, as containerd, BuildKit, crane and current dockerd need it.

Reports: containerd's and BuildKit's "failed to do request: EOF" at registries that close such a connection.
"""

import asyncio
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from registry_proxy.admin.server import serving_admin
from tests.support.fakes.listeners import any_connections
from tests.support.fakes.public import PublicBench, read_to_end

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def answer(_: web.Request) -> web.Response:
    """Answer."""
    return web.Response(text="here")


@asynccontextmanager
async def serving_an_admin_port() -> AsyncIterator[int]:
    """Serve an application on the admin listener; give its port."""
    app = web.Application()
    app.router.add_get("/healthz", answer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serving_admin(app, listener, any_connections()):
            yield listener.getsockname()[1]


@pytest.fixture(params=["public", "admin"])
async def port(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[int]:
    """The port of each of the two listeners."""
    if request.param == "admin":
        async with serving_an_admin_port() as number:
            yield number
    else:
        async with PublicBench(tmp_path).serving() as public:
            yield public.port


async def send(port: int, *pieces: bytes) -> bytes:
    """Send pieces, each in a separate packet, until an answer begins; return the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            return await read_to_end(reader)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "pieces",
    [(b"\x16\x03\x01",), (HELLO,), (b"\x16", HELLO[1:]), tuple(HELLO[n : n + 1] for n in range(40)), (HELLO, b"a" * 9)],
    ids=["its first three bytes", "whole", "its first byte alone", "byte by byte", "followed by more"],
)
async def test_a_hello_is_answered_in_http(port: int, pieces: tuple[bytes, ...]) -> None:
    """The answer is 400 in HTTP/1.1 with a sentence in our error form, then the end; also for a hello in pieces."""
    head, _, body = (await send(port, *pieces)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"connection: close" in head.lower()
    assert "plain HTTP port" in json.loads(body)["errors"][0]["message"]


async def test_a_tls_client_reads_that_the_server_spoke_http(port: int) -> None:
    """A real TLS client sees an HTTP answer each of many times, not the end of the connection or a reset."""
    context = ssl.create_default_context()
    for _ in range(20):
        with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number|http.request"):
            await asyncio.open_connection("127.0.0.1", port, ssl=context)


@pytest.mark.parametrize("pieces", [(GET,), tuple(GET[n : n + 1] for n in range(len(GET)))], ids=["whole", "bytes"])
async def test_a_request_is_served_as_before(port: int, pieces: tuple[bytes, ...]) -> None:
    """Any request that is no hello reaches the server from its first byte on."""
    assert (await send(port, *pieces)).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "pieces",
    [
        (GET.replace(b"Connection: close\r\n", b""), HELLO),
        (b"\x80\x2e\x01\x00\x02" + bytes(40),),
        (b"PROXY TCP4 192.0.2.1 192.0.2.1 1 2\r\n" + GET,),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),),
        (b"SSH-2.0-x\r\n",),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",),
    ],
    ids=["a hello behind a request", "the hello of SSLv2", "the PROXY protocol", "HTTP/2", "SSH", "a long field"],
)
async def test_all_else_is_answered_in_our_form(
    port: int, pieces: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Other bytes get an error in JSON and the end; the log has no traceback, and the answer none of the bytes."""
    answers = await send(port, *pieces)
    body = answers.rpartition(b"\r\n\r\n")[2]
    assert re.search(rb"HTTP/1\.[01] 4(00|31) ", answers)
    assert isinstance(json.loads(body), dict)
    assert [record for record in caplog.records if record.exc_info] == []
