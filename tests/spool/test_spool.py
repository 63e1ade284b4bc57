"""Uploads: written once, followed by senders, committed by a rename."""

import asyncio
import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.ports.uploads import UPLOAD_LIFETIME_SECONDS, SpoolFile, Uploader
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest
from registry_proxy.spool.spool import DiskSpool
from tests.cache.conftest import MakeCache
from tests.support.fakes.cache import MIB, content, read_all

ANN = Uploader("user:ann", 0)


@pytest.fixture
def spool(cache: DiskCache) -> DiskSpool:
    """Return the uploads of the cache."""
    return DiskSpool(cache)


def parts(cache_path: Path) -> list[str]:
    """Return the names of the files of unfinished uploads."""
    return sorted(path.name for path in (cache_path / "spool").glob("*/*"))


async def send(upload: SpoolFile) -> bytes:
    """Follow an upload as a sender does."""
    received, reader = b"", upload.open_reader(0)
    while piece := await reader.read(len(received)):
        received += piece
    reader.close()
    return received


async def test_senders_follow_the_writer(spool: DiskSpool) -> None:
    """Every sender gets all bytes in order, and an end when the request is finished."""
    body, _ = content(MIB)
    upload = spool.create("one", ANN)
    senders = [asyncio.ensure_future(send(upload)) for _ in range(3)]  # noqa: TID251 - awaited below
    for start in range(0, MIB, 100_000):
        await upload.write(body[start : start + 100_000])
    upload.finish_request()
    assert await asyncio.gather(*senders) == [body] * 3
    assert upload.size_bytes == MIB
    upload.discard()


async def test_a_committed_upload_is_a_hit(spool: DiskSpool, cache: DiskCache, cache_path: Path) -> None:
    """The commit is a cache entry immediately, and nothing stays behind."""
    body, digest = content(MIB)
    upload = spool.create("one", ANN)
    await upload.write(body)
    assert await upload.digest("sha256") == digest
    await upload.commit(digest)
    upload.close()
    upload.close()
    reader = cache.open_committed(digest)
    assert reader is not None
    assert await read_all(reader) == body
    assert parts(cache_path) == []
    assert cache.stats()["committed_bytes"] == MIB
    assert spool.reopen("one", ANN) is None


async def test_committing_what_is_there_already(spool: DiskSpool, cache: DiskCache, cache_path: Path) -> None:
    """A second push of the same content succeeds and is counted once."""
    body, digest = content(1000)
    for session in ("one", "two"):
        upload = spool.create(session, ANN)
        await upload.write(body)
        await upload.commit(digest)
        upload.close()
    assert cache.stats()["committed_bytes"] == 1000
    assert parts(cache_path) == []


async def test_requests_of_a_session_on_different_workers(make_cache: MakeCache) -> None:
    """The bytes and the hash continue wherever the next request comes, and back again."""
    workers = [DiskSpool(make_cache()), DiskSpool(make_cache())]
    body, digest = content(6 * 50_000)
    upload: SpoolFile | None = workers[0].create("one", ANN)
    for number, worker in enumerate([0, 0, 1, 0, 1, 1]):
        if number:
            upload = workers[worker].reopen("one", ANN)
        assert upload is not None
        assert upload.size_bytes == number * 50_000
        await upload.write(body[number * 50_000 : (number + 1) * 50_000])
        so_far = body[: (number + 1) * 50_000]
        assert await upload.digest("sha256") == Digest("sha256", hashlib.sha256(so_far).hexdigest())
        upload.close()
    upload = workers[0].reopen("one", ANN)
    assert upload is not None
    assert await upload.digest("sha512") == Digest("sha512", hashlib.sha512(body).hexdigest())
    assert await upload.digest("sha256") == digest
    await upload.commit(digest)
    upload.close()


