"""A layer that one replica misses can be pushed immediately, whatever that replica answers to its manifest.

Reports: pushes over two zot registries refused with MANIFEST_INVALID, because a HEAD was answered by one of them and
the other missed the blob; layers that a garbage collection had removed and that no push restored for a day.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from registry_proxy.ports.names import ContentKind
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import digest_of
from tests.conftest import StartProxy
from tests.support.fakes.images import image
from tests.support.fakes.public import PublicBench
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, bench
from tests.support.product import make_image
from tests.support.refusal import refused
from tests.support.servers import Server

LAYER = b"a layer"
REFUSALS = [
    ErrorCode.MANIFEST_INVALID,
    ErrorCode.MANIFEST_BLOB_UNKNOWN,
    ErrorCode.MANIFEST_UNKNOWN,
    ErrorCode.BLOB_UNKNOWN,
    ErrorCode.NAME_UNKNOWN,
]


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Two replicas in memory."""
    async with bench(tmp_path) as under_test:
        yield under_test


@pytest.mark.parametrize("code", REFUSALS)
async def test_every_refusal_that_a_missing_blob_can_cause_is_healed(setting: Bench, code: ErrorCode) -> None:
    """A replica that refuses a manifest for a missing blob is sent the blob, whatever code it refuses with."""
    setting.b.refuses_with = code
    app = image(LAYER)
    for blob in app.blobs:
        await setting.under_test.upload(blob)
    setting.b.blobs.clear()
    await setting.under_test.put("latest", app.manifest, app.media_type)
    assert setting.b.tags == setting.a.tags
    assert set(setting.b.blobs) == set(setting.a.blobs)
    assert await setting.under_test.intents() == {}


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_blob_that_nobody_can_send_is_asked_of_the_pusher(setting: Bench, code: ErrorCode) -> None:
    """The client gets MANIFEST_BLOB_UNKNOWN with the digest, and the cached knowledge of the blob is removed."""
    app, layer = image(LAYER), digest_of(LAYER)
    for blob in app.blobs:
        await setting.under_test.upload(blob)
    for replica in (setting.a, setting.b):
        replica.refuses_with = code
        del replica.blobs[REPOSITORY, layer]
    setting.cache.drop(layer)
    error = await refused(setting.under_test.put("latest", app.manifest, app.media_type))
    assert (error.code, error.status) == (ErrorCode.MANIFEST_BLOB_UNKNOWN, 400)
    assert str(layer) in str(error.detail)
    assert setting.holdings.find(ROUTED, ContentKind.BLOB, layer) is None


async def test_a_complete_manifest_is_refused_in_the_words_of_the_registry(setting: Bench) -> None:
    """A refusal for another reason is passed on unchanged, and nothing is sent anywhere."""
    app = image(LAYER)
    for blob in app.blobs:
        await setting.under_test.upload(blob)
    refusal = RegistryError(ErrorCode.MANIFEST_INVALID, "the manifest is odd")
    for replica in (setting.a, setting.b):
        replica.errors["put_manifest"] = refusal
    assert await refused(setting.under_test.put("latest", app.manifest, app.media_type)) is refusal
    assert setting.a.count("push_blob") == setting.b.count("push_blob") == 0


def test_a_collected_layer_is_pushed_again_at_once(registries: list[Server], start_proxy: StartProxy) -> None:
    """A pusher's HEAD is 404 as soon as one replica lost the layer; the next push makes both whole; pulls go on."""
    proxy = start_proxy(registries)
    app = make_image(LAYER)
    layer, config = app.blobs
    ann, bob = proxy.add_user("ann", pull_push=["app"]), proxy.add_user("bob", pull=["app"])
    ann.push("app", "1", app)
    with ann.client("app", "pull,push") as pusher:
        assert pusher.head(f"/blobs/{layer}").status_code == 200
        for registry in registries:
            httpx.delete(f"{registry.url}/v2/app/blobs/{layer}").raise_for_status()
            assert pusher.head(f"/blobs/{layer}").status_code == 404
            assert pusher.head(f"/blobs/{config}").status_code == 200
            assert bob.head("app", f"blobs/{layer}").status_code == 200
            ann.push("app", "2", app)
            assert pusher.head(f"/blobs/{layer}").status_code == 200
    for registry in registries:
        assert httpx.head(f"{registry.url}/v2/app/blobs/{layer}").status_code == 200


async def test_a_pusher_asks_the_replicas_and_a_puller_does_not(tmp_path: Path) -> None:
    """HEAD by digest with a token for pushing asks the replicas, also for cached contents; others cost nothing."""
    async with PublicBench(tmp_path).serving() as public:
        public.allow("pull", "push")
        blob = public.reader.add_blob("team/app", LAYER)
        manifest = public.reader.add_manifest("team/app", image(LAYER).manifest)
        pull, push = public.bearer("user:ann", "repository:team/app:pull"), public.bearer("user:ann")
        for path, digest in (("blobs", blob), ("manifests", manifest)):
            url = f"/v2/team/app/{path}/{digest}"
            public.push.missing.clear()
            for headers in (pull, push, pull, push):
                async with public.session.head(url, headers=headers) as answer:
                    assert answer.status == 200
            assert [call[0] for call in public.push.calls] == ["everywhere"] * 2
            public.push.missing.add(digest)
            for headers, status in ((push, 404), (pull, 200)):
                async with public.session.head(url, headers=headers) as answer:
                    assert answer.status == status
            public.push.calls.clear()
