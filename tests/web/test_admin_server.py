"""The admin listener: no request is lost when the worker that serves it is replaced or ends."""

import asyncio
import socket

from aiohttp import web

from registry_proxy.web.admin_server import serving_admin
from tests.fakes.public import read_to_end
from tests.waiting import refuses, until

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(_: web.Request) -> web.Response:
    """Answer."""
    return web.Response(text="here")


async def test_a_request_on_its_way_is_answered_and_was_the_last() -> None:
    """A connection that was made before the listener closed is served, with no request on it before or with one."""
    app = web.Application()
    app.router.add_get("/", answer)
    serves, ending = asyncio.Event(), asyncio.Event()

    async def serve(listener: socket.socket) -> None:
        async with serving_admin(app, listener, 30) as server:
            serves.set()
            await ending.wait()
            await server.drain(30)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(listener))
            await serves.wait()
            connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            reader, writer = connections[0]
            writer.write(REQUEST)
            assert b"connection: close" not in (await reader.readuntil(b"here")).lower()
            ending.set()
            await until(lambda: refuses(port))
            for reader, writer in connections:
                writer.write(REQUEST)
                received = await read_to_end(reader)
                assert received.startswith(b"HTTP/1.1 200")
                assert b"connection: close" in received.lower()
                writer.close()


async def test_a_connection_at_rest_is_not_waited_for_without_end() -> None:
    """A client that keeps its connection and asks nothing does not hold up the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serving_admin(web.Application(), listener, 30) as server, asyncio.timeout(10):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            await server.drain(0.1)
        writer.close()
