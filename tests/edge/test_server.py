"""The listener and its clients: slow, confused, half-closed ones, and those that speak no HTTP."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_proxy.edge.incoming import DRAIN_MAX_BYTES
from registry_proxy.http.connections import ConnectionLimits
from registry_proxy.ports.metrics import ClientRequest
from registry_proxy.protocol.reference import digest_of
from tests.support.fakes.public import PublicBench, read_to_end
from tests.support.waiting import refuses, until

CONTENT = b"a layer " * 1000
D = digest_of(CONTENT)


def errors_of(body: bytes) -> list[dict[str, object]]:
    """Return the errors of an answer in our form."""
    errors: list[dict[str, object]] = json.loads(body)["errors"]
    assert all(error["message"] and error["detail"] is not None for error in errors)
    return errors


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /v2/\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_http_are_a_400_of_ours(
    public: PublicBench, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer to bytes that are no HTTP is JSON; the connection ends; no traceback is logged."""
    answer = await public.raw(data)
    assert answer.status == 400
    assert errors_of(answer.body)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("sent", [b"", b"GET /v2/ HTTP/1.1\r\nHost:"])
async def test_slow_headers_are_not_waited_for(tmp_path: Path, sent: bytes) -> None:
    """A connection that does not finish its header in time is closed."""
    async with PublicBench(tmp_path, limits=ConnectionLimits(header_seconds=0.1)).serving() as public:
        assert (await public.raw(sent)).data == b""


async def test_a_slow_header_of_a_later_request_is_not_waited_for_either(tmp_path: Path) -> None:
    """The deadline begins again with the first byte of each request."""
    async with PublicBench(tmp_path, limits=ConnectionLimits(header_seconds=0.1)).serving() as public:
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /healthz HT")
        async with asyncio.timeout(5):
            assert b"HTTP" not in await read_to_end(reader)
        writer.close()


async def test_a_client_that_leaves_between_requests_is_let_go(tmp_path: Path) -> None:
    """A client that closes an idle connection ends it here too."""
    async with PublicBench(tmp_path).serving() as public:
        assert public.server is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        server = public.server._server
        assert len(server.connections) == 1
        writer.write_eof()
        await until(lambda: not server.connections)
        writer.close()


async def test_the_deadline_is_of_the_header_alone(tmp_path: Path) -> None:
    """A body may take longer than the header's deadline, and so may the pause between two requests."""
    async with PublicBench(tmp_path, limits=ConnectionLimits(header_seconds=0.2)).serving() as public:
        public.allow("push")
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        head = f"POST /v2/team/app/blobs/uploads/?digest={D} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        for _ in range(2):
            writer.write(f"{head}Authorization: Bearer {public.token()}\r\n\r\nab".encode())
            await asyncio.sleep(0.4)  # longer than the header's deadline
            writer.write(b"cd")
            assert b"201 Created" in await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_too_many_connections_are_good_for_health_checks_alone(tmp_path: Path) -> None:
    """Beyond the limit of connections a request gets 503, or the answer that the node lives."""
    async with PublicBench(tmp_path, limits=ConnectionLimits(connections_max=2)).serving() as public:
        public.reader.gate = asyncio.Event()
        public.reader.add_blob("team/app", CONTENT)
        public.allow("pull")
        held = [await asyncio.open_connection("127.0.0.1", public.port) for _ in range(2)]
        for _, writer in held:
            writer.write(public.request(f"GET /v2/team/app/blobs/{D}"))
        await public.reader.was_asked.wait()
        assert public.connections.shortage() == "short"
        refused = await public.raw(public.request("GET /v2/"))
        assert (refused.status, b"Retry-After: 1" in refused.head) == (503, True)
        assert errors_of(refused.body)[0]["code"] == "UNAVAILABLE"
        assert (await public.raw(public.request("GET /healthz"))).status == 200
        public.reader.gate.set()
        for reader, writer in held:
            assert (await read_to_end(reader)).endswith(CONTENT)
            writer.close()
        await until(lambda: public.connections.total == 0)
        assert (await public.raw(public.request("GET /v2/"))).status == 200


