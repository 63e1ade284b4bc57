"""A 429 of an upstream reaches the client as 429, with its message and its Retry-After, immediately.

Reports: Docker Hub's pull limit, which proxies hid in a 503 after a wait, so that nobody saw whose limit it was.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate

import pytest

from registry_proxy.edge.exchange import as_registry_error
from registry_proxy.ports.errors import UpstreamLimitError
from registry_proxy.ports.metrics import UpstreamRequest
from registry_proxy.protocol.errors import ErrorCode
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of
from registry_proxy.replica.failure import limit_error
from registry_proxy.upstream.failover import FailoverReader
from tests.conftest import StartProxy
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, ScriptedMarks, open_reader, open_replicas
from tests.support.product import make_image

WORDS = "You have reached your pull rate limit. See https://example.org/limits"
BODY = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"' + WORDS.encode() + b'"}]}'
JSON = {"Content-Type": "application/json"}
FOREVER = 3600


def limited(target: str = "^/v2/.", retry_after: str | None = "77") -> Fault:
    """Return a rate limit of a registry."""
    headers = JSON if retry_after is None else JSON | {"Retry-After": retry_after}
    return Fault(target, status=429, body=BODY, headers=headers)


async def limit_of(attempt: Awaitable[object]) -> UpstreamLimitError:
    """Return the limit in which a call ends."""
    with pytest.raises(UpstreamLimitError) as caught:
        await attempt
    return caught.value


def read(reader: FailoverReader, digest: Digest) -> Awaitable[bytes]:
    """Read a blob."""

    async def run() -> bytes:
        async with reader.open_blob(REPOSITORY, digest) as stream:
            return b"".join([chunk async for chunk in stream])

    return run()


ASKS: dict[str, Callable[[FailoverReader], Awaitable[object]]] = {
    "tag": lambda reader: reader.resolve_tag(REPOSITORY, Tag("1")),
    "manifest": lambda reader: reader.fetch_manifest(REPOSITORY, digest_of(b"{}")),
    "blob": lambda reader: read(reader, digest_of(b"x")),
    "HEAD of a blob": lambda reader: reader.stat_blob(REPOSITORY, digest_of(b"x")),
    "tags": lambda reader: reader.list_tags(REPOSITORY),
    "repositories": lambda reader: reader.list_repositories(),
}


@pytest.mark.parametrize("ask", ASKS)
async def test_words_and_wait_are_passed_on_at_once(ask: str) -> None:
    """For any request no patience is spent, and the message arrives also for a HEAD."""
    async with FakeRegistry() as registry, open_reader([registry.url], patience_seconds=FOREVER) as reader:
        registry.inject(limited())
        error = as_registry_error(await limit_of(ASKS[ask](reader)))
    assert (error.code, error.status, error.headers["Retry-After"]) == (ErrorCode.TOOMANYREQUESTS, 429, "77")
    assert WORDS in error.message
    assert error.detail is not None


async def test_the_token_endpoint_limits_too() -> None:
    """A 429 of the token endpoint is one of the upstream, and no refusal of credentials."""
    async with (
        FakeRegistry(bearer=("ann", "pw")) as registry,
        open_replicas([registry.url], username="ann", password="pw") as replicas,
    ):
        registry.inject(limited("^/token"))
        error = await limit_of(FailoverReader(replicas, ScriptedMarks(), FOREVER).resolve_tag(REPOSITORY, Tag("1")))
        assert error.words == WORDS
        assert 70 < error.retry_after_seconds <= 77
        await replicas.client("a").probe()


async def test_another_replica_answers() -> None:
    """While one replica limits us the other one is asked; the 429 is passed on when that cannot answer."""
    async with (
        FakeRegistry() as a,
        FakeRegistry() as b,
        open_reader([a.url, b.url], patience_seconds=FOREVER) as reader,
    ):
        for registry in (a, b):
            registry.add_manifest(REPOSITORY, b"{}", "1")
            registry.add_manifest(REPOSITORY, b"[]", "2")
        a.inject(limited())
        await reader.resolve_tag(REPOSITORY, Tag("1"))
        await reader.resolve_tag(REPOSITORY, Tag("2"))
        assert a.count("HEAD") + b.count("HEAD") <= 3, "the replica that limits us gets no request"
        b.inject(Fault("^/v2/.", status=500))
        assert (await limit_of(reader.resolve_tag(REPOSITORY, Tag("1")))).words in {WORDS, ""}
        await b.stop()
        await limit_of(reader.fetch_manifest(REPOSITORY, digest_of(b"{}")))


async def test_the_wait_is_one_repositorys() -> None:
    """During the wait nothing is asked for the repository, another one is asked, and gets its answer or its own 429."""
    other = Repository("team/other")
    async with FakeRegistry() as registry, open_reader([registry.url]) as reader:
        registry.add_manifest(other, b"{}", "1")
        registry.inject(limited(REPOSITORY))
        await limit_of(reader.resolve_tag(REPOSITORY, Tag("1")))
        asked = len(registry.requests)
        again = await limit_of(reader.fetch_manifest(REPOSITORY, digest_of(b"{}")))
        assert len(registry.requests) == asked
        assert again.words == WORDS
        assert 60 < again.retry_after_seconds <= 77
        await reader.resolve_tag(other, Tag("1"))


async def test_it_is_asked_again_after_the_wait() -> None:
    """Retry-After: 0 asks for no wait."""
    async with FakeRegistry() as registry, open_reader([registry.url]) as reader:
        registry.add_manifest(REPOSITORY, b"{}", "1")
        fault = registry.inject(limited(retry_after="0"))
        await limit_of(reader.resolve_tag(REPOSITORY, Tag("1")))
        registry.faults.remove(fault)
        await reader.resolve_tag(REPOSITORY, Tag("1"))


async def test_a_registry_that_limits_heads_alone_is_read_by_get() -> None:
    """The answer to the GET counts."""
    async with FakeRegistry() as registry, open_reader([registry.url]) as reader:
        registry.add_manifest(REPOSITORY, b"{}", "1")
        registry.inject(Fault("manifests", method="HEAD", status=429))
        assert (await reader.resolve_tag(REPOSITORY, Tag("1"))).digest == digest_of(b"{}")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), (None, 1), ("0", 0), ("soon", 1), ("-5", 1), ("9" * 30, 86_400), ("²", 1)],
)
def test_the_wait(header: str | None, seconds: float) -> None:
    """A number is used, up to a day; any other text is a second."""
    headers = {} if header is None else {"Retry-After": header}
    assert limit_error("a", headers, b"").retry_after_seconds == seconds


def test_the_wait_may_be_a_date() -> None:
    """A date is the end of the wait; a past date means no wait (RFC 9110, 10.2.3)."""
    later = limit_error("a", {"Retry-After": formatdate(time.time() + 100, usegmt=True)}, b"").retry_after_seconds
    assert 90 < later <= 100
    assert limit_error("a", {"Retry-After": formatdate(0, usegmt=True)}, b"").retry_after_seconds == 0


@pytest.mark.parametrize(
    ("body", "media_type", "words"),
    [
        (BODY, "application/json", WORDS),
        (b"slow down,\r\nplease\x1b[0m", "text/plain; charset=utf-8", "slow down, please [0m"),
        (b"<html><h1>429</h1></html>", "text/html", ""),
        (b"", "", ""),
        (b'{"errors":[{"message":"a"},{"message":"b"}]}', "application/json", "a; b"),
        (b'{"errors":[{}]}', "application/json", ""),
        (b"[" * 5000, "application/json", ""),
        (b"x" * 5000, "text/plain", "x" * 500),
    ],
)
def test_the_words(body: bytes, media_type: str, words: str) -> None:
    """The message is that of the protocol's errors, or a plain text: one line, printable, of bounded length."""
    assert limit_error("a", {"Content-Type": media_type}, body).words == words


