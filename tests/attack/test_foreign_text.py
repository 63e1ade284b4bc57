"""Foreign text, generated at random near valid text, is read or refused, and never takes long."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import hypothesis
import pytest
from aiohttp import HttpVersion11
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from multidict import CIMultiDictProxy

from registry_proxy.access.subject import parse_subject
from registry_proxy.access.tokens import InvalidTokenError, TokenVerifier
from registry_proxy.edge.fast_path import _read_head
from registry_proxy.protocol.byterange import parse_chunk_range, parse_content_range, parse_range
from registry_proxy.protocol.challenge import parse_challenges
from registry_proxy.protocol.descriptor import OCI_INDEX, OCI_MANIFEST, parse_manifest
from registry_proxy.protocol.endpoints import parse_request
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.link import parse_next
from registry_proxy.protocol.platform import parse_platform
from registry_proxy.protocol.reference import parse_repository, parse_tag_or_digest
from registry_proxy.protocol.scope import parse_scopes
from registry_proxy.replica.failure import limit_error, parse_errors
from tests.support.fakes.public import PublicBench
from tests.support.product import make_image

LONGEST = 60_000
CPU_SECONDS = 1.0
"""The time limit for one text: a thousand times the usual time of a parser."""

DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = make_image(b"layer").manifest.decode()
INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [json.loads(IMAGE)["config"]]})


def mutated(seeds: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Return texts near the seeds: their pieces reordered, cut, doubled, and repeated thousands of times."""

    @st.composite
    def near(draw: st.DrawFn) -> str:
        pieces = []
        for _ in range(draw(st.integers(1, 4))):
            seed = draw(st.sampled_from(seeds))
            first = draw(st.integers(0, len(seed)))
            piece = seed[first : first + draw(st.integers(0, len(seed)))]
            piece += draw(st.text(st.characters(max_codepoint=0x17F), max_size=3))
            pieces.append(piece * draw(st.sampled_from([1, 1, 1, 1, 2, 100, 20_000])))
        return "".join(pieces)[:LONGEST]

    return st.one_of(st.sampled_from(seeds), near(), st.text(max_size=100))


@dataclass(frozen=True)
class Parser:
    """A parser of foreign text; it may raise the named exceptions, and no others."""

    read: Callable[[str], object]
    seeds: tuple[str, ...]
    refusals: tuple[type[Exception], ...] = (RegistryError,)


def _headers_of(text: str) -> Mapping[str, str]:
    return {"Retry-After": text, "Content-Type": "text/plain"}


def _verifier() -> TokenVerifier:
    return TokenVerifier("registry-proxy")


def _path(text: str) -> object:
    path, _, query = text.partition("?")
    return parse_request("GET", path, query)


PARSERS = {
    "range": Parser(lambda text: parse_range(text, 1000), ("bytes=0-9", "bytes=-5", "bytes=5-", "bytes=1-2, 4-5")),
    "content range": Parser(parse_content_range, ("bytes 0-9/10", "bytes */10")),
    "chunk range": Parser(parse_chunk_range, ("0-9", "bytes 0-9/10")),
    "challenge": Parser(
        lambda text: parse_challenges([text]),
        ('Bearer realm="https://r/token",service="s",scope="repository:a/b:pull"', "Negotiate abc==", 'Basic a="\\"b"'),
    ),
    "link": Parser(
        lambda text: parse_next([text]),
        ('</v2/_catalog?n=1&last=a>; rel="next"', '<a>; rel=next, <b>; rel="last"; x="\\""'),
    ),
    "scope": Parser(lambda text: parse_scopes([text]), ("repository:a/b:pull,push registry:catalog:*", "a(b):c:5:d")),
    "reference": Parser(parse_tag_or_digest, (DIGEST, "latest", "sha512:" + "ab" * 64)),
    "repository": Parser(parse_repository, ("team/app", "a__b/c--d.e")),
    "request": Parser(
        _path,
        (f"/v2/team/app/blobs/{DIGEST}?ns=docker.io", "/v2/a/tags/list?n=5&last=%41", "/v2/a/blobs/uploads/x?_state=y"),
    ),
    "manifest": Parser(lambda text: parse_manifest(text.encode(errors="replace"), OCI_MANIFEST), (IMAGE, "[" * 100)),
    "index": Parser(lambda text: parse_manifest(text.encode(errors="replace"), OCI_INDEX), (INDEX, IMAGE)),
    "platform": Parser(parse_platform, ("linux/arm64/v8", "linux/amd64")),
    "subject": Parser(parse_subject, ("user:ann", "robot:ci", "oidc:a/b/c:d"), (ValueError,)),
    "errors": Parser(
        lambda text: parse_errors(text.encode(errors="replace")), ('{"errors":[{"code":"DENIED","detail":{}}]}', "{}")
    ),
    "retry after": Parser(
        lambda text: limit_error("r", _headers_of(text), text.encode(errors="replace")),
        ("120", formatdate(usegmt=True), "Wed, 21 Oct 9999999 07:28:00 GMT"),
    ),
    "token": Parser(
        lambda text: _verifier().verify(text, time.time()),
        ("eyJhbGciOiJFUzI1NiIsImtpZCI6ImEifQ.eyJzdWIiOiJhIn0.c2ln", "a.b.c", "."),
        (InvalidTokenError,),
    ),
}


