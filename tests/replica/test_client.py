"""One replica over HTTP: the requests, the checks of its answers, and the errors."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable

import pytest

from registry_proxy.ports.metrics import UpstreamRequest
from registry_proxy.protocol.descriptor import (
    BLOB_MEDIA_TYPE,
    MANIFEST_MAX_BYTES,
    MANIFEST_MEDIA_TYPES,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of
from registry_proxy.replica.client import HttpReplicaClient
from registry_proxy.replica.connections import Timeouts
from registry_proxy.replica.failure import AccessRefusedError, BadUpstreamError, ReplicaFailedError
from registry_proxy.replica.placeholder import placeholder_of
from registry_proxy.tasks import request_id, spawn
from tests.conftest import StartRegistry
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import HASTY, PATIENT, REPOSITORY, open_client, read_all

CONTENT = bytes(range(256)) * 4096  # 1 MiB
TAG = Tag("1")
PIECE_BYTES = 100_000


def manifest_of(*blobs: bytes) -> Manifest:
    """Return an image manifest with the given blobs as config and layers."""
    config, *layers = [
        {"mediaType": BLOB_MEDIA_TYPE, "digest": str(digest_of(blob)), "size": len(blob)} for blob in blobs
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    body = json.dumps(document).encode()
    return Manifest(Descriptor(OCI_MANIFEST, digest_of(body), len(body)), body)


def in_pieces(content: bytes) -> Callable[[], AsyncIterator[bytes]]:
    """Return a function that gives the content as a body, piece by piece."""

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(content), PIECE_BYTES):
            yield content[start : start + PIECE_BYTES]

    return body


async def push(client: HttpReplicaClient, repository: Repository, tag: str, *blobs: bytes) -> Manifest:
    """Push an image of the given blobs."""
    for blob in blobs:
        await client.push_blob(repository, Descriptor(BLOB_MEDIA_TYPE, digest_of(blob), len(blob)), in_pieces(blob))
    manifest = manifest_of(*blobs)
    await client.put_manifest(repository, Tag(tag), manifest)
    return manifest


# ---------------------------------------------------------------- a real registry


async def test_a_real_registry_takes_and_gives_everything(start_registry: StartRegistry) -> None:
    """Push in one piece and by chunks, mount, cancel, stat, read from an offset, resolve, fetch and delete."""
    registry = start_registry()
    async with open_client(registry.url) as client:
        manifest = await push(client, REPOSITORY, "1", b"config", CONTENT)
        digest = digest_of(CONTENT)
        assert await client.resolve_tag(REPOSITORY, TAG) == manifest.descriptor
        assert await client.fetch_manifest(REPOSITORY, manifest.descriptor.digest) == manifest
        assert await client.stat_blob(REPOSITORY, digest) == Descriptor(BLOB_MEDIA_TYPE, digest, len(CONTENT))
        for offset in (0, 1, len(CONTENT) - 1):
            async with client.open_blob(REPOSITORY, digest, offset) as stream:
                assert (stream.offset, stream.size_bytes) == (offset, len(CONTENT))
                assert await read_all(stream) == CONTENT[offset:]
        other = Repository("team/other")
        assert await client.mount_blob(other, digest, REPOSITORY)
        assert not await client.mount_blob(other, digest_of(b"absent"), REPOSITORY)
        sha512 = Digest("sha512", hashlib.sha512(CONTENT).hexdigest())
        assert not await client.mount_blob(other, sha512, REPOSITORY)  # that digest finds nothing
        location = await client.start_upload(other)
        location = await client.append_upload(location, in_pieces(b"one ")(), 4)
        location = await client.append_upload(location, in_pieces(b"two")(), None)
        await client.commit_upload(location, digest_of(b"one two"))
        assert (await client.stat_blob(other, digest_of(b"one two"))).size_bytes == 7
        await client.cancel_upload(await client.start_upload(other))
        assert await client.list_repositories() == [REPOSITORY, other]
        for _ in range(2):
            await client.delete_manifest(REPOSITORY, manifest.descriptor.digest)
            await client.delete_blob(REPOSITORY, digest)
        await client.probe()


async def test_an_object_absent_from_a_real_registry_has_its_code(start_registry: StartRegistry) -> None:
    """HEAD and GET of an absent object raise the spec's 404 codes, with a detail."""
    registry = start_registry()
    absent = digest_of(b"absent")
    async with open_client(registry.url) as client:
        with pytest.raises(RegistryError) as tag:
            await client.resolve_tag(REPOSITORY, TAG)
        with pytest.raises(RegistryError) as manifest:
            await client.fetch_manifest(REPOSITORY, absent)
        with pytest.raises(RegistryError) as stat:
            await client.stat_blob(REPOSITORY, absent)
        with pytest.raises(RegistryError) as blob:
            async with client.open_blob(REPOSITORY, absent):
                raise AssertionError("opened")
        with pytest.raises(RegistryError) as tags:
            await client.list_tags(REPOSITORY)
    found = [(error.value.code, error.value.status) for error in (tag, manifest, stat, blob, tags)]
    assert found == [
        (ErrorCode.MANIFEST_UNKNOWN, 404),
        (ErrorCode.MANIFEST_UNKNOWN, 404),
        (ErrorCode.BLOB_UNKNOWN, 404),
        (ErrorCode.BLOB_UNKNOWN, 404),
        (ErrorCode.NAME_UNKNOWN, 404),
    ]
    assert all(error.value.detail for error in (tag, manifest, stat, blob, tags))


