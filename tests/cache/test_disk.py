"""Hits, tampering, purge and verify, and disks that fail."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.layout import prepare_cache
from registry_proxy.ports.errors import CacheUnavailableError, FillFailedError
from registry_proxy.ports.uploads import Uploader
from registry_proxy.protocol.reference import Digest
from registry_proxy.spool.spool import DiskSpool
from tests.cache.conftest import MakeCache
from tests.support.fakes.cache import MIB, Answer, Events, Source, content, read_all
from tests.support.waiting import until


async def put(cache: DiskCache, size_bytes: int, seed: int = 0) -> tuple[bytes, Digest]:
    """Store a content in the cache."""
    body, digest = content(size_bytes, seed)
    reader, _ = await cache.open_or_fill(digest, Source(Answer(body)))
    assert await read_all(reader) == body
    await until(lambda: not cache.is_filling(digest))
    return body, digest


def blob_file(path: Path, digest: Digest) -> Path:
    """Return the path of a committed content."""
    return path / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex


async def test_an_absent_content_is_none(cache: DiskCache) -> None:
    """A digest that was never seen is absent everywhere, and a drop of it is no error."""
    _, digest = content(1)
    assert cache.open_committed(digest) is None
    assert cache.read_small(digest) is None
    assert not cache.is_filling(digest)
    cache.drop(digest)
    assert cache.stats()["entries"] == 0


async def test_stored_content_is_read_by_every_worker(make_cache: MakeCache) -> None:
    """A content stored by one worker is read by another; a second store counts once."""
    first, second = make_cache(), make_cache()
    body, digest = content(5000)
    await asyncio.gather(first.store(digest, body), second.store(digest, body))
    await second.store(digest, body)
    assert second.read_small(digest) == body
    assert first.stats()["committed_bytes"] == 5000
    assert first.stats()["entries"] == 1


async def test_sha512_content_is_cached_too(cache: DiskCache) -> None:
    """Content with a sha512 digest is cached like that with sha256."""
    body, _ = content(100_000)
    hasher = Digest("sha512", "").hasher()
    hasher.update(body)
    digest = Digest("sha512", hasher.hexdigest())
    reader, _ = await cache.open_or_fill(digest, Source(Answer(body)))
    assert await read_all(reader) == body
    await until(lambda: cache.read_small(digest) == body)


async def test_small_reads_come_from_memory(cache: DiskCache, cache_path: Path) -> None:
    """A small content that was read once needs no disk; one over 4 MiB is never read whole."""
    small, small_digest = await put(cache, 5000)
    _, large_digest = await put(cache, 4 * MIB + 1)
    assert cache.read_small(small_digest) == small
    blob_file(cache_path, small_digest).unlink()
    assert cache.read_small(small_digest) == small
    assert cache.read_small(large_digest) is None


async def test_dropped_content_is_gone_but_open_readers_are_not_cut(make_cache: MakeCache) -> None:
    """Every worker sees a drop immediately; a reader that has the content open reads to its end."""
    first, second = make_cache(), make_cache()
    body, digest = await put(first, MIB)
    reader = second.open_committed(digest)
    assert reader is not None
    first.drop(digest)
    assert second.open_committed(digest) is None
    assert await read_all(reader) == body
    assert first.stats()["committed_bytes"] == 0


@pytest.mark.parametrize("damage", ["truncated", "emptied", "appended", "byte flipped", "mode"])
async def test_content_that_was_tampered_with_is_fetched_again(
    cache: DiskCache, cache_path: Path, events: Events, damage: str
) -> None:
    """Any change through the file system is detected when the content is opened, and the content is fetched again."""
    body, digest = await put(cache, 200_000)
    file = blob_file(cache_path, digest)
    file.chmod(0o644)
    match damage:
        case "truncated":
            os.truncate(file, 100_000)
        case "emptied":
            os.truncate(file, 0)
        case "appended":
            with file.open("ab") as opened:
                opened.write(b"x")
        case "mode":
            pass
        case _:
            with file.open("r+b") as opened:
                opened.write(bytes([body[0] ^ 1]))
    if damage != "mode":
        file.chmod(0o444)
    assert cache.open_committed(digest) is None
    assert events.errors["rot"] == 1
    assert await put(cache, 200_000) == (body, digest)
    assert await cache.verify() == []
    assert cache.stats()["committed_bytes"] == 200_000


async def test_a_rotten_bit_is_found_by_verify_and_by_small_reads(
    make_cache: MakeCache, cache_path: Path, events: Events
) -> None:
    """A bit that changed without a trace in the file's times is never served small, and verify drops it."""
    cache = make_cache()
    digests = []
    for size_bytes in (5000, 300_000, 400_000):
        body, digest = await put(cache, size_bytes)
        digests.append(digest)
        if size_bytes < 400_000:
            file = blob_file(cache_path, digest)
            file.chmod(0o644)
            file.write_bytes(bytes([body[0] ^ 1]) + body[1:])
            os.utime(file, ns=(0, 0))
            file.chmod(0o444)
    assert make_cache().read_small(digests[0]) is None
    assert await cache.verify() == [digests[1]]
    assert events.errors == {"rot": 2}
    assert cache.stats()["entries"] == 1