def check(parser: Parser, text: str) -> None:
    """Fail when a text raises an unnamed exception, or takes long."""
    started = time.process_time()
    with suppress(*parser.refusals):
        parser.read(text)
    took = time.process_time() - started
    assert took < CPU_SECONDS, f"{took:.1f} s for {len(text)} characters: {text[:200]!r}"


def run(strategy: st.SearchStrategy[str], examine: Callable[[str], None], seed: int, examples: int) -> None:
    """Run hypothesis over generated texts, from a seed; a failure shows its text."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def examine_all(text: str) -> None:
        examine(text)

    examine_all()


def rounds(seconds: float) -> Iterator[int]:
    """Give a seed for each round: a fixed one for a short run, then others until the time is over."""
    if not seconds:
        yield 1
        return
    chance, end = random.Random(), time.monotonic() + seconds
    while time.monotonic() < end:
        seed = chance.randrange(1 << 32)
        print(f"seed {seed}")
        yield seed


LONG = [0.0, pytest.param(300.0, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])]


@pytest.mark.parametrize("seconds", LONG)
def test_every_parser_reads_or_refuses_any_text(seconds: float) -> None:
    """No parser of foreign text raises anything but its refusal, or takes more than a moment."""
    for seed in rounds(seconds):
        for parser in PARSERS.values():
            run(mutated(parser.seeds), lambda text: check(parser, text), seed, 300 if seconds else 8)  # noqa: B023 - called at once


REQUESTS = (
    f"GET /v2/team/app/blobs/{DIGEST} HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer a.b.c\r\n\r\n",
    f"HEAD /v2/team/app/manifests/{DIGEST}?ns=docker.io HTTP/1.1\r\nHost: r\r\nAccept: a, b\r\nUser-Agent: x\r\n\r\n",
    "POST /auth/token HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na=b\r\n0\r\n\r\n",
    "PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: r\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
    "GET http://r/v2/ HTTP/1.0\r\nConnection: close, keep-alive\r\n\r\n",
    "Content-Length: 1\r\nContent-Length: 2\r\n",
    "Transfer-Encoding : chunked\r\n X: folded\r\n",
    "Range: bytes=0-1\r\nVia: 1.1 a\r\nX-Request-ID: b\r\n",
)


def check_head(parser: HttpRequestParser, text: str) -> None:
    """Fail when the fast path reads a request differently from the server."""
    data = text.encode("latin-1", errors="replace")
    head = _read_head(data)
    if head is None:
        return
    messages, upgraded, rest = parser.feed_data(data)
    ((message, body),) = messages
    assert (message.method, message.path.partition("?")[0]) == (head.method, head.path)
    assert CIMultiDictProxy(message.headers) == head.headers
    assert message.version == HttpVersion11
    assert not message.should_close
    assert body.is_eof()
    assert (upgraded, rest) == (False, b"")


@pytest.mark.parametrize("seconds", LONG)
async def test_both_parsers_of_requests_read_the_same_and_survive_any(seconds: float, tmp_path: Path) -> None:
    """The fast path accepts only requests that the server reads alike; any other bytes end in no 5xx and no hang."""
    loop = asyncio.get_running_loop()

    def parser() -> HttpRequestParser:
        return HttpRequestParser(BaseProtocol(loop), loop, 2**16, max_line_size=2**17, max_field_size=2**14)

    strategy = mutated(REQUESTS)
    async with PublicBench(tmp_path).serving() as public:
        for seed in rounds(seconds):
            run(strategy, lambda text: check_head(parser(), text), seed, 300 if seconds else 60)
            texts: list[str] = []
            run(strategy, texts.append, seed + 1, 60 if seconds else 15)
            for answer in await asyncio.gather(*(ask(public.port, text) for text in texts)):
                assert all(int(status) < 500 for status in answer), answer
            assert await ask(public.port, REQUESTS[1]) == ["401"]


async def ask(port: int, text: str) -> list[str]:
    """Send the given bytes; return the status of each answer up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode("latin-1", errors="replace"))
    writer.write_eof()
    try:
        async with asyncio.timeout(60):
            answered = await reader.read(-1)
    except ConnectionError:
        return []
    finally:
        writer.close()
    return [line.split(b" ")[1].decode() for line in answered.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
