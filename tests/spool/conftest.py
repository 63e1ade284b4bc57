"""The cache in which uploads lie."""

from tests.cache.conftest import cache, cache_path, events, make_cache

__all__ = ["cache", "cache_path", "events", "make_cache"]
