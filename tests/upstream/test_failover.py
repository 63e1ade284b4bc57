"""Reads over several replicas: their order, trust in their answers, and the cost of a failure."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from registry_proxy.ports.errors import AbsenceUnknownError, UpstreamUnavailableError, WrongContentError
from registry_proxy.ports.metrics import HedgedRequest, WrongContent
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import StorageKind
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Tag, digest_of
from registry_proxy.replica.connections import Timeouts
from registry_proxy.tasks import spawn
from registry_proxy.upstream.failover import FailoverReader
from registry_proxy.upstream.replicas import UpstreamReplicas
from registry_proxy.upstream.selection import Standing, order_for_read
from tests.conftest import StartRegistry
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, ScriptedMarks, open_reader, open_replicas, read_all

CONTENT = bytes(range(256)) * 4096  # 1 MiB
TAG = Tag("1")
QUICK = Timeouts(connect=1, first_byte=1, stall=1, probe=1, commit=1)


@dataclass
class Pair:
    """Two registries, replicas ``a`` and ``b`` of one upstream."""

    a: FakeRegistry
    b: FakeRegistry

    @property
    def urls(self) -> list[str]:
        return [self.a.url, self.b.url]

    def first_for(self, key: object) -> FakeRegistry:
        """Return the replica that is asked first for a key."""
        return getattr(self, order_for_read([Standing("a"), Standing("b")], str(key))[0])  # type: ignore[no-any-return]  # a or b

    def name_of(self, one: FakeRegistry) -> str:
        return "a" if one is self.a else "b"

    def add_blob(self, content: bytes) -> Digest:
        """Put a blob into both."""
        self.a.add_blob(REPOSITORY, content)
        return self.b.add_blob(REPOSITORY, content)

    def asked(self, method: str, target: str) -> list[int]:
        """Return the number of requests to each."""
        return [self.a.count(method, target), self.b.count(method, target)]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Start two registries."""
    async with FakeRegistry() as a, FakeRegistry() as b:
        yield Pair(a, b)


def assert_nothing_is_asked(replicas: UpstreamReplicas) -> None:
    """Fail where a connection was not given back."""
    for client in replicas.replicas:
        connector = client._transport._connections.data.connector
        assert connector is not None
        assert not connector._acquired


async def stop(registry: FakeRegistry) -> None:
    """Stop a registry before anyone has asked it."""
    await registry.stop()


async def read(reader: FailoverReader, digest: Digest, offset: int = 0) -> bytes:
    """Read a blob to its end."""
    async with reader.open_blob(REPOSITORY, digest, offset) as stream:
        assert stream.offset == offset
        return await read_all(stream)


# ---------------------------------------------------------------- one answers for the other


@pytest.mark.parametrize(
    "fault",
    [Fault(status=500), Fault(status=429), Fault(status=403), Fault(stall=True), Fault(html=True), Fault(gzip=True)],
    ids=["500", "429", "403", "stall", "html", "gzip"],
)
async def test_the_next_replica_answers_before_the_first_byte(pair: Pair, fault: Fault) -> None:
    """Each kind of read is answered by the other one, whatever fault the first one has."""
    digest = pair.add_blob(CONTENT)
    manifest = digest_of(b"{}")
    for registry in (pair.a, pair.b):
        registry.add_manifest(REPOSITORY, b"{}", "1")
    asks: dict[object, Callable[[FailoverReader], Awaitable[object]]] = {
        digest: lambda reader: read(reader, digest),
        manifest: lambda reader: reader.fetch_manifest(REPOSITORY, manifest),
        f"main/{REPOSITORY}:1": lambda reader: reader.resolve_tag(REPOSITORY, TAG),
    }
    for key, ask in asks.items():
        async with open_reader(pair.urls, timeouts=QUICK) as reader:
            injected = pair.first_for(key).inject(replace(fault, target="blobs|manifests"))
            assert await ask(reader)
            pair.first_for(key).faults.remove(injected)


async def test_real_registries_stand_in_for_each_other(start_registry: StartRegistry) -> None:
    """With either of two docker-registries stopped every blob is still read."""
    first, second = start_registry("first"), start_registry("second")
    blobs = [bytes([i]) * 1000 for i in range(8)]
    async with open_replicas([first.url, second.url]) as replicas:
        for client in replicas.replicas:
            for blob in blobs:
                location = await client.start_upload(REPOSITORY)

                async def body(blob: bytes = blob) -> AsyncIterator[bytes]:
                    yield blob

                location = await client.append_upload(location, body(), len(blob))
                await client.commit_upload(location, digest_of(blob))
        reader = FailoverReader(replicas, ScriptedMarks(), 10)
        for registry in (first, second):
            registry.stop()
            for blob in blobs:
                assert await read(reader, digest_of(blob)) == blob
            registry.start()


