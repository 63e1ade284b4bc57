"""One fetch serves all readers, and no unverified content enters the cache."""

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.partial_file import OwnedPartialFile
from registry_proxy.cache.progress import HOLD_BACK_BYTES
from registry_proxy.ports.content import BlobReader
from registry_proxy.ports.errors import (
    CacheUnavailableError,
    FillFailedError,
    UpstreamUnavailableError,
    WrongContentError,
)
from registry_proxy.ports.names import CacheResult
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest
from tests.cache.conftest import MakeCache
from tests.support.fakes.cache import MIB, Answer, Events, Source, content, read_all
from tests.support.waiting import until

SIZES = [0, 1, HOLD_BACK_BYTES, HOLD_BACK_BYTES + 1, 3 * MIB + 17]


def leftovers(path: Path) -> list[str]:
    """Return the files in the directories of unfinished work."""
    return [f"{name}/{entry}" for name in ("fills", "spool", "temp") for entry in os.listdir(path / name)]


def is_committed(cache: DiskCache, digest: Digest) -> bool:
    """Tell whether a content is in the cache."""
    reader = cache.open_committed(digest)
    if reader is not None:
        reader.close()
    return reader is not None


async def committed(cache: DiskCache, digest: Digest) -> None:
    """Wait until a content is in the cache and its fill has ended."""
    await until(lambda: not cache.is_filling(digest) and is_committed(cache, digest))


@pytest.mark.parametrize("announce", [True, False])
@pytest.mark.parametrize("size_bytes", SIZES)
async def test_a_miss_is_fetched_once_and_then_hit(
    cache: DiskCache, cache_path: Path, size_bytes: int, *, announce: bool
) -> None:
    """Content of any size, announced or not, is served correctly, committed, and a hit from then on."""
    body, digest = content(size_bytes)
    source = Source(Answer(body, announce=announce))
    reader, result = await cache.open_or_fill(digest, source)
    assert result is CacheResult.MISS
    assert reader.size_bytes == size_bytes
    assert await read_all(reader) == body
    await committed(cache, digest)
    reader, result = await cache.open_or_fill(digest, source)
    assert result is CacheResult.HIT
    assert reader.verified
    assert await read_all(reader) == body
    assert source.offsets == [0]
    assert source.open == 0
    assert leftovers(cache_path) == []
    assert cache.stats()["committed_bytes"] == size_bytes
    assert cache.stats()["entries"] == 1


@pytest.mark.parametrize("size_bytes", [1000, 2 * MIB])
async def test_fifty_readers_cost_one_fetch(cache: DiskCache, size_bytes: int) -> None:
    """All readers that come before the end follow the one fetch."""
    body, digest = content(size_bytes)
    source = Source(Answer(body))

    async def pull() -> tuple[bytes, CacheResult]:
        reader, result = await cache.open_or_fill(digest, source)
        return await read_all(reader), result

    answers = await asyncio.gather(*(pull() for _ in range(50)))
    assert all(answer == body for answer, _ in answers)
    assert [result for _, result in answers].count(CacheResult.MISS) == 1
    assert [result for _, result in answers].count(CacheResult.LATCH) == 49
    assert source.offsets == [0]


async def test_the_fill_outlives_its_cancelled_client(cache: DiskCache) -> None:
    """The client that started the fetch leaves before its length is known; another still gets all of it."""
    body, digest = content(MIB)
    answer = Answer(body, announce=False, pause_at=1000)
    source = Source(answer)
    first = asyncio.ensure_future(cache.open_or_fill(digest, source))  # noqa: TID251 - to be cancelled here
    await answer.reached.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.ensure_future(cache.open_or_fill(digest, source))  # noqa: TID251 - awaited below
    answer.resume.set()
    reader, result = await second
    assert result is CacheResult.LATCH
    assert await read_all(reader) == body
    assert source.offsets == [0]


async def test_a_cancelled_reader_takes_nobody_along(cache: DiskCache) -> None:
    """Of many readers that wait for the same bytes one leaves; the others still get them."""
    body, digest = content(2 * MIB)
    answer = Answer(body, pause_at=MIB)
    source = Source(answer)
    readers = [(await cache.open_or_fill(digest, source))[0] for _ in range(3)]
    await answer.reached.wait()
    waiting = [asyncio.ensure_future(reader.wait_beyond(2 * MIB - 1)) for reader in readers]  # noqa: TID251 - awaited
    await asyncio.sleep(0)  # each runs up to its wait
    waiting[0].cancel()
    answer.resume.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, type(None), type(None)]
    readers[0].close()
    assert [await read_all(reader) for reader in readers[1:]] == [body, body]


