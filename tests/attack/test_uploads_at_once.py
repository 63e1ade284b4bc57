"""Many simultaneous or empty uploads of a user take no more of the disk than uploads one after another."""

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.layout import prepare_cache
from registry_proxy.cache.uploads import owner_of
from registry_proxy.files.hashing import hash_file
from registry_proxy.files.lock import locked
from registry_proxy.protocol.reference import Digest
from registry_proxy.spool.spool import DiskSpool
from registry_proxy.tasks import spawn
from tests.support.fakes.cache import MIB, Events
from tests.support.fakes.replicas import ANN
from tests.support.servers import wait_until

SHARE = 16 * MIB


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[DiskSpool]:
    """Open the uploads of a cache of which one subject may take ``SHARE``."""
    prepare_cache(tmp_path / "cache")
    cache = DiskCache(tmp_path / "cache", 4 * SHARE, 0, Events())
    yield DiskSpool(cache)
    await cache.close()


async def test_uploads_that_grow_side_by_side_stay_near_the_share_of_their_subject(spool: DiskSpool) -> None:
    """However many uploads of a subject grow at the same time, they take at most twice its share."""
    uploads = [spool.create(str(number), ANN) for number in range(100)]
    piece = bytes(64 * 1024)
    for _ in range(15):
        for upload in uploads:
            await upload.write(piece)
    held = sum(part.stat().st_size for part in Path(spool.cache.paths.uploads).glob("*/*.part"))
    for upload in uploads:
        upload.discard()
    assert held <= 2 * SHARE


async def test_an_upload_without_bytes_leaves_nothing_on_the_disk(spool: DiskSpool) -> None:
    """A request without bytes leaves no file."""
    for number in range(3):
        upload = spool.create(str(number), ANN)
        upload.finish_request()
        upload.close(b"note")
    assert not [*Path(spool.cache.paths.uploads).glob("*/*")]


async def test_a_crowded_directory_of_uploads_does_not_hold_the_loop(spool: DiskSpool) -> None:
    """While another worker counts the uploads of a subject, the end of an upload waits in a thread."""
    upload = spool.create("1", ANN)
    await upload.write(b"x")
    owner = owner_of(ANN.subject)
    before = spool.room.total_bytes
    with locked(spool.cache.paths.upload_bucket(owner), os.O_RDONLY | os.O_DIRECTORY):  # as another worker does
        upload.discard()
        assert spool.room.total_bytes == before == 1
    await asyncio.to_thread(wait_until, lambda: not spool.room.total_bytes, "the upload counts no more")


async def test_the_notes_of_a_subject_are_bounded(spool: DiskSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the uploads beyond a subject's share the oldest end, and are to be cancelled."""
    monkeypatch.setattr("registry_proxy.cache.uploads._MAX_SESSIONS", 2)
    monkeypatch.setattr("registry_proxy.cache.uploads._MAX_SESSIONS_WITH_NOTES", 4)
    for number in range(10):
        upload = spool.create(str(number), ANN)
        await upload.write(b"x")
        upload.finish_request()
        upload.close(b"note")
    assert len([*Path(spool.cache.paths.uploads).glob("*/*.note")]) <= 5
    assert len(spool.take_gone()) >= 5


async def test_uploads_that_are_read_again_leave_threads_to_others(
    spool: DiskSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many uploads have their hash computed again, the cache has threads for other work."""
    reading, may_end = threading.Semaphore(0), threading.Event()

    def read_slowly(fd: int, hasher: Any, *part: int) -> int:
        reading.release()
        may_end.wait(30)
        return hash_file(fd, hasher, *part)

    monkeypatch.setattr("registry_proxy.spool.upload_file.hash_file", read_slowly)
    uploads = [spool.create(str(number), ANN) for number in range(40)]
    for upload in uploads:
        await upload.write(b"x")
    hashing = [spawn(upload.digest("sha512"), "hash") for upload in uploads]
    await asyncio.to_thread(reading.acquire)
    try:
        async with asyncio.timeout(10):
            assert await spool.cache.tools.in_thread(len, "other work") == 10
    finally:
        may_end.set()
    assert await asyncio.gather(*hashing) == [Digest("sha512", hashlib.sha512(b"x").hexdigest())] * 40
    for upload in uploads:
        upload.discard()


def test_uploads_that_are_begun_and_cancelled_leave_a_bounded_number_of_marks(
    spool: DiskSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many uploads end, the disk keeps only the marks of the last ones."""
    monkeypatch.setattr("registry_proxy.spool.spool._MAX_MARKS", 3)
    now = time.time()
    for number in range(8):
        spool.mark_ended(str(number))
        os.utime(spool.cache.paths.ended(str(number)), (now + number, now + number), follow_symlinks=False)
    spool.sweep()
    assert [number for number in range(8) if spool.has_ended(str(number))] == [5, 6, 7]
