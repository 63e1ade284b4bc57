"""The admin listener: no request is lost when the worker that serves it is replaced or ends."""

import asyncio
import socket

from aiohttp import web

from registry_proxy.admin.server import serving_admin
from tests.support.fakes.listeners import any_connections
from tests.support.fakes.public import read_to_end
from tests.support.waiting import refuses, until

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = b"x" * 20_000_000


async def answer(_: web.Request) -> web.Response:
    """Answer."""
    return web.Response(text="here")


async def answer_with_body(request: web.Request) -> web.Response:
    """Answer with the body of the request."""
    return web.Response(body=await request.read())


async def answer_much(_: web.Request) -> web.Response:
    """Answer with more bytes than the kernel takes at once."""
    return web.Response(body=LARGE)


async def test_a_request_on_its_way_is_answered_and_was_the_last() -> None:
    """A connection made before the listener closed is served, with or without an earlier request on it."""
    app = web.Application()
    app.router.add_get("/", answer)
    serves, ending = asyncio.Event(), asyncio.Event()

    async def serve(listener: socket.socket) -> None:
        async with serving_admin(app, listener, any_connections()) as server:
            serves.set()
            await ending.wait()
            await server.drain(30, 30)

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


async def ask_for_nothing(listener: socket.socket) -> bytes:
    """Return the answer to a request on a connection of its own."""
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await read_to_end(reader)
    writer.close()
    return answer


async def test_a_half_closed_client_gets_its_answer() -> None:
    """A client that closes its sending side after a request reads the answer to it."""
    app, is_asked, goes_on = web.Application(), asyncio.Event(), asyncio.Event()

    async def answer_later(request: web.Request) -> web.Response:
        is_asked.set()
        await goes_on.wait()
        return await answer(request)

    app.router.add_get("/", answer_later)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serving_admin(app, listener, any_connections()), asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(REQUEST)
            await is_asked.wait()
            writer.write_eof()
            for _ in range(3):  # by then it has arrived
                assert b"404" in await ask_for_nothing(listener)
            goes_on.set()
            assert (await read_to_end(reader)).endswith(b"here")
        writer.close()


async def test_a_connection_at_rest_is_not_waited_for_without_end() -> None:
    """A client that keeps its connection and sends nothing does not delay the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serving_admin(web.Application(), listener, any_connections()) as server, asyncio.timeout(10):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            await server.drain(30, 0.1)
        writer.close()


async def test_a_running_request_is_not_cut_for_being_slow() -> None:
    """A body that is still being sent is read, and an answer that is read slowly is sent whole."""
    app = web.Application()
    app.router.add_put("/", answer_with_body)
    app.router.add_get("/", answer_much)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with serving_admin(app, listener, any_connections()) as server, asyncio.TaskGroup() as tasks:
            (sent_to, sending), (reading, asking) = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            asking.write(REQUEST)
            received = await reading.readuntil(b"\r\n\r\n")
            sending.write(b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 8\r\n\r\n")
            assert b"100 Continue" in await sent_to.readuntil(b"\r\n\r\n")
            sending.write(b"half")
            draining = tasks.create_task(server.drain(30, 0))
            await until(lambda: refuses(port))
            assert not draining.done()
            sending.write(b"half")
            assert (await read_to_end(sent_to)).endswith(b"\r\n\r\nhalfhalf")
            assert received + await read_to_end(reading) == received + LARGE
        for writer in (sending, asking):
            writer.close()


async def test_a_request_that_runs_for_too_long_is_cut() -> None:
    """Neither a body that never arrives nor a handler that never ends delays the end beyond its limit."""
    app, begun = web.Application(), asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        begun.set()
        return await asyncio.Future[web.Response]()

    app.router.add_put("/", answer_with_body)
    app.router.add_get("/", hang)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(20), serving_admin(app, listener, any_connections()) as server:
            (sent_to, sending), (reading, asking) = [
                await asyncio.open_connection(*listener.getsockname()) for _ in range(2)
            ]
            sending.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
            asking.write(REQUEST)
            await begun.wait()
            await server.drain(0.2, 30)
        assert await read_to_end(sent_to) == await read_to_end(reading) == b""
        for writer in (sending, asking):
            writer.close()