async def test_a_sender_without_an_end_is_stopped_at_the_length(cache: DiskCache) -> None:
    """After the announced length no further chunk is written, however much the sender would send."""
    body, digest = content(2 * MIB)
    answer = Answer(body * 10, size_bytes=len(body))
    reader, _ = await cache.open_or_fill(digest, Source(answer))
    with pytest.raises(FillFailedError):
        await read_all(reader)
    await until(lambda: not cache.is_filling(digest))
    assert answer.sent_bytes <= 3 * (len(body) + answer.chunk_bytes)


async def test_a_reader_that_closes_early_changes_nothing(cache: DiskCache) -> None:
    """The fill continues to its commit without any reader."""
    body, digest = content(2 * MIB)
    answer = Answer(body, pause_at=MIB)
    reader, _ = await cache.open_or_fill(digest, Source(answer))
    reader.close()
    reader.close()
    answer.resume.set()
    await committed(cache, digest)


async def test_a_slow_reader_slows_nobody(cache: DiskCache) -> None:
    """The fill is committed and others have all of it while one reader has read nothing."""
    body, digest = content(4 * MIB)
    source = Source(Answer(body))
    slow, _ = await cache.open_or_fill(digest, source)
    fast, _ = await cache.open_or_fill(digest, source)
    assert await read_all(fast) == body
    await committed(cache, digest)
    assert await read_all(slow, 100_000) == body


async def test_the_tail_is_held_back_until_the_digest_was_right(cache: DiskCache) -> None:
    """With every byte but the last received, readers get no byte of the last 64 KiB, and all bytes before them."""
    body, digest = content(MIB)
    answer = Answer(body, pause_at=len(body) - 1)
    reader, _ = await cache.open_or_fill(digest, Source(answer))
    await reader.wait_beyond(len(body) - HOLD_BACK_BYTES - 1)
    await answer.reached.wait()
    assert reader.available_bytes == len(body) - HOLD_BACK_BYTES
    assert not reader.verified
    assert cache.open_committed(digest) is None
    answer.resume.set()
    await reader.wait_beyond(len(body) - 1)
    assert reader.verified
    assert await read_all(reader) == body


