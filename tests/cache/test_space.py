"""Room: least recent use, pins, limits."""

import os
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.spool import DiskSpool
from registry_proxy.ports import CacheUnavailableError
from registry_proxy.spec.reference import Digest
from tests.cache.conftest import MakeCache
from tests.cache.test_disk import blob_file, put
from tests.fakes.cache import MIB, Answer, Source, content, read_all
from tests.waiting import until


def used_at(path: Path, digest: Digest, seconds: int) -> None:
    """Say when a content was used last."""
    os.utime(blob_file(path, digest), ns=(seconds * 10**9, 0))


def is_there(path: Path, digest: Digest) -> bool:
    """Look without using it."""
    return blob_file(path, digest).exists()


async def test_the_least_recently_used_goes_first(make_cache: MakeCache, cache_path: Path) -> None:
    """Under max_size, by use and not by age; a reader that has the victim open reads to its end."""
    cache = make_cache(max_size_bytes=4 * MIB)
    contents = [await put(cache, MIB, seed) for seed in range(4)]
    for seconds, (_, digest) in enumerate(contents):
        used_at(cache_path, digest, 1000 + seconds)
    used_at(cache_path, contents[0][1], 2000)  # the oldest is used again
    reader = make_cache().open_committed(contents[1][1])
    assert reader is not None
    used_at(cache_path, contents[1][1], 1001)
    await put(cache, MIB, 4)
    assert [is_there(cache_path, digest) for _, digest in contents] == [True, False, True, True]
    await put(cache, 2 * MIB, 5)
    assert [is_there(cache_path, digest) for _, digest in contents] == [True, False, False, False]
    assert await read_all(reader) == contents[1][0]
    assert cache.stats()["committed_bytes"] == 4 * MIB


async def test_opening_is_a_use(make_cache: MakeCache, cache_path: Path) -> None:
    """What another worker opened, or read small, is kept before what nobody did."""
    cache = make_cache(max_size_bytes=3 * MIB)
    contents = [await put(cache, MIB, seed) for seed in range(3)]
    for seconds, (_, digest) in enumerate(contents):
        used_at(cache_path, digest, 1000 + seconds)
    other = make_cache()
    reader = other.open_committed(contents[0][1])
    assert reader is not None
    reader.close()
    assert other.read_small(contents[1][1]) is not None
    await put(cache, MIB, 3)
    assert [is_there(cache_path, digest) for _, digest in contents] == [True, True, False]


async def test_a_use_after_the_list_was_made_counts(make_cache: MakeCache, cache_path: Path) -> None:
    """The leftover of an earlier scan does not make a victim of what was used or pinned since."""
    cache = make_cache(max_size_bytes=4 * MIB)
    contents = [await put(cache, MIB, seed) for seed in range(4)]
    for seconds, (_, digest) in enumerate(contents):
        used_at(cache_path, digest, 1000 + seconds)
    await put(cache, MIB, 4)  # lists all, evicts the first
    used_at(cache_path, contents[1][1], 5000)
    DiskSpool(cache).pin(contents[2][1])
    await put(cache, MIB, 5)
    assert [is_there(cache_path, digest) for _, digest in contents] == [False, True, True, False]


async def test_what_is_pinned_is_never_evicted(make_cache: MakeCache, cache_path: Path) -> None:
    """A pin keeps it until the unpin; when all is pinned, content passes through and nothing is lost."""
    cache = make_cache(max_size_bytes=2 * MIB)
    spool = DiskSpool(cache)
    pinned = [(await put(cache, MIB, seed))[1] for seed in range(2)]
    for digest in pinned:
        spool.pin(digest)
        spool.pin(digest)
    body, digest = content(MIB, 9)
    with pytest.raises(CacheUnavailableError):
        await cache.open_or_fill(digest, Source(Answer(body)))
    assert all(is_there(cache_path, each) for each in pinned)
    spool.unpin(pinned[0])
    spool.unpin(pinned[0])
    await put(cache, MIB, 9)
    assert [is_there(cache_path, each) for each in pinned] == [False, True]


async def test_nothing_is_evicted_in_vain(make_cache: MakeCache, cache_path: Path) -> None:
    """When even an empty cache would not make enough room, what is there stays."""
    _, digest = await put(make_cache(), MIB)
    cache = make_cache(min_free_bytes=1 << 60)
    body, other = content(1000)
    with pytest.raises(CacheUnavailableError):
        await cache.open_or_fill(other, Source(Answer(body)))
    assert is_there(cache_path, digest)


async def test_the_dead_fills_of_killed_workers_make_room(make_cache: MakeCache, cache_path: Path) -> None:
    """What a killed worker was promised is given back when room is short, and its file goes."""
    cache = make_cache(max_size_bytes=2 * MIB)
    _, digest = content(MIB, 1)
    (cache_path / "fills" / f"sha256-{digest.hex}.part").write_bytes(b"x" * 1000)
    (cache_path / "fills" / f"sha256-{digest.hex}.size").write_text(f"{MIB}\n")
    assert cache.stats()["filling_bytes"] == MIB
    await put(cache, 2 * MIB, 2)
    assert cache.stats()["filling_bytes"] == 0
    assert os.listdir(cache_path / "fills") == []


async def test_a_fill_in_progress_keeps_its_promise(make_cache: MakeCache) -> None:
    """Two fills that fit only one after the other are never both let in."""
    cache = make_cache(max_size_bytes=3 * MIB)
    body, digest = content(2 * MIB)
    answer = Answer(body, pause_at=MIB)
    reader, _ = await cache.open_or_fill(digest, Source(answer))
    other, other_digest = content(2 * MIB, 1)
    with pytest.raises(CacheUnavailableError):
        await cache.open_or_fill(other_digest, Source(Answer(other)))
    answer.resume.set()
    assert await read_all(reader) == body
    await until(lambda: not cache.is_filling(digest))  # until its rename it cannot be evicted
    await put(cache, 2 * MIB, 1)


async def test_an_upload_may_exceed_the_limit_but_not_min_free(make_cache: MakeCache, cache_path: Path) -> None:
    """A push evicts for itself and goes on over max_size; unpinned, it goes when it is over; min_free stops it."""
    cache: DiskCache = make_cache(max_size_bytes=2 * MIB)
    _, old = await put(cache, MIB, 1)
    upload = DiskSpool(cache).create("big")
    body, digest = content(3 * MIB, 2)
    await upload.write(body)
    assert not is_there(cache_path, old)
    DiskSpool(cache).pin(digest)
    await upload.commit(digest)
    upload.close()
    assert is_there(cache_path, digest)
    strict = DiskSpool(make_cache(min_free_bytes=1 << 60)).create("strict")
    with pytest.raises(CacheUnavailableError):
        await strict.write(b"x")
    strict.discard()


def test_the_counters_have_no_holes(make_cache: MakeCache, cache_path: Path) -> None:
    """Counting on a full disk kills no worker: the page's room is taken when it is opened."""
    make_cache()
    status = (cache_path / "page").stat()
    assert status.st_blocks * 512 >= status.st_size > 0