async def test_it_is_counted_and_shown() -> None:
    """Metrics have a separate outcome, and the replica stays up with the reason beside it."""
    observer = RecordingObserver()
    async with FakeRegistry() as registry, open_replicas([registry.url], observer=observer) as replicas:
        registry.inject(limited())
        await limit_of(FailoverReader(replicas, ScriptedMarks(), 0).list_tags(REPOSITORY))
        [status] = replicas.status()
    assert (status.state, status.reason.partition(",")[0]) == ("up", "it asked us to wait")
    assert observer.count(UpstreamRequest, "main", "a", "GET", "429") == 1


async def test_cached_content_is_served_meanwhile(start_proxy: StartProxy) -> None:
    """Cached contents are served by digest as ever, by tag with a Warning; all else gets the 429 with its message."""
    image = make_image(b"layer")
    async with FakeRegistry() as registry:
        for blob in image.blobs.values():
            registry.add_blob("team/app", blob)
        registry.add_manifest("team/app", image.manifest, "1")
        replica = {"tag_ttl": "0s", "replicas": [{"url": registry.url, "name": "hub"}]}
        proxy = await asyncio.to_thread(start_proxy, [], {"upstreams": {"main": replica}})
        user = await asyncio.to_thread(lambda: proxy.add_user("ann", pull_push=["**"]))
        await asyncio.to_thread(user.pull, "team/app", "1")
        registry.inject(limited())
        await asyncio.to_thread(user.pull, "team/app", image.digest)
        tag = await asyncio.to_thread(user.get, "team/app", "manifests/1")
        assert (tag.status_code, tag.content, tag.headers["Warning"][:3]) == (200, image.manifest, "299")
        answers = [await asyncio.to_thread(user.get, "team/app", path) for path in ("manifests/2", "tags/list")]
        answers.append(await asyncio.to_thread(user.push_blob, "team/other", b"new"))
        answers.append(await asyncio.to_thread(user.push_manifest, "team/other", "1", make_image(b"y")))
        for answer in answers:
            [error] = answer.json()["errors"]
            assert (answer.status_code, error["code"]) == (429, "TOOMANYREQUESTS")
            assert WORDS in error["message"]
            assert 0 < int(answer.headers["Retry-After"]) <= 77
        assert await asyncio.to_thread(proxy.metric, "registry_proxy_upstream_requests_total", outcome="429") > 0
        shown = await asyncio.to_thread(proxy.command, "replica", "list", "--json")
        assert "it asked us to wait" in shown.output
        await asyncio.to_thread(proxy.kill_everything)
