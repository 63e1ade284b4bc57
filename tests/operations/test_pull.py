"""The operations of pulling over ports in memory."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from registry_proxy.operations.passthrough import HOLD_BACK_BYTES, PassThrough
from registry_proxy.operations.proofs import HOLDING_FRESH_SECONDS
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.pull_blobs import FAR_RANGE_BYTES, BlobAnswer
from registry_proxy.operations.tags import RecordedTags, TagRules
from registry_proxy.ports.errors import FillFailedError, StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.metrics import CacheRequest, StaleAnswer
from registry_proxy.ports.names import CacheResult, ContentKind, RoutedRepository, StaleReason
from registry_proxy.ports.tags import TagFinding, TagRecord
from registry_proxy.protocol.byterange import ByteRange
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, OCI_MANIFEST, Descriptor, Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of
from tests.support.fakes.memory import (
    MemoryCache,
    MemoryFile,
    MemoryHoldings,
    MemoryReader,
    RecordingObserver,
    holdings_of,
)
from tests.support.waiting import until

A = RoutedRepository("main", Repository("a"))
B = RoutedRepository("main", Repository("b"))
SECRET = b"the bytes of a private layer" * 100
LATEST = Tag("latest")
OLD = HOLDING_FRESH_SECONDS + 1


@dataclass
class Bench:
    """A Pull over fakes: one upstream, the patient and the impatient reader."""

    reader: MemoryReader = field(default_factory=MemoryReader)
    impatient: MemoryReader = field(default_factory=MemoryReader)
    cache: MemoryCache = field(default_factory=MemoryCache)
    holdings: MemoryHoldings = field(default_factory=MemoryHoldings)
    observer: RecordingObserver = field(default_factory=RecordingObserver)
    rules: dict[str, TagRules] = field(default_factory=lambda: {"main": TagRules(10)})
    revision: int | StoreUnavailableError | None = None

    def __post_init__(self) -> None:
        self.impatient.blobs, self.impatient.tags = self.reader.blobs, self.reader.tags
        self.impatient.manifests, self.impatient.requests = self.reader.manifests, self.reader.requests
        self.restart()

    def restart(self) -> None:
        """Clear the memory of the process."""
        self.pull = Pull(
            readers={"main": self.reader},
            impatient_readers={"main": self.impatient},
            cache=self.cache,
            holdings=self.holdings,
            proofs=holdings_of(self.reader, self.holdings, self.cache),
            observer=self.observer,
            tag_rules=self.rules,
            records=None if self.revision is None else RecordedTags(self.tell_record, self.find_tag, is_shared=True),
        )

    async def tell_record(self, _: RoutedRepository, __: Tag) -> TagRecord:
        """Return the record of the store for every tag, as the test says."""
        if isinstance(self.revision, int):
            return TagRecord(self.revision)
        raise self.revision or AssertionError("nobody else moves tags")

    async def find_tag(self, _: RoutedRepository, __: Tag) -> TagFinding | None:
        """Find nothing: no answer contradicts the record."""
        return None

    def go_down(self) -> None:
        self.reader.is_down = self.impatient.is_down = True

    async def get(self, routed: RoutedRepository, digest: Digest, range_header: str | None = None) -> bytes:
        return await read(await self.pull.blobs.open_blob(routed, digest, range_header))

    def remember_blob(self, routed: RoutedRepository, content: bytes) -> Digest:
        digest = digest_of(content)
        descriptor = Descriptor(BLOB_MEDIA_TYPE, digest, len(content))
        self.holdings.remember(routed, ContentKind.BLOB, descriptor)
        return digest


async def read(answer: BlobAnswer) -> bytes:
    """Read the body of an answer, and close it."""
    content = answer.content
    if isinstance(content, bytes):
        part = answer.byte_range or ByteRange(0, len(content) - 1)
        return content[part.first : part.last + 1]
    if isinstance(content, PassThrough):
        try:
            return b"".join([chunk async for chunk in content])
        finally:
            await content.aclose()
    try:
        await content.wait_beyond(answer.descriptor.size_bytes - 1)
        assert isinstance(content, MemoryFile)
        part = answer.byte_range or ByteRange(0, answer.descriptor.size_bytes - 1)
        return os.pread(content.fd, part.size_bytes, part.first)
    finally:
        content.close()


async def collect(stream: PassThrough, into: list[bytes]) -> None:
    """Read a stream; keep the bytes before its failure."""
    async for chunk in stream:
        into.append(chunk)  # noqa: PERF401 - what came before the error is wanted


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Give a bench; it must leave no reader open."""
    bench = Bench()
    yield bench
    await asyncio.gather(*bench.cache.filling.values())
    assert bench.cache.open_readers == 0
    await bench.cache.aclose()


