"""Room: the order of eviction, pins, limits, and counters that survive every crash."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.ledger import LedgerChange
from registry_proxy.ports.errors import CacheUnavailableError, FillLostError
from registry_proxy.ports.metrics import CacheEviction
from registry_proxy.ports.uploads import Uploader
from registry_proxy.protocol.reference import Digest
from registry_proxy.spool.spool import DiskSpool
from tests.cache.conftest import MakeCache
from tests.cache.test_disk import blob_file, put
from tests.support.fakes.cache import MIB, Answer, Events, Source, content, read_all
from tests.support.waiting import until


def use(path: Path, digest: Digest, seconds_ahead: int = 100) -> None:
    """Use a content, later than all earlier uses."""
    os.utime(blob_file(path, digest), ns=(round((time.time() + seconds_ahead) * 1e9), 0))


def is_there(path: Path, digest: Digest) -> bool:
    """Tell whether a content is there, without using it."""
    return blob_file(path, digest).exists()


async def test_the_oldest_that_was_not_used_since_it_came_goes_first(make_cache: MakeCache, cache_path: Path) -> None:
    """Below max_size a use saves from one visit of the hand; a reader that has the victim open reads to its end."""
    cache = make_cache(max_size_bytes=4 * MIB)
    contents = [await put(cache, MIB, seed) for seed in range(4)]
    age(cache_path, contents)
    use(cache_path, contents[0][1])
    reader = make_cache().open_committed(contents[1][1])
    assert reader is not None
    age(cache_path, [contents[1]])
    await put(cache, MIB, 4)
    assert [is_there(cache_path, digest) for _, digest in contents] == [True, False, True, True]
    await put(cache, 2 * MIB, 5)
    assert [is_there(cache_path, digest) for _, digest in contents] == [True, False, False, False]
    assert await read_all(reader) == contents[1][0]
    assert cache.stats()["committed_bytes"] == 4 * MIB


def age(path: Path, contents: Sequence[tuple[bytes, Digest]]) -> None:
    """Set the last use of contents hours back, at or before the time in eviction's notes."""
    for _, digest in contents:
        os.utime(blob_file(path, digest), ns=(round((time.time() - 10_000) * 1e9), 0))


async def test_opening_is_a_use(make_cache: MakeCache, cache_path: Path) -> None:
    """Contents that another worker opened, or read small, are kept longer than unused ones."""
    cache = make_cache(max_size_bytes=3 * MIB)
    contents = [await put(cache, MIB, seed) for seed in range(3)]
    age(cache_path, contents)
    other = make_cache()
    reader = other.open_committed(contents[0][1])
    assert reader is not None
    reader.close()
    assert other.read_small(contents[1][1]) is not None
    await put(cache, MIB, 3)
    assert [is_there(cache_path, digest) for _, digest in contents] == [True, True, False]


async def test_a_content_used_once_pushes_no_used_one_out(make_cache: MakeCache, cache_path: Path) -> None:
    """A scan of ten times the cache evicts no contents that are used again and again."""
    cache = make_cache(max_size_bytes=8 * MIB)
    popular = [await put(cache, MIB, seed) for seed in range(4)]
    for number in range(80):
        for _, digest in popular:
            use(cache_path, digest, 100 + number)
        await put(cache, MIB, 1000 + number)
    assert all(is_there(cache_path, digest) for _, digest in popular)
    assert cache.stats()["committed_bytes"] <= 8 * MIB