async def test_a_half_closed_client_gets_its_answer(public: PublicBench) -> None:
    """A client that closes its sending side after the request still reads the answer."""
    answer = await public.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", half_close=True)
    assert (answer.status, answer.body) == (200, b'{"status": "ok"}')
    public.reader.gate = asyncio.Event()
    public.reader.add_blob("team/app", CONTENT)
    public.allow("pull")
    asking = asyncio.get_running_loop().create_task(
        public.raw(public.request(f"GET /v2/team/app/blobs/{D}"), half_close=True)
    )
    await public.reader.was_asked.wait()
    public.reader.gate.set()
    assert (await asking).body == CONTENT


async def test_pipelined_requests_are_answered_in_order(public: PublicBench) -> None:
    """Two requests in one packet get two answers."""
    data = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await public.raw(data)
    assert answer.data.index(b"200 OK") < answer.data.index(b"404 Not Found")


async def test_absolute_form_is_understood(public: PublicBench) -> None:
    """The absolute form of a request target (RFC 9112, 3.2.2)."""
    answer = await public.raw(b"GET http://evil.example/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.status == 200


# ---------------------------------------------------------------- bodies


async def test_the_body_is_asked_for_after_authorization(public: PublicBench) -> None:
    """Expect: 100-continue: a refusal comes instead of the 100; with the right the 100 comes, then the answer."""
    line, expect = f"POST /v2/team/app/blobs/uploads/?digest={D}", ["Expect: 100-continue", "Content-Length: 4"]
    refused = await public.raw(public.request(line, expect), timeout_seconds=3)
    assert (refused.status, b"100 Continue" in refused.data) == (401, False)
    public.allow("push")
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    writer.write(public.request(line, expect))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"body")
    assert b"201 Created" in await read_to_end(reader)
    writer.close()
    assert public.push.bodies == [b"body"]


async def test_a_refused_body_is_drained_first(public: PublicBench) -> None:
    """A client that reads only after it has sent everything gets its refusal, and may use the connection again."""
    size = 3 * 1024 * 1024
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    head = f"PUT /v2/team/app/manifests/x HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    for _ in range(2):
        writer.write(head.encode() + bytes(size))
        await writer.drain()
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b"401 Unauthorized" in answer
        assert b"connection: close" not in answer.lower()
        await reader.readuntil(b"}]}")
    writer.close()


