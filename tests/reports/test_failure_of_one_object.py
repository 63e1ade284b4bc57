"""A failure with one object, or behind the registry, affects no other object, and is no state of the replica.

Reports: a handler of a registry that panics for one manifest and closes the connection (Go's net/http), an object
storage or a token service that is away while the registry itself answers, redirects to URLs that are none.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, OCI_MANIFEST, Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Repository, Tag, digest_of
from registry_proxy.replica.failure import BadUpstreamError, ReplicaFailedError
from registry_proxy.upstream.failover import FailoverReader
from tests.support.fakes.malice import Malice, answer, challenge
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import PATIENT, REPOSITORY, ScriptedMarks, open_client, open_replicas
from tests.support.servers import free_port
from tests.support.waiting import until

BROKEN = Repository("broken/app")
BODY = b'{"schemaVersion": 2}'
NOWHERE = f"http://127.0.0.1:{free_port()}"
HASTY_HEADERS = type(PATIENT)(connect=5, first_byte=0.3, stall=0.3, probe=10, commit=10)


@contextmanager
def serving(answers: Callable[[str, str], bytes]) -> Iterator[str]:
    """Serve the result of ``answers`` for method and target; give the URL."""
    with Malice(lambda asked: answers(asked.method, asked.target)) as malice:
        yield malice.url


BROKEN_ANSWERS: dict[str, bytes] = {
    "closed without an answer": b"",
    "closed in the header": b"HTTP/1.1 200 OK\r\nContent-",
    "no HTTP": b"hello\r\n\r\n",
    "a header without end": answer(200, {"X": "x" * 40_000}),
    "storage away": answer(307, {"Location": NOWHERE}),
    "a redirect to no URL": answer(307, {"Location": "http://[::1/"}),
    "a redirect to no port": answer(307, {"Location": "http://host:99999/"}),
    "a redirect to no host": answer(307, {"Location": f"http://{'a' * 300}/"}),
    "token service away": challenge(f"{NOWHERE}/token"),
    "token service that closes": challenge("{url}/closes"),
    "token service that speaks no HTTP": challenge("{url}/no-http"),
    "a token for ever and ever": challenge("{url}/for-ever"),
}


@asynccontextmanager
async def scene(kind: str) -> AsyncIterator[tuple[FailoverReader, Callable[[], ReplicaState], Callable[[], bool]]]:
    """Start a registry that is broken for one repository; give a reader over it, its state and its writability."""
    found = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": str(digest_of(BODY))}
    fine = {"HEAD": answer(200, {**found, "Content-Length": str(len(BODY))}), "GET": answer(200, found, BODY)}
    others = {
        "/v2/": answer(200, {"Content-Type": "application/json"}, b"{}"),
        "/closes": b"",
        "/no-http": b"hello\r\n\r\n",
        "/for-ever": answer(200, {}, b'{"token": "x", "expires_in": %b}' % (b"9" * 400)),
    }
    here = [""]

    def answers(method: str, path: str) -> bytes:
        if str(BROKEN) in path and path.startswith("/v2/"):
            return BROKEN_ANSWERS[kind].replace(b"{url}", here[0].encode())
        return others.get(path.partition("?")[0], fine[method])

    with serving(answers) as url:
        async with open_replicas([url]) as replicas:
            here[0] = url
            reader = FailoverReader(replicas, ScriptedMarks(), 0)
            yield reader, lambda: replicas.status()[0].state, lambda: replicas.is_writable("a")


async def fails(reader: FailoverReader) -> None:
    """Ask for the broken object; any error but our own kinds fails the test."""
    with pytest.raises((RegistryError, UpstreamUnavailableError)):
        await reader.resolve_tag(BROKEN, Tag("1"))


@pytest.mark.parametrize("kind", BROKEN_ANSWERS)
async def test_the_others_are_served_beside_it(kind: str) -> None:
    """However often one repository fails, the next request for another is answered, and the replica accepts pushes."""
    async with scene(kind) as (reader, state, is_writable):
        for _ in range(20):
            await asyncio.gather(*(fails(reader) for _ in range(4)))
            assert is_writable()
            assert (await reader.resolve_tag(REPOSITORY, Tag("1"))).digest == digest_of(BODY)
        assert state() is ReplicaState.UP


@pytest.mark.parametrize("where", ["storage", "token service", "body from storage"])
async def test_silence_behind_a_registry_is_not_its_own(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage or token service that hangs is no silence of the replica, even without other requests."""
    monkeypatch.setattr("registry_proxy.upstream.health.ANSWERS_SECONDS", 0.0)
    async with FakeRegistry() as registry, FakeRegistry() as behind:
        digest = registry.add_blob(BROKEN, BODY)
        behind.add_blob(BROKEN, BODY)
        behind.inject(Fault(stall_after=3) if where == "body from storage" else Fault(stall=True))
        registry.realm = f"{behind.url}/token"
        demand = {"WWW-Authenticate": f'Bearer realm="{behind.url}/token",service="x"'}
        away = Fault(str(BROKEN), status=401, headers=demand)
        registry.inject(away if where == "token service" else Fault(str(BROKEN), redirect_to=behind.url))
        async with open_replicas([registry.url], timeouts=HASTY_HEADERS) as replicas:
            reader = FailoverReader(replicas, ScriptedMarks(), 0)
            with pytest.raises(UpstreamUnavailableError):
                async with reader.open_blob(BROKEN, digest) as stream:
                    [chunk async for chunk in stream]
            assert replicas.is_writable("a")