async def refused(bench: Bench, routed: RoutedRepository, digest: Digest) -> RegistryError:
    """Return the error with which a blob is refused."""
    with pytest.raises(RegistryError) as caught:
        await bench.pull.blobs.open_blob(routed, digest, None)
    return caught.value


# ---------------------------------------------------------------- holding


async def test_bytes_of_a_private_repository_do_not_leak_through_the_cache(bench: Bench) -> None:
    """A digest cached from b is a 404 in a, by GET and HEAD, as long as no replica says that a holds it."""
    digest = bench.reader.add_blob("b", SECRET)
    assert await bench.get(B, digest) == SECRET
    assert (await refused(bench, A, digest)).code is ErrorCode.BLOB_UNKNOWN
    with pytest.raises(RegistryError):
        await bench.pull.blobs.head_blob(A, digest)
    assert bench.reader.count("open_blob") == 1


@pytest.fixture
def looked_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the growing list of the look-ups in the cache."""
    asked: list[str] = []

    def watch(name: str) -> None:
        method = getattr(bench.cache, name)

        def watched(*arguments: object) -> object:
            asked.append(name)
            return method(*arguments)

        monkeypatch.setattr(bench.cache, name, watched)

    for name in ("is_filling", "open_committed", "open_checked", "open_or_fill", "fill", "read_small"):
        watch(name)
    return asked


async def test_a_cold_blob_is_looked_up_once_and_its_first_reader_is_kept(bench: Bench, looked_up: list[str]) -> None:
    """The client that begins a fill reads from the reader of the fill; it opens no other."""
    digest = bench.reader.add_blob("a", SECRET * 10_000)
    answer = await bench.pull.blobs.open_blob(A, digest, None)
    assert looked_up == ["is_filling", "open_checked", "fill"]
    assert (answer.result, await read(answer)) == (CacheResult.MISS, SECRET * 10_000)


async def test_a_blob_that_another_repository_brought_is_opened_once(bench: Bench, looked_up: list[str]) -> None:
    """The look-up that finds the blob in the cache opens it; the same reader serves after the repository is asked."""
    digest = bench.reader.add_blob("a", SECRET * 10_000)
    bench.reader.add_blob("b", SECRET * 10_000)
    await bench.get(B, digest)
    looked_up.clear()
    answer = await bench.pull.blobs.open_blob(A, digest, None)
    assert looked_up == ["is_filling", "open_checked"]
    assert (answer.result, await read(answer)) == (CacheResult.HIT, SECRET * 10_000)


async def test_the_reader_of_a_client_that_has_left_is_closed(bench: Bench) -> None:
    """A fill continues without the client that began it, and does not keep its reader open."""
    digest = bench.reader.add_blob("a", SECRET)
    bench.reader.gate = asyncio.Event()
    first = asyncio.get_running_loop().create_task(bench.pull.blobs.open_blob(A, digest, None))
    await bench.reader.was_asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    bench.reader.gate.set()
    await until(lambda: digest in bench.cache.files and not bench.cache.filling)
    await until(lambda: bench.cache.open_readers == 0)


async def test_a_shared_layer_is_asked_for_once_and_not_fetched_again(bench: Bench) -> None:
    """A digest cached for b costs one HEAD in a when a replica says that a holds it too."""
    digest = bench.reader.add_blob("b", SECRET)
    bench.reader.add_blob("a", SECRET)
    await bench.get(B, digest)
    answer = await bench.pull.blobs.open_blob(A, digest, None)
    assert (answer.result, await read(answer)) == (CacheResult.HIT, SECRET)
    assert await bench.get(A, digest) == SECRET
    assert bench.reader.requests == [("open_blob", "b", "0"), ("stat_blob", "a", str(digest))]


async def test_joining_the_fill_of_another_repository_needs_its_own_membership(bench: Bench) -> None:
    """While b's blob is fetched, a HEAD asks about a; after a negative answer the request is refused."""
    big = SECRET * 100
    digest = bench.reader.add_blob("b", big)
    bench.reader.body_gate = asyncio.Event()
    answer = await bench.pull.blobs.open_blob(B, digest, None)
    assert (await refused(bench, A, digest)).code is ErrorCode.BLOB_UNKNOWN
    bench.reader.body_gate.set()
    assert await read(answer) == big


