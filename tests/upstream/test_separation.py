"""Whether replicas keep repositories apart: a table of questions and findings."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.metrics import RepositoriesMixed
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor, Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of
from registry_proxy.replica.failure import ReplicaFailedError
from registry_proxy.upstream.separation import NOWHERE, PROBE, Separation
from tests.support.fakes.memory import MemoryHoldings, RecordingObserver
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import open_client, open_replicas

BLOB, MANIFEST = ContentKind.BLOB, ContentKind.MANIFEST
ONE, TWO = digest_of(b"1"), digest_of(b"2")
APP = RoutedRepository("main", Repository("team/app"))


class Replica:
    """A replica that answers for ``held``, in any repository when it mixes them; ``asked`` are the repositories."""

    def __init__(self, name: str, *held: Digest, mixes: bool = False) -> None:
        self.name, self.held, self.mixes = name, held, mixes
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.is_full = False

    async def answers(self, kind: ContentKind, repository: Repository, digest: Digest) -> bool:  # noqa: ARG002 - both are alike
        self.asked.append(repository)
        if self.failure is not None:
            raise self.failure
        return digest in self.held and (self.mixes or repository != NOWHERE)

    async def push_blob(
        self, repository: Repository, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]
    ) -> None:
        assert [piece async for piece in body()]
        await self._take(repository, descriptor.digest)

    async def put_manifest(self, repository: Repository, tag_or_digest: Tag | Digest, manifest: Manifest) -> None:
        assert manifest.descriptor.digest == tag_or_digest
        await self._take(repository, manifest.descriptor.digest)

    async def _take(self, repository: Repository, digest: Digest) -> None:
        self.asked.append(f"push {repository}")
        if self.is_full:
            raise RegistryError(ErrorCode.DENIED, "no room", status=403)
        self.held = (*self.held, digest)


class Table:
    """The separation of some replicas, with its collaborators."""

    def __init__(self, *replicas: Replica, is_known_mixed: bool = False, may_push: bool = False) -> None:
        self.up = list(replicas)
        self.holdings, self.observer = MemoryHoldings(), RecordingObserver()
        self.separation = Separation(
            "main",
            [replica.name for replica in replicas],
            is_known_mixed=is_known_mixed,
            may_push=may_push,
            remembered=self.holdings,
            observer=self.observer,
            clients=lambda: self.up,
            is_writable=lambda name: name not in self.paused,
        )
        self.paused: set[str] = set()


async def test_an_answer_is_checked_once() -> None:
    """The first answer of a replica is unsettled until one question elsewhere; later ones are not."""
    a = Replica("a", ONE, TWO)
    table = Table(a)
    assert table.separation.is_settled(BLOB)
    assert table.separation.keeps_apart("a") is None
    table.separation.answered("a", BLOB, APP.repository, ONE)
    assert not table.separation.is_settled(BLOB)
    assert table.separation.is_settled(MANIFEST)
    await table.separation.verify(BLOB)
    table.separation.answered("a", BLOB, APP.repository, TWO)
    assert table.separation.is_settled(BLOB)
    assert table.separation.is_apart(BLOB)
    assert not table.separation.is_apart(MANIFEST)
    assert (table.separation.keeps_apart("a"), a.asked) == (True, [NOWHERE])
    assert table.observer.last(RepositoriesMixed, "main", "a") is False


async def test_one_that_mixes_decides_for_the_upstream(caplog: pytest.LogCaptureFixture) -> None:
    """The answers of the replicas are forgotten, the log warns once, and a later "no" does not revert it."""
    a, b = Replica("a", ONE, mixes=True), Replica("b", ONE)
    table = Table(a, b)
    table.holdings.remember(APP, BLOB, Descriptor(BLOB_MEDIA_TYPE, ONE, 1))
    for name in "ab":
        table.separation.answered(name, BLOB, APP.repository, ONE)
    with caplog.at_level(logging.WARNING):
        await table.separation.verify(BLOB)
        a.mixes = False
        await table.separation.look()
    assert table.separation.is_mixed(BLOB)
    assert not table.separation.is_mixed(MANIFEST)
    assert [table.separation.keeps_apart(name) for name in "ab"] == [False, True]
    assert table.holdings.find(APP, BLOB, ONE) is None
    assert len(caplog.records) == 1
    assert table.observer.last(RepositoriesMixed, "main", "a") is True


@pytest.mark.parametrize("mixes", [True, False])
async def test_a_replica_that_we_push_to_is_asked_for_our_own_contents(mixes: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """Our own contents are pushed with the first answer, once, and only they are asked for; a start finds them."""
    a = Replica("a", ONE, mixes=mixes)
    table = Table(a, may_push=True)
    await table.separation.look()
    assert (a.asked, table.separation.keeps_apart("a")) == ([PROBE, PROBE], None)
    a.asked.clear()
    for kind in ContentKind:
        table.separation.answered("a", kind, APP.repository, ONE)
        await table.separation.verify(kind)
    assert a.asked == [PROBE, f"push {PROBE}", NOWHERE] * 2
    again = Table(a, may_push=True)
    await again.separation.look()
    for each in (table, again):
        assert each.separation.keeps_apart("a") is not mixes
        assert [each.separation.is_mixed(kind) for kind in ContentKind] == [mixes] * 2
    a.held = (ONE,)  # collected
    await table.separation.look()
    assert a.asked.count(f"push {PROBE}") == 4


async def test_one_that_takes_nothing_is_asked_about_what_it_answered() -> None:
    """A registry that refuses our content, for want of room or right, is judged all the same."""
    a = Replica("a", ONE)
    a.is_full = True
    table = Table(a, may_push=True)
    table.separation.answered("a", BLOB, APP.repository, ONE)
    await table.separation.verify(BLOB)
    assert a.asked == [PROBE, f"push {PROBE}", NOWHERE]
    assert table.separation.is_apart(BLOB)


async def test_one_that_is_paused_is_asked_about_what_it_answered() -> None:
    """It is not written to, not even a content of our own, and its answers are judged all the same."""
    a = Replica("a", ONE)
    table = Table(a, may_push=True)
    table.paused.add("a")
    table.separation.answered("a", BLOB, APP.repository, ONE)
    await table.separation.verify(BLOB)
    assert a.asked == [PROBE, NOWHERE]
    assert table.separation.is_apart(BLOB)


async def test_it_looks_by_what_is_remembered() -> None:
    """Without an answer yet, blobs that repositories hold are used; those that a replica lost prove nothing."""
    a = Replica("a", TWO)
    table = Table(a)
    await table.separation.look()
    assert a.asked == []
    table.holdings.remember(APP, BLOB, Descriptor(BLOB_MEDIA_TYPE, ONE, 1))
    await table.separation.look()
    assert (a.asked, table.separation.keeps_apart("a")) == ([APP.repository], None)
    table.holdings.remember(APP, BLOB, Descriptor(BLOB_MEDIA_TYPE, TWO, 1))
    await table.separation.look()
    assert table.separation.keeps_apart("a") is True
    a.mixes = True  # another program stands there now
    table.separation.answered("a", BLOB, APP.repository, TWO)
    await table.separation.look()
    assert table.separation.keeps_apart("a") is False


async def test_an_answer_that_cannot_be_checked_is_not_believed() -> None:
    """A replica that does not answer, or is down by then, makes the question fail, and is asked at the next one."""
    a = Replica("a", ONE)
    table = Table(a)
    a.failure = ReplicaFailedError("a: no answer in time", "timeout")
    table.separation.answered("a", BLOB, APP.repository, ONE)
    with pytest.raises(UpstreamUnavailableError):
        await table.separation.verify(BLOB)
    table.up.clear()
    table.separation.answered("a", BLOB, APP.repository, ONE)
    with pytest.raises(UpstreamUnavailableError, match="went down"):
        await table.separation.verify(BLOB)
    await table.separation.look()
    table.up.append(a)
    await table.separation.look()  # a failure is no end of it
    a.failure = None
    table.separation.answered("a", BLOB, APP.repository, ONE)
    await table.separation.verify(BLOB)
    assert table.separation.is_apart(BLOB)


async def test_one_replica_is_asked_where_its_word_is_needed() -> None:
    """It is trusted when it keeps repositories apart, and not when it mixes them, or does not answer."""
    a, b, c = Replica("a"), Replica("b", mixes=True), Replica("c")
    c.failure = ReplicaFailedError("c: no answer in time", "timeout")
    table = Table(a, b, c, may_push=True)
    assert [await table.separation.can_believe(name, BLOB) for name in "abc"] == [True, False, False]
    a.asked.clear()
    assert await table.separation.can_believe("a", BLOB)
    assert a.asked == []


async def test_a_configured_answer_is_not_asked_for() -> None:
    """With ``mixes_repositories`` no question is asked, and both kinds are mixed."""
    a = Replica("a", ONE)
    table = Table(a, is_known_mixed=True)
    table.separation.answered("a", BLOB, APP.repository, ONE)
    await table.separation.look()
    assert table.separation.is_mixed(BLOB)
    assert table.separation.is_mixed(MANIFEST)
    assert not await table.separation.can_believe("a", BLOB)
    assert (table.separation.keeps_apart("a"), a.asked) == (False, [])


@asynccontextmanager
async def registry_of(*mixes: str) -> AsyncIterator[tuple[FakeRegistry, Digest, Digest]]:
    """Give a registry with a blob and a manifest in ``team/app``."""
    async with FakeRegistry(mixes=mixes) as registry:
        blob, manifest = registry.add_blob("team/app", b"blob"), registry.add_manifest("team/app", b"{}")
        yield registry, blob, manifest


@pytest.mark.parametrize("mixes", [(), ("blobs",), ("manifests",)])
async def test_a_replica_is_asked_by_head(mixes: tuple[str, ...]) -> None:
    """Each kind has its own request; a refusal and a 5xx are no answer, a 429 and silence are a failure."""
    async with registry_of(*mixes) as (registry, blob, manifest), open_client(registry.url) as client:
        assert await client.answers(BLOB, NOWHERE, blob) is ("blobs" in mixes)
        assert await client.answers(MANIFEST, NOWHERE, manifest) is ("manifests" in mixes)
        assert await client.answers(BLOB, Repository("team/app"), blob)
        assert registry.count("GET", "/(blobs|manifests)/") == 0
        for status in (401, 403, 400, 500):
            registry.faults = [Fault(status=status)]
            assert not await client.answers(BLOB, NOWHERE, blob)
        registry.faults = [Fault(status=429)]
        with pytest.raises(UpstreamUnavailableError):
            await client.answers(BLOB, NOWHERE, blob)
        await registry.stop()
        with pytest.raises(UpstreamUnavailableError):
            await client.answers(BLOB, NOWHERE, blob)


async def test_a_finding_is_known_at_the_next_start() -> None:
    """Our own contents exist by then: everything is known when ``start`` returns, and ``status`` shows it."""
    async with FakeRegistry(mixes=["blobs"]) as mixed, FakeRegistry() as apart:
        urls = [mixed.url, apart.url]
        async with open_replicas(urls, read_only=False) as replicas:
            assert [status.keeps_apart for status in replicas.status()] == [None, None]
            assert mixed.count("POST") == 0
            for name in "ab":
                for kind in ContentKind:
                    replicas.separation.answered(name, kind, APP.repository, ONE)
                    await replicas.separation.verify(kind)
        async with open_replicas(urls, read_only=False) as replicas:
            assert replicas.separation.is_mixed(BLOB)
            assert not replicas.separation.is_mixed(MANIFEST)
            assert [status.keeps_apart for status in replicas.status()] == [False, True]
