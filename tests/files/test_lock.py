"""Locks exclude each other over processes, and are invalid on a file that lost its name."""

import fcntl
import os
from pathlib import Path

import pytest

from registry_proxy.files.lock import is_at, lock_tried, locked, open_locked, try_lock, unlock


def test_a_lock_ends_with_its_descriptor(tmp_path: Path) -> None:
    """The lock is free again when its owner's descriptor is closed, not when another one of the file is."""
    path = str(tmp_path / "lock")
    first, second, third = (os.open(path, os.O_RDONLY | os.O_CREAT, 0o600) for _ in range(3))
    assert try_lock(first)
    assert not try_lock(second)
    os.close(third)
    assert not try_lock(second)
    os.close(first)
    assert try_lock(second)
    assert is_at(second, path)
    os.close(second)


def test_a_duplicate_does_not_keep_a_lock_that_was_released(tmp_path: Path) -> None:
    """Readers may hold duplicates of a locked descriptor."""
    path = str(tmp_path / "lock")
    owner = open_locked(path)
    assert owner is not None
    duplicate = os.dup(owner)
    os.close(owner)
    assert open_locked(path) is None
    unlock(duplicate)
    with lock_tried(path) as is_free:
        assert is_free
    os.close(duplicate)


def test_a_file_that_lost_its_name_is_reported(tmp_path: Path) -> None:
    """A lock on a file that lost its name, or whose name another file has now, is reported as invalid."""
    path = str(tmp_path / "lock")
    fd = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    os.unlink(path)
    assert try_lock(fd)
    assert not is_at(fd, path)
    other = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    assert not is_at(fd, path)
    assert is_at(other, path)
    os.close(fd)
    os.close(other)


@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
def test_a_file_that_ends_between_opening_and_locking_is_not_locked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_replaced: bool,  # noqa: FBT001 - a parameter
) -> None:
    """A holder removes its file when it leaves: a later lock on that file is invalid."""
    path = tmp_path / "lock"
    flock = fcntl.flock

    def left_just_before(fd: int, operation: int) -> None:
        path.unlink()
        if is_replaced:
            path.touch()
        flock(fd, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", left_just_before)
        assert open_locked(str(path)) is None
    fd = open_locked(str(path))
    assert fd is not None
    assert open_locked(str(path)) is None
    os.close(fd)


def test_a_lock_that_is_waited_for_excludes_one_that_is_tried(tmp_path: Path) -> None:
    """A lock with a wait and one without take the same lock, for the length of the block."""
    path = str(tmp_path / "lock")
    with locked(path), lock_tried(path) as is_free:
        assert not is_free
    with lock_tried(path) as is_free:
        assert is_free
