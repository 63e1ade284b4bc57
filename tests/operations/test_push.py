"""Uploads as clients make them, over replicas in memory with scripted failures."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import StorageKind
from registry_proxy.ports.uploads import UploadBody, Uploader, UploadRef
from registry_proxy.protocol.byterange import ByteRange
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, digest_of
from tests.support.fakes.replicas import ANN, REPOSITORY, ROUTED, Bench, bench, body_of, ref
from tests.support.refusal import refused
from tests.support.waiting import until

LAYER = bytes(range(256)) * 4000
DIGEST = digest_of(LAYER)
DESCRIPTOR = Descriptor(BLOB_MEDIA_TYPE, DIGEST, len(LAYER))


@pytest_asyncio.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Give two replicas and the operations over them."""
    async with bench(tmp_path) as made:
        yield made


def assert_acknowledged(setting: Bench, content: bytes = LAYER, routed: RoutedRepository = ROUTED) -> None:
    """Check that this node has an acknowledged blob cached and knows its holding."""
    digest = digest_of(content)
    known = setting.holdings.find(routed, ContentKind.BLOB, digest)
    assert known is not None
    assert known.descriptor.size_bytes == len(content)
    reader = setting.cache.open_committed(digest)
    assert reader is not None
    reader.close()


async def test_chunked_upload_reaches_all_replicas_and_the_cache(setting: Bench) -> None:
    """POST, one PATCH without length, PUT: both replicas and the cache hold the blob, nothing is pending."""
    descriptor = await setting.under_test.upload(LAYER)
    assert descriptor.digest == DIGEST
    assert setting.a.blobs == setting.b.blobs == {(REPOSITORY, DIGEST): LAYER}
    assert_acknowledged(setting)
    assert await setting.under_test.intents() == {}
    assert setting.spool.pins == set()


async def test_an_upload_of_several_chunks_goes_on_where_it_was(setting: Bench) -> None:
    """Three PATCHes with Content-Range and a last chunk in the PUT make one blob, sent to each replica once."""
    push = setting.under_test.push
    at = await push.start_upload(ROUTED, ANN)
    for first in (0, 1000, 2000):
        piece = LAYER[first : first + 1000]
        chunk = ByteRange(first, first + 999)
        at = await push.append_upload(ref(at), UploadBody(body_of(piece), 1000, chunk))
        assert at.offset == first + 1000
    last = LAYER[3000:5000]
    digest = digest_of(LAYER[:5000])
    await push.commit_upload(ref(at), digest, UploadBody(body_of(last), 2000, ByteRange(3000, 4999)))
    assert setting.a.blobs == setting.b.blobs == {(REPOSITORY, digest): LAYER[:5000]}
    assert setting.a.count("start_upload") == 1
    assert setting.a.count("push_blob") == 0


async def test_chunks_below_the_minimum_of_a_registry_are_taken(setting: Bench) -> None:
    """Registries that refuse small chunks (OCI-Chunk-Min-Length) get the whole blob at the end; the client sees 201."""
    push = setting.under_test.push
    at = await push.start_upload(ROUTED, ANN)
    for replica in (setting.a, setting.b):
        replica.errors["append_upload"] = RegistryError(ErrorCode.SIZE_INVALID, "at least 5 MiB", status=416)
    for first in (0, 1000):
        at = await push.append_upload(ref(at), UploadBody(body_of(LAYER[first : first + 1000]), 1000))
    assert (await push.upload_status(ref(at))).offset == 2000
    await push.commit_upload(ref(at), DIGEST, UploadBody(body_of(LAYER[2000:]), len(LAYER) - 2000))
    assert setting.a.blobs == setting.b.blobs == {(REPOSITORY, DIGEST): LAYER}
    assert_acknowledged(setting)