async def test_a_fill_won_by_another_repository_in_between_teaches_nothing(bench: Bench) -> None:
    """A request that joins another's fill, without having seen it begin, asks for its own repository."""
    digest = bench.reader.add_blob("b", SECRET)
    bench.reader.gate = asyncio.Event()
    first = asyncio.get_running_loop().create_task(bench.get(B, digest))
    await bench.reader.was_asked.wait()
    bench.cache.hides_fills = True  # the fill of another worker, noticed too late
    second = asyncio.get_running_loop().create_task(bench.pull.blobs.open_blob(A, digest, None))
    await asyncio.sleep(0)
    bench.reader.gate.set()
    assert await first == SECRET
    with pytest.raises(RegistryError) as caught:
        await second
    assert caught.value.code is ErrorCode.BLOB_UNKNOWN


async def test_another_repository_s_404_is_not_mine(bench: Bench) -> None:
    """A fill for b that ends in b's 404 is started again for a, which holds the blob."""
    digest = bench.reader.add_blob("a", SECRET)
    bench.remember_blob(A, SECRET)
    bench.reader.gate = asyncio.Event()
    of_b = asyncio.get_running_loop().create_task(bench.get(B, digest))
    await bench.reader.was_asked.wait()
    of_a = asyncio.get_running_loop().create_task(bench.get(A, digest))
    await asyncio.sleep(0)
    bench.reader.gate.set()
    assert await of_a == SECRET
    with pytest.raises(RegistryError):
        await of_b


async def test_a_miss_of_membership_counts_as_nothing(bench: Bench) -> None:
    """A refused request counts as no hit: nothing reveals that the bytes are cached."""
    digest = bench.reader.add_blob("b", SECRET)
    await bench.get(B, digest)
    before = bench.observer.events.copy()
    await refused(bench, A, digest)
    assert bench.observer.events == before


async def test_a_known_member_is_served_without_the_upstream(bench: Bench) -> None:
    """A known and committed blob is served with every replica down, also after a restart, and HEAD knows the size."""
    digest = bench.reader.add_blob("a", SECRET)
    await bench.get(A, digest)
    bench.go_down()
    bench.restart()
    answer = await bench.pull.blobs.open_blob(A, digest, None)
    assert (answer.result, await read(answer)) == (CacheResult.HIT, SECRET)
    descriptor, result = await bench.pull.blobs.head_blob(A, digest)
    assert (descriptor.size_bytes, result) == (len(SECRET), CacheResult.HIT)
    assert len(bench.reader.requests) == 1


async def test_not_known_and_all_replicas_down_cannot_be_known(bench: Bench) -> None:
    """While no replica answers, bytes cached for b are neither served to a nor called absent."""
    digest = bench.reader.add_blob("b", SECRET)
    await bench.get(B, digest)
    bench.go_down()
    with pytest.raises(UpstreamUnavailableError):
        await bench.pull.blobs.open_blob(A, digest, None)
    with pytest.raises(UpstreamUnavailableError):
        await bench.pull.blobs.head_blob(A, digest)


@pytest.mark.parametrize("fault", ["down", "credentials"])
async def test_an_old_membership_stands_when_nobody_answers(bench: Bench, fault: str) -> None:
    """An old holding is confirmed by one impatient HEAD, and served when there is no answer."""
    digest = bench.remember_blob(A, SECRET)
    bench.cache.add(SECRET)
    bench.holdings.ages[digest] = OLD
    bench.impatient.is_down, bench.impatient.refuses_credentials = fault == "down", fault == "credentials"
    assert await bench.get(A, digest) == SECRET
    assert bench.reader.requests == [("stat_blob", "a", str(digest))]