async def test_blobs_are_spread_over_the_replicas(pair: Pair) -> None:
    """Many blobs come from both, each requested once."""
    digests = [pair.add_blob(bytes([i])) for i in range(40)]
    async with open_reader(pair.urls) as reader:
        await asyncio.gather(*(read(reader, digest) for digest in digests))
    asked = pair.asked("GET", "blobs")
    assert sum(asked) == 40
    assert min(asked) > 5


async def test_a_black_hole_costs_its_deadline_once(pair: Pair) -> None:
    """Only the first request waits for a replica that accepts and never answers."""
    digests = [pair.add_blob(bytes([i])) for i in range(20)]
    mine = [digest for digest in digests if pair.first_for(digest) is pair.a]
    async with open_reader(pair.urls, timeouts=QUICK) as reader:
        pair.a.inject(Fault(stall=True))
        for digest in mine:
            await reader.stat_blob(REPOSITORY, digest)
    assert pair.a.count("HEAD") == 1
    assert pair.b.count("HEAD") == len(mine)


async def test_a_liar_is_not_asked_again_for_what_it_lied_about(pair: Pair) -> None:
    """After wrong bytes the other replica alone is asked for ten minutes, and first for everything for a minute."""
    digest = pair.add_blob(CONTENT)
    liar = pair.first_for(digest)
    liar.inject(Fault("blobs", body=b"lie" + CONTENT[3:], omit=("Docker-Content-Digest",)))
    async with open_reader(pair.urls) as reader:

        async def fill() -> None:
            async with reader.open_blob(REPOSITORY, digest) as stream:
                if not digest.matches(await read_all(stream)):
                    raise WrongContentError("wrong bytes", is_proven=True)

        with pytest.raises(WrongContentError) as raised:
            await fill()
        assert raised.value.sender in {"main/a", "main/b"}
        await fill()
        assert sorted(pair.asked("GET", "blobs")) == [1, 1]
        others = [pair.add_blob(bytes([i])) for i in range(8)]
        for other in others:
            await read(reader, other)
        assert sorted(pair.asked("GET", "blobs")) == [1, 9]
        honest = pair.b if liar is pair.a else pair.a
        fault = honest.inject(Fault("blobs", status=500))
        with pytest.raises(UpstreamUnavailableError, match="it sent other bytes than those of this digest"):
            await fill()
        honest.faults.remove(fault)
        honest.inject(Fault("blobs", body=b"lie" + CONTENT[3:], omit=("Docker-Content-Digest",)))
        with pytest.raises(WrongContentError):
            await fill()
        asked = pair.asked("GET", "blobs")
        with pytest.raises(RegistryError) as refused:
            await fill()
        assert refused.value.status == 502
        assert "it sent other bytes" in str(refused.value.detail)
        assert pair.asked("GET", "blobs") == asked


async def test_a_mixed_body_proves_nothing(pair: Pair) -> None:
    """When two replicas sent parts of a wrong body, both are still asked."""
    digest = pair.add_blob(CONTENT)
    async with open_reader(pair.urls) as reader:
        with pytest.raises(WrongContentError):
            async with reader.open_blob(REPOSITORY, digest, 1000):
                raise WrongContentError("wrong bytes", is_proven=False)
        pair.first_for(digest).inject(Fault("blobs", status=500))
        assert await read(reader, digest) == CONTENT


async def test_a_false_manifest_is_a_lie_too(pair: Pair) -> None:
    """It is not requested again from that replica, and counted under its name."""
    manifest, observer = b'{"schemaVersion": 2}', RecordingObserver()
    digest = pair.a.add_manifest(REPOSITORY, manifest)
    pair.b.add_manifest(REPOSITORY, manifest)
    liar = pair.first_for(digest)
    liar.inject(Fault("manifests", body=b"a lie"))
    async with open_reader(pair.urls, observer=observer) as reader:
        for _ in range(3):
            assert (await reader.fetch_manifest(REPOSITORY, digest)).body == manifest
    assert sorted(pair.asked("GET", "manifests")) == [1, 3]
    assert observer.count(WrongContent, "main", pair.name_of(liar)) == 1