async def test_a_refused_manifest_keeps_code_and_missing_digests(start_registry: StartRegistry) -> None:
    """The 400 of a real registry names the missing blobs: the error's detail holds their digests."""
    registry = start_registry()
    async with open_client(registry.url) as client:
        for blobs in ((b"c",), (b"c", b"layer one", b"layer two")):
            with pytest.raises(RegistryError) as refused:
                await client.put_manifest(REPOSITORY, TAG, manifest_of(*blobs))
            assert (refused.value.code, refused.value.status) == (ErrorCode.MANIFEST_BLOB_UNKNOWN, 400)
            detail = json.dumps(refused.value.detail)
            assert all(str(digest_of(blob)) in detail for blob in blobs)


async def test_a_foreign_layer_is_refused_with_400_not_500(start_registry: StartRegistry) -> None:
    """Distribution 2.8.2 answers 500 with manifest codes inside: a fault of the manifest, not of the replica."""
    registry = start_registry()
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    async with open_client(registry.url) as client:
        await push(client, REPOSITORY, "1", b"config")
        document = json.loads(manifest_of(b"config", b"windows").body)
        document["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
        document["layers"][0] |= {"mediaType": foreign, "urls": ["https://example.com/layer"]}
        body = json.dumps(document).encode()
        with pytest.raises(RegistryError) as refused:
            await client.put_manifest(
                REPOSITORY, TAG, Manifest(Descriptor(document["mediaType"], digest_of(body), len(body)), body)
            )
    assert refused.value.status == 400


async def test_a_registry_that_does_not_delete_says_unsupported(start_registry: StartRegistry) -> None:
    """Without delete.enabled a delete raises UNSUPPORTED (405)."""
    registry = start_registry(delete_enabled=False)
    async with open_client(registry.url) as client:
        manifest = await push(client, REPOSITORY, "1", b"config")
        for delete in (
            client.delete_manifest(REPOSITORY, manifest.descriptor.digest),
            client.delete_blob(REPOSITORY, digest_of(b"config")),
        ):
            with pytest.raises(RegistryError) as refused:
                await delete
            assert refused.value.code is ErrorCode.UNSUPPORTED


async def test_a_real_registry_deletes_a_tag_alone(start_registry: StartRegistry) -> None:
    """The tag is removed, the manifest and its other tag stay, nothing else is left; a second delete is no change."""
    registry = start_registry()
    async with open_client(registry.url) as client:
        manifest = await push(client, REPOSITORY, "1", b"config")
        await client.put_manifest(REPOSITORY, Tag("2"), manifest)
        for _ in range(2):
            await client.delete_tag(REPOSITORY, TAG)
            assert await client.list_tags(REPOSITORY) == ["2"]
        assert await client.resolve_tag(REPOSITORY, Tag("2")) == manifest.descriptor
        with pytest.raises(RegistryError):
            await client.fetch_manifest(REPOSITORY, placeholder_of(REPOSITORY, TAG).descriptor.digest)


async def test_a_real_registry_that_does_not_delete_keeps_its_tag(start_registry: StartRegistry) -> None:
    """Without delete.enabled the delete of a tag raises UNSUPPORTED, before anything was pushed for it."""
    registry = start_registry(delete_enabled=False)
    async with open_client(registry.url) as client:
        manifest = await push(client, REPOSITORY, "1", b"config")
        with pytest.raises(RegistryError) as refused:
            await client.delete_tag(REPOSITORY, TAG)
        assert refused.value.code is ErrorCode.UNSUPPORTED
        assert await client.resolve_tag(REPOSITORY, TAG) == manifest.descriptor
    assert registry.log_text().count('"PUT /v2/team/app/manifests/') == 1


async def test_a_registry_that_deletes_tags_is_asked_to() -> None:
    """Distribution 3, zot and olareg take DELETE of a tag: nothing is pushed for it."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_manifest(REPOSITORY, manifest_of(b"config").body, "1", "2")
        await client.delete_tag(REPOSITORY, TAG)
        assert registry.of(REPOSITORY).tags == {"2": digest}
        assert registry.count("PUT") == 0


TAG_DELETE = Fault("/manifests/1$", "DELETE", status=400)
"""distribution 2.8 takes the tag for an invalid digest."""


async def test_a_tag_on_its_way_out_is_absent() -> None:
    """Between the two steps of a tag's delete, and after a death there, the tag is neither old nor new."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.add_manifest(REPOSITORY, manifest_of(b"config").body, "1", "2")
        registry.inject(TAG_DELETE)
        placeholder = str(placeholder_of(REPOSITORY, TAG).descriptor.digest)
        registry.inject(Fault(placeholder, "DELETE", stall=True))
        registry.inject(Fault(placeholder, "DELETE", times=1, status=404))
        task = spawn(client.delete_tag(REPOSITORY, TAG), "delete of a tag")
        await registry.wait_for("DELETE", placeholder, count=2)
        for omitted in ((), ("Docker-Content-Digest",)):  # asked by HEAD, and by GET where HEAD is not enough
            registry.inject(Fault("/manifests/1$", "HEAD", omit=omitted))
            with pytest.raises(RegistryError) as refused:
                await client.resolve_tag(REPOSITORY, TAG)
            assert (refused.value.code, refused.value.status) == (ErrorCode.MANIFEST_UNKNOWN, 404)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        registry.faults = [TAG_DELETE]
        await client.delete_tag(REPOSITORY, TAG)  # by the next process after a death
        assert list(registry.of(REPOSITORY).tags) == ["2"]


async def test_a_tag_whose_delete_is_refused_midway_is_what_it_was() -> None:
    """A registry that accepts the placeholder and then refuses to delete it gets the manifest back under the tag."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_manifest(REPOSITORY, manifest_of(b"config").body, "1")
        registry.inject(TAG_DELETE)
        registry.inject(Fault("/manifests/sha256:", "DELETE", status=405))
        registry.inject(Fault("/manifests/sha256:", "DELETE", times=1, status=404))
        with pytest.raises(RegistryError) as refused:
            await client.delete_tag(REPOSITORY, TAG)
        assert refused.value.code is ErrorCode.UNSUPPORTED
        assert registry.of(REPOSITORY).tags == {"1": digest}


async def test_an_upload_that_is_gone_is_unknown(start_registry: StartRegistry) -> None:
    """A session that the registry forgot, and an old location of one, raise a 404."""
    registry = start_registry()
    async with open_client(registry.url) as client:
        location = await client.start_upload(REPOSITORY)
        following = await client.append_upload(location, in_pieces(b"xyz")(), 3)
        assert [await client.holds_upload(following, size_bytes) for size_bytes in (2, 3, 4)] == [False, True, False]
        with pytest.raises(RegistryError) as old:
            await client.append_upload(location, in_pieces(b"y")(), 1)
        cancelled = await client.start_upload(REPOSITORY)
        await client.cancel_upload(cancelled)
        assert not await client.holds_upload(cancelled, 1)
        with pytest.raises(RegistryError) as gone:
            await client.commit_upload(cancelled, digest_of(b"x"))
    assert old.value.status == 404
    assert gone.value.code is ErrorCode.BLOB_UPLOAD_UNKNOWN


# ---------------------------------------------------------------- requests


async def test_every_request_asks_for_plain_bytes_and_carries_the_request_id() -> None:
    """Accept-Encoding is identity, manifests are requested with the full Accept, X-Request-ID is passed on."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.add_manifest(REPOSITORY, b"{}", "1")
        token = request_id.set("abc-1")
        try:
            await client.resolve_tag(REPOSITORY, TAG)
        finally:
            request_id.reset(token)
        [request] = registry.requests
    assert request.method == "HEAD"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["accept"] == ", ".join(MANIFEST_MEDIA_TYPES)
    assert request.headers["x-request-id"] == "abc-1"


async def test_path_and_query_of_a_location_survive_byte_for_byte() -> None:
    """The path and query of a registry's Location are used unchanged; its host does not count."""
    query = "_state=a%2Fb%3D%3d+c%20~'()&x=%C3%A4&y"
    path = f"/v2/{REPOSITORY}/blobs/uploads/1234"
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        for location in (
            f"{path}?{query}",
            f"http://registry.internal:5000{path}?{query}",
            f"https://registry.internal{path}?{query}#part",
            f"//registry.internal{path}?{query}",
            f"1234?{query}",
        ):
            registry.inject(Fault("uploads/$", "POST", status=202, headers={"Location": location}))
            found = await client.start_upload(REPOSITORY)
            assert found == f"{path}?{query}"
            registry.inject(Fault("uploads/1234", "PATCH", status=202, headers={"Location": location}))
            await client.append_upload(found, in_pieces(b"x")(), 1)
            assert registry.requests[-1].target == f"{path}?{query}"
            registry.inject(Fault("uploads/1234", "PUT", status=201))
            await client.commit_upload(found, digest_of(b"x"))
            assert registry.requests[-1].target == f"{path}?{query}&digest={digest_of(b'x')}"


async def test_a_base_url_with_a_path_is_put_before_everything() -> None:
    """A registry under a path is called there, whether its Locations name that path or not."""
    async with FakeRegistry() as registry, open_client(f"{registry.url}/docker/") as client:
        under = f"/docker/v2/{REPOSITORY}/blobs/uploads/"
        for location in (f"/v2/{REPOSITORY}/blobs/uploads/1?a=b", f"{under}1?a=b"):
            registry.inject(Fault("uploads/$", status=202, headers={"Location": location}))
            assert await client.start_upload(REPOSITORY) == f"{under}1?a=b"
            assert registry.requests[-1].target == under


# ---------------------------------------------------------------- trust in answers


@pytest.mark.parametrize("fault", [Fault(omit=("Docker-Content-Digest",)), Fault(method="HEAD", status=405)])
async def test_a_tag_without_a_digest_header_is_fetched_and_hashed(fault: Fault) -> None:
    """A registry without Docker-Content-Digest, or without HEAD, still resolves tags."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_manifest(REPOSITORY, b'{"a":1}', "1")
        registry.inject(fault)
        assert await client.resolve_tag(REPOSITORY, TAG) == Descriptor(OCI_MANIFEST, digest, 7)


async def test_a_manifest_of_other_bytes_is_no_answer() -> None:
    """Bytes that do not match the digest are a failure of the replica, counted as a mismatch."""
    observer = RecordingObserver()
    async with FakeRegistry() as registry, open_client(registry.url, observer=observer) as client:
        digest = registry.add_manifest(REPOSITORY, b"{}", "1")
        registry.inject(Fault("manifests", body=b'{"lie":1}', times=1))
        with pytest.raises(ReplicaFailedError) as lied:
            await client.fetch_manifest(REPOSITORY, digest)
        registry.inject(Fault("manifests", gzip=True, times=1))
        with pytest.raises(ReplicaFailedError):
            await client.fetch_manifest(REPOSITORY, digest)
        assert (await client.fetch_manifest(REPOSITORY, digest)).body == b"{}"
    assert lied.value.outcome == "mismatch"
    assert observer.count(UpstreamRequest, "main", "a", "GET", "mismatch") == 2


async def test_a_manifest_beyond_the_limit_is_not_read() -> None:
    """A manifest larger than 4 MiB is refused with a 502 after the limit, not held in memory."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_manifest(REPOSITORY, b" " * (MANIFEST_MAX_BYTES + 1))
        with pytest.raises(BadUpstreamError):
            await client.fetch_manifest(REPOSITORY, digest)
        fits = registry.add_manifest(REPOSITORY, b" " * MANIFEST_MAX_BYTES)
        assert len((await client.fetch_manifest(REPOSITORY, fits)).body) == MANIFEST_MAX_BYTES


async def test_a_page_of_html_is_neither_blob_nor_manifest_nor_absence() -> None:
    """A sign-in page with 200, and a load balancer's 404, are a 502: neither proves that the content is absent."""
    digest = digest_of(b"x")
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault(html=True))
        for ask in (
            client.stat_blob(REPOSITORY, digest),
            client.resolve_tag(REPOSITORY, TAG),
            client.fetch_manifest(REPOSITORY, digest),
            client.list_tags(REPOSITORY),
        ):
            with pytest.raises(BadUpstreamError):
                await ask
        for content_type in ("text/html", "text/plain; charset=utf-8"):
            registry.inject(Fault(status=404, body=b"404 page not found", headers={"Content-Type": content_type}))
            for ask in (client.stat_blob(REPOSITORY, digest), client.list_tags(REPOSITORY)):
                with pytest.raises(BadUpstreamError):
                    await ask