async def test_the_order_outlives_the_worker_and_stays_short(
    make_cache: MakeCache, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new worker evicts in the old order, and a cache that turns over hundreds of times keeps a short list."""
    cache = make_cache(max_size_bytes=4 * MIB)
    contents = [await put(cache, MIB, seed) for seed in range(4)]
    await cache.close()
    again = make_cache(max_size_bytes=4 * MIB)
    await put(again, MIB, 4)
    assert [is_there(cache_path, digest) for _, digest in contents] == [False, True, True, True]
    small = make_cache(max_size_bytes=10_000)
    monkeypatch.setattr("registry_proxy.cache.space._REWRITE_SLACK", 400)
    for seed in range(1000):
        body, digest = content(1000, seed)
        await small.store(digest, body)
    (order,) = (cache_path / "order").iterdir()
    assert order.stat().st_size < 1000 * 88
    assert small.stats()["committed_bytes"] <= 10_000


async def test_content_of_kept_repositories_is_not_evicted(cache_path: Path, make_cache: MakeCache) -> None:
    """Content of pinned repositories stays; with nothing else to evict, new content passes through and is counted."""
    kept: set[Digest] = set()
    events = Events()
    cache = DiskCache(cache_path, 3 * MIB, 0, events, find_kept=lambda: kept)
    contents = [await put(cache, MIB, seed) for seed in range(3)]
    age(cache_path, contents)
    kept |= {contents[0][1], contents[1][1]}
    await put(cache, MIB, 3)
    assert [is_there(cache_path, digest) for _, digest in contents] == [True, True, False]
    assert events.total(CacheEviction) == MIB
    body, digest = content(2 * MIB, 4)
    with pytest.raises(CacheUnavailableError):
        await cache.open_or_fill(digest, Source(Answer(body)))
    assert events.errors["full"] == 1
    listed = await cache.list_blobs(None, 10)
    assert {blob.digest for blob in listed if blob.protected} == kept
    await cache.close()


async def test_a_recount_is_right_while_content_comes_and_goes(make_cache: MakeCache, cache_path: Path) -> None:
    """After another boot everything is counted and put in order again, under load."""
    cache = make_cache()
    for seed in range(50):
        body, digest = content(1000 + seed, seed)
        await cache.store(digest, body)
    with cache.space._ledger.locked() as ledger:
        ledger.write(replace(ledger.state, boot="another", committed_bytes=7, entries=1))
    assert cache.space.must_recount
    other = make_cache()

    async def churn() -> None:
        for seed in range(50, 200):
            body, digest = content(1000 + seed, seed)
            await other.store(digest, body)
            if seed % 3 == 0:
                other.drop(content(1000 + seed - 50, seed - 50)[1])

    await asyncio.gather(churn(), cache.recount())
    sizes = [path.stat().st_size for path in (cache_path / "blobs").rglob("*") if path.is_file()]
    assert (cache.stats()["committed_bytes"], cache.stats()["entries"]) == (sum(sizes), len(sizes))
    tight = make_cache(max_size_bytes=1)
    tight.space.make_room(1, over_max_size=False)
    assert tight.stats()["entries"] == 0, "a content outside of the order could not be evicted"


@pytest.mark.parametrize("happened", [True, False])
async def test_a_worker_killed_in_mid_change_leaves_the_counters_right(
    make_cache: MakeCache, cache_path: Path, *, happened: bool
) -> None:
    """The next worker counts an announced change if, and only if, it is on disk."""
    cache = make_cache()
    body, digest = content(1000)
    await cache.store(digest, body)
    gone = LedgerChange(digest, -1000, -1, present=False)
    with cache.space._ledger.locked() as ledger:  # of a worker killed before, or after, its unlink
        ledger.write(replace(ledger.state, change=gone))
        if happened:
            blob_file(cache_path, digest).unlink()
    other = make_cache()
    with other.space._ledger.locked():
        pass
    assert (other.stats()["committed_bytes"], other.stats()["entries"]) == ((0, 0) if happened else (1000, 1))


async def test_pinned_content_is_never_evicted(make_cache: MakeCache, cache_path: Path) -> None:
    """Pinned content stays until it is unpinned; when all is pinned, new content passes through."""
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
    """When even an empty cache would not make enough room, nothing is evicted."""
    _, digest = await put(make_cache(), MIB)
    cache = make_cache(min_free_bytes=1 << 60)
    body, other = content(1000)
    with pytest.raises(CacheUnavailableError):
        await cache.open_or_fill(other, Source(Answer(body)))
    assert is_there(cache_path, digest)


async def test_the_dead_fills_of_killed_workers_make_room(make_cache: MakeCache, cache_path: Path) -> None:
    """The room of a killed worker's fill is released when room is short, and its file is removed."""
    cache = make_cache(max_size_bytes=2 * MIB)
    _, digest = content(MIB, 1)
    (cache_path / "fills" / f"sha256-{digest.hex}.part").write_bytes(b"x" * 1000)
    (cache_path / "fills" / f"sha256-{digest.hex}.size").write_text(f"{MIB}\n")
    assert cache.stats()["filling_bytes"] == 64 * 1024
    await put(cache, 2 * MIB, 2)
    assert cache.stats()["filling_bytes"] == 0
    assert os.listdir(cache_path / "fills") == []


async def test_fills_side_by_side_stay_below_the_limit(make_cache: MakeCache) -> None:
    """Of two fills that only fit one after the other the second ends; its readers continue elsewhere."""
    cache = make_cache(max_size_bytes=3 * MIB)
    body, digest = content(2 * MIB)
    answer = Answer(body, pause_at=MIB)
    reader, _ = await cache.open_or_fill(digest, Source(answer))
    other, other_digest = content(2 * MIB, 1)
    other_reader, _ = await cache.open_or_fill(other_digest, Source(Answer(other)))
    with pytest.raises(FillLostError):
        await read_all(other_reader)
    answer.resume.set()
    assert await read_all(reader) == body
    await until(lambda: not cache.is_filling(digest) and not cache.is_filling(other_digest))
    assert cache.stats()["committed_bytes"] + cache.stats()["filling_bytes"] <= 3 * MIB


async def test_an_upload_may_exceed_the_limit_but_not_min_free(make_cache: MakeCache, cache_path: Path) -> None:
    """A push may exceed max_size; if it is unpinned it is evicted at its end; min_free stops it."""
    cache: DiskCache = make_cache(max_size_bytes=2 * MIB)
    _, old = await put(cache, MIB, 1)
    _, pinned_digest = await put(cache, MIB, 3)
    DiskSpool(cache).pin(pinned_digest)
    upload = DiskSpool(cache).create("big", Uploader("user:ann", 0))
    body, digest = content(MIB // 2, 2)
    await upload.write(body)
    assert not is_there(cache_path, old)
    DiskSpool(cache).pin(digest)
    await upload.commit(digest)
    upload.close()
    assert is_there(cache_path, digest)
    strict = DiskSpool(make_cache(min_free_bytes=1 << 60)).create("strict", Uploader("user:ann", 0))
    await strict.write(b"x")
    assert not strict.is_whole
    strict.discard()


def test_the_counters_have_no_holes(make_cache: MakeCache, cache_path: Path) -> None:
    """A count on a full disk kills no worker: the room of the page is allocated when it is opened."""
    make_cache()
    status = (cache_path / "page").stat()
    assert status.st_blocks * 512 >= status.st_size > 0