@pytest.mark.parametrize("fault", [Fault("blobs", cut_after=300_000), Fault("blobs", stall_after=300_000)])
async def test_a_broken_read_goes_on_at_the_other_replica(pair: Pair, fault: Fault) -> None:
    """After a cut or a stall the other replica sends the rest from the reached offset."""
    digest = pair.add_blob(CONTENT)
    pair.first_for(digest).inject(fault)
    got = bytearray()

    async def go_on(reader: FailoverReader) -> None:
        async with reader.open_blob(REPOSITORY, digest, len(got)) as stream:
            assert stream.offset == len(got)
            async for chunk in stream:
                got.extend(chunk)

    async with open_reader(pair.urls, timeouts=QUICK) as reader:
        with pytest.raises(UpstreamUnavailableError):
            await go_on(reader)
        assert 0 < len(got) < len(CONTENT)
        await go_on(reader)
    assert bytes(got) == CONTENT
    assert sorted(pair.asked("GET", "blobs")) == [1, 1]


# ---------------------------------------------------------------- absent contents


async def test_the_other_replica_gives_what_one_misses(pair: Pair) -> None:
    """A 404 of one replica is no answer while the other holds it."""
    for registry in (pair.a, pair.b):
        digest = registry.add_blob(REPOSITORY, b"only in " + registry.url.encode())
        registry.add_manifest(REPOSITORY, b"{}", pair.name_of(registry))
        async with open_reader(pair.urls) as reader:
            await reader.stat_blob(REPOSITORY, digest)
            await reader.resolve_tag(REPOSITORY, Tag(pair.name_of(registry)))


async def test_absent_everywhere_is_a_404(pair: Pair) -> None:
    """When every replica says so, the answer is the spec's code."""
    absent = digest_of(b"absent")
    async with open_reader(pair.urls, patience_seconds=60) as reader:
        for ask, code in (
            (lambda: reader.stat_blob(REPOSITORY, absent), ErrorCode.BLOB_UNKNOWN),
            (lambda: read(reader, absent), ErrorCode.BLOB_UNKNOWN),
            (lambda: reader.fetch_manifest(REPOSITORY, absent), ErrorCode.MANIFEST_UNKNOWN),
            (lambda: reader.resolve_tag(REPOSITORY, TAG), ErrorCode.MANIFEST_UNKNOWN),
            (lambda: reader.list_tags(REPOSITORY), ErrorCode.NAME_UNKNOWN),
        ):
            with pytest.raises(RegistryError) as error:
                await ask()
            assert (error.value.code, error.value.status) == (code, 404)


async def test_absent_at_one_with_the_other_down_cannot_be_known(pair: Pair) -> None:
    """There is no 404, and no wait for a replica that is long down: the error names both and their reasons."""
    await stop(pair.b)
    async with open_reader(pair.urls) as reader:
        for ask in (
            lambda: reader.stat_blob(REPOSITORY, digest_of(b"absent")),
            lambda: reader.resolve_tag(REPOSITORY, TAG),
            lambda: reader.list_tags(REPOSITORY),
        ):
            with pytest.raises(AbsenceUnknownError, match=r"a: [^:]*; b: no connection"):
                await ask()


async def test_over_shared_storage_one_404_is_the_truth(pair: Pair) -> None:
    """With one store behind them, the first 404 is the answer, also with the other replica down."""
    async with open_reader(pair.urls, storage=StorageKind.SHARED) as reader:
        with pytest.raises(RegistryError) as error:
            await reader.stat_blob(REPOSITORY, digest_of(b"absent"))
        assert error.value.status == 404
        assert sum(pair.asked("HEAD", "blobs")) == 1


# ---------------------------------------------------------------- missed writes


async def test_a_tag_comes_only_from_replicas_that_have_its_last_move(pair: Pair) -> None:
    """A replica with an open mark on the tag is not asked for it; alone, it causes a 503."""
    pair.a.add_manifest(REPOSITORY, b'{"old":1}', "1")
    new = pair.b.add_manifest(REPOSITORY, b'{"new":1}', "1")
    marks = ScriptedMarks(tags={("a", "1")})
    async with open_reader(pair.urls, marks=marks) as reader:
        assert (await reader.resolve_tag(REPOSITORY, TAG)).digest == new
        assert pair.a.count("HEAD") == 0
        pair.b.inject(Fault("manifests", status=500))
        with pytest.raises(UpstreamUnavailableError, match="a: it has not got the last write"):
            await reader.resolve_tag(REPOSITORY, TAG)
    assert pair.a.count("HEAD") == 0


