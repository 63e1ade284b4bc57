"""Opening the cache of a worker: its files, and the note of what repositories hold."""

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.holdings import FileHoldings
from registry_proxy.cache.scrub import Scrubber
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.patterns import compile_repository_pattern
from registry_proxy.protocol.reference import Digest, Repository

LocalName = Callable[[RoutedRepository], Repository | None]


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Place, bounds and upkeep of a cache.

    Args:
        path: the directory, made ready by ``prepare_cache``.
        max_size_bytes: see ``DiskCache``.
        min_free_bytes: see ``DiskCache``.
        pinned: patterns of the repositories whose content is never evicted.
        check_share: see ``DiskCache``.
        scrub_bytes_per_second: see ``Scrubber``.
        scrub_interval_seconds: see ``Scrubber``.
        was_away: whether others may have changed what repositories hold since it was last open.
    """

    path: str
    max_size_bytes: int
    min_free_bytes: int
    pinned: Sequence[str]
    check_share: float
    scrub_bytes_per_second: int
    scrub_interval_seconds: float
    was_away: bool


@dataclass(frozen=True, slots=True)
class Cache:
    """The parts of an open cache."""

    disk: DiskCache
    holdings: FileHoldings
    scrubber: Scrubber


@contextlib.asynccontextmanager
async def open_cache(options: CacheOptions, observer: Observer, local_name: LocalName) -> AsyncIterator[Cache]:
    """Open a cache for the length of a with block.

    Args:
        options: where and how.
        observer: receives cache errors and sizes.
        local_name: returns the name under which clients know a repository, for ``pinned``.
    """
    holdings = FileHoldings(options.path)
    if options.was_away:
        holdings.doubt_all()
    disk = DiskCache(
        options.path,
        options.max_size_bytes,
        options.min_free_bytes,
        observer,
        find_kept=_finder_of_kept(options.pinned, local_name, holdings),
        check_share=options.check_share,
    )
    try:
        yield Cache(
            disk,
            holdings,
            Scrubber(disk, options.scrub_bytes_per_second, options.scrub_interval_seconds),
        )
    finally:
        await disk.close()


def _finder_of_kept(
    patterns: Sequence[str], local_name: LocalName, holdings: FileHoldings
) -> Callable[[], Collection[Digest]]:
    """Return a function that finds the content of the pinned repositories."""
    if not patterns:
        return frozenset
    pinned = re.compile("|".join(compile_repository_pattern(pattern).pattern for pattern in patterns))

    def is_pinned(routed: RoutedRepository) -> bool:
        name = local_name(routed)
        return name is not None and pinned.fullmatch(name) is not None

    return partial(holdings.digests_of, is_pinned)
