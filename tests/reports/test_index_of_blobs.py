"""An index whose children are blobs is replicated, compared and healed as such.

Reports: `docker buildx build --cache-to type=registry` behind replicas: the cache that BuildKit exports is an index of
layers and of one config, and a request for one of them as a manifest is answered 500 by distribution 2.8.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry_proxy.protocol.reference import Tag
from tests.repair.test_repair import Workshop, push, same
from tests.repair.test_verify import compare
from tests.support.fakes.images import Parts, build_cache
from tests.support.fakes.replicas import REPOSITORY, Bench, bench

LATEST = Tag("latest")


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Two replicas in memory."""
    async with bench(tmp_path) as under_test:
        yield under_test


@pytest.fixture
def cache() -> Parts:
    """A build cache."""
    return build_cache(b"one", b"two")


async def test_it_reaches_a_replica_that_was_down(setting: Bench, cache: Parts) -> None:
    """A cache pushed while a replica is down is repaired with all its blobs."""
    setting.replicas.down.add("b")
    await push(setting, cache, "latest")
    assert await Workshop(setting).repair()
    assert same(setting)
    assert setting.b.tags == {(REPOSITORY, LATEST): cache.digest}


async def test_a_replica_that_lost_its_disk_gets_it(setting: Bench, cache: Parts) -> None:
    """The comparison finds the children among the blobs, and the repair sends them."""
    await push(setting, cache, "latest")
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    comparison = await compare(setting, repair=True)
    assert (comparison.error, comparison.manifests, comparison.blobs) == ("", 1, 3)
    assert await Workshop(setting).repair()
    assert same(setting)


@pytest.mark.parametrize("collected", ["b", "ab"])
async def test_a_push_after_a_garbage_collection_is_healed(setting: Bench, cache: Parts, collected: str) -> None:
    """BuildKit pushes only the index when HEAD says that the layers exist: they come from the proxy's cache."""
    await push(setting, cache, "latest")
    for replica in (setting.a, setting.b):
        if replica.name in collected:
            replica.blobs, replica.manifests, replica.tags = {}, {}, {}
    await setting.under_test.put("latest", cache.manifest, cache.media_type)
    assert same(setting)
    assert len(setting.b.blobs) == 3
