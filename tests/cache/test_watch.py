"""Several processes on one cache directory: one fetch, and no harm from kill -9."""

import asyncio
import contextlib
import os
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.layout import is_sealed, prepare_cache
from registry_proxy.ports.content import BlobReader
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import CacheResult
from registry_proxy.protocol.reference import Digest
from tests.cache.conftest import MakeCache
from tests.support.fakes.cache import MIB, Answer, Source, content, read_all
from tests.support.waiting import until

SIZE = 8 * MIB
StartWorker = Callable[..., Coroutine[None, None, Process]]


@pytest.fixture
async def start_worker(cache_path: Path) -> AsyncIterator[StartWorker]:
    """Return a function that starts a process on the same cache; see ``tests.support.fakes.cache_worker``."""
    processes: list[Process] = []

    async def start(*arguments: object, max_size_bytes: int = 1 << 40) -> Process:
        command = [sys.executable, "-m", "tests.support.fakes.cache_worker", cache_path, max_size_bytes, *arguments]
        process = await asyncio.create_subprocess_exec(*map(str, command), stdin=PIPE, stdout=PIPE)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    """Return the next line of a worker's output."""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return (await process.stdout.readline()).decode().strip()


def go_on(process: Process) -> None:
    """Resume a stopped worker."""
    assert process.stdin is not None
    process.stdin.write(b"\n")


def blobs_on_disk(path: Path) -> list[os.stat_result]:
    """Return the status of every committed file; workers may remove some meanwhile."""
    statuses = []
    for shard in (path / "blobs").glob("*/*"):
        for name in os.listdir(shard):
            with contextlib.suppress(FileNotFoundError):
                statuses.append((shard / name).stat())
    return statuses


async def latched_on(cache: DiskCache, start_worker: StartWorker) -> tuple[Process, BlobReader, Source]:
    """Return a process that stops half-way through a fill, our reader that follows it, and our source."""
    owner = await start_worker("fill_and_stop", SIZE, 4 * MIB)
    assert await line(owner) == "stopped miss"
    body, digest = content(SIZE)
    source = Source(Answer(body))
    reader, result = await cache.open_or_fill(digest, source)
    assert result is CacheResult.LATCH
    return owner, reader, source


async def test_workers_latch_on_to_each_others_fill(
    cache: DiskCache, cache_path: Path, start_worker: StartWorker
) -> None:
    """A reader in another process follows the one fetch, sees its bytes before the end, and its commit."""
    owner, reader, source = await latched_on(cache, start_worker)
    body, digest = content(SIZE)
    await reader.wait_beyond(MIB)
    assert os.pread(reader.fd, MIB, 0) == body[:MIB]
    assert not reader.verified
    go_on(owner)
    assert await read_all(reader) == body
    assert await line(owner) == "done"
    assert source.offsets == []
    await until(lambda: not cache.is_filling(digest))
    assert [status.st_size for status in blobs_on_disk(cache_path)] == [SIZE]


async def test_the_fill_of_a_killed_worker_goes_on(
    cache: DiskCache, cache_path: Path, start_worker: StartWorker
) -> None:
    """After kill -9 of the owner one follower continues where it stopped; the others follow that one."""
    owner, reader, source = await latched_on(cache, start_worker)
    body, digest = content(SIZE)
    follower = await start_worker("follow", SIZE)
    assert await line(follower) == "opened latch"
    owner.kill()
    assert await read_all(reader) == body
    done = await line(follower)
    assert done.startswith("done ")
    # The new owner asked from where the old one stopped, and it was one of the two.
    asked = [*source.offsets, *([] if done == "done []" else [int(done.removeprefix("done [").removesuffix("]"))])]
    assert len(asked) == 1
    assert 2 * MIB <= asked[0] <= 4 * MIB
    await until(lambda: not cache.is_filling(digest))
    assert [status.st_size for status in blobs_on_disk(cache_path)] == [SIZE]
    assert os.listdir(cache_path / "fills") == []


async def test_a_worker_that_stops_leaves_its_fill_to_another(make_cache: MakeCache) -> None:
    """At the end of a drain the file stays, and a follower in another worker continues it."""
    body, digest = content(SIZE)
    answer = Answer(body, pause_at=4 * MIB)
    first, second = make_cache(), make_cache()
    reader, _ = await first.open_or_fill(digest, Source(answer))
    await answer.reached.wait()
    source = Source(Answer(body))
    follower, result = await second.open_or_fill(digest, source)
    assert result is CacheResult.LATCH
    await first.close()
    reader.close()
    assert await read_all(follower) == body
    assert len(source.offsets) == 1
    assert source.offsets[0] > 0


async def test_a_fill_left_behind_is_continued_by_the_next_request(make_cache: MakeCache) -> None:
    """Without followers, the next request still uses the bytes of a stopped worker."""
    body, digest = content(SIZE)
    answer = Answer(body, pause_at=4 * MIB)
    first, second = make_cache(), make_cache()
    reader, _ = await first.open_or_fill(digest, Source(answer))
    await reader.wait_beyond(2 * MIB)
    await first.close()
    reader.close()
    source = Source(Answer(body))
    reader, _ = await second.open_or_fill(digest, source)
    assert await read_all(reader) == body
    assert len(source.offsets) == 1
    assert source.offsets[0] >= 2 * MIB