async def test_an_old_membership_is_renewed_or_ended_by_what_a_replica_says(bench: Bench) -> None:
    """A 2xx makes it fresh; the 404 of all replicas ends it, although the bytes are cached."""
    digest = bench.remember_blob(A, SECRET)
    bench.cache.add(SECRET)
    bench.reader.add_blob("a", SECRET)
    bench.holdings.ages[digest] = OLD
    assert await bench.get(A, digest) == SECRET
    assert await bench.get(A, digest) == SECRET
    assert bench.reader.count("stat_blob") == 1
    bench.holdings.ages[digest] = OLD
    del bench.reader.blobs["a", digest]
    assert (await refused(bench, A, digest)).code is ErrorCode.BLOB_UNKNOWN
    assert bench.holdings.find(A, ContentKind.BLOB, digest) is None


async def test_a_member_whose_bytes_were_evicted_is_fetched_or_forgotten(bench: Bench) -> None:
    """After eviction the next GET is a clean miss; when the upstream lost the blob too, the holding ends."""
    digest = bench.reader.add_blob("a", SECRET)
    await bench.get(A, digest)
    bench.cache.drop(digest)
    answer = await bench.pull.blobs.open_blob(A, digest, None)
    assert (answer.result, await read(answer)) == (CacheResult.MISS, SECRET)
    bench.cache.drop(digest)
    del bench.reader.blobs["a", digest]
    await refused(bench, A, digest)
    assert bench.holdings.find(A, ContentKind.BLOB, digest) is None


# ---------------------------------------------------------------- herds


async def test_fifty_cold_clients_cost_one_get_and_no_head(bench: Bench) -> None:
    """Of fifty cold clients one is a miss, and the others follow its fetch."""
    big = SECRET * 100
    digest = bench.reader.add_blob("a", big)
    answers = await asyncio.gather(*(bench.pull.blobs.open_blob(A, digest, None) for _ in range(50)))
    assert bench.reader.requests == [("open_blob", "a", "0")]
    assert [answer.result for answer in answers].count(CacheResult.MISS) == 1
    assert {answer.result for answer in answers} == {CacheResult.MISS, CacheResult.LATCH}
    assert set(await asyncio.gather(*map(read, answers))) == {big}


