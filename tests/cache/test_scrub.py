"""The scrub: contents that rot on disk are detected, and never served afterwards."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.scrub import Scrubber, ScrubRound
from registry_proxy.ports.metrics import ScrubbedBytes
from registry_proxy.protocol.reference import Digest
from registry_proxy.tasks import spawn
from tests.cache.conftest import MakeCache
from tests.cache.test_disk import blob_file, put
from tests.support.fakes.cache import Answer, Events, Source, read_all
from tests.support.waiting import until


def rot(path: Path, digest: Digest) -> None:
    """Flip a byte as a bad disk does: nothing else of the file changes."""
    file = blob_file(path, digest)
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(7)
        byte = opened.read(1)
        opened.seek(7)
        opened.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def noted(path: Path) -> int:
    """Return the number of shards that the last scrub has done."""
    try:
        return int(json.loads((path / "scrub").read_text())["shard"])
    except FileNotFoundError:
        return 0


async def run_until_done(scrubber: Scrubber, path: Path) -> None:
    """Run a scrubber until its round is over."""
    task = spawn(scrubber.run(), "care")
    await until(lambda: noted(path) == 256)
    task.cancel()
    await asyncio.wait([task])


async def test_the_end_of_the_last_round_is_reported_after_a_restart(
    cache: DiskCache, cache_path: Path, events: Events
) -> None:
    """The worker that takes over reports the end of the last round, from the note on the disk."""
    await run_until_done(Scrubber(cache, 1 << 40, 3600), cache_path)
    (ended_at,) = events.rounds
    os.utime(cache_path / "scrub", (ended_at, ended_at))
    events.events.clear()
    task = spawn(Scrubber(cache, 1 << 40, 3600).run(), "care")
    await until(lambda: bool(events.rounds))
    task.cancel()
    await asyncio.wait([task])
    assert events.rounds == [pytest.approx(ended_at)]


async def test_the_scrub_finds_all_rot_in_one_round(cache: DiskCache, cache_path: Path, events: Events) -> None:
    """Rotten contents go to quarantine, are counted, and are fetched again for the next reader."""
    contents = [await put(cache, 200_000, seed) for seed in range(20)]
    bad = contents[::5]
    used = {digest: blob_file(cache_path, digest).stat().st_atime_ns for _, digest in contents}
    for _, digest in bad:
        rot(cache_path, digest)
    await run_until_done(Scrubber(cache, 1 << 40, 3600), cache_path)
    assert events.errors == {"rot": 4}
    assert len(list((cache_path / "quarantine").glob("*.disk.*"))) == 4
    assert events.total(ScrubbedBytes) == 20 * 200_000
    assert len(events.rounds) == 1
    for body, digest in contents:
        if (body, digest) not in bad:
            assert blob_file(cache_path, digest).stat().st_atime_ns == used[digest], "a scrub is no use of a content"
    for body, digest in contents:
        assert (cache.open_committed(digest) is None) == ((body, digest) in bad)
    body, digest = bad[0]
    reader, _ = await cache.open_or_fill(digest, Source(Answer(body)))
    assert await read_all(reader) == body


async def test_empty_shards_cost_a_scrub_nothing(
    cache: DiskCache, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round writes a note for each shard with content, and one at its end: not one for each of the 256."""
    notes: list[int] = []
    write = Scrubber._write_note

    def write_noted(scrubber: Scrubber, done: ScrubRound) -> None:
        notes.append(done.shard)
        write(scrubber, done)

    monkeypatch.setattr(Scrubber, "_write_note", write_noted)
    held = {int((await put(cache, 1000, seed))[1].hex[:2], 16) for seed in range(3)}
    await run_until_done(Scrubber(cache, 1 << 40, 3600), cache_path)
    assert notes == [*sorted(shard + 1 for shard in held), 256]


async def test_one_worker_scrubs_and_another_takes_over(make_cache: MakeCache, cache_path: Path) -> None:
    """A round continues where its worker died; a new one does not begin before its time."""
    cache = make_cache()
    (_, digest) = await put(cache, 1000)
    (cache_path / "scrub").write_text(json.dumps({"shard": int(digest.hex[:2], 16) + 1, "started_at": 1.0}))
    rot(cache_path, digest)
    first, second = Scrubber(make_cache(), 1 << 40, 1e12), Scrubber(make_cache(), 1 << 40, 1e12)
    await asyncio.gather(run_until_done(first, cache_path), run_until_done(second, cache_path))
    assert blob_file(cache_path, digest).exists(), "its shard was done already"
    task = spawn(Scrubber(make_cache(), 1 << 40, 0.001).run(), "care")
    await until(lambda: not blob_file(cache_path, digest).exists())
    task.cancel()
    await asyncio.wait([task])


async def test_a_checked_opening_serves_no_rot(cache_path: Path, events: Events) -> None:
    """With a sample of all, rot with restored times is found before the first byte."""
    cache = DiskCache(cache_path, 1 << 40, 0, events, check_share=1.0)
    _, digest = await put(cache, 200_000, 1)
    body, good = await put(cache, 200_000, 2)
    rot(cache_path, digest)
    assert await cache.open_checked(digest) is None
    reader = await cache.open_checked(good)
    assert reader is not None
    assert await read_all(reader) == body
    assert events.errors == {"rot": 1}
    await cache.close()


async def test_the_quarantine_is_bounded(cache: DiskCache, cache_path: Path) -> None:
    """A disk that rots wholly does not fill itself with the quarantine."""
    for seed in range(20):
        _, digest = await put(cache, 1000, seed)
        cache.reject(digest, "a test")
    assert len(os.listdir(cache_path / "quarantine")) == 8
    assert cache.stats()["entries"] == 0


async def test_a_lie_is_quarantined(cache: DiskCache, cache_path: Path) -> None:
    """A complete body with a wrong digest is kept for inspection and served to no client."""
    body, digest = await put(cache, 1000)
    cache.drop(digest)
    source = Source(Answer(b"x" * 1000), Answer(body))
    reader, _ = await cache.open_or_fill(digest, source)
    assert await read_all(reader) == body
    (name,) = os.listdir(cache_path / "quarantine")
    assert name.startswith(f"sha256-{digest.hex}.unknown.")
    assert (cache_path / "quarantine" / name).read_bytes() == b"x" * 1000


def test_a_strange_note_begins_a_new_round(
    cache: DiskCache, cache_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A note that cannot be read costs a round, and nothing else."""
    (cache_path / "scrub").write_text("[]")
    assert Scrubber(cache, 1, 1)._read_note().shard == 0