async def test_a_content_that_a_replica_refuses_is_not_asked_of_it(pair: Pair) -> None:
    """The other one answers, with 404 too; alone, the refusing one causes a 503. Its other 404s count."""
    digest = pair.b.add_manifest(REPOSITORY, b'{"new":1}')
    absent = digest_of(b"absent")
    async with open_reader(pair.urls, marks=ScriptedMarks(refusals={("a", digest), ("a", absent)})) as reader:
        assert (await reader.fetch_manifest(REPOSITORY, digest)).body == b'{"new":1}'
        with pytest.raises(RegistryError) as error:
            await reader.fetch_manifest(REPOSITORY, absent)
        assert error.value.status == 404
        assert pair.a.count("GET", "manifests") == 0
        with pytest.raises(RegistryError) as error:
            await reader.fetch_manifest(REPOSITORY, digest_of(b"another"))
        assert (error.value.status, pair.a.count("GET", "manifests")) == (404, 1)
        pair.b.inject(Fault("manifests", status=500))
        with pytest.raises(UpstreamUnavailableError):
            await reader.fetch_manifest(REPOSITORY, digest)


async def test_a_404_of_one_that_is_behind_proves_nothing(pair: Pair) -> None:
    """With the other one down, a 404 of one that is behind is a 503. Digests that it holds are still read from it."""
    held = pair.a.add_blob(REPOSITORY, b"held")
    await stop(pair.b)
    async with open_reader(pair.urls, marks=ScriptedMarks(behind={"a"})) as reader:
        assert await read(reader, held) == b"held"
        with pytest.raises(UpstreamUnavailableError):
            await reader.stat_blob(REPOSITORY, digest_of(b"absent"))


async def test_a_tag_is_absent_when_that_is_proved_of_all_others(pair: Pair) -> None:
    """The proof must cover those that are down or behind; it is asked for only for a tag that some replica misses."""
    asked: list[tuple[str, set[str]]] = []
    proved = {"b"}

    async def proves(_: RoutedRepository, tag: Tag, silent: Collection[str]) -> bool:
        asked.append((tag, set(silent)))
        return set(silent) <= proved

    await stop(pair.b)
    marks = ScriptedMarks()
    async with open_replicas(pair.urls, marks=marks) as replicas:
        reader = FailoverReader(replicas, marks, 0, proves)
        with pytest.raises(RegistryError) as caught:
            await reader.resolve_tag(REPOSITORY, TAG)
        assert (caught.value.code, caught.value.status) == (ErrorCode.MANIFEST_UNKNOWN, 404)
        marks.behind = {"a"}
        with pytest.raises(AbsenceUnknownError):
            await reader.resolve_tag(REPOSITORY, TAG)
        proved.add("a")
        with pytest.raises(RegistryError):
            await reader.resolve_tag(REPOSITORY, TAG)
        assert asked == [(TAG, {"b"}), (TAG, {"a", "b"}), (TAG, {"a", "b"})]
        marks.behind = set()
        with pytest.raises(AbsenceUnknownError):
            await reader.fetch_manifest(REPOSITORY, digest_of(b"absent"))
        pair.a.faults = [Fault(status=500)]
        with pytest.raises(UpstreamUnavailableError):
            await reader.resolve_tag(REPOSITORY, TAG)
        assert len(asked) == 3


async def test_a_manifest_that_was_deleted_through_us_does_not_come_back(pair: Pair) -> None:
    """A manifest that one replica has not deleted yet is not served from it, by digest or by tag."""
    digest = pair.a.add_manifest(REPOSITORY, b"{}", "1")
    async with open_reader(pair.urls, marks=ScriptedMarks(tombstones={("a", digest)})) as reader:
        with pytest.raises(RegistryError) as by_digest:
            await reader.fetch_manifest(REPOSITORY, digest)
        with pytest.raises(RegistryError) as by_tag:
            await reader.resolve_tag(REPOSITORY, TAG)
    assert (by_digest.value.status, by_tag.value.status) == (404, 404)
    assert pair.a.count("GET", "manifests") == 0


# ---------------------------------------------------------------- lists


async def test_lists_are_unions(pair: Pair) -> None:
    """Tags and repositories of both are listed once each, sorted."""
    pair.a.add_manifest(REPOSITORY, b"{}", "b", "c")
    pair.b.add_manifest(REPOSITORY, b"{}", "a", "b")
    pair.b.add_manifest("another", b"{}", "1")
    async with open_reader(pair.urls) as reader:
        assert await reader.list_tags(REPOSITORY) == ["a", "b", "c"]
        assert await reader.list_repositories() == ["another", REPOSITORY]


