"""An upload without the cache: bounded memory, the pace of its senders, and no file afterwards."""

import asyncio
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.ports.uploads import SpoolFile
from registry_proxy.spool import upload_file
from registry_proxy.spool.spool import DiskSpool
from registry_proxy.tasks import spawn
from tests.cache.conftest import MakeCache
from tests.support.fakes.cache import MIB, content
from tests.support.fakes.replicas import ANN


@pytest.fixture
def small(make_cache: MakeCache) -> DiskCache:
    """Open a cache of 4 MiB: an upload has 1 MiB of it."""
    return make_cache(max_size_bytes=4 * MIB)


async def send(upload: SpoolFile, start: int = 0) -> bytes:
    """Read an upload as a sender does."""
    received, reader = b"", upload.open_reader(start)
    while piece := await reader.read(start + len(received)):
        received += piece
    reader.close()
    return received


async def write(upload: SpoolFile, body: bytes) -> None:
    """Write a body in pieces, and end the request."""
    for start in range(0, len(body), 100_000):
        await upload.write(body[start : start + 100_000])
    upload.finish_request()


async def test_senders_get_what_has_no_room(small: DiskCache) -> None:
    """From the disk first, then from memory: all bytes in order, the right hash, and no file afterwards."""
    body, digest = content(5 * MIB)
    upload = DiskSpool(small).create("big", ANN)
    senders = [spawn(send(upload), "sender") for _ in range(2)]
    await asyncio.sleep(0)
    await write(upload, body)
    assert await asyncio.gather(*senders) == [body] * 2
    assert not upload.is_whole
    assert await upload.digest("sha256") == digest
    assert await upload.digest("sha512") is None
    assert [*Path(small.paths.uploads).glob("*/*")] == []
    with pytest.raises(CacheUnavailableError):
        await upload.commit(digest)
    upload.discard()
    assert small.space.incoming_bytes == 0


async def test_the_writer_waits_for_its_slowest_sender(small: DiskCache) -> None:
    """At most a megabyte waits in memory; the writer continues as soon as a sender does, or has left."""
    body, _ = content(5 * MIB)
    upload = DiskSpool(small).create("big", ANN)
    reader = upload.open_reader(0)
    writing = spawn(write(upload, body), "writer")
    received = 0
    while received < 3 * MIB:
        received += len(await reader.read(received))
        await asyncio.sleep(0)
        assert upload.size_bytes <= received + 2 * MIB + 200_000
    assert not writing.done()
    reader.close()
    await writing
    upload.discard()


async def test_one_sender_does_not_hold_up_another_for_ever(small: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow replica gets no more, so that the others and the client can continue."""
    monkeypatch.setattr(upload_file, "_LAG_SECONDS", 0.05)
    body, _ = content(4 * MIB)
    upload = DiskSpool(small).create("big", ANN)
    slow, quick = upload.open_reader(0), spawn(send(upload), "sender")
    await asyncio.sleep(0)
    await write(upload, body)
    assert await quick == body
    with pytest.raises(CacheUnavailableError):
        await slow.read(3 * MIB)
    upload.discard()


async def test_an_upload_whose_beginning_is_elsewhere_needs_no_disk(small: DiskCache) -> None:
    """A tail has its place in the upload, no hash of the whole, and no file."""
    upload = DiskSpool(small).create_tail("tail", ANN, 1000)
    sender = spawn(send(upload, 1000), "sender")
    await asyncio.sleep(0)
    await write(upload, b"the rest")
    assert await sender == b"the rest"
    assert (upload.start_offset, upload.size_bytes, upload.is_whole) == (1000, 1008, False)
    assert await upload.digest("sha256") is None
    upload.close(b"note")
    assert [path.suffix for path in Path(small.paths.uploads).glob("*/*")] == [".note"]