async def test_a_blob_from_an_offset_is_taken_only_from_exactly_there() -> None:
    """A 206 must begin at the requested offset; a 200 to a Range is the whole, marked by offset 0."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_blob(REPOSITORY, CONTENT)
        registry.inject(Fault("blobs", ignore_range=True, times=1))
        async with client.open_blob(REPOSITORY, digest, 1000) as stream:
            assert (stream.offset, stream.size_bytes) == (0, len(CONTENT))
            assert await read_all(stream) == CONTENT
        size = len(CONTENT)
        for content_range in (f"bytes 999-{size - 1}/{size}", f"bytes 999-{size - 2}/{size}", "bytes */5", "none"):
            registry.inject(Fault("blobs", headers={"Content-Range": content_range}, times=1))
            with pytest.raises(ReplicaFailedError):
                async with client.open_blob(REPOSITORY, digest, 1000):
                    raise AssertionError(content_range)
        registry.inject(Fault("blobs", status=206, times=1))
        with pytest.raises(ReplicaFailedError):
            async with client.open_blob(REPOSITORY, digest):
                raise AssertionError("206 without a Range")


@pytest.mark.parametrize(
    "fault",
    [Fault(gzip=True), Fault(headers={"Docker-Content-Digest": str(digest_of(b"another"))})],
    ids=["compressed", "another digest"],
)
async def test_a_blob_that_cannot_be_right_is_refused_before_its_bytes(fault: Fault) -> None:
    """A compressed blob, or one that names another digest, fails before a byte of it is passed on."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_blob(REPOSITORY, CONTENT)
        registry.inject(fault)
        with pytest.raises(ReplicaFailedError):
            async with client.open_blob(REPOSITORY, digest):
                raise AssertionError("opened")


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("status", [500, 503])
async def test_a_status_that_is_no_answer_is_a_failure(status: int) -> None:
    """5xx are failures of the replica."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault(status=status))
        for ask in (
            client.stat_blob(REPOSITORY, digest_of(b"x")),
            client.put_manifest(REPOSITORY, TAG, manifest_of(b"c")),
        ):
            with pytest.raises(ReplicaFailedError) as failed:
                await ask
            assert failed.value.outcome == "5xx"


async def test_nobody_listening_has_the_outcome_connect() -> None:
    """A refused connection is a failure with the outcome connect."""
    registry = FakeRegistry()
    await registry.start()
    await registry.stop()
    observer = RecordingObserver()
    async with open_client(registry.url, observer=observer) as client:
        with pytest.raises(ReplicaFailedError) as failed:
            await client.stat_blob(REPOSITORY, digest_of(b"x"))
    assert failed.value.outcome == "connect"
    assert observer.count(UpstreamRequest, "main", "a", "HEAD", "connect") == 1


async def test_no_headers_in_time_is_a_timeout_and_no_bytes_in_time_a_stall() -> None:
    """Each wait has its deadline; the outcome says which one ended it."""
    observer = RecordingObserver()
    async with FakeRegistry() as registry, open_client(registry.url, timeouts=HASTY, observer=observer) as client:
        digest = registry.add_blob(REPOSITORY, CONTENT)
        registry.inject(Fault("blobs", stall=True, times=1))
        with pytest.raises(ReplicaFailedError) as late:
            await client.stat_blob(REPOSITORY, digest)
        registry.inject(Fault("blobs", stall_after=1000, times=1))
        with pytest.raises(ReplicaFailedError) as stalled:
            async with client.open_blob(REPOSITORY, digest) as stream:
                await read_all(stream)
    assert (late.value.outcome, stalled.value.outcome) == ("timeout", "stall")
    assert observer.count(UpstreamRequest, "main", "a", "GET", "stall") == 1


async def test_a_cut_body_never_ends_like_a_whole_one() -> None:
    """A connection closed in mid-body raises, with outcome cut, after the received bytes."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_blob(REPOSITORY, CONTENT)
        registry.inject(Fault("blobs", cut_after=5000))
        got = bytearray()

        async def read() -> None:
            async with client.open_blob(REPOSITORY, digest) as stream:
                async for chunk in stream:
                    got.extend(chunk)

        with pytest.raises(ReplicaFailedError) as cut:
            await read()
    assert cut.value.outcome == "cut"
    assert bytes(got) == CONTENT[: len(got)]