async def test_purge_spares_what_is_pinned(cache: DiskCache) -> None:
    """A purge of all, or of one, also removes it from memory, unless a replica still misses it."""
    body, pinned = await put(cache, 1000, 1)
    _, one = await put(cache, 1000, 2)
    _, two = await put(cache, 1000, 3)
    DiskSpool(cache).pin(pinned)
    for digest in (one, two, pinned):
        assert cache.read_small(digest) is not None
    assert await cache.purge([one]) == 1
    assert await cache.purge([one]) == 0
    assert await cache.purge([pinned]) == 0
    assert cache.read_small(one) is None
    assert await cache.purge(None) == 1
    assert cache.read_small(two) is None
    assert cache.read_small(pinned) == body
    assert cache.stats()["pinned_bytes"] == 1000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 16 MiB with a cache in it."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "registry-proxy-test", str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        prepare_cache(path / "cache")
        yield path / "cache"
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill_disk(path: Path) -> None:
    """Write until the file system is full."""
    with (path.parent / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            pass


async def test_a_disk_that_fills_up_in_mid_fill(make_cache: MakeCache, small_disk: Path, events: Events) -> None:
    """Readers get an error with the cause, the file is removed, a metric counts it; with room again the cache works."""
    cache = make_cache(path=small_disk)
    body, digest = content(8 * MIB)
    answer = Answer(body, pause_at=4 * MIB)
    reader, _ = await cache.open_or_fill(digest, Source(answer))
    await answer.reached.wait()
    fill_disk(small_disk)
    answer.resume.set()
    with pytest.raises(FillFailedError) as raised:
        await read_all(reader)
    causes = [raised.value.__cause__, getattr(raised.value.__cause__, "__cause__", None)]
    assert any(isinstance(cause, OSError) for cause in causes)
    assert events.errors["write"] == 1
    assert os.listdir(small_disk / "fills") == []
    (small_disk.parent / "ballast").unlink()
    assert (await put(cache, 8 * MIB))[0] == body


@pytest.mark.parametrize("announce", [True, False])
@pytest.mark.parametrize("size_bytes", [1000, 2 * MIB])
async def test_a_full_disk_at_the_start(
    make_cache: MakeCache, small_disk: Path, size_bytes: int, *, announce: bool
) -> None:
    """On a full disk the caller is to pass content through; a store is no error; hits are still served."""
    cache = make_cache(path=small_disk)
    hit, hit_digest = await put(cache, MIB, 7)
    DiskSpool(cache).pin(hit_digest)
    fill_disk(small_disk)
    body, digest = content(size_bytes)
    with pytest.raises(CacheUnavailableError):
        await cache.open_or_fill(digest, Source(Answer(body * (1 if announce else 20), announce=announce)))
    await cache.store(digest, body)
    assert cache.open_committed(digest) is None
    assert os.listdir(small_disk / "fills") == os.listdir(small_disk / "temp") == []
    reader = cache.open_committed(hit_digest)
    assert reader is not None
    assert await read_all(reader) == hit


async def test_content_without_a_length_that_outgrows_the_disk(make_cache: MakeCache, small_disk: Path) -> None:
    """The fill ends before the disk is full to the last byte, and leaves nothing."""
    cache = make_cache(path=small_disk, min_free_bytes=MIB)
    body, digest = content(40 * MIB)
    with pytest.raises(CacheUnavailableError):
        await cache.open_or_fill(digest, Source(Answer(body, announce=False)))
    assert os.listdir(small_disk / "fills") == []


async def test_a_disk_that_takes_no_files(cache: DiskCache, cache_path: Path, events: Events) -> None:
    """Hits are served from a disk that is full; misses and uploads are passed through."""
    hit, hit_digest = await put(cache, MIB, 7)
    for name in ("fills", "temp", "spool"):
        (cache_path / name).rmdir()
    body, digest = content(1000)
    with pytest.raises(CacheUnavailableError):
        await cache.open_or_fill(digest, Source(Answer(body)))
    upload = DiskSpool(cache).create("one", Uploader("user:ann", 0))
    await upload.write(body)
    assert not upload.is_whole
    upload.discard()
    await cache.store(digest, body)
    assert events.errors["write"] == 3
    reader = cache.open_committed(hit_digest)
    assert reader is not None
    assert await read_all(reader) == hit