def _wrong(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize("size_bytes", [1000, 2 * MIB])
@pytest.mark.parametrize("lie", ["digest", "digest without length", "long", "short without length", "wrong length"])
async def test_a_lie_never_enters_and_is_never_served_whole(
    cache: DiskCache, cache_path: Path, events: Events, size_bytes: int, lie: str
) -> None:
    """After a wrong digest or length no body is complete, nothing is cached; a metric and the source know of it."""
    body, digest = content(size_bytes)
    answer = {
        "digest": Answer(_wrong(body)),
        "digest without length": Answer(_wrong(body), announce=False),
        "long": Answer(body + b"more", size_bytes=len(body)),
        "short without length": Answer(body[:-1], announce=False),
        "wrong length": Answer(body + b"more"),
    }[lie]
    source = Source(answer)
    with pytest.raises(FillFailedError):
        await read_all((await cache.open_or_fill(digest, source))[0])
    await until(lambda: not cache.is_filling(digest))
    assert source.offsets == [0, 0, 0]  # from the start, at the replica with the right content
    assert all(isinstance(error, FillFailedError) for error in source.raised)
    assert cache.open_committed(digest) is None
    assert cache.read_small(digest) is None
    assert events.errors == {"mismatch": 3}
    assert leftovers(cache_path) == []


async def test_nothing_is_hashed_or_written_on_the_loop(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twenty cold fills at once every write and every hash of a chunk runs in a thread of the cache."""
    threads: set[str] = set()
    append = OwnedPartialFile.append

    def noting(part: OwnedPartialFile, chunks: Sequence[bytes]) -> None:
        threads.add(threading.current_thread().name.partition("_")[0])
        append(part, chunks)

    monkeypatch.setattr(OwnedPartialFile, "append", noting)
    contents = [content(MIB, seed) for seed in range(20)]
    opened = await asyncio.gather(*(cache.open_or_fill(digest, Source(Answer(body))) for body, digest in contents))
    assert await asyncio.gather(*(read_all(reader) for reader, _ in opened)) == [body for body, _ in contents]
    assert threads == {"cache"}


async def test_a_lie_is_blamed_on_who_alone_sent_it(cache: DiskCache, cache_path: Path) -> None:
    """Wrong bytes are kept in quarantine; a sender is blamed only for content that it alone sent, as announced."""
    body, digest = content(300_000)
    wrong = bytes([body[0] ^ 1]) + body[1:]
    source = Source(Answer(wrong, cut_after=100_000), Answer(body), Answer(wrong), Answer(body))
    reader, _ = await cache.open_or_fill(digest, source)
    with pytest.raises(FillFailedError):
        await read_all(reader)
    await committed(cache, digest)
    assert source.offsets == [0, 100_000, 0, 0]
    lies = [error for error in source.raised if isinstance(error, WrongContentError)]
    assert [error.is_proven for error in lies] == [False, True]
    assert [file.read_bytes() for file in (cache_path / "quarantine").iterdir()] == [wrong, wrong]


async def test_small_content_is_right_at_the_second_try(cache: DiskCache, events: Events) -> None:
    """For content that is verified before it is announced, wrong bytes are replaced by the next replica's."""
    body, digest = content(HOLD_BACK_BYTES)
    source = Source(Answer(_wrong(body)), Answer(body))
    reader, result = await cache.open_or_fill(digest, source)
    assert result is CacheResult.MISS
    assert await read_all(reader) == body
    assert events.errors == {"mismatch": 1}


async def test_large_content_is_refetched_for_the_next_client(cache: DiskCache) -> None:
    """A reader that received wrong bytes is cut off; the second try fills the cache for later readers."""
    body, digest = content(2 * MIB)
    source = Source(Answer(_wrong(body)), Answer(body))
    reader, _ = await cache.open_or_fill(digest, source)
    with pytest.raises(FillFailedError):
        await read_all(reader)
    reader, _ = await cache.open_or_fill(digest, source)
    assert await read_all(reader) == body
    assert source.offsets == [0, 0]


@pytest.mark.parametrize("ignore_offset", [False, True])
@pytest.mark.parametrize("size_bytes", [50_000, 3 * MIB])
async def test_a_replica_that_dies_in_mid_fill_is_not_noticed(
    cache: DiskCache, size_bytes: int, *, ignore_offset: bool
) -> None:
    """The fill continues with the next stream, also when that one starts from the beginning."""
    body, digest = content(size_bytes)
    cut = size_bytes // 3
    source = Source(
        Answer(body, cut_after=cut),
        Answer(body, cut_after=2 * cut if ignore_offset else cut, ignore_offset=ignore_offset),
        Answer(body),
    )
    reader, _ = await cache.open_or_fill(digest, source)
    assert await read_all(reader) == body
    assert source.offsets == [0, cut, 2 * cut]
    await committed(cache, digest)


async def test_a_replica_that_dies_before_its_first_byte_is_not_noticed(cache: DiskCache) -> None:
    """The client has its status line from the first replica's headers; the bytes come from the next one."""
    body, digest = content(MIB)
    source = Source(Answer(body, cut_after=0), Answer(body))
    reader, _ = await cache.open_or_fill(digest, source)
    assert await read_all(reader) == body
    assert source.offsets == [0, 0]


async def test_a_body_cut_short_of_its_length_is_continued(cache: DiskCache) -> None:
    """A stream that ends before the announced length counts as cut, not as complete."""
    body, digest = content(MIB)
    source = Source(Answer(body[: MIB // 2], size_bytes=MIB), Answer(body))
    reader, _ = await cache.open_or_fill(digest, source)
    assert await read_all(reader) == body
    assert source.offsets == [0, MIB // 2]


async def test_no_progress_ends_the_fill_for_all_its_readers(cache: DiskCache, cache_path: Path) -> None:
    """When every replica is gone for good, readers get an error instead of waiting."""
    body, digest = content(MIB)
    source = Source(Answer(body, cut_after=MIB // 2), Answer(body, error=UpstreamUnavailableError("all down")))
    readers = [(await cache.open_or_fill(digest, source))[0] for _ in range(3)]
    answers = await asyncio.gather(*(read_all(reader) for reader in readers), return_exceptions=True)
    assert [type(answer) for answer in answers] == [FillFailedError] * 3
    assert len(source.offsets) == 4
    assert leftovers(cache_path) == []


async def test_the_first_answer_of_the_upstream_reaches_the_caller(cache: DiskCache, cache_path: Path) -> None:
    """An error of the upstream at the first request is raised unchanged, without a second request."""
    _, digest = content(10)
    for error in (RegistryError(ErrorCode.BLOB_UNKNOWN, "not there"), UpstreamUnavailableError("all down")):
        source = Source(Answer(b"", error=error))
        with pytest.raises(type(error)) as raised:
            await cache.open_or_fill(digest, source)
        assert raised.value is error
        assert source.offsets == [0]
        assert leftovers(cache_path) == []


async def test_a_404_for_one_repository_does_not_answer_another(cache: DiskCache) -> None:
    """A reader that joins the fetch of another repository, where the blob is absent, asks its own repository."""
    body, digest = content(MIB)
    hidden = Source(Answer(b"", error=RegistryError(ErrorCode.BLOB_UNKNOWN, "not there")))
    holding = Source(Answer(body))
    answers = await asyncio.gather(
        cache.open_or_fill(digest, hidden), cache.open_or_fill(digest, holding), return_exceptions=True
    )
    assert isinstance(answers[0], RegistryError)
    assert not isinstance(answers[1], BaseException)
    assert await read_all(answers[1][0]) == body


async def test_larger_than_the_cache_passes_through(make_cache: MakeCache, cache_path: Path) -> None:
    """Content that can never fit is refused before the first byte."""
    cache = make_cache(max_size_bytes=MIB)
    body, digest = content(MIB + 1)
    for announce in (True, False):
        with pytest.raises(CacheUnavailableError):
            await cache.open_or_fill(digest, Source(Answer(body * 20, announce=announce)))
    assert leftovers(cache_path) == []


async def test_a_defect_in_the_source_hangs_nobody(cache: DiskCache, caplog: pytest.LogCaptureFixture) -> None:
    """An undeclared error of the source reaches the waiting reader and the log."""
    _, digest = content(10)
    with pytest.raises(FillFailedError):
        await cache.open_or_fill(digest, Source(Answer(b"", error=ZeroDivisionError())))
    await until(lambda: "ZeroDivisionError" in caplog.text)


def _resources() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())


async def test_two_hundred_cancelled_readers_leave_nothing(cache: DiskCache, cache_path: Path) -> None:
    """No descriptor, task, lock or temporary file stays behind, whenever the readers were cancelled."""
    warm, warm_digest = content(1, seed=99)
    (await cache.open_or_fill(warm_digest, Source(Answer(warm))))[0].close()
    await committed(cache, warm_digest)
    before = _resources()
    body, digest = content(2 * MIB)
    answer = Answer(body, pause_at=MIB)
    source = Source(answer)
    opened: list[BlobReader] = []

    async def pull(*, wait: bool) -> None:
        reader, _ = await cache.open_or_fill(digest, source)
        opened.append(reader)
        try:
            if wait:
                await reader.wait_beyond(2 * MIB - 1)
        finally:
            reader.close()

    async with asyncio.TaskGroup() as group:
        pulls = [group.create_task(pull(wait=number % 2 == 0)) for number in range(200)]
        pulls[0].cancel()
        await answer.reached.wait()
        await until(lambda: len(opened) > 100)
        for task in pulls:
            task.cancel()
        answer.resume.set()
    await committed(cache, digest)
    await until(lambda: _resources() == before)
    assert leftovers(cache_path) == []


async def test_a_byte_for_each_connection_is_no_progress(cache: DiskCache) -> None:
    """A sender that breaks off after each byte is given up after a few requests, not asked once for each byte."""
    body, digest = content(MIB)
    source = Source(Answer(body, cut_after=1))
    reader, _ = await cache.open_or_fill(digest, source)
    with pytest.raises(FillFailedError):
        await read_all(reader)
    assert len(source.offsets) <= 10