async def test_a_reader_that_leaves_takes_its_connection_along() -> None:
    """A blob that is closed in the middle, or whose reader is cancelled, leaves no connection in use."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_blob(REPOSITORY, CONTENT * 16)
        async with client.open_blob(REPOSITORY, digest) as stream:
            await anext(aiter(stream))
            await stream.aclose()
            await stream.aclose()
        registry.inject(Fault("blobs", stall_after=1000))
        started = asyncio.Event()

        async def read() -> None:
            async with client.open_blob(REPOSITORY, digest) as stream:
                started.set()
                await read_all(stream)

        task = spawn(read(), "read")
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        connector = client._transport._connections.data.connector
        assert connector is not None
        assert not connector._acquired


async def test_a_slow_client_is_not_taken_for_a_dead_replica() -> None:
    """A body whose source pauses for longer than every deadline is sent whole."""

    async def body() -> AsyncIterator[bytes]:
        for piece in (b"one ", b"two"):
            await asyncio.sleep(HASTY.first_byte + HASTY.connect + 0.2)
            yield piece

    async with FakeRegistry() as registry, open_client(registry.url, timeouts=HASTY) as client:
        location = await client.start_upload(REPOSITORY)
        location = await client.append_upload(location, body(), 7)
        await client.commit_upload(location, digest_of(b"one two"))
        assert registry.of(REPOSITORY).blobs == {digest_of(b"one two"): b"one two"}


async def test_a_source_that_fails_is_not_held_against_the_replica() -> None:
    """An error of the body's source is raised unchanged, as is a body of another length than announced."""

    async def body() -> AsyncIterator[bytes]:
        yield b"one "
        raise ValueError("the client has gone")

    observer = RecordingObserver()
    async with FakeRegistry() as registry, open_client(registry.url, observer=observer) as client:
        location = await client.start_upload(REPOSITORY)
        with pytest.raises(ValueError, match="the client has gone"):
            await client.append_upload(location, body(), 7)
        with pytest.raises(RegistryError) as short:
            await client.append_upload(await client.start_upload(REPOSITORY), in_pieces(b"abc")(), 7)
    assert short.value.code is ErrorCode.SIZE_INVALID
    assert {event.outcome for event in observer.found(UpstreamRequest)} == {"2xx"}


