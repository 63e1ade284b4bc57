"""Pushes through the real cache to real registries: all parts together."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.holdings import FileHoldings
from registry_proxy.cache.layout import prepare_cache
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.uploads import UploadBody
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, digest_of
from registry_proxy.replication.upload_stream import follow
from registry_proxy.spool.spool import DiskSpool
from registry_proxy.upstream.replicas import UpstreamReplicas
from tests.conftest import StartRegistry
from tests.support.fakes.images import Parts, image, index
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.replicas import ANN, REPOSITORY, ROUTED, Pushing, body_of, pushing, ref
from tests.support.fakes.upstream import open_replicas
from tests.support.servers import Server
from tests.support.waiting import until

LAYER = os.urandom(3 * 1024 * 1024 + 17)


@dataclass
class Setting:
    """Two real registries, the real cache, and the replication between them."""

    first: Server
    second: Server
    replicas: UpstreamReplicas
    cache: DiskCache
    holdings: FileHoldings
    under_test: Pushing

    async def push(self, parts: Parts, tag: str = "latest") -> None:
        """Push a whole image."""
        for blob in parts.blobs:
            await self.under_test.upload(blob)
        await self.under_test.put(tag, parts.manifest, parts.media_type)


@asynccontextmanager
async def assemble(directory: Path, first: Server, second: Server) -> AsyncIterator[Setting]:
    """Start the replication as a worker does."""
    async with AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(open_replicas([first.url, second.url], read_only=False))
        prepare_cache(directory / "cache")
        cache = DiskCache(directory / "cache", 1 << 30, 1 << 20, RecordingObserver())
        stack.push_async_callback(cache.close)
        holdings = FileHoldings(directory / "cache")
        under_test = await stack.enter_async_context(pushing(directory, replicas, DiskSpool(cache), cache, holdings))
        yield Setting(first, second, replicas, cache, holdings, under_test)


@pytest.fixture
def registries(start_registry: StartRegistry) -> tuple[Server, Server]:
    """Start two real registries with separate stores."""
    return start_registry("first"), start_registry("second")


@pytest_asyncio.fixture
async def setting(tmp_path: Path, registries: tuple[Server, Server]) -> AsyncIterator[Setting]:
    """Give the replication over two real registries."""
    async with assemble(tmp_path, *registries) as made:
        yield made


async def get(server: Server, path: str, method: str = "GET") -> httpx.Response:
    """Ask a registry directly."""
    async with httpx.AsyncClient() as client:
        headers = {"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"}
        return await client.request(method, f"{server.url}/v2/{path}", headers=headers)


async def test_an_image_reaches_both_registries(setting: Setting) -> None:
    """Blobs and manifest are at both, byte for byte, and in the cache; a second push changes nothing."""
    app = image(LAYER, b"small")
    for _ in range(2):
        await setting.push(app)
        for server in (setting.first, setting.second):
            assert (await get(server, f"{REPOSITORY}/manifests/latest")).content == app.manifest
            assert (await get(server, f"{REPOSITORY}/blobs/{digest_of(LAYER)}")).content == LAYER
    assert setting.cache.read_small(app.digest) == app.manifest
    assert await setting.under_test.intents() == {}
    assert [*Path(setting.cache.paths.uploads).glob("*/*")] == []


@pytest.mark.parametrize("pieces", [1, 7])
async def test_uploads_in_chunks_go_on_at_real_registries(setting: Setting, pieces: int) -> None:
    """Each PATCH continues at the Location of the one before, at both registries."""
    push = setting.under_test.push
    at = await push.start_upload(ROUTED, ANN)
    step = -(-len(LAYER) // pieces)
    for first in range(0, len(LAYER), step):
        piece = LAYER[first : first + step]
        at = await push.append_upload(ref(at), UploadBody(body_of(piece), len(piece)))
    await push.commit_upload(ref(at), digest_of(LAYER), UploadBody(body_of(), 0))
    for server in (setting.first, setting.second):
        assert (await get(server, f"{REPOSITORY}/blobs/{digest_of(LAYER)}")).content == LAYER
        assert server.log_text().count('"POST ') == 1


async def test_a_replica_killed_in_mid_patch_is_healed_by_the_next_push(setting: Setting) -> None:
    """A push during which a registry dies is accepted; when the registry is back the same push completes it."""
    app = image(LAYER)
    push = setting.under_test.push

    async def body() -> AsyncIterator[bytes]:
        yield LAYER[:1_000_000]
        setting.second.stop(9)
        yield LAYER[1_000_000:]

    start = await push.start_upload(ROUTED, ANN)
    at = await push.append_upload(ref(start), UploadBody(body()))
    await push.commit_upload(ref(at), digest_of(LAYER), UploadBody(body_of(), 0))
    await setting.under_test.upload(app.blobs[0])
    await setting.under_test.put("latest", app.manifest, app.media_type)
    assert all(missing == ["b"] for missing in (await setting.under_test.intents()).values())
    assert len(await setting.under_test.intents()) == 4
    setting.second.start()
    await until(lambda: setting.replicas.is_writable("b"))
    await setting.under_test.put("latest", app.manifest, app.media_type)
    assert (await get(setting.second, f"{REPOSITORY}/manifests/latest")).content == app.manifest
    assert (await get(setting.second, f"{REPOSITORY}/blobs/{digest_of(LAYER)}")).content == LAYER
    assert await setting.under_test.intents() == {}
    assert os.listdir(setting.cache.paths.pins) == []


async def test_mounts_between_repositories(setting: Setting) -> None:
    """A blob is mounted where the registries hold the source; from a repository without it nothing is mounted."""
    source = RoutedRepository("main", Repository("base"))
    await setting.under_test.upload(LAYER, routed=source)
    mounted = await setting.under_test.push.mount_blob(ROUTED, digest_of(LAYER), source)
    assert mounted is not None
    assert mounted.size_bytes == len(LAYER)
    for server in (setting.first, setting.second):
        assert (await get(server, f"{REPOSITORY}/blobs/{digest_of(LAYER)}", "HEAD")).status_code == 200
        assert server.log_text().count('"PATCH ') == 1
    nowhere = RoutedRepository("main", Repository("nowhere"))
    other = RoutedRepository("main", Repository("other"))
    assert await setting.under_test.push.mount_blob(other, digest_of(LAYER), nowhere) is None


async def test_blobs_lost_at_the_registries_come_from_the_cache(setting: Setting) -> None:
    """After MANIFEST_BLOB_UNKNOWN a registry is sent the missing blobs, and children of an index with their blobs."""
    app = image(LAYER)
    await setting.push(app)
    for digest in (digest_of(LAYER), digest_of(app.blobs[0])):
        assert (await get(setting.second, f"{REPOSITORY}/blobs/{digest}", "DELETE")).status_code == 202
    assert (await get(setting.second, f"{REPOSITORY}/manifests/{app.digest}", "DELETE")).status_code == 202
    both = index(app)
    await setting.under_test.put("all", both.manifest, both.media_type)
    for path in (f"manifests/{app.digest}", f"manifests/{both.digest}", f"blobs/{digest_of(LAYER)}"):
        assert (await get(setting.second, f"{REPOSITORY}/{path}")).status_code == 200


async def test_a_manifest_over_unknown_blobs_is_refused(setting: Setting) -> None:
    """A manifest over unknown blobs gets the registries' own refusal, and leaves no trace."""
    app = image(b"never")
    with pytest.raises(RegistryError) as caught:
        await setting.under_test.put("latest", app.manifest, app.media_type)
    assert caught.value.code is ErrorCode.MANIFEST_BLOB_UNKNOWN
    assert await setting.under_test.intents() == {}
    assert (await get(setting.first, f"{REPOSITORY}/manifests/latest")).status_code == 404


