"""Locks on files (flock): held until the file is closed, at the latest when its process dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

_CREATE = os.O_RDONLY | os.O_CREAT


def try_lock(fd: int) -> bool:
    """Lock an open file; return False, without waiting, while another holder has the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Release the lock, also where others hold duplicates of the descriptor: closing ours would not be enough then."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_at(fd: int, path: str) -> bool:
    """Tell whether the open file still has the name: a holder of the lock may have removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def open_locked(path: str, flags: int = _CREATE) -> int | None:
    """Open a file, and lock it without waiting; the lock ends when the caller closes it.

    Args:
        path: of the file.
        flags: of ``open(2)``; by default a missing file is made.

    Returns:
        None while another holder has the lock, and when the file lost its name to one.

    Raises:
        OSError: it cannot be opened.
    """
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        if try_lock(fd) and is_at(fd, path):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


@contextmanager
def lock_tried(path: str, flags: int = _CREATE) -> Iterator[bool]:
    """Hold the lock as ``open_locked`` gives it for the length of a with block; the value is whether it was free."""
    fd = open_locked(path, flags)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


@contextmanager
def locked(path: str, flags: int = _CREATE) -> Iterator[None]:
    """Wait for the lock of a file, and hold it for the length of a with block; arguments as of ``open_locked``."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