@pytest.mark.parametrize("content", [b"", b"x", LAYER])
async def test_monolithic_uploads(setting: Bench, content: bytes) -> None:
    """POST and one PUT with the body, and one POST with the digest, both make the blob."""
    push, digest = setting.under_test.push, digest_of(content)
    start = await push.start_upload(ROUTED, ANN)
    body = body_of(content)
    await push.commit_upload(ref(start), digest, UploadBody(body, len(content)))
    assert_acknowledged(setting, content)
    other = RoutedRepository("main", Repository("other"))
    await push.push_blob(other, ANN, digest, UploadBody(body_of(content), len(content)))
    assert_acknowledged(setting, content, other)
    assert setting.b.blobs == {(REPOSITORY, digest): content, ("other", digest): content}


async def test_a_started_upload_touches_nothing(setting: Bench) -> None:
    """A session cancelled before its first byte leaves no trace at the replicas or on the disk."""
    start = await setting.under_test.push.start_upload(ROUTED, ANN)
    await setting.under_test.push.cancel_upload(ref(start))
    assert setting.a.requests == []
    assert setting.spool.sessions == []
    for attempt in (
        setting.under_test.push.append_upload(ref(start), UploadBody(body_of(LAYER))),
        setting.under_test.push.upload_status(ref(start)),
        setting.under_test.push.cancel_upload(ref(start)),
    ):
        assert (await refused(attempt)).code is ErrorCode.BLOB_UPLOAD_UNKNOWN


async def test_a_repeated_commit_is_acknowledged_only_where_the_blob_is_known(setting: Bench) -> None:
    """A repeated commit returns the blob without a request to a replica, until the repository forgets the blob."""
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)
    at = await push.append_upload(ref(start), UploadBody(body_of(LAYER)))

    def commit(digest: Digest) -> Coroutine[Any, Any, Descriptor]:
        return push.commit_upload(ref(at), digest, UploadBody(body_of(b""), 0))

    first = await commit(DIGEST)
    requests = len(setting.a.requests)
    assert await commit(DIGEST) == first
    assert len(setting.a.requests) == requests
    assert (await refused(commit(digest_of(b"another")))).code is ErrorCode.BLOB_UPLOAD_UNKNOWN
    setting.holdings.forget(ROUTED, ContentKind.BLOB, DIGEST)
    assert (await refused(commit(DIGEST))).code is ErrorCode.BLOB_UPLOAD_UNKNOWN


async def test_a_session_commits_one_blob(setting: Bench) -> None:
    """A session's first Location takes no second blob; a repeated commit, body and all, is acknowledged again."""
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)

    def commit(content: bytes) -> Coroutine[Any, Any, Descriptor]:
        return push.commit_upload(ref(start), digest_of(content), UploadBody(body_of(content)))

    assert [await commit(LAYER) for _ in range(2)] == [DESCRIPTOR] * 2
    assert (await refused(commit(b"another"))).code is ErrorCode.BLOB_UPLOAD_UNKNOWN
    assert {digest for _, digest in setting.a.blobs} == {DIGEST}


async def test_sha512_is_compared_from_the_file(setting: Bench) -> None:
    """A blob may be named by sha512; a wrong one is refused."""
    push = setting.under_test.push
    digest = Digest("sha512", "0" * 128)
    assert (
        await refused(push.push_blob(ROUTED, ANN, digest, UploadBody(body_of(LAYER))))
    ).code is ErrorCode.DIGEST_INVALID
    hasher = digest.hasher()
    hasher.update(LAYER)
    digest = Digest("sha512", hasher.hexdigest())
    await push.push_blob(ROUTED, ANN, digest, UploadBody(body_of(LAYER)))
    assert setting.a.blobs == {(REPOSITORY, digest): LAYER}