async def test_draining_has_a_bound(public: PublicBench) -> None:
    """Beyond 64 MiB the refusal is sent without the rest, and the connection ends."""
    size = DRAIN_MAX_BYTES + 32 * 1024 * 1024
    head = f"PUT /v2/team/app/manifests/x HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    writer.write(head.encode())
    piece = bytes(1024 * 1024)
    for _ in range(DRAIN_MAX_BYTES // len(piece) + 8):
        writer.write(piece)
        await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    assert b"401 Unauthorized" in answer
    assert b"connection: close" in answer.lower()
    writer.close()


async def test_a_client_that_leaves_in_mid_body_is_noticed(public: PublicBench) -> None:
    """The operation's body ends in an error, not in a short success; no answer is sent; the log is quiet."""
    public.allow("push")
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    writer.write(public.request(f"POST /v2/team/app/blobs/uploads/?digest={D}", ["Content-Length: 100"]) + b"half")
    await until(lambda: bool(public.push.calls))
    writer.transport.abort()
    await until(lambda: bool(public.observer.count(ClientRequest, "start_upload", "POST", 499)))
    assert public.push.bodies == []
    del reader


async def test_a_malformed_chunk_is_a_400(public: PublicBench) -> None:
    """A malformed chunked body is the client's fault."""
    public.allow("push")
    request = public.request(f"POST /v2/team/app/blobs/uploads/?digest={D}", ["Transfer-Encoding: chunked"])
    answer = await public.raw(request + b"zz\r\nabc")
    assert answer.status == 400
    assert errors_of(answer.body)


async def test_a_chunk_that_is_malformed_later_is_a_400_at_once(public: PublicBench) -> None:
    """A body that becomes malformed while it is read has one answer, and the connection ends after it."""
    public.allow("push")
    request = public.request(f"POST /v2/team/app/blobs/uploads/?digest={D}", ["Transfer-Encoding: chunked"])
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    writer.write(request.replace(b"Connection: close\r\n", b"") + b"3\r\nabc\r\n")
    await until(lambda: bool(public.push.calls))
    writer.write(b"zz\r\nabc")
    async with asyncio.timeout(5):
        answer = await read_to_end(reader)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert errors_of(answer.partition(b"\r\n\r\n")[2])[0]["code"] == "SIZE_INVALID"
    writer.close()


# ---------------------------------------------------------------- the end


async def test_drain_lets_a_running_upload_end(tmp_path: Path) -> None:
    """A body that still arrives when the drain begins is read to its end and answered; then all is closed."""
    async with PublicBench(tmp_path).serving() as public:
        public.allow("push")
        idle = await asyncio.open_connection("127.0.0.1", public.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        head = f"POST /v2/team/app/blobs/uploads/?digest={D} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        writer.write(f"{head}Authorization: Bearer {public.token()}\r\n\r\nab".encode())
        await until(lambda: bool(public.push.calls))
        assert public.server is not None
        draining = asyncio.get_running_loop().create_task(public.server.drain(5, 0.1))
        assert await idle[0].read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", public.port)
        writer.write(b"cd")
        assert b"201 Created" in await read_to_end(reader)
        await draining
        for each in (writer, idle[1]):
            each.close()


async def test_a_connection_at_rest_gets_a_last_answer_that_says_so(tmp_path: Path) -> None:
    """A request on a kept connection after the drain began is answered with Connection: close."""
    async with PublicBench(tmp_path).serving() as public:
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(request)
        assert b"connection: close" not in (await reader.readuntil(b"}")).lower()
        assert public.server is not None
        draining = asyncio.get_running_loop().create_task(public.server.drain(30, 30))
        await until(lambda: refuses(public.port))
        writer.write(request)
        answer = await read_to_end(reader)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        await draining
        writer.close()


async def test_a_client_that_left_before_it_was_looked_at_is_not_kept(tmp_path: Path) -> None:
    """A connection closed before it was accepted does not delay the end."""
    async with PublicBench(tmp_path).serving() as public:
        assert public.server is not None
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", public.port)):
                pass
        async with asyncio.timeout(10):
            await public.server.drain(30, 30)


async def test_drain_cuts_what_does_not_end(tmp_path: Path) -> None:
    """A client that never finishes does not hold the process."""
    async with PublicBench(tmp_path).serving() as public:
        public.allow("push")
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        writer.write(public.request(f"POST /v2/team/app/blobs/uploads/?digest={D}", ["Content-Length: 4"]) + b"ab")
        await until(lambda: bool(public.push.calls))
        assert public.server is not None
        async with asyncio.timeout(5):
            await public.server.drain(0.1, 0)
            assert b"201" not in await read_to_end(reader)
        writer.close()


# ---------------------------------------------------------------- garbage


_HEADERS = st.sampled_from(["Authorization", "Range", "If-None-Match", "If-Range", "Content-Type", "Host", "Accept"])
_TEXT = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
_PATHS = st.one_of(
    _TEXT.map(lambda text: f"/v2/{text}"),
    _TEXT.map(lambda text: f"/v2/team/app/manifests/{text}"),
    _TEXT.map(lambda text: f"/v2/team/app/blobs/{text}"),
    _TEXT.map(lambda text: f"/v2/_catalog?{text}"),
    _TEXT.map(lambda text: f"/auth/token?scope={text}"),
    _TEXT.map(lambda text: f"/{text}"),
)
_REQUESTS = st.tuples(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "FOO"]),
    _PATHS,
    st.lists(st.tuples(_HEADERS, _TEXT), max_size=4),
    st.booleans(),
)


async def test_garbage_is_never_a_500(tmp_path: Path) -> None:
    """Any path and headers give an answer of the protocol, or the end of the connection."""
    async with PublicBench(tmp_path).serving() as public:
        public.allow("pull", "push", "delete", repository="**")
        token = public.token("user:admin", "repository:team/app:pull,push,delete")
        loop = asyncio.get_running_loop()

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(_REQUESTS)
        def attack(request: tuple[str, str, list[tuple[str, str]], bool]) -> None:
            method, path, headers, has_token = request
            lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
            lines += ["Connection: close", "Content-Length: 0"]
            lines += [f"Authorization: Bearer {token}"] if has_token else []
            with socket.create_connection(("127.0.0.1", public.port), 5) as client:
                client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
                answer = b""
                with contextlib.suppress(ConnectionResetError):
                    answer = client.recv(65536)
            status = int(answer.split(b" ", 2)[1]) if answer else 0
            assert status < 500, answer

        await loop.run_in_executor(None, attack)