async def test_deletes_at_real_registries(setting: Setting) -> None:
    """By digest the manifest and its tags are gone at both; a blob is gone from its repository."""
    app = image(LAYER)
    await setting.push(app)
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    await setting.under_test.manage.delete_blob(ROUTED, digest_of(LAYER))
    for server in (setting.first, setting.second):
        assert (await get(server, f"{REPOSITORY}/manifests/latest")).status_code == 404
        assert (await get(server, f"{REPOSITORY}/blobs/{digest_of(LAYER)}")).status_code == 404
    assert setting.holdings.find(ROUTED, ContentKind.MANIFEST, app.digest) is None
    assert await setting.under_test.intents() == {}


async def test_registries_that_do_not_delete(tmp_path: Path, start_registry: StartRegistry) -> None:
    """Registries without deletes answer 405, and there is no tombstone and no forgotten holding."""
    servers = [start_registry(name, delete_enabled=False) for name in ("first", "second")]
    async with assemble(tmp_path, *servers) as setting:
        app = image(b"layer")
        await setting.push(app)
        with pytest.raises(RegistryError) as caught:
            await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
        assert caught.value.status == 405
        assert await setting.under_test.intents() == {}
        assert setting.holdings.find(ROUTED, ContentKind.MANIFEST, app.digest) is not None


async def test_a_push_leaves_no_descriptor_open(setting: Setting) -> None:
    """After whole, refused and broken uploads as many files are open as before."""
    await setting.under_test.upload(b"first")
    before = len(os.listdir("/proc/self/fd"))
    push = setting.under_test.push
    for number in range(20):
        await setting.under_test.upload(b"%d" % number)
        with pytest.raises(RegistryError):
            await push.push_blob(ROUTED, ANN, Digest("sha256", "0" * 64), UploadBody(body_of(LAYER)))
        start = await push.start_upload(ROUTED, ANN)
        with pytest.raises(ConnectionResetError):
            await push.append_upload(ref(start), UploadBody(broken_body()))
    assert len(os.listdir("/proc/self/fd")) <= before + 10  # connections to the registries
    assert [*Path(setting.cache.paths.uploads).glob("*/*")] == []


async def broken_body() -> AsyncIterator[bytes]:
    """Give a body that breaks off."""
    yield LAYER
    raise ConnectionResetError("the client left")


async def test_a_follower_reads_what_the_writer_writes(setting: Setting) -> None:
    """A sender that starts late reads from the beginning, in order, to the end of the request."""
    file = DiskSpool(setting.cache).create("session", ANN)
    await file.write(LAYER)
    await file.write(b"tail")
    file.finish_request()
    assert b"".join([piece async for piece in follow(file.open_reader(5), 5)]) == LAYER[5:] + b"tail"
    file.discard()