async def test_a_wrong_digest_commits_nothing(setting: Bench) -> None:
    """The digest is compared before any replica is asked to commit; the upload is over everywhere."""
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)
    at = await push.append_upload(ref(start), UploadBody(body_of(LAYER)))
    error = await refused(push.commit_upload(ref(at), digest_of(b"other"), UploadBody(body_of(), 0)))
    assert (error.code, error.status) == (ErrorCode.DIGEST_INVALID, 400)
    assert setting.a.count("commit_upload") == setting.a.count("push_blob") == 0
    assert setting.a.uploads == setting.b.uploads == {}
    assert setting.spool.sessions == []
    assert setting.holdings.entries == {}


async def test_chunks_out_of_order_are_refused_with_the_true_range(setting: Bench) -> None:
    """A chunk at another offset is a 416 whose Range gives the right one, and the upload continues there."""
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)
    at = await push.append_upload(ref(start), UploadBody(body_of(b"abc"), 3, ByteRange(0, 2)))
    error = await refused(push.append_upload(ref(at), UploadBody(body_of(b"x"), 1, ByteRange(5, 5))))
    assert (error.status, error.headers["Range"]) == (416, "0-2")
    # The old Location again, as from a client that missed an answer: never appended twice.
    error = await refused(push.append_upload(ref(start), UploadBody(body_of(b"abc"), 3)))
    assert (error.status, error.headers["Range"]) == (416, "0-2")
    status = await push.upload_status(ref(start))
    assert status.offset == 3
    await push.commit_upload(
        ref(status),
        digest_of(b"abcd"),
        UploadBody(body_of(b"d"), 1, ByteRange(3, 3)),
    )
    assert setting.a.blobs == setting.b.blobs == {(REPOSITORY, digest_of(b"abcd")): b"abcd"}


@pytest.mark.parametrize(("size_bytes", "chunk"), [(5, None), (2, None), (None, ByteRange(0, 9)), (3, ByteRange(0, 3))])
async def test_a_body_of_another_size_than_stated(
    setting: Bench, size_bytes: int | None, chunk: ByteRange | None
) -> None:
    """A body that is too short or too long, or contradictory headers, give SIZE_INVALID, and nothing is left."""
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)
    error = await refused(push.append_upload(ref(start), UploadBody(body_of(b"abc"), size_bytes, chunk)))
    assert error.code is ErrorCode.SIZE_INVALID
    assert setting.spool.sessions == []


async def test_a_session_is_worth_nothing_to_others(setting: Bench) -> None:
    """A session of another subject, repository or id, or a changed state, is 404, as if it did not exist."""
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)
    sid, state = start.session_id, start.state
    other, eve = RoutedRepository("main", Repository("team/other")), Uploader("user:eve", 0)
    changed = state[:-3] + ("AAA" if state[-3:] != "AAA" else "BBB")
    for attempt in (
        push.append_upload(UploadRef(ROUTED, eve, sid, state), UploadBody(body_of(b"x"))),
        push.append_upload(UploadRef(other, ANN, sid, state), UploadBody(body_of(b"x"))),
        push.append_upload(UploadRef(ROUTED, ANN, "another", state), UploadBody(body_of(b"x"))),
        push.append_upload(UploadRef(ROUTED, ANN, sid, changed), UploadBody(body_of(b"x"))),
        push.upload_status(UploadRef(ROUTED, eve, sid, state)),
        push.cancel_upload(UploadRef(ROUTED, eve, sid, state)),
        push.commit_upload(UploadRef(ROUTED, eve, sid, state), DIGEST, UploadBody(body_of(LAYER))),
    ):
        error = await refused(attempt)
        assert (error.code, error.status) == (ErrorCode.BLOB_UPLOAD_UNKNOWN, 404)
    assert setting.a.requests == []


async def test_an_upload_whose_file_is_gone_is_unknown(setting: Bench) -> None:
    """An upload whose bytes this node does not have is a 404 at the commit, and the client starts again."""
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)
    at = await push.append_upload(ref(start), UploadBody(body_of(LAYER)))
    file = setting.spool.reopen(at.session_id, ANN)
    assert file is not None
    file.discard()
    for attempt in (
        push.commit_upload(ref(at), DIGEST, UploadBody(body_of(), 0)),
        push.upload_status(ref(at)),
    ):
        assert (await refused(attempt)).code is ErrorCode.BLOB_UPLOAD_UNKNOWN
    assert setting.a.blobs == {}