async def test_a_replica_that_is_gone_is_down_at_once() -> None:
    """A connection that nobody accepts is the replica's own failure."""
    async with FakeRegistry() as registry, open_replicas([registry.url]) as replicas:
        registry.add_manifest(REPOSITORY, BODY, "1")
        reader = FailoverReader(replicas, ScriptedMarks(), 0)
        await reader.resolve_tag(REPOSITORY, Tag("1"))
        await registry.stop()
        with pytest.raises(UpstreamUnavailableError):
            await reader.resolve_tag(REPOSITORY, Tag("1"))
        await until(lambda: not replicas.is_writable("a"))


async def test_a_probe_outlives_a_token_without_measure() -> None:
    """A token lifetime that no clock can hold fails one probe, and no later one."""

    def answers(_: str, path: str) -> bytes:
        if path.startswith("/for-ever"):
            return answer(200, {}, b'{"token": "x", "expires_in": %b}' % (b"9" * 400))
        return challenge(f"http://127.0.0.1:{port[0]}/for-ever")

    port = [""]
    with serving(answers) as url:
        async with open_client(url) as client:
            port[0] = url.rpartition(":")[2]
            with pytest.raises(ReplicaFailedError, match="gives no token"):
                await client.probe()


@pytest.mark.parametrize("location", ["//[bad/x", "http://host//[x", "http://[::1/v2/x", "http://host:99999/v2/x"])
async def test_a_location_that_is_no_url_fails_one_upload(location: str) -> None:
    """Only path and query of it count: where they exist the upload continues, else it is a 502."""

    def answers(method: str, _: str) -> bytes:
        return answer(202, {"Location": location}) if method == "POST" else answer(201, {})

    async def body() -> AsyncIterator[bytes]:
        yield BODY

    with serving(answers) as url:
        async with open_client(url) as client:
            with suppress(BadUpstreamError):  # any other error fails the test
                await client.push_blob(REPOSITORY, Descriptor(BLOB_MEDIA_TYPE, digest_of(BODY), len(BODY)), body)


async def test_a_link_that_is_no_url_fails_one_list() -> None:
    """A list without a usable next page is a 502."""

    def answers(*_: str) -> bytes:
        return answer(200, {"Link": '<//[bad/x>; rel="next"'}, b'{"tags": ["1"]}')

    with serving(answers) as url:
        async with open_client(url) as client:
            with pytest.raises(BadUpstreamError, match="no URL"):
                await client.list_tags(REPOSITORY)