async def test_lists_come_from_current_replicas(pair: Pair) -> None:
    """One that is behind does not count beside a current one, and alone its list is a 503."""
    pair.a.add_manifest(REPOSITORY, b"{}", "deleted", "kept")
    pair.b.add_manifest(REPOSITORY, b"{}", "kept")
    async with open_reader(pair.urls, marks=ScriptedMarks(tags={("a", "deleted")})) as reader:
        assert await reader.list_tags(REPOSITORY) == ["kept"]
        pair.b.inject(Fault("tags", status=500))
        with pytest.raises(UpstreamUnavailableError, match="a: it has not yet got everything; b: it answers 500"):
            await reader.list_tags(REPOSITORY)
        pair.b.inject(Fault("catalog", status=500))
        with pytest.raises(UpstreamUnavailableError, match="a: it has not yet got everything; b: it answers 500"):
            await reader.list_repositories()
    both = ScriptedMarks(tags={("a", "deleted"), ("b", "kept")})
    pair.b.faults.clear()
    async with open_reader(pair.urls, marks=both) as reader:
        assert await reader.list_tags(REPOSITORY) == ["kept"], "all are behind, and each lists what it does not miss"


# ---------------------------------------------------------------- patience


async def test_a_patient_reader_waits_for_a_replica_to_return(pair: Pair) -> None:
    """With all down a request waits, and is answered when one comes back; an impatient one fails immediately."""
    digest = pair.add_blob(b"x")
    async with open_replicas(pair.urls) as replicas:
        await stop(pair.a)
        await stop(pair.b)
        impatient = FailoverReader(replicas, ScriptedMarks(), 0)
        with pytest.raises(UpstreamUnavailableError, match=r"no replica of upstream main can answer: a: .*; b: "):
            await impatient.stat_blob(REPOSITORY, digest)
        changes = replicas.changes
        waiting = spawn(FailoverReader(replicas, ScriptedMarks(), 30).stat_blob(REPOSITORY, digest), "wait")
        await asyncio.sleep(0)
        assert not waiting.done()
        await pair.a.start()
        assert (await waiting).size_bytes == 1
        assert replicas.changes > changes


async def test_a_patient_reader_gives_up_after_its_patience(pair: Pair) -> None:
    """The wait is bounded, and ends in a 503."""
    await stop(pair.a)
    await stop(pair.b)
    async with open_reader(pair.urls, patience_seconds=0.7) as reader:
        started_at = time.monotonic()
        with pytest.raises(UpstreamUnavailableError):
            await reader.stat_blob(REPOSITORY, digest_of(b"x"))
        assert time.monotonic() - started_at >= 0.7


async def test_a_mark_that_is_cleared_ends_the_wait(pair: Pair) -> None:
    """A tag that every replica misses for a moment is answered as soon as one has it."""
    pair.a.add_manifest(REPOSITORY, b"{}", "1")
    digest = pair.b.add_manifest(REPOSITORY, b"{}", "1")
    marks = ScriptedMarks(tags={("a", "1"), ("b", "1")})
    async with open_reader(pair.urls, marks=marks, patience_seconds=30) as reader:
        waiting = spawn(reader.resolve_tag(REPOSITORY, TAG), "wait")
        await asyncio.sleep(0)
        assert not waiting.done()
        marks.tags.clear()
        assert (await waiting).digest == digest


async def test_refused_credentials_are_reported_at_once() -> None:
    """When every replica refuses us there is nothing to wait for: 502 with the reason."""
    async with AsyncExitStack() as stack:
        registries = [await stack.enter_async_context(FakeRegistry(basic=("ann", "right"))) for _ in range(2)]
        urls = [registry.url for registry in registries]
        reader = await stack.enter_async_context(
            open_reader(urls, patience_seconds=60, username="ann", password="wrong")
        )
        with pytest.raises(RegistryError) as error:
            await reader.stat_blob(REPOSITORY, digest_of(b"x"))
    assert error.value.status == 502
    assert "refuses the configured user name and password" in str(error.value.detail)


async def test_a_cancelled_read_leaves_nothing_open(pair: Pair) -> None:
    """A cancellation during a stall closes the connection to the replica."""
    digest = pair.add_blob(CONTENT)
    for registry in (pair.a, pair.b):
        registry.inject(Fault("blobs", stall_after=1000))
    async with open_replicas(pair.urls) as replicas:
        reader = FailoverReader(replicas, ScriptedMarks(), 0)
        opened = asyncio.Event()

        async def hold() -> None:
            async with reader.open_blob(REPOSITORY, digest) as stream:
                opened.set()
                await read_all(stream)

        task = spawn(hold(), "hold")
        await opened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_nothing_is_asked(replicas)