async def test_a_client_that_leaves_ends_the_upload(setting: Bench) -> None:
    """A body that breaks leaves no file, no open request and no session at the replicas."""
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)

    async def broken_body() -> AsyncIterator[bytes]:
        yield LAYER
        await setting.a.wait_received(len(LAYER))
        await setting.b.wait_received(len(LAYER))
        raise ConnectionResetError("the client left")

    with pytest.raises(ConnectionResetError):
        await push.append_upload(ref(start), UploadBody(broken_body()))
    assert setting.a.uploads == setting.b.uploads == {}
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("upload to")]
    assert setting.spool.sessions == []
    assert setting.a.blobs == {}
    assert setting.replicas.down == set()


async def test_a_cancelled_request_ends_the_upload(setting: Bench) -> None:
    """A request cancelled while senders wait for a replica leaves no file, and its senders end."""
    push = setting.under_test.push
    setting.a.gates["append_upload"] = setting.b.gates["append_upload"] = asyncio.Event()
    start = await push.start_upload(ROUTED, ANN)
    async with asyncio.TaskGroup() as group:
        request = group.create_task(push.append_upload(ref(start), UploadBody(body_of(LAYER))))
        await until(lambda: setting.a.count("append_upload") + setting.b.count("append_upload") == 2)
        request.cancel()
    assert setting.spool.sessions == []


# ---------------------------------------------------------------- replicas that fail


async def test_a_replica_dies_in_mid_patch_unnoticed(setting: Bench) -> None:
    """The client does not notice; the missing writes are on record, and our copy of the blob is pinned."""
    setting.b.cut_after = 1000
    await setting.under_test.upload(LAYER)
    assert setting.a.blobs == {(REPOSITORY, DIGEST): LAYER}
    assert await setting.under_test.intents() == {f"{ROUTED}|blob|{DIGEST}": ["b"]}
    assert setting.spool.pins == {DIGEST}
    assert_acknowledged(setting)
    marks = await setting.under_test.journal.current.marks()
    assert marks.misses_any("b", ROUTED)
    assert not marks.misses_any("a", ROUTED)


async def test_a_replica_that_lost_the_session_gets_the_whole_blob(setting: Bench) -> None:
    """A replica that lost the session between PATCH and PUT gets the blob in a new session, never a second PATCH."""
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)
    at = await push.append_upload(ref(start), UploadBody(body_of(LAYER)))
    setting.b.uploads.clear()
    await push.commit_upload(ref(at), DIGEST, UploadBody(body_of(), 0))
    assert setting.a.blobs == setting.b.blobs == {(REPOSITORY, DIGEST): LAYER}
    assert setting.b.count("append_upload") == setting.b.count("push_blob") == 1
    assert await setting.under_test.intents() == {}


async def test_a_later_push_clears_the_mark(setting: Bench) -> None:
    """The same blob pushed again when the replica is back closes its intent and unpins our copy."""
    setting.replicas.down.add("b")
    await setting.under_test.upload(LAYER)
    assert setting.spool.pins == {DIGEST}
    setting.replicas.down.clear()
    await setting.under_test.upload(LAYER)
    assert setting.b.blobs == {(REPOSITORY, DIGEST): LAYER}
    assert await setting.under_test.intents() == {}
    assert setting.spool.pins == set()


async def test_a_copy_stays_pinned_while_another_repository_misses_it(setting: Bench) -> None:
    """One pin serves all repositories of a digest: a closed intent of one does not end it for the other."""
    other = RoutedRepository("main", Repository("other"))
    setting.replicas.down.add("b")
    await setting.under_test.upload(LAYER)
    await setting.under_test.upload(LAYER, routed=other)
    setting.replicas.down.clear()
    await setting.under_test.upload(LAYER)
    assert setting.spool.pins == {DIGEST}
    assert await setting.under_test.intents() == {f"{other}|blob|{DIGEST}": ["b"]}


