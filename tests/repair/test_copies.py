"""Copies to one replica from another one or from the cache."""

import pytest

from registry_proxy.ports.metrics import RepairedBytes
from registry_proxy.ports.names import ContentKind
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor, Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Tag, digest_of
from registry_proxy.repair.copies import Copies, Pace
from tests.support.fakes.images import image, index
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench


def copies(setting: Bench, observer: RecordingObserver | None = None) -> Copies:
    """Return copies that read from replica a."""
    return Copies(
        replica_sets={"main": setting.replicas},
        readers={"main": setting.a},
        cache=setting.cache,
        holdings=setting.holdings,
        pace=Pace(0),
        observer=observer or RecordingObserver(),
    )


async def test_a_whole_index_goes_where_nothing_is(setting: Bench) -> None:
    """Blobs, children and index arrive, each before its parent; the tag comes with the last."""
    child = image(b"layer")
    whole = index(child)
    for blob in child.blobs:
        setting.a.add_blob(REPOSITORY, blob)
    for part in (child, whole):
        await setting.a.put_manifest(REPOSITORY, part.digest, Manifest(part.descriptor, part.manifest))
    observer = RecordingObserver()
    await copies(setting, observer).copy_manifest(setting.b, ROUTED, whole.digest, Tag("v1"))
    assert setting.b.tags == {(REPOSITORY, "v1"): whole.digest}
    assert set(setting.b.manifests) == {(REPOSITORY, child.digest), (REPOSITORY, whole.digest)}
    assert sorted(observer.events) == sorted(RepairedBytes("main", "b", len(blob)) for blob in child.blobs)


async def test_a_replica_that_mixes_repositories_gets_the_blobs(
    setting: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer for a blob proves nothing about the repository: after a refusal of the manifest the blobs are sent."""
    app = image(b"layer")
    for blob in app.blobs:
        setting.a.add_blob(REPOSITORY, blob)
    await setting.a.put_manifest(REPOSITORY, app.digest, Manifest(app.descriptor, app.manifest))
    setting.replicas.separation.mixed.add(ContentKind.BLOB)
    monkeypatch.setattr(setting.b, "stat_blob", setting.a.stat_blob)
    await copies(setting).copy_manifest(setting.b, ROUTED, app.digest)
    assert setting.b.blobs == setting.a.blobs
    assert set(setting.b.manifests) == {(REPOSITORY, app.digest)}


async def test_the_cache_is_a_source_only_of_what_the_repository_holds(setting: Bench) -> None:
    """Cached bytes go where no replica has them, if the repository is known to hold them; others never."""
    digest = digest_of(b"ours")
    await setting.cache.store(digest, b"ours")
    with pytest.raises(RegistryError):
        await copies(setting).copy_blob(setting.b, ROUTED, digest)
    setting.holdings.remember(ROUTED, ContentKind.BLOB, Descriptor(BLOB_MEDIA_TYPE, digest, 4))
    await copies(setting).copy_blob(setting.b, ROUTED, digest)
    assert setting.b.blobs == {(REPOSITORY, digest): b"ours"}


def test_pace() -> None:
    """Bytes go at the configured rate on average, a pause saves nothing up, and 0 is no limit."""
    now = [100.0]
    pace = Pace(10, lambda: now[0])
    assert [pace.delay_seconds(size) for size in (10, 20)] == [1, 3]
    now[0] += 50
    assert pace.delay_seconds(10) == 1
    assert Pace(0, lambda: now[0]).delay_seconds(10**12) == 0
