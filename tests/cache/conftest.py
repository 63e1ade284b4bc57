"""A cache in a new directory, and sources that behave as a test says."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.layout import prepare_cache
from tests.support.fakes.cache import Events

MakeCache = Callable[..., DiskCache]


@pytest.fixture
def events() -> Events:
    """Return the events that the cache sent to its observer."""
    return Events()


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    """Return a cache directory that is ready."""
    path = tmp_path / "cache"
    prepare_cache(path)
    return path


@pytest.fixture
async def make_cache(cache_path: Path, events: Events) -> AsyncIterator[MakeCache]:
    """Return a function that opens a cache; several of them stand for several workers of the node."""
    caches: list[DiskCache] = []

    def make(max_size_bytes: int = 1 << 40, min_free_bytes: int = 0, path: Path = cache_path) -> DiskCache:
        caches.append(DiskCache(path, max_size_bytes, min_free_bytes, events))
        return caches[-1]

    yield make
    for cache in caches:
        await cache.close()


@pytest.fixture
def cache(make_cache: MakeCache) -> DiskCache:
    """Open a cache without a limit."""
    return make_cache()
