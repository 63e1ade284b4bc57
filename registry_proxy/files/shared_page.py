"""A file that several processes map."""

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from registry_proxy.files.lock import unlock


class SharedPage:
    """Read from ``memory``, written by a system call.

    A store to the memory of a file whose disk hangs holds up every thread of the process, because the thread that makes
    it keeps the interpreter's lock; a call holds up its own thread alone. Values that a disk does not take any more
    still reach the other processes.

    Args:
        fd: of a file, open for reading and writing; belongs to the page from then on.
        size_bytes: of what is mapped.

    Raises:
        OSError: there is no room for it; ``fd`` is closed.
    """

    def __init__(self, fd: int, size_bytes: int = mmap.PAGESIZE) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        try:
            os.posix_fallocate(fd, 0, size_bytes)  # a hole written to on a full disk is a SIGBUS, not an ENOSPC
            self.memory = mmap.mmap(fd, size_bytes)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def at(cls, path: str, size_bytes: int = mmap.PAGESIZE) -> "SharedPage":
        """Map the file at a path, made where it is missing. Raises OSError."""
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), size_bytes)

    @classmethod
    def in_memory(cls, size_bytes: int = mmap.PAGESIZE) -> "SharedPage":
        """Make a page of this process and its forks alone."""
        return cls(os.memfd_create("page"), size_bytes)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep out all other writers that lock the page too, of this process and of others."""
        with self._lock:  # flock excludes other processes, not the threads that share this descriptor
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                unlock(self._fd)

    def write(self, offset: int, content: bytes) -> None:
        """Replace bytes of the page."""
        try:
            os.pwrite(self._fd, content, offset)
        except OSError:
            self.memory[offset : offset + len(content)] = content

    def close(self) -> None:
        """Unmap it; twice is fine."""
        if not self.memory.closed:
            self.memory.close()
            os.close(self._fd)
