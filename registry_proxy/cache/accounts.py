"""How much is committed: counters in a page that all workers of the node map."""

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

_COUNTERS = struct.Struct("=qqq")


class Accounts:
    """Committed bytes and entries. Read by anyone at any time, written only under ``locked``.

    Only committed content is counted here. What is being filled is read from the directory instead, so that a worker
    that was killed leaves nothing behind in a counter.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._fd, 0, mmap.PAGESIZE)  # a hole written to on a full disk is a SIGBUS, not an ENOSPC
        self._page = mmap.mmap(self._fd, mmap.PAGESIZE)
        self._thread_lock = threading.Lock()

    @property
    def committed_bytes(self) -> int:
        return self._counters()[0]

    @property
    def entries(self) -> int:
        return self._counters()[1]

    @property
    def changes(self) -> int:
        """Rises with every write, so that a recount can tell whether something came between."""
        return self._counters()[2]

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Exclude every other worker and thread; what is inside takes microseconds."""
        # The threads of one process share the descriptor, and flock knows only descriptors.
        with self._thread_lock:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield self
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def write(self, committed_bytes: int, entries: int) -> None:
        """Set both counters; the caller holds the lock."""
        _COUNTERS.pack_into(self._page, 0, committed_bytes, entries, (self.changes + 1) % (1 << 62))

    def add(self, size_bytes: int, entries: int) -> None:
        """Change both counters; the caller holds the lock. A crash may have left them low: never below zero."""
        self.write(max(0, self.committed_bytes + size_bytes), max(0, self.entries + entries))

    def _counters(self) -> tuple[int, int, int]:
        counters: tuple[int, int, int] = _COUNTERS.unpack_from(self._page)
        return counters

    def close(self) -> None:
        """Unmap the page; twice is fine."""
        if self._fd >= 0:
            self._page.close()
            os.close(self._fd)
            self._fd = -1
