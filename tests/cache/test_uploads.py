"""Room for unfinished uploads: shares per owner and in all, the order of removal, and correct counters."""

import os
import time
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.uploads import UploadRoom, owner_of
from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.spool.spool import DiskSpool
from tests.cache.conftest import MakeCache
from tests.support.fakes.cache import MIB, content
from tests.support.fakes.replicas import ANN

OWNER, OTHER, THIRD = owner_of("user:ann"), owner_of("user:bob"), owner_of("user:cat")


@pytest.fixture
def room(make_cache: MakeCache) -> UploadRoom:
    """Return the room of a cache of 8 MiB: 2 MiB for one owner, 4 MiB for all."""
    return make_cache(max_size_bytes=8 * MIB).space.uploads


def put(room: UploadRoom, owner: str, session: str, size_bytes: int, idle_seconds: float = 0) -> Path:
    """Let an upload grow to a size, and close it unfinished; return its file."""
    fd = room.open_part(owner, session)
    room.admit(owner, session, size_bytes)
    os.ftruncate(fd, size_bytes)
    then = time.time() - idle_seconds
    os.utime(fd, (then, then))
    path = Path(os.readlink(f"/proc/self/fd/{fd}"))
    os.close(fd)
    return path


def test_an_owner_has_a_quarter_and_all_have_a_half(room: UploadRoom) -> None:
    """Uploads within the share of the owner and of all are accepted; those beyond are refused."""
    put(room, OWNER, "1", 2 * MIB)
    with pytest.raises(CacheUnavailableError, match="its subject"):
        put(room, OWNER, "2", 1)
    put(room, OTHER, "1", 2 * MIB)
    assert room.total_bytes == 4 * MIB
    with pytest.raises(CacheUnavailableError, match="all unfinished"):
        put(room, THIRD, "1", 1)
    assert room.total_bytes == 4 * MIB


def test_the_oldest_that_was_abandoned_gives_way(room: UploadRoom) -> None:
    """The owner's abandoned uploads go before those of others; never one of the last five minutes."""
    older, newer = put(room, OWNER, "1", MIB, 700), put(room, OWNER, "2", MIB, 600)
    room.write_note(OWNER, "1", b"note")
    os.utime(older.with_suffix(".note"), (1, 1))
    put(room, OWNER, "3", MIB)
    assert not older.exists()
    assert newer.exists()
    assert room.take_gone() == [b"note"]
    assert room.take_gone() == []
    fresh = put(room, OTHER, "1", 2 * MIB)
    put(room, THIRD, "1", MIB)
    assert not newer.exists()
    assert fresh.exists()
    assert room.total_bytes == 4 * MIB


async def test_an_upload_that_is_written_to_is_not_abandoned(make_cache: MakeCache) -> None:
    """However long its request takes, another upload of its owner does not end it."""
    spool = DiskSpool(make_cache(max_size_bytes=8 * MIB))
    upload = spool.create("long", ANN)
    await upload.write(content(2 * MIB)[0])
    (part,) = Path(spool.cache.paths.uploads).glob("*/*.part")
    os.utime(part, (1, 1))
    second = spool.create("second", ANN)
    await second.write(b"x")
    assert part.exists()
    assert not second.is_whole
    second.discard()
    upload.discard()


async def test_the_numbers_follow_the_uploads(make_cache: MakeCache) -> None:
    """The count is the number of files through open, close, resume in another worker, commit and discard."""
    caches = [make_cache(max_size_bytes=1 << 30) for _ in range(2)]
    spools = [DiskSpool(cache) for cache in caches]
    body, digest = content(300_000)
    for number in range(3):
        upload = spools[0].create(f"s{number}", ANN)
        await upload.write(body)
        upload.close()
    assert [cache.space.incoming_bytes for cache in caches] == [900_000] * 2
    again = spools[1].reopen("s0", ANN)
    assert again is not None
    await again.commit(digest)
    again.close()
    gone = spools[1].reopen("s1", ANN)
    assert gone is not None
    gone.discard()
    assert [cache.space.incoming_bytes for cache in caches] == [300_000] * 2


def test_a_sweep_makes_the_numbers_right(room: UploadRoom, cache_path: Path) -> None:
    """The leftovers of a killed worker are counted until the sweep; uploads at rest for six hours are removed."""
    put(room, OWNER, "1", MIB)
    old = put(room, OWNER, "2", MIB, 7 * 3600)
    room.count(OWNER, 5 * MIB)
    room.write_note(OTHER, "1", b"only at the replicas")
    (note,) = (cache_path / "spool").glob("*/*.note")
    os.utime(note, (1, 1))
    assert room.sweep() == 2
    assert not old.exists()
    assert room.total_bytes == MIB
    assert room.take_gone() == [b"only at the replicas"]


async def test_abandoned_uploads_give_way_to_fetches_at_last(make_cache: MakeCache) -> None:
    """With nothing left to evict, abandoned uploads are removed."""
    cache: DiskCache = make_cache(max_size_bytes=8 * MIB)
    part = put(cache.space.uploads, OWNER, "1", 2 * MIB, 700)
    cache.space.make_room(7 * MIB, over_max_size=False)
    assert not part.exists()