async def test_one_writer_at_a_time(make_cache: MakeCache) -> None:
    """A second request to the same upload is refused with the spec's code, on any worker, until the first ends."""
    spools = [DiskSpool(make_cache()), DiskSpool(make_cache())]
    upload = spools[0].create("one", ANN)
    for spool in spools:
        with pytest.raises(RegistryError) as raised:
            spool.reopen("one", ANN)
        assert raised.value.code is ErrorCode.BLOB_UPLOAD_INVALID
    with pytest.raises(RegistryError):
        spools[1].create("one", ANN)
    await upload.write(b"x")
    upload.close()
    again = spools[1].reopen("one", ANN)
    assert again is not None
    again.discard()
    assert spools[0].reopen("one", ANN) is None


@pytest.mark.parametrize("session", ["../../etc/passwd", "", "a/b", ".", "x" * 200, "a\n"])
def test_a_session_is_never_a_path(spool: DiskSpool, session: str) -> None:
    """An invalid session id is unknown, whatever signed it."""
    for call in (spool.create, spool.reopen):
        with pytest.raises(RegistryError) as raised:
            call(session, ANN)
        assert raised.value.code is ErrorCode.BLOB_UPLOAD_UNKNOWN


@pytest.mark.parametrize("end", ["close", "discard"])
async def test_senders_are_woken_when_the_upload_ends(spool: DiskSpool, end: str) -> None:
    """No sender waits for a writer that is gone."""
    upload = spool.create("one", ANN)
    sender = asyncio.ensure_future(upload.wait_beyond(0))  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    getattr(upload, end)()
    assert await sender is False


async def test_a_cancelled_write_keeps_file_and_hash_in_step(spool: DiskSpool) -> None:
    """When the client leaves in mid-write, file and hash hold as many bytes as the size says."""
    body, _ = content(4 * MIB)
    upload = spool.create("one", ANN)
    writing = asyncio.ensure_future(upload.write(body))  # noqa: TID251 - to be cancelled here
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    upload.close()
    again = spool.reopen("one", ANN)
    assert again is not None
    expected = hashlib.sha256(body[: again.size_bytes]).hexdigest()
    assert await again.digest("sha256") == Digest("sha256", expected)
    again.discard()


async def test_idle_uploads_are_swept(spool: DiskSpool, cache_path: Path) -> None:
    """After six idle hours an upload is removed, unless a request is writing to it."""
    hours_ago = time.time() - 7 * 3600
    for session in ("idle", "busy", "fresh"):
        upload = spool.create(session, ANN)
        await upload.write(b"x")
        upload.close()
    busy = spool.reopen("busy", ANN)
    assert busy is not None
    for session in ("idle", "busy"):
        (part,) = (cache_path / "spool").glob(f"*/*-{session}.part")
        os.utime(part, (hours_ago, hours_ago))
    assert spool.sweep() == 1
    assert [name.partition("-")[2] for name in parts(cache_path)] == ["busy.part", "fresh.part"]
    busy.discard()


def test_an_upload_that_ended_is_remembered_as_long_as_its_location_is_valid(
    spool: DiskSpool, cache_path: Path
) -> None:
    """Every worker knows it for a day; a missing directory, or a disk that refuses, causes no error."""
    days_ago = time.time() - UPLOAD_LIFETIME_SECONDS - 60
    for session in ("old", "new"):
        assert not spool.has_ended(session)
        assert spool.mark_ended(session)
        assert DiskSpool(spool.cache).has_ended(session)
    os.utime(cache_path / "cancelled" / "old", (days_ago, days_ago), follow_symlinks=False)
    assert spool.sweep() == 0
    assert [spool.has_ended(session) for session in ("old", "new")] == [False, True]
    shutil.rmtree(cache_path / "cancelled")
    assert spool.mark_ended("another")
    assert spool.sweep() == 0


def test_an_upload_becomes_one_content(spool: DiskSpool) -> None:
    """The repeated commit may continue; another content, and any other request, meets an upload that is over."""
    (_, one), (_, other) = content(10, 1), content(10, 2)
    assert spool.mark_ended("session", one)
    assert spool.mark_ended("session", one)
    assert not spool.has_ended("session", one)
    assert not spool.mark_ended("session", other)
    assert not spool.mark_ended("session")
    assert spool.has_ended("session", other)
    assert spool.has_ended("session")