async def test_a_replica_that_stops_reading_fails_by_its_deadline() -> None:
    """An upload whose registry reads no more ends as a time-out, and is not sent a second time."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 1
            yield CONTENT

    async with server, open_client(f"http://127.0.0.1:{port}", timeouts=HASTY) as client:
        with pytest.raises(ReplicaFailedError) as failed:
            await client.append_upload(f"/v2/{REPOSITORY}/blobs/uploads/1", body(), 200 * len(CONTENT))
        for writer in writers:
            writer.transport.abort()
    assert failed.value.outcome == "timeout"
    assert sent < 200


async def test_a_working_registry_may_take_long_to_commit() -> None:
    """The end of an upload has a separate deadline: large blobs are copied then."""
    timeouts = Timeouts(connect=5, first_byte=0.05, stall=10, probe=10, commit=10)
    async with FakeRegistry() as registry, open_client(registry.url, timeouts=timeouts) as client:
        registry.uploads["1"] = bytearray(b"x")
        registry.inject(Fault("uploads", "PUT", delay_seconds=0.3))
        await client.commit_upload(f"/v2/{REPOSITORY}/blobs/uploads/1", digest_of(b"x"))


async def test_another_digest_than_sent_is_a_mismatch() -> None:
    """A registry that stores a content under another digest has not accepted it."""
    wrong = {"Docker-Content-Digest": str(digest_of(b"another"))}
    async with FakeRegistry() as registry, open_client(registry.url, timeouts=PATIENT) as client:
        registry.inject(Fault(method="PUT", headers=wrong))
        with pytest.raises(ReplicaFailedError):
            await client.put_manifest(REPOSITORY, TAG, manifest_of(b"c"))
        location = await client.start_upload(REPOSITORY)
        registry.uploads[location.split("?")[0].rsplit("/", 1)[1]] += b"x"
        with pytest.raises(ReplicaFailedError):
            await client.commit_upload(location, digest_of(b"x"))


async def test_access_to_one_repository_may_be_refused() -> None:
    """A 403 of the replica is a 502 for the client, who misses no right."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault(status=403))
        with pytest.raises(AccessRefusedError) as refused:
            await client.stat_blob(REPOSITORY, digest_of(b"x"))
    assert refused.value.status == 502