# ---------------------------------------------------------------- slow replicas

UNHURRIED = Timeouts(connect=600, first_byte=600, stall=600, probe=600, commit=600)


async def test_a_slow_replica_is_overtaken(pair: Pair) -> None:
    """The other replica answers a HEAD or manifest that one stalls on; the slow one is released, and asked last."""
    blob, manifest = pair.add_blob(CONTENT), digest_of(b"{}")
    for registry in (pair.a, pair.b):
        registry.add_manifest(REPOSITORY, b"{}", "1")
    asks: list[Callable[[FailoverReader], Awaitable[object]]] = [
        lambda reader: reader.stat_blob(REPOSITORY, blob),
        lambda reader: reader.fetch_manifest(REPOSITORY, manifest),
        lambda reader: reader.resolve_tag(REPOSITORY, TAG),
    ]
    keys = (blob, manifest, f"main/{REPOSITORY}:1")
    for ask, key in zip(asks, keys, strict=True):
        first = pair.first_for(key)
        first.faults = [Fault("/(blobs|manifests)/", stall=True)]
        marks, observer = ScriptedMarks(), RecordingObserver()
        opened = open_replicas(pair.urls, marks=marks, timeouts=UNHURRIED, observer=observer)
        async with opened as replicas, asyncio.timeout(60):
            reader = FailoverReader(replicas, marks, 0)
            before = len(first.requests)
            for _ in range(3):
                await ask(reader)
            assert len([one for one in first.requests[before:] if one.target != "/v2/"]) == 1
            assert_nothing_is_asked(replicas)
            assert replicas.health()[pair.name_of(first)].is_up
            assert observer.count(HedgedRequest, "main", "later") == 1
        first.faults = []


async def test_only_one_that_may_answer_is_waited_for(pair: Pair) -> None:
    """A tag that the other replica has in an older state is not requested from it, however long the answer takes."""
    for registry in (pair.a, pair.b):
        registry.add_manifest(REPOSITORY, b"{}", "1")
    pair.a.faults = [Fault("manifests", delay_seconds=1)]
    async with open_reader(pair.urls, marks=ScriptedMarks(tags={("b", TAG)})) as reader:
        assert (await reader.resolve_tag(REPOSITORY, TAG)).digest == digest_of(b"{}")
    assert pair.asked("HEAD", f"/v2/{REPOSITORY}/manifests/1") == [1, 0]


async def test_a_404_does_not_overtake(pair: Pair) -> None:
    """A 404 of the other one does not count while the slow one may have it; both are needed for a 404."""
    digest = digest_of(CONTENT)
    slow = pair.first_for(digest)
    slow.faults = [Fault("blobs", delay_seconds=1)]
    observer = RecordingObserver()
    async with open_reader(pair.urls, observer=observer) as reader:
        with pytest.raises(RegistryError) as absent:
            await reader.stat_blob(REPOSITORY, digest)
        assert absent.value.code is ErrorCode.BLOB_UNKNOWN
        assert observer.count(HedgedRequest, "main", "none") == 1
        slow.add_blob(REPOSITORY, CONTENT)
        assert (await reader.stat_blob(REPOSITORY, digest)).digest == digest
    assert {winner: observer.count(HedgedRequest, "main", winner) for winner in ("first", "later", "none")} == {
        "first": 1,
        "later": 0,
        "none": 1,
    }


async def test_a_caller_that_leaves_cancels_both(pair: Pair) -> None:
    """A caller that leaves while two replicas are asked leaves no request behind."""
    digest = pair.add_blob(CONTENT)
    for registry in (pair.a, pair.b):
        registry.faults = [Fault("blobs", stall=True)]
    marks = ScriptedMarks()
    async with open_replicas(pair.urls, marks=marks, timeouts=UNHURRIED) as replicas, asyncio.timeout(60):
        question = spawn(FailoverReader(replicas, marks, 0).stat_blob(REPOSITORY, digest), "question")
        for registry in (pair.a, pair.b):
            await registry.wait_for("HEAD", f"/v2/{REPOSITORY}/blobs/{digest}")
        question.cancel()
        await asyncio.wait([question])
        assert_nothing_is_asked(replicas)