async def test_no_quorum_is_said_before_anything(setting: Bench) -> None:
    """With both replicas needed and one down the POST is a 503 with Retry-After; no replica gets a request."""
    setting.replicas.write_quorum = 2
    setting.replicas.down.add("b")
    push = setting.under_test.push
    for attempt in (
        push.start_upload(ROUTED, ANN),
        push.push_blob(ROUTED, ANN, DIGEST, UploadBody(body_of(LAYER))),
        push.mount_blob(ROUTED, DIGEST, ROUTED),
    ):
        error = await refused(attempt)
        assert (error.status, error.headers["Retry-After"]) == (503, "5")
    assert setting.a.requests == []


async def test_quorum_lost_in_mid_upload_acknowledges_nothing(setting: Bench) -> None:
    """The second of two needed replicas dies before the commit: 503, and the cache has no such blob."""
    setting.replicas.write_quorum = 2
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)
    at = await push.append_upload(ref(start), UploadBody(body_of(LAYER)))
    setting.b.is_down = True
    error = await refused(push.commit_upload(ref(at), DIGEST, UploadBody(body_of(), 0)))
    assert error.status == 503
    assert setting.holdings.entries == {}
    assert setting.spool.sessions == []


async def test_a_read_only_upstream_takes_nothing(setting: Bench) -> None:
    """403 DENIED, which no token can change."""
    setting.replicas.read_only = True
    error = await refused(setting.under_test.push.start_upload(ROUTED, ANN))
    assert (error.code, error.status) == (ErrorCode.DENIED, 403)


async def test_shared_storage_is_written_through_one_replica(setting: Bench) -> None:
    """Over shared storage one replica gets the bytes; when it dies the other gets them from the spool."""
    setting.replicas.storage = StorageKind.SHARED
    await setting.under_test.upload(LAYER)
    assert len(setting.a.blobs) + len(setting.b.blobs) == 1
    setting.a.cut_after = setting.b.cut_after = len(LAYER) - 1
    second = LAYER + b"x"
    push = setting.under_test.push
    start = await push.start_upload(ROUTED, ANN)

    async def body() -> AsyncIterator[bytes]:
        yield second[:1000]
        first = next(replica for replica in (setting.a, setting.b) if replica.uploads or replica.blobs)
        await asyncio.sleep(0)
        (setting.b if first is setting.a else setting.a).cut_after = None
        yield second[1000:]

    at = await push.append_upload(ref(start), UploadBody(body()))
    await push.commit_upload(ref(at), digest_of(second), UploadBody(body_of(), 0))
    assert second in [*setting.a.blobs.values(), *setting.b.blobs.values()]
    assert await setting.under_test.intents() == {}


@pytest.mark.parametrize("full_at", ["start", "middle", "commit"])
async def test_a_full_disk_costs_the_cache_entry_only(setting: Bench, full_at: str) -> None:
    """A full disk at the start, in the middle or at the end: 201 at all replicas, and nothing left behind."""
    push = setting.under_test.push
    setting.spool.is_full = full_at == "start"
    at = await push.start_upload(ROUTED, ANN)
    for piece in (LAYER[:1000], LAYER[1000:]):
        at = await push.append_upload(ref(at), UploadBody(body_of(piece)))
        setting.spool.is_full |= full_at == "middle"
    setting.spool.is_full = True
    commit = push.commit_upload(ref(at), DIGEST, UploadBody(body_of(), 0))
    assert await commit == DESCRIPTOR
    for replica in (setting.a, setting.b):
        assert replica.blobs == {(REPOSITORY, DIGEST): LAYER}
    assert setting.cache.open_committed(DIGEST) is None
    assert setting.spool.sessions == []


