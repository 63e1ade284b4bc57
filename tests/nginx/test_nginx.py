"""The shipped nginx configurations: nginx accepts them, and requests and answers pass through unchanged."""

import asyncio
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from pytest_aiohttp import AiohttpRawServer
from yarl import URL

from tests.conftest import StartProxy, StartRegistry, make_certificate, require_program
from tests.nginx.shipped import CONFIGURATION, TWO_NODES, Certificate, nginx_server
from tests.support.product import make_image, random_bytes
from tests.support.servers import Server, free_port, running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Make a certificate."""
    made = Certificate(tmp_path_factory.mktemp("tls"))
    make_certificate(made.certificate, made.key)
    return made


StartNginx = Callable[..., Server]


@pytest.fixture
def start_nginx(tmp_path: Path, certificate: Certificate) -> Iterator[StartNginx]:
    """Return a function that starts nginx in front of one port of 127.0.0.1, or of two."""
    with ExitStack() as stack:
        yield lambda *ports: stack.enter_context(running(nginx_server(tmp_path / "nginx", certificate, *ports)))


@pytest.fixture
async def session(certificate: Certificate) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client that trusts the certificate and sends URLs unchanged."""
    connector = aiohttp.TCPConnector(ssl=certificate.context(), force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as opened:
        yield opened


def https(nginx: Server, path: str = "/v2/") -> URL:
    """Return an address of nginx, escapes untouched."""
    return URL(f"https://127.0.0.1:{nginx.port}{path}", encoded=True)


@pytest.mark.parametrize("ports", [(5000,), (5000, 5001)], ids=["one node", "two nodes"])
def test_nginx_takes_the_shipped_configuration(
    tmp_path: Path, certificate: Certificate, ports: tuple[int, ...]
) -> None:
    """`nginx -t` finds nothing wrong, not even a warning."""
    server = nginx_server(tmp_path / "nginx", certificate, *ports)
    checked = subprocess.run([*server.arguments, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr, checked.stderr


@pytest.mark.parametrize("configuration", [CONFIGURATION, TWO_NODES], ids=lambda path: path.name)
def test_the_admin_listener_is_not_named(configuration: Path) -> None:
    """No address of the admin listener appears outside comments."""
    active = [line.partition("#")[0] for line in configuration.read_text().splitlines()]
    assert not any("5080" in line or "admin" in line for line in active)


async def test_the_address_that_the_client_called_is_passed_on(
    start_nginx: StartNginx, session: aiohttp.ClientSession, aiohttp_raw_server: AiohttpRawServer
) -> None:
    """The backend gets host with port, scheme and address from nginx, whatever the client claims."""
    seen: list[web.BaseRequest] = []

    async def backend(request: web.BaseRequest) -> web.Response:
        seen.append(request)
        return web.Response()

    server = await aiohttp_raw_server(backend)
    assert server.port is not None
    nginx = start_nginx(server.port)
    claims = dict.fromkeys(("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Request-ID"), "6.6.6.6")
    async with session.get(https(nginx), headers=claims) as answer:
        assert answer.status == 200
    headers = seen[0].headers
    assert headers["Host"] == headers["X-Forwarded-Host"] == f"127.0.0.1:{nginx.port}"
    assert headers.getall("X-Forwarded-Proto") == ["https"]
    assert headers.getall("X-Forwarded-For") == ["127.0.0.1"]
    assert len(headers["X-Request-ID"]) == 32


@pytest.mark.parametrize(
    "path",
    ["/v2/a%2Fb/manifests/x", "/v2/a//b/tags/list", "/v2/%2e%2e/tags/list?last=a%2Bb&n=5", "/v2/a/blobs/sha256%3Aab"],
)
async def test_the_request_line_is_passed_on_as_it_came(
    start_nginx: StartNginx, session: aiohttp.ClientSession, path: str, aiohttp_raw_server: AiohttpRawServer
) -> None:
    """Escapes, doubled slashes and the query reach the proxy untouched: it judges the name that the client sent."""
    seen: list[str] = []

    async def backend(request: web.BaseRequest) -> web.Response:
        seen.append(request.raw_path)
        return web.Response()

    server = await aiohttp_raw_server(backend)
    assert server.port is not None
    nginx = start_nginx(server.port)
    async with session.get(https(nginx, path)) as answer:
        assert answer.status == 200
    assert seen == [path]


async def test_bodies_stream_both_ways(start_nginx: StartNginx, session: aiohttp.ClientSession) -> None:
    """The first bytes arrive before the last are sent, in requests and answers: nothing waits for a whole layer."""
    upload_seen, download_seen = asyncio.Event(), asyncio.Event()

    async def backend(request: web.BaseRequest) -> web.StreamResponse:
        assert await request.content.readexactly(5) == b"first"
        upload_seen.set()
        assert await request.content.read() == b"x" * 3_000_000
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"first")
        await download_seen.wait()
        await answer.write(b"last")
        return answer

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await upload_seen.wait()
        yield b"x" * 3_000_000

    async with RawTestServer(backend) as server, asyncio.timeout(30):
        assert server.port is not None
        nginx = start_nginx(server.port)
        async with session.patch(https(nginx, "/v2/a/blobs/uploads/s?_state=secret"), data=body()) as answer:
            assert await answer.content.readexactly(5) == b"first"
            download_seen.set()
            assert await answer.content.read() == b"last"
    nginx.stop()
    logged = (nginx.log.parent / "access.log").read_text()
    assert "PATCH /v2/a/blobs/uploads/s" in logged
    assert "secret" not in logged


def test_an_image_is_pushed_and_pulled_through_nginx(
    start_nginx: StartNginx,
    start_proxy: StartProxy,
    start_registry: StartRegistry,
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    """Skopeo, which checks the certificate, pushes through nginx, proxy and registry, and pulls the same image back."""
    skopeo = require_program("skopeo")
    proxy = start_proxy([start_registry()])
    image = make_image(random_bytes(3_000_000))
    proxy.add_user("ann", pull_push=["team/**"]).push("team/app", "1", image)
    nginx = start_nginx(proxy.port)
    folder, name = f"dir:{tmp_path / 'image'}", f"docker://127.0.0.1:{nginx.port}/team"
    for direction, source, target in (("src", f"{name}/app:1", folder), ("dest", folder, f"{name}/copy:2")):
        command = [skopeo, "copy", f"--{direction}-cert-dir", str(certificate.folder)]
        command += [f"--{direction}-creds", "ann:password of a user", source, target]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    inspect = [skopeo, "inspect", "--cert-dir", str(certificate.folder), "--creds", "ann:password of a user"]
    inspected = subprocess.run([*inspect, f"{name}/copy:2"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(inspected.stdout)["Digest"] == image.digest


@pytest.mark.parametrize("count", [1, 2], ids=["one node", "two nodes"])
async def test_a_caller_has_a_hundred_logins_at_once(tmp_path: Path, count: int) -> None:
    """A withheld form reaches no node, and the next login of its address or /64 gets 429; others are served."""
    seen: list[bytes] = []

    async def backend(request: web.BaseRequest) -> web.Response:
        seen.append(await request.read())
        return web.Response(text="{}")

    def login(address: str, form: bytes = b"") -> bytes:
        headers = f"Host: x\r\nX-Real-IP: {address}\r\nConnection: close\r\nContent-Length: 6\r\n"
        return f"POST /auth/token HTTP/1.1\r\n{headers}\r\n".encode() + form

    async with RawTestServer(backend) as server, AsyncExitStack() as stack:
        nginx = nginx_server(tmp_path / "nginx", None, *[server.port or 0] * count)
        config = tmp_path / "nginx" / "nginx.conf"
        trusting = "http { set_real_ip_from 127.0.0.1; real_ip_header X-Real-IP;"
        config.write_text(config.read_text().replace("http {", trusting))
        stack.enter_context(running(nginx))

        async def send(data: bytes) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port)
            stack.callback(writer.close)
            writer.write(data)
            return reader

        for number in range(100):
            await send(login(f"2001:db8::{number:x}"))
            await send(login("192.0.2.1"))

        async def ask(address: str) -> bytes:
            return await (await send(login(address, b"a=b&c="))).read()

        async with asyncio.timeout(30):
            for address in ("2001:db8::ffff:1", "192.0.2.1"):
                while not (answer := await ask(address)).startswith(b"HTTP/1.1 429 "):
                    assert answer.startswith(b"HTTP/1.1 200 ")  # some of those above are still unread
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["errors"][0]["code"] == "TOOMANYREQUESTS"
            for address in ("2001:db8:0:1::1", "192.0.2.2"):
                assert (await ask(address)).startswith(b"HTTP/1.1 200 ")
    assert set(seen) == {b"a=b&c="}


@dataclass
class Backends:
    """Two backends behind nginx: ``asked`` holds backend, method and received body size of each request."""

    asked: list[tuple[int, str, int]]
    nginx: Server


@pytest.fixture
async def backends(start_nginx: StartNginx) -> AsyncIterator[Backends]:
    """Start two backends: the first one asked hangs up after the body, and the other answers."""
    asked: list[tuple[int, str, int]] = []

    async def answer(number: int, request: web.BaseRequest) -> web.Response:
        asked.append((number, request.method, len(await request.read())))
        if len(asked) == 1:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(text=str(number))

    async with RawTestServer(partial(answer, 1)) as one, RawTestServer(partial(answer, 2)) as two:
        yield Backends(asked, start_nginx(one.port, two.port))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_read_is_asked_of_the_other_node(
    backends: Backends, session: aiohttp.ClientSession, method: str
) -> None:
    """When the first node dies over a read, the client gets the answer of the second."""
    async with session.request(method, https(backends.nginx)) as answer:
        assert answer.status == 200
    assert {number for number, _, _ in backends.asked} == {1, 2}


@pytest.mark.parametrize(("method", "body"), [("POST", b""), ("PATCH", b"x" * 100_000), ("PUT", b"x" * 100_000)])
async def test_a_write_that_a_node_received_is_not_sent_to_the_other(
    backends: Backends, session: aiohttp.ClientSession, method: str, body: bytes
) -> None:
    """When the first node dies over a write, which it may have done, the client gets the error and decides."""
    async with session.request(method, https(backends.nginx, "/v2/a/blobs/uploads/s"), data=body) as answer:
        assert answer.status == 502
    assert [(asked[1], asked[2]) for asked in backends.asked] == [(method, len(body))]


@contextmanager
def nobody(*, is_off: bool) -> Iterator[int]:
    """Give a port that refuses connections, or, as of a machine that is off, does not answer."""
    port = free_port()
    with ExitStack() as stack:
        if is_off:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", port))
            listener.listen(0)
            for _ in range(2):  # fill its queue: the kernel drops later connections
                client = stack.enter_context(socket.socket())
                client.settimeout(0)
                client.connect_ex(("127.0.0.1", port))
        yield port


@pytest.mark.parametrize("is_off", [False, True], ids=["refused", "off"])
async def test_a_write_goes_to_the_node_that_lives(
    start_nginx: StartNginx, certificate: Certificate, *, is_off: bool, aiohttp_raw_server: AiohttpRawServer
) -> None:
    """With one node down each write reaches the other, once, for any client address."""
    seen: list[int] = []

    async def backend(request: web.BaseRequest) -> web.Response:
        seen.append(len(await request.read()))
        return web.Response(status=202)

    with nobody(is_off=is_off) as port:
        server = await aiohttp_raw_server(backend)
        url = https(start_nginx(port, server.port), "/v2/a/blobs/uploads/s")

        async def patch(address: str) -> int:
            connector = aiohttp.TCPConnector(ssl=certificate.context(), local_addr=(address, 0))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.patch(url, data=b"x" * 70_000) as answer,
            ):
                return answer.status

        statuses = await asyncio.gather(*(patch(f"127.0.0.{number}") for number in range(2, 12)))
    assert statuses == [202] * 10
    assert seen == [70_000] * 10


async def test_a_read_finds_the_node_that_is_back_when_the_other_one_dies(
    start_nginx: StartNginx, session: aiohttp.ClientSession
) -> None:
    """A node that did not answer a moment ago is still asked when no other answers."""

    async def answer(number: int, _: web.BaseRequest) -> web.Response:
        return web.Response(text=str(number))

    async with AsyncExitStack() as stack:
        ports = [free_port(), free_port()]
        nodes = [RawTestServer(partial(answer, number), port=ports[number]) for number in (0, 1)]
        for node in nodes:
            await stack.enter_async_context(node)
        nginx = start_nginx(*ports)

        async def ask() -> int:
            async with session.get(https(nginx)) as response:
                assert response.status == 200
                return int(await response.text())

        first = await ask()
        await nodes[first].close()
        assert [await ask() for _ in range(4)] == [1 - first] * 4
        await stack.enter_async_context(RawTestServer(partial(answer, first), port=ports[first]))
        await nodes[1 - first].close()
        assert await ask() == first


def test_two_nodes_behind_nginx_of_which_one_is_killed(
    start_nginx: StartNginx,
    start_proxy: StartProxy,
    start_registry: StartRegistry,
    redis: Server,
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    """Skopeo pushes and pulls through nginx, before and after one of the nodes dies."""
    skopeo = require_program("skopeo")
    registries = start_registry("first"), start_registry("second")
    store = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    nodes = [start_proxy(registries, store, name=name) for name in ("one", "two")]
    nodes[0].add_user("ann", pull_push=["team/**"]).push("team/app", "1", make_image(random_bytes(1_000_000)))
    nginx = start_nginx(nodes[0].port, nodes[1].port)
    name = f"docker://127.0.0.1:{nginx.port}/team"

    def copy(direction: str, source: str, target: str) -> None:
        command = [skopeo, "copy", f"--{direction}-cert-dir", str(certificate.folder)]
        command += [f"--{direction}-creds", "ann:password of a user", source, target]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    for number, kill in enumerate((None, nodes[0], None)):
        if kill is not None:
            kill.kill_everything()
        folder = f"dir:{tmp_path / f'image{number}'}"
        copy("src", f"{name}/app:1", folder)
        copy("dest", folder, f"{name}/copy:{number}")
        if kill is not None:
            kill.start()
