"""Hot pulls by digest are answered beside aiohttp, without a visible difference."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_proxy.edge.authenticate import Authenticator
from registry_proxy.edge.exchange import Exchange
from registry_proxy.edge.public import PublicApp
from registry_proxy.http.connections import ConnectionLimits
from registry_proxy.ports.events import AuditEvent
from registry_proxy.ports.metrics import AccessDecision, ClientRequest
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.protocol.reference import Repository, digest_of
from tests.support.fakes.public import PublicBench

APP = RoutedRepository("main", Repository("team/app"))
CONTENT = b"a layer " * 1000
D = digest_of(CONTENT)
BODY = b'{"schemaVersion":2}'
M = digest_of(BODY)
PATHS = [f"/v2/team/app/manifests/{M}", f"/v2/team/app/blobs/{D}"]
FOR_THE_SERVER = "X-Unheard-Of: 1"

Answer = tuple[int, dict[str, str], bytes]


class Connection:
    """One connection of a client that writes its requests by hand."""

    def __init__(self, public: PublicBench, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._public = public
        self._token = public.token()
        self.reader = reader
        self.writer = writer

    def bytes_of(self, line: str, *headers: str) -> bytes:
        """Return a request with the connection's token."""
        lines = [f"{line} HTTP/1.1", "Host: x", f"Authorization: Bearer {self._token}", *headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def read(self, *, has_body: bool = True) -> Answer:
        """Return the next answer."""
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers["Content-Length"])) if has_body else b""
        return int(first.split()[1]), headers, body

    async def ask(self, line: str, *headers: str) -> Answer:
        """Send a request and return its answer."""
        self.writer.write(self.bytes_of(line, *headers))
        return await self.read(has_body=not line.startswith("HEAD"))


def counted(public: PublicBench) -> Counter[tuple[object, ...]]:
    """Return the events for the metrics, without times."""
    return Counter(
        (type(event), *(event[:-1] if isinstance(event, ClientRequest) else event)) for event in public.observer.events
    )