async def test_the_first_of_a_herd_may_leave(bench: Bench) -> None:
    """A cancelled first client harms none of the clients that wait for its fetch."""
    digest = bench.reader.add_blob("a", SECRET)
    bench.reader.gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    clients = [loop.create_task(bench.get(A, digest)) for _ in range(10)]
    await bench.reader.was_asked.wait()
    clients[0].cancel()
    bench.reader.gate.set()
    results = await asyncio.gather(*clients, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert set(results[1:]) == {SECRET}
    assert bench.reader.count("open_blob") == 1


async def test_the_failure_of_the_first_reaches_all(bench: Bench) -> None:
    """Each client of a herd gets the upstream's 404; none hangs, and none gets an empty success."""
    digest = digest_of(SECRET)
    results = await asyncio.gather(*(refused(bench, A, digest) for _ in range(20)))
    assert {error.code for error in results} == {ErrorCode.BLOB_UNKNOWN}
    assert bench.reader.count("open_blob") == 1


async def test_cold_head_costs_one_head_and_no_body(bench: Bench) -> None:
    """Twenty HEADs of an unknown blob are one request to the upstream."""
    digest = bench.reader.add_blob("a", SECRET)
    answers = await asyncio.gather(*(bench.pull.blobs.head_blob(A, digest) for _ in range(20)))
    assert {descriptor.size_bytes for descriptor, _ in answers} == {len(SECRET)}
    assert bench.reader.requests == [("stat_blob", "a", str(digest))]


# ---------------------------------------------------------------- ranges and pass-through


async def test_ranges_are_parsed_against_the_size(bench: Bench) -> None:
    """A range is cut out; one beyond the end is a 416 with the size, and leaves nothing open."""
    digest = bench.reader.add_blob("a", SECRET)
    assert await bench.get(A, digest, "bytes=4-8") == SECRET[4:9]
    assert await bench.get(A, digest, "bytes=-5") == SECRET[-5:]
    with pytest.raises(RegistryError) as caught:
        await bench.get(A, digest, f"bytes={len(SECRET)}-")
    assert caught.value.headers["Content-Range"] == f"bytes */{len(SECRET)}"


async def test_a_range_far_ahead_of_the_fill_goes_upstream_by_itself(bench: Bench) -> None:
    """A range far ahead does not wait for 40 MiB; its bytes are not cached."""
    big = bytes(FAR_RANGE_BYTES + 8 * 1024 * 1024)
    digest = bench.reader.add_blob("a", big)
    bench.reader.body_gate = asyncio.Event()
    start = len(big) - 10
    answer = await bench.pull.blobs.open_blob(A, digest, f"bytes={start}-")
    assert isinstance(answer.content, PassThrough)
    assert bench.reader.requests == [("open_blob", "a", "0"), ("open_blob", "a", str(start))]
    assert await read(answer) == big[start:]
    bench.reader.body_gate.set()


@pytest.mark.parametrize("ignores_offset", [False, True])
async def test_a_full_disk_passes_through_and_survives_a_cut(bench: Bench, ignores_offset: bool) -> None:  # noqa: FBT001 - a table of two cases
    """Content that the cache cannot hold is sent all the same; the next replica continues for one that dies."""
    big = bytes(range(256)) * 4000
    digest = bench.reader.add_blob("a", big)
    bench.cache.is_full = True
    bench.reader.ignores_offset = ignores_offset
    bench.reader.cuts = [300_000]
    answer = await bench.pull.blobs.open_blob(A, digest, None)
    bench.reader.cuts = [500_000]
    assert (answer.result, await read(answer)) == (CacheResult.MISS, big)
    assert await bench.get(A, digest, "bytes=1000-600000") == big[1000:600001]


async def test_pass_through_never_completes_a_wrong_body(bench: Bench) -> None:
    """The last 64 KiB are held back until the digest is verified: a wrong body ends short."""
    big = bytes(range(256)) * 4000
    digest = bench.reader.add_blob("a", big)
    bench.reader.blobs["a", digest] = big[:-1] + b"x"
    bench.cache.is_full = True
    answer = await bench.pull.blobs.open_blob(A, digest, None)
    assert isinstance(answer.content, PassThrough)
    received: list[bytes] = []
    with pytest.raises(FillFailedError):
        await collect(answer.content, received)
    await answer.content.aclose()
    assert sum(map(len, received)) == len(big) - HOLD_BACK_BYTES


async def test_pass_through_gives_up_without_progress(bench: Bench) -> None:
    """An upstream that sends nothing more ends the body; it is not asked again and again."""
    digest = bench.reader.add_blob("a", SECRET * 100)
    bench.cache.is_full = True
    bench.reader.cuts = [0] * 20
    with pytest.raises(FillFailedError):
        await bench.get(A, digest)
    assert bench.reader.count("open_blob") < 8


# ---------------------------------------------------------------- manifests


BODY = b'{"schemaVersion": 2, "spaces":   "kept"}'


async def test_manifest_by_digest_keeps_bytes_and_media_type(bench: Bench) -> None:
    """The upstream and the cache serve the pushed bytes and media type."""
    digest = digest_of(BODY)
    media_type = "application/vnd.example+json"
    bench.reader.manifests["a", digest] = Manifest(Descriptor(media_type, digest, len(BODY)), BODY)
    first = await bench.pull.get_manifest(A, digest)
    second = await bench.pull.get_manifest(A, digest)
    assert (first.manifest, first.result) == (second.manifest, CacheResult.MISS)
    assert (second.manifest.body, second.manifest.descriptor.media_type) == (BODY, media_type)
    assert second.result is CacheResult.HIT
    assert bench.reader.count("fetch_manifest") == 1


async def test_a_manifest_of_a_private_repository_does_not_leak(bench: Bench) -> None:
    """A manifest cached from one repository is a 404 in another, as a blob is."""
    digest = bench.reader.add_manifest("b", BODY)
    await bench.pull.get_manifest(B, digest)
    for ask in (bench.pull.get_manifest, bench.pull.head_manifest):
        with pytest.raises(RegistryError) as caught:
            await ask(A, digest)
        assert caught.value.code is ErrorCode.MANIFEST_UNKNOWN


async def test_large_manifests_are_hits_too(bench: Bench) -> None:
    """A manifest beyond the size for memory is read from disk."""
    body = b" " * (2 * 1024 * 1024)
    digest = bench.reader.add_manifest("a", body)
    await bench.pull.get_manifest(A, digest)
    answer = await bench.pull.get_manifest(A, digest)
    assert (answer.result, answer.manifest.body) == (CacheResult.HIT, body)


async def test_an_old_manifest_membership_stands_or_falls_as_a_blob_s(bench: Bench) -> None:
    """An old holding is served while no replica answers, and ends with the 404 of all."""
    digest = bench.reader.add_manifest("a", BODY)
    await bench.pull.get_manifest(A, digest)
    bench.holdings.ages[digest] = OLD
    bench.go_down()
    answer = await bench.pull.get_manifest(A, digest)
    assert (answer.result, answer.manifest.body) == (CacheResult.HIT, BODY)
    bench.reader.is_down = bench.impatient.is_down = False
    bench.reader.manifests.clear()
    with pytest.raises(RegistryError):
        await bench.pull.get_manifest(A, digest)
    assert bench.holdings.find(A, ContentKind.MANIFEST, digest) is None


async def test_a_tag_is_answered_within_its_ttl_and_asked_for_past_it(bench: Bench) -> None:
    """Within the TTL there is no request; after it one HEAD for all clients; a new digest is fetched once."""
    bench.reader.add_manifest("a", BODY, "latest")
    await bench.pull.get_manifest(A, LATEST)
    assert (await bench.pull.get_manifest(A, LATEST)).result is CacheResult.HIT
    assert (await bench.pull.head_manifest(A, LATEST)).result is CacheResult.HIT
    assert [request[0] for request in bench.reader.requests] == ["resolve_tag", "fetch_manifest"]
    new = bench.reader.add_manifest("a", BODY + b" ", "latest")
    bench.holdings.tag_age_seconds = 11
    answers = await asyncio.gather(*(bench.pull.get_manifest(A, LATEST) for _ in range(20)))
    assert {answer.manifest.descriptor.digest for answer in answers} == {new}
    assert bench.reader.count("resolve_tag") == 2
    assert bench.reader.count("fetch_manifest") == 2


async def test_head_of_a_cold_tag_costs_one_head_and_is_remembered(bench: Bench) -> None:
    """Clients that only ask for the digest cause no GET, which counts against pull limits."""
    digest = bench.reader.add_manifest("a", BODY, "latest")
    heads = [await bench.pull.head_manifest(A, LATEST) for _ in range(2)]
    assert {head.descriptor for head in heads} == {Descriptor(OCI_MANIFEST, digest, len(BODY))}
    assert [head.result for head in heads] == [CacheResult.MISS, CacheResult.HIT]
    assert [request[0] for request in bench.reader.requests] == ["resolve_tag"]
    bench.restart()  # as in another worker
    assert (await bench.pull.head_manifest(A, LATEST)).descriptor == heads[0].descriptor
    assert bench.reader.count("resolve_tag") == 1


async def test_an_announced_digest_is_served_after_the_tag_moved(bench: Bench) -> None:
    """A manifest by the digest from an earlier HEAD is served after the tag moved."""
    digest = bench.reader.add_manifest("a", BODY, "latest")
    await bench.pull.head_manifest(A, LATEST)
    bench.reader.add_manifest("a", BODY + b" ", "latest")
    assert (await bench.pull.get_manifest(A, digest)).manifest.body == BODY


async def test_a_stale_tag_is_served_with_a_warning(bench: Bench) -> None:
    """Past its TTL, without replicas, a tag is served with a warning; one never pulled before is unavailable."""
    bench.reader.add_manifest("a", BODY, "latest")
    await bench.pull.get_manifest(A, LATEST)
    bench.holdings.tag_age_seconds = 42
    bench.go_down()
    answer = await bench.pull.get_manifest(A, LATEST)
    head = await bench.pull.head_manifest(A, LATEST)
    assert answer.manifest.body == BODY
    assert answer.warning is not None
    assert answer.warning.startswith('299 - "')
    assert "42 s" in answer.warning
    assert head.warning == answer.warning
    with pytest.raises(UpstreamUnavailableError):
        await bench.pull.get_manifest(A, Tag("other"))
    bench.cache.drop(answer.manifest.descriptor.digest)
    with pytest.raises(UpstreamUnavailableError):
        await bench.pull.get_manifest(A, LATEST)


async def test_a_deleted_tag_is_forgotten_and_not_served_stale(bench: Bench) -> None:
    """A definite 404 ends a tag; a later outage does not restore it. Refused credentials do not end it."""
    bench.reader.add_manifest("a", BODY, "latest")
    await bench.pull.get_manifest(A, LATEST)
    bench.holdings.tag_age_seconds = 11
    bench.reader.tags.clear()
    bench.impatient.refuses_credentials = True
    with pytest.raises(RegistryError) as caught:
        await bench.pull.get_manifest(A, LATEST)
    assert caught.value.status == 502
    assert bench.holdings.find_tag(A, LATEST) is not None
    bench.impatient.refuses_credentials = False
    with pytest.raises(RegistryError) as caught:
        await bench.pull.get_manifest(A, LATEST)
    assert caught.value.code is ErrorCode.MANIFEST_UNKNOWN
    bench.go_down()
    with pytest.raises(UpstreamUnavailableError):
        await bench.pull.get_manifest(A, LATEST)


@pytest.mark.parametrize("reason", list(StaleReason))
async def test_a_rule_says_despite_which_errors_a_stale_tag_is_served(bench: Bench, reason: StaleReason) -> None:
    """By default a stale tag is served only in an outage; a rule may add 401, 403 or 404, with warning and metric."""
    bench.reader.add_manifest("a", BODY, "latest")
    await bench.pull.get_manifest(A, LATEST)
    bench.holdings.tag_age_seconds = 42
    bench.impatient.is_down = reason is StaleReason.UNAVAILABLE
    bench.impatient.refuses_credentials = reason is StaleReason.REFUSED
    if reason is StaleReason.ABSENT:
        bench.reader.tags.clear()
    bench.rules["main"] = TagRules(10, frozenset({reason}))
    answer = await bench.pull.get_manifest(A, LATEST)
    assert answer.manifest.body == BODY
    assert answer.warning is not None
    assert bench.observer.count(StaleAnswer, reason) == 1
    bench.rules["main"] = TagRules(10, frozenset())
    with pytest.raises((RegistryError, UpstreamUnavailableError)):
        await bench.pull.get_manifest(A, LATEST)
    assert bench.observer.count(StaleAnswer, reason) == 1


async def test_a_tag_that_another_node_moved_is_asked_for_within_its_ttl(bench: Bench) -> None:
    """A record with another revision than the remembered one causes a request; the same revision does not."""
    bench.revision = 7
    bench.restart()
    bench.reader.add_manifest("a", BODY, "latest")
    await bench.pull.get_manifest(A, LATEST)
    await bench.pull.get_manifest(A, LATEST)
    assert bench.reader.count("resolve_tag") == 1
    new = bench.reader.add_manifest("a", BODY + b" ", "latest")
    bench.revision = 8
    assert (await bench.pull.head_manifest(A, LATEST)).descriptor.digest == new
    assert (await bench.pull.get_manifest(A, LATEST)).manifest.descriptor.digest == new
    assert bench.reader.count("resolve_tag") == 2


async def test_a_request_after_a_push_elsewhere_does_not_join_an_older_question(bench: Bench) -> None:
    """A request after a push does not share the answer to an older question, but asks again."""
    bench.revision = 7
    bench.restart()
    bench.reader.add_manifest("a", BODY, "latest")
    bench.reader.gate = asyncio.Event()
    before = asyncio.get_running_loop().create_task(bench.pull.head_manifest(A, LATEST))
    await bench.reader.was_asked.wait()
    bench.revision = 8
    after = asyncio.get_running_loop().create_task(bench.pull.head_manifest(A, LATEST))
    await until(lambda: bench.reader.count("resolve_tag") == 2)
    bench.reader.gate.set()
    await asyncio.gather(before, after)


async def test_without_the_store_a_replica_is_asked_for_every_tag(bench: Bench) -> None:
    """Without the store no node knows of moves by others; without replicas too, the tag is unavailable."""
    bench.revision = 7
    bench.restart()
    bench.reader.add_manifest("a", BODY, "latest")
    await bench.pull.get_manifest(A, LATEST)
    bench.revision = StoreUnavailableError("away")
    new = bench.reader.add_manifest("a", BODY + b" ", "latest")
    for _ in range(2):
        assert (await bench.pull.head_manifest(A, LATEST)).descriptor.digest == new
    assert bench.reader.count("resolve_tag") == 3
    bench.go_down()
    with pytest.raises(UpstreamUnavailableError):
        await bench.pull.head_manifest(A, LATEST)


async def test_a_tag_that_another_node_moved_is_no_answer_when_replicas_are_away(bench: Bench) -> None:
    """In an outage a cached tag is served only while the record says that nobody has moved it since."""
    bench.revision = 7
    bench.restart()
    known = bench.reader.add_manifest("a", BODY, "latest")
    await bench.pull.head_manifest(A, LATEST)
    bench.go_down()
    bench.holdings.tag_age_seconds = 42
    answer = await bench.pull.head_manifest(A, LATEST)
    assert (answer.descriptor.digest, answer.warning is not None) == (known, True)
    for moved in (8, 0):
        bench.revision = moved
        with pytest.raises(UpstreamUnavailableError):
            await bench.pull.head_manifest(A, LATEST)


async def test_a_question_is_asked_again_when_the_record_changes_meanwhile(bench: Bench) -> None:
    """A value from a push in between is not kept under the old revision, which a delete restores."""
    bench.revision = 0
    bench.restart()
    bench.reader.add_manifest("a", BODY, "latest")
    bench.reader.gate = asyncio.Event()
    asking = asyncio.get_running_loop().create_task(bench.pull.head_manifest(A, LATEST))
    await until(lambda: bench.reader.count("resolve_tag") == 1)
    bench.revision = 8
    bench.reader.gate.set()
    await asking
    assert bench.reader.count("resolve_tag") == 2
    bench.revision = 0
    await bench.pull.head_manifest(A, LATEST)
    assert bench.reader.count("resolve_tag") == 3


async def test_content_that_is_deleted_while_it_is_learned_is_not_remembered(bench: Bench) -> None:
    """A manifest or blob given before a delete is not remembered when the question ends after the delete."""
    manifest, blob = bench.reader.add_manifest("a", BODY), bench.reader.add_blob("a", SECRET)
    bench.reader.gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    asking = [
        loop.create_task(bench.pull.get_manifest(A, manifest)),
        loop.create_task(bench.pull.blobs.head_blob(A, blob)),
    ]
    await until(lambda: len(bench.reader.requests) == 2)
    bench.holdings.end(A, ContentKind.MANIFEST, manifest)
    bench.holdings.end(A, ContentKind.BLOB, blob)
    bench.reader.gate.set()
    await asyncio.gather(*asking)
    assert bench.holdings.entries == {}


async def test_a_push_during_the_question_wins_over_its_answer(bench: Bench) -> None:
    """An answer to a question from before the push does not restore the old tag."""
    bench.reader.add_manifest("a", BODY, "latest")
    bench.reader.gate = asyncio.Event()
    asking = asyncio.get_running_loop().create_task(bench.pull.head_manifest(A, LATEST))
    await bench.reader.was_asked.wait()
    pushed = bench.reader.add_manifest("a", BODY + b" pushed")
    bench.holdings.move_tag(A, LATEST, Descriptor(OCI_MANIFEST, pushed, 1), recorded=0)
    bench.reader.gate.set()
    assert (await asking).descriptor.digest == pushed


async def test_a_tag_whose_manifest_was_collected_is_asked_for_again(bench: Bench) -> None:
    """When the tag moved within its TTL and its old manifest is gone, the client gets the new one, not a 404."""
    old = bench.reader.add_manifest("a", BODY, "latest")
    await bench.pull.head_manifest(A, LATEST)
    del bench.reader.manifests["a", old]
    new = bench.reader.add_manifest("a", BODY + b" ", "latest")
    assert (await bench.pull.get_manifest(A, LATEST)).manifest.descriptor.digest == new


async def test_hits_and_misses_are_counted_once_a_request(bench: Bench) -> None:
    """Each served body counts as one hit, miss or latch."""
    digest = bench.reader.add_blob("a", SECRET)
    bench.reader.add_manifest("a", BODY, "latest")
    for _ in range(3):
        await bench.get(A, digest)
        await bench.pull.get_manifest(A, LATEST)
    for kind in ContentKind:
        counted = [event.result for event in bench.observer.found(CacheRequest, kind)]
        assert counted == [CacheResult.MISS, CacheResult.HIT, CacheResult.HIT]