async def test_wrong_bytes_of_a_killed_worker_are_found_out(make_cache: MakeCache, cache_path: Path) -> None:
    """Bytes taken over from a dead owner are part of the hash: if they are wrong, all is fetched again."""
    body, digest = content(60_000)
    (cache_path / "fills" / f"sha256-{digest.hex}.part").write_bytes(b"x" * 50_000)
    (cache_path / "fills" / f"sha256-{digest.hex}.size").write_text("60000\n")
    source = Source(Answer(body))
    reader, _ = await make_cache().open_or_fill(digest, source)
    assert await read_all(reader) == body
    assert source.offsets == [50_000, 0]


async def test_a_worker_killed_between_digest_and_rename(make_cache: MakeCache, cache_path: Path) -> None:
    """A sealed file without an owner is committed without a request, even when its size file is gone."""
    body, digest = content(100_000)
    part = cache_path / "fills" / f"sha256-{digest.hex}.part"
    part.write_bytes(body)
    os.utime(part, ns=(0, 0))
    part.chmod(0o444)
    source = Source(Answer(body, error=UpstreamUnavailableError("down")))
    cache = make_cache()
    reader, _ = await cache.open_or_fill(digest, source)
    assert await read_all(reader) == body
    await until(lambda: not cache.is_filling(digest))
    assert cache.read_small(digest) == body
    assert source.offsets == []


async def test_a_follower_fails_with_its_owner(make_cache: MakeCache) -> None:
    """When the owner gives up, followers that served bytes are cut; one that served nothing sends its own request."""
    body, digest = content(SIZE)
    lie = Answer(body[:-1] + b"?", pause_at=4 * MIB)
    first, second = make_cache(), make_cache()
    reader, _ = await first.open_or_fill(digest, Source(lie, Answer(b"", error=UpstreamUnavailableError("down"))))
    await lie.reached.wait()
    source = Source(Answer(body))
    follower, _ = await second.open_or_fill(digest, source)
    lie.resume.set()
    with pytest.raises(Exception, match="fill ended"):
        await read_all(reader)
    with pytest.raises(Exception, match="fill ended"):
        await read_all(follower)
    follower, _ = await second.open_or_fill(digest, source)
    assert await read_all(follower) == body


async def test_without_inotify_the_file_is_polled(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers still work where the user's inotify instances are used up."""

    def refuse(**_: object) -> None:
        raise OSError(24, "too many inotify instances")

    monkeypatch.setattr("registry_proxy.cache.watch.INotify", refuse)
    body, digest = content(SIZE)
    answer = Answer(body, pause_at=4 * MIB)
    reader, _ = await make_cache().open_or_fill(digest, Source(answer))
    await answer.reached.wait()
    follower, result = await make_cache().open_or_fill(digest, Source(Answer(body)))
    assert result is CacheResult.LATCH
    answer.resume.set()
    assert await read_all(follower) == body
    reader.close()


@pytest.mark.parametrize("seed", range(3))
async def test_kill_at_any_moment_leaves_nothing_partial(
    cache_path: Path, start_worker: StartWorker, make_cache: MakeCache, seed: int
) -> None:
    """Workers killed at random leave only whole contents, and after the next start the accounts equal the disk."""
    chance = random.Random(seed)
    limit = 6 * MIB
    for round_number in range(3):
        workers = [
            await start_worker("churn", seed * 100 + round_number * 10 + n, max_size_bytes=limit) for n in (1, 2)
        ]
        for worker in workers:
            assert await line(worker) == "churning"
        files_before = len(blobs_on_disk(cache_path))
        await until(lambda count=files_before: len(blobs_on_disk(cache_path)) != count)  # type: ignore[misc]  # a default binds it
        await asyncio.sleep(chance.random() / 5)
        for worker in workers:
            assert worker.returncode is None, "it ended by itself"
            worker.kill()
            await worker.wait()
        prepare_cache(cache_path)
        cache = make_cache(max_size_bytes=limit)
        statuses = blobs_on_disk(cache_path)
        assert all(is_sealed(status) for status in statuses)
        stats = cache.stats()
        pushed = 2 * 40 * 40_000  # one by each worker, which may exceed the limit until it has made room
        assert stats["committed_bytes"] == sum(status.st_size for status in statuses) <= limit + pushed
        assert stats["entries"] == len(statuses)
        assert stats["filling_bytes"] == 0
        assert await cache.verify() == []


async def test_two_workers_count_as_one(make_cache: MakeCache, cache_path: Path) -> None:
    """Simultaneous commits, drops and evictions of several workers are counted once, and stay below the limit."""
    first, second = make_cache(max_size_bytes=3 * MIB), make_cache(max_size_bytes=3 * MIB)

    async def pull(cache: DiskCache, number: int) -> Digest:
        body, digest = content(200_000, number % 20)
        reader, _ = await cache.open_or_fill(digest, Source(Answer(body)))
        assert await read_all(reader) == body
        if number % 7 == 0:
            cache.drop(digest)
        return digest

    for batch in range(0, 80, 4):
        await asyncio.gather(*(pull(cache, batch + n) for n in range(4) for cache in (first, second)))
    await until(lambda: not os.listdir(cache_path / "fills"))
    await first.close()
    await second.close()
    statuses = blobs_on_disk(cache_path)
    stats = make_cache().stats()
    assert stats["committed_bytes"] == sum(status.st_size for status in statuses) <= 3 * MIB
    assert stats["entries"] == len(statuses)