class Served:
    """A listener that runs on a separate loop, for as long as hypothesis needs it."""

    def __init__(self, runner: asyncio.Runner, public: PublicBench) -> None:
        self._runner = runner
        self._public = public

    def compare(self, line: str, token: str, fields: list[str]) -> None:
        """Send a request both ways and compare the answers."""
        self._runner.run(self._compare(line, token, fields))

    async def _compare(self, line: str, token: str, fields: list[str]) -> None:
        lines = [f"{line} HTTP/1.1", "Host: x", *fields]
        if token != "none":
            lines.append(f"Authorization: Bearer {self._token(token)}")
        request = "\r\n".join(lines)
        answers: list[tuple[bytes, Counter[tuple[object, ...]], list[AuditEvent], Mapping[str, object]]] = []
        public = self._public
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        for more in ("", "\r\nX-Unheard-Of: 1", ""):  # the first one warms a cold content, and is always the server's
            public.observer.events.clear()
            public.audit.events.clear()
            writer.write(f"{request}{more}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"Content-Length: (\d+)", head)
            body = await reader.readexactly(int(size[1])) if size and not line.startswith("HEAD") else b""
            logged = {name: value for name, value in public.logged[-1].items() if name != "seconds"}
            answer = re.sub(rb"(Date|X-Request-ID): [^\r]*", rb"\1", head) + body
            answers.append((answer, counted(public), list(public.audit.events), logged))
        writer.close()
        assert answers[1] == answers[2]

    def _token(self, name: str) -> str:
        public = self._public
        if name == "nonsense":
            return "a.b.c"
        if name == "expired":
            return public.signer.issue("user:ann", 0, [], 1_000_000_000).token
        if name == "other":
            return public.token("user:ann", "repository:team/other:pull")
        scopes = [f"repository:{place}:pull,push" for place in PLACES]
        return public.token({"pull": "user:ann", "push": "user:bob", "admin": "user:admin"}[name], *scopes)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve contents of two repositories; requests of several outcomes must be answered beside aiohttp."""
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        public = PublicBench(tmp_path_factory.mktemp("served"))
        make_app, beside = public.make_app, set[bytes]()

        def watched() -> PublicApp:
            app = make_app()
            answer = app.fast_path.answer

            def watch(data: bytes, transport: asyncio.Transport) -> bytes | None:
                found = answer(data, transport)
                beside.add(b"" if found is None else found[9:12])
                return found

            patch.setattr(app.fast_path, "answer", watch)
            return app

        patch.setattr(public, "make_app", watched)
        for subject, actions in (("user:ann", ["pull"]), ("user:bob", ["pull", "push"])):
            for place in ("team/app", "hub/team/app"):
                public.allow(*actions, subject=subject, repository=place)
        for place in ("team/app", "hub/team/app"):
            public.reader.add_blob(place, CONTENT)
            public.reader.add_manifest(place, BODY, "latest")
        serving = public.serving()
        runner.run(serving.__aenter__())
        try:
            yield Served(runner, public)
        finally:
            runner.run(serving.__aexit__(None, None, None))
        assert beside >= {b"", b"200", b"401", b"404"}


@asynccontextmanager
async def connected(public: PublicBench) -> AsyncIterator[Connection]:
    """Connect, and pull everything once, so that it is hot and the token known."""
    public.allow("pull")
    public.reader.add_blob("team/app", CONTENT)
    public.reader.add_manifest("team/app", BODY, "latest")
    reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
    try:
        connection = Connection(public, reader, writer)
        for path in PATHS:
            assert (await connection.ask(f"GET {path}", FOR_THE_SERVER))[0] == 200
        yield connection
    finally:
        writer.close()


@pytest.fixture
def through_server(public: PublicBench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of targets of requests that aiohttp's side has answered; it grows."""
    seen: list[str] = []
    make_app = public.make_app

    def watched() -> object:
        app = make_app()
        handle = app.handle

        async def watch(request: object) -> object:
            seen.append(request.raw_path)  # type: ignore[attr-defined]  # a BaseRequest
            return await handle(request)  # type: ignore[arg-type]  # a BaseRequest

        monkeypatch.setattr(app, "handle", watch)
        return app

    monkeypatch.setattr(public, "make_app", watched)
    return seen


@pytest.fixture
async def public(tmp_path_factory: pytest.TempPathFactory) -> PublicBench:
    """Return a listener that is not served yet."""
    return PublicBench(tmp_path_factory.mktemp("public"))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", [*PATHS, f"/v2/team/app/manifests/{M}?ns=docker.io"])
async def test_both_ways_answer_count_and_log_the_same(
    public: PublicBench, through_server: list[str], method: str, path: str
) -> None:
    """Status, headers, body, counters and log of a hot pull are those of the server's own answer."""
    public.allow("pull", repository="hub/team/app")
    async with public.serving(), connected(public) as connection:
        if "ns=" in path:
            connection._token = public.token("user:ann", "repository:hub/team/app:pull")
            public.reader.add_manifest("hub/team/app", BODY, "latest")
            await connection.ask(f"GET {path}", FOR_THE_SERVER)
        results: list[tuple[Answer, Counter[tuple[object, ...]], dict[str, object]]] = []
        for headers in ([FOR_THE_SERVER], []):
            through_server.clear()
            public.observer.events.clear()
            answer = await connection.ask(f"{method} {path}", *headers)
            assert through_server == [path] * len(headers)
            for volatile in ("X-Request-ID", "Date"):
                assert answer[1].pop(volatile)
            logged = dict(public.logged[-1])
            assert logged.pop("seconds") is not None
            results.append((answer, counted(public), logged))
        slow, hot = results
        assert slow == hot
        assert hot[0][0] == 200
        assert hot[0][2] == (b"" if method == "HEAD" else BODY if "manifests" in path else CONTENT)


@pytest.mark.parametrize("path", PATHS)
async def test_a_right_or_holding_that_is_gone_ends_at_the_next_request(public: PublicBench, path: str) -> None:
    """After the removal of a grant, a holding or a generation the next request fails, however hot it was."""
    async with public.serving(), connected(public) as connection:
        assert (await connection.ask(f"GET {path}"))[0] == 200
        grants, public.control.grants = public.control.grants, []
        assert (await connection.ask(f"GET {path}"))[0] == 401
        public.control.grants = grants
        assert (await connection.ask(f"GET {path}"))[0] == 200
        kind, digest = (ContentKind.MANIFEST, M) if "manifests" in path else (ContentKind.BLOB, D)
        public.holdings.forget(APP, kind, digest)
        public.reader.manifests.clear()
        public.reader.blobs.clear()
        assert (await connection.ask(f"GET {path}"))[0] == 404
        public.control.generations["user:ann"] = 1
        assert (await connection.ask(f"GET {path}"))[0] == 401


@pytest.mark.parametrize(
    "header",
    [
        "Range: bytes=0-1",
        f'If-None-Match: "{D}"',
        "Content-Length: 0",
        "Transfer-Encoding: chunked",
        "Connection: close",
        "Content-Encoding: gzip",
        "Expect: 100-continue",
        "Authorization: Bearer another",
        "Host: y",
        "Host : x",
        " folded: 1",
        "Accept: \tx",
        "Accept: x\x00y",
    ],
)
async def test_a_request_that_is_not_plain_is_for_the_server(public: PublicBench, header: str) -> None:
    """Conditions, ranges, bodies, repeated fields and odd spellings are left to the server."""
    async with public.serving(), connected(public) as connection:
        app = public.make_app()
        transport = cast(asyncio.Transport, connection.writer.transport)
        assert app.fast_path.answer(connection.bytes_of(f"GET {PATHS[1]}"), transport) is not None
        assert app.fast_path.answer(connection.bytes_of(f"GET {PATHS[1]}", header), transport) is None
        assert app.fast_path.answer(connection.bytes_of(f"GET {PATHS[1]}") + b"x", transport) is None
        assert app.fast_path.answer(connection.bytes_of(f"GET {PATHS[1]}") * 2, transport) is None
        assert app.fast_path.answer(connection.bytes_of(f"POST {PATHS[1]}"), transport) is None
        assert app.fast_path.answer(connection.bytes_of("GET /v2/team/app/manifests/latest"), transport) is None


PLACES = ["team/app", "team/none", "hub/team/app"]
LASTS = [f"manifests/{M}", "manifests/latest", "manifests/none", f"manifests/{D}", f"blobs/{D}", f"blobs/{M}"]
MORE = [
    "tags/list",
    f"referrers/{M}",
    "blobs/uploads/session-0",
    "blobs/latest",
    "manifests/_registry-proxy-x",
    "nothing",
]
TARGETS = st.sampled_from(["/v2/", "/v2", "/v2/_catalog", "/v2/team/app"]) | st.builds(
    "/v2/{}/{}".format, st.sampled_from(PLACES), st.sampled_from([*LASTS, *LASTS, *MORE])
)
QUERIES = st.sampled_from(["", "", "", "?ns=docker.io", "?ns=ghcr.io", "?n=1", "?ns=a&ns=b"])
TOKENS = st.sampled_from(["pull", "pull", "pull", "push", "admin", "expired", "other", "none", "nonsense"])
FIELDS = st.lists(
    st.sampled_from(["Accept: */*", "User-Agent: docker", "X-Forwarded-For: 192.0.2.1", "Cache-Control: no-cache"]),
    unique=True,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(["GET", "GET", "HEAD"]), target=TARGETS, query=QUERIES, token=TOKENS, fields=FIELDS)
def test_an_answer_of_the_fast_path_is_that_of_the_server_byte_for_byte(
    served: Served, method: str, target: str, query: str, token: str, fields: list[str]
) -> None:
    """Any plain request answered beside aiohttp has the answer, counters and log of the server."""
    served.compare(f"{method} {target}{query}", token, fields)


async def test_the_end_of_a_header_is_no_request_of_its_own(public: PublicBench) -> None:
    """Bytes that would be a hot request belong to the header whose beginning aiohttp holds."""
    async with public.serving(), connected(public) as connection:
        connection.writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Part: ")
        await connection.writer.drain()
        await _until_seen(public)
        connection.writer.write(connection.bytes_of(f"GET {PATHS[0]}"))
        assert (await connection.read())[0] == 400  # two Host fields


async def test_a_hot_request_waits_for_those_before_it(public: PublicBench) -> None:
    """Pipelined requests are answered in their order, whichever way each takes."""
    async with public.serving(), connected(public) as connection:
        public.reader.gate = asyncio.Event()
        public.reader.add_blob("team/app", b"cold")
        connection.writer.write(connection.bytes_of(f"GET /v2/team/app/blobs/{digest_of(b'cold')}"))
        await _until_seen(public)
        connection.writer.write(connection.bytes_of(f"GET {PATHS[0]}"))
        await _until_seen(public)
        public.reader.gate.set()
        assert [(await connection.read())[2] for _ in range(2)] == [b"cold", BODY]


async def test_a_request_that_has_to_ask_is_judged_once(
    public: PublicBench, through_server: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast path hands its half-made answer on: nothing is decided or looked up a second time."""
    decided: list[str] = []
    decide = Authenticator.decide

    def watch(self: Authenticator, exchange: Exchange, *arguments: Any, **options: Any) -> object:
        decided.append(exchange.path)
        return decide(self, exchange, *arguments, **options)

    async with public.serving(), connected(public) as connection:
        monkeypatch.setattr(Authenticator, "decide", watch)
        cold = f"/v2/team/app/blobs/{public.reader.add_blob('team/app', b'cold')}"
        through_server.clear()
        public.observer.events.clear()
        assert (await connection.ask(f"GET {cold}"))[2] == b"cold"
        assert (await connection.ask("GET /healthz"))[0] == 200
        assert (through_server, decided) == ([cold, "/healthz"], [cold])
        assert public.observer.count(AccessDecision) == 1


async def _until_seen(public: PublicBench) -> None:
    """Return when the server has read the written bytes: another request, on its own connection, came later."""
    for _ in range(3):
        async with public.session.get("/healthz") as response:
            assert response.status == 200


async def test_the_first_request_of_a_connection_is_answered_beside_too(
    public: PublicBench, through_server: list[str]
) -> None:
    """A client with one connection per request gains as much; the head of its next request has a new deadline."""
    public.limits = ConnectionLimits(header_seconds=0.3)
    async with public.serving(), connected(public) as hot:
        through_server.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        new = Connection(public, reader, writer)
        assert (await new.ask(f"GET {PATHS[0]}"))[0] == 200
        assert through_server == []
        writer.write(b"GET /healthz HT")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        assert hot.reader is not reader


async def test_a_hot_connection_stays_open_as_any_other(public: PublicBench, through_server: list[str]) -> None:
    """Hot answers postpone the end of an idle connection; when they stop, it is closed."""
    public.limits = ConnectionLimits(keep_alive_seconds=0.4)
    async with public.serving(), connected(public) as connection:
        through_server.clear()
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.0
        while loop.time() < end:
            assert (await connection.ask(f"GET {PATHS[0]}"))[0] == 200
            await asyncio.sleep(0.02)
        assert through_server == []
        async with asyncio.timeout(5):
            assert await connection.reader.read() == b""
