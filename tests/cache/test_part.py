"""The lock that makes one process the owner of a fill."""

import os
from pathlib import Path

from registry_proxy.cache.layout import CachePaths
from registry_proxy.cache.part import is_current, open_part, try_lock
from tests.support.fakes.cache import content


def test_one_owner_at_a_time_whoever_opened_first(cache_path: Path) -> None:
    """The lock is free again when its owner's descriptor is closed, not when another one of the file is."""
    paths, (_, digest) = CachePaths(str(cache_path)), content(1)
    first, second, third = (open_part(paths, digest) for _ in range(3))
    assert try_lock(first)
    assert not try_lock(second)
    os.close(third)
    assert not try_lock(second)
    os.close(first)
    assert try_lock(second)
    assert is_current(paths, digest, second)
    os.close(second)


def test_who_wins_the_lock_of_a_file_that_ended_knows(cache_path: Path) -> None:
    """A lock on a file that lost its name, or whose name another file has now, is worth nothing."""
    paths, (_, digest) = CachePaths(str(cache_path)), content(1)
    fd = open_part(paths, digest)
    os.unlink(paths.part(digest))
    assert try_lock(fd)
    assert not is_current(paths, digest, fd)
    other = open_part(paths, digest)
    assert not is_current(paths, digest, fd)
    assert is_current(paths, digest, other)
    os.close(fd)
    os.close(other)