async def test_a_wrong_digest_is_refused_without_a_copy(setting: Bench) -> None:
    """The hash of bytes that went past the disk is known: a wrong digest is committed nowhere."""
    setting.spool.is_full = True
    wrong = digest_of(b"another")
    push = setting.under_test.push.push_blob(ROUTED, ANN, wrong, UploadBody(body_of(LAYER)))
    assert (await refused(push)).code is ErrorCode.DIGEST_INVALID
    assert not setting.a.blobs
    assert not setting.a.uploads


async def test_an_abandoned_upload_is_cancelled_at_the_replicas(setting: Bench) -> None:
    """An abandoned session ends at the replicas, too; committed and cancelled ones are left alone."""
    push = setting.under_test.push
    await setting.under_test.upload(b"committed")
    at = [await push.start_upload(ROUTED, ANN) for _ in range(2)]
    for one in at:
        await push.append_upload(ref(one), UploadBody(body_of(LAYER)))
    requests = len(setting.a.requests)
    await setting.under_test.uploads.cancel_abandoned()
    assert [method for method, *_ in setting.a.requests[requests:]] == ["cancel_upload"] * 2
    assert not setting.a.uploads
    assert not setting.b.uploads
    await setting.under_test.uploads.cancel_abandoned()
    assert len(setting.a.requests) == requests + 2


async def test_a_disk_that_fills_at_the_commit_matters_only_where_our_copy_does(setting: Bench) -> None:
    """With the blob at all replicas it is 201 without a cache entry; with one missing it 503: no second copy exists."""
    push = setting.under_test.push
    for down, status in ((set[str](), None), ({"b"}, 503)):
        setting.replicas.down = down
        start = await push.start_upload(ROUTED, ANN)
        at = await push.append_upload(ref(start), UploadBody(body_of(LAYER)))
        setting.spool.is_full = True
        commit = push.commit_upload(ref(at), DIGEST, UploadBody(body_of(), 0))
        if status is None:
            await commit
        else:
            assert (await refused(commit)).status == status
        setting.spool.is_full = False
        assert setting.cache.open_committed(DIGEST) is None
        assert setting.spool.sessions == []


async def test_a_commit_goes_on_when_its_client_leaves(setting: Bench) -> None:
    """When the client leaves while a replica commits, the blob is still committed everywhere and recorded."""
    push = setting.under_test.push
    setting.b.gates["commit_upload"] = asyncio.Event()
    start = await push.start_upload(ROUTED, ANN)
    at = await push.append_upload(ref(start), UploadBody(body_of(LAYER)))
    async with asyncio.TaskGroup() as group:
        commit = group.create_task(push.commit_upload(ref(at), DIGEST, UploadBody(body_of(), 0)))
        await until(lambda: setting.b.count("commit_upload") == 1)
        commit.cancel()
    setting.b.gates["commit_upload"].set()
    await until(lambda: setting.holdings.find(ROUTED, ContentKind.BLOB, DIGEST) is not None)
    assert setting.a.blobs == setting.b.blobs == {(REPOSITORY, DIGEST): LAYER}


# ---------------------------------------------------------------- mounts

SOURCE = RoutedRepository("main", Repository("base"))


async def test_a_mount_is_made_at_every_replica(setting: Bench) -> None:
    """With the source at both replicas the blob is mounted at both, and known here with its size."""
    setting.a.add_blob("base", LAYER)
    setting.b.add_blob("base", LAYER)
    descriptor = await setting.under_test.push.mount_blob(ROUTED, DIGEST, SOURCE)
    assert descriptor is not None
    assert descriptor.size_bytes == len(LAYER)
    assert (REPOSITORY, DIGEST) in setting.a.blobs
    assert (REPOSITORY, DIGEST) in setting.b.blobs
    assert setting.holdings.find(ROUTED, ContentKind.BLOB, DIGEST) is not None


