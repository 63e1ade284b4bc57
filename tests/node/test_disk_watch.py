"""The watch of a disk: silent when a call does not return, and trusted again when calls do."""

import asyncio
import threading
from pathlib import Path

import pytest

from registry_proxy.node import disk_watch
from registry_proxy.node.disk_watch import DiskWatch


async def test_silence_and_its_end_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that hangs makes the disk silent until calls return again. A call that fails is an answer."""
    answers = threading.Event()

    def touch(_: str) -> None:
        answers.wait()
        raise OSError("no such device")

    monkeypatch.setattr(disk_watch, "_touch", touch)
    monkeypatch.setattr(disk_watch, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(disk_watch, "_PAUSE_SECONDS", 0.01)
    watch = DiskWatch(str(tmp_path), 0.1, 0.1)
    async with asyncio.timeout(30):
        with watch.running():
            await watch.changed()
            assert watch.is_silent
            answers.set()
            await watch.changed()
            assert not watch.is_silent


async def test_a_disk_is_really_touched(tmp_path: Path) -> None:
    """The probe writes a page and reads it."""
    disk_watch._touch(f"{tmp_path}/probe")
    disk_watch._touch(f"{tmp_path}/probe")
    assert (tmp_path / "probe").stat().st_size == 4096