async def test_a_mount_heals_a_replica_that_misses_the_source(setting: Bench) -> None:
    """A replica that answers 202 gets the bytes from the cache, as the other one confirmed the source."""
    setting.a.add_blob("base", LAYER)
    setting.cache.add(LAYER)
    assert await setting.under_test.push.mount_blob(ROUTED, DIGEST, SOURCE) is not None
    assert setting.b.blobs == {(REPOSITORY, DIGEST): LAYER}
    assert await setting.under_test.intents() == {}


async def test_a_mount_heals_a_replica_also_without_the_bytes(setting: Bench) -> None:
    """A blob that is not cached is fetched from the replica that mounted it, and sent to the other one."""
    setting.a.add_blob("base", LAYER)
    assert await setting.under_test.push.mount_blob(ROUTED, DIGEST, SOURCE) is not None
    assert setting.b.blobs == {(REPOSITORY, DIGEST): LAYER}
    assert await setting.under_test.intents() == {}


async def test_a_mount_that_a_replica_misses_is_kept_here(setting: Bench) -> None:
    """With a replica down, the blob is on record, fetched into the cache and pinned, as after any push."""
    setting.a.add_blob("base", LAYER)
    setting.replicas.down.add("b")
    assert await setting.under_test.push.mount_blob(ROUTED, DIGEST, SOURCE) is not None
    assert await setting.under_test.intents() == {f"{ROUTED}|blob|{DIGEST}": ["b"]}
    assert setting.spool.pins == {DIGEST}
    assert DIGEST in setting.cache.files


async def test_a_mount_that_cannot_be_kept_is_an_upload(setting: Bench) -> None:
    """With a replica down and no room in the cache the client must upload the blob, and nothing is recorded."""
    setting.a.add_blob("base", LAYER)
    setting.replicas.down.add("b")
    setting.cache.is_full = True
    assert await setting.under_test.push.mount_blob(ROUTED, DIGEST, SOURCE) is None
    assert await setting.under_test.intents() == {}


async def test_a_cached_blob_is_not_mounted_from_where_it_is_not(setting: Bench) -> None:
    """Cached bytes are not mounted when no replica and no holding confirms the source."""
    setting.cache.add(LAYER)
    private = RoutedRepository("main", Repository("private"))
    setting.holdings.remember(private, ContentKind.BLOB, DESCRIPTOR)
    assert await setting.under_test.push.mount_blob(ROUTED, DIGEST, SOURCE) is None
    assert setting.a.blobs == setting.b.blobs == {}
    assert setting.holdings.find(ROUTED, ContentKind.BLOB, DIGEST) is None


async def test_a_known_source_is_mounted_from_the_cache(setting: Bench) -> None:
    """Replicas that never mount (always 202) get the bytes from the cache when the source is known to hold them."""
    setting.cache.add(LAYER)
    setting.holdings.remember(SOURCE, ContentKind.BLOB, DESCRIPTOR)
    assert await setting.under_test.push.mount_blob(ROUTED, DIGEST, SOURCE) is not None
    assert setting.a.blobs == setting.b.blobs == {(REPOSITORY, DIGEST): LAYER}


async def test_no_mount_between_upstreams_or_without_quorum(setting: Bench) -> None:
    """With another upstream, or too few replicas with the source, the result is None: an ordinary upload."""
    setting.a.add_blob("base", LAYER)
    elsewhere = RoutedRepository("hub", Repository("base"))
    assert await setting.under_test.push.mount_blob(ROUTED, DIGEST, elsewhere) is None
    setting.replicas.write_quorum = 2
    assert await setting.under_test.push.mount_blob(ROUTED, DIGEST, SOURCE) is None


async def test_a_replica_that_cannot_be_reached_is_reported_down(setting: Bench) -> None:
    """A failed sender reports to health, so that the commit does not wait for the same replica again."""
    setting.b.errors["start_upload"] = UpstreamUnavailableError("refused")
    await setting.under_test.upload(LAYER)
    assert setting.replicas.down == {"b"}
    assert setting.b.count("push_blob") == 0
