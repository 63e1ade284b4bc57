"""A thread that writes what others put into a bounded queue: none of them waits for a disk or a reader."""

import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

_T = TypeVar("_T")
_GATHER_SECONDS = 0.1
_END_SECONDS = 2.0


class WriterThread(Generic[_T]):
    """Calls a function that writes what is pending, some hundred entries at a time.

    Args:
        name: of the thread.
        write: takes entries from the left of ``pending``; returns the seconds after which it wants to be called again,
            0 for the next entry.
        pending_max: how many entries may wait.
        idle_seconds: after which it is called without a new entry, None for never.
    """

    def __init__(
        self, name: str, write: Callable[[], float], pending_max: int, idle_seconds: float | None = None
    ) -> None:
        self.pending: deque[_T] = deque()
        self.is_last = False
        """Whether ``write`` is called for the last time."""

        self._write = write
        self._pending_max = pending_max
        self._idle_seconds = idle_seconds
        self._has_work = threading.Event()
        self._hurry = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def put(self, entry: _T) -> bool:
        """Queue an entry, without waiting; return False where the queue is full, and the entry lost."""
        if len(self.pending) >= self._pending_max:
            return False
        self.pending.append(entry)
        if not self._has_work.is_set():
            self._has_work.set()
        return True

    def hurry(self) -> None:
        """Have it write now, instead of gathering more."""
        self._hurry.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write for the length of a with block; what is pending when it is left is still written, within a time."""
        self._thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self._hurry.set()
            self._has_work.set()
            self._thread.join(timeout=_END_SECONDS)  # what takes nothing any more must not keep the process alive

    def _run(self) -> None:
        while not self.is_last:
            self._has_work.wait(self._idle_seconds)
            self._hurry.wait(_GATHER_SECONDS)
            self._hurry.clear()
            self._has_work.clear()
            self.is_last = self._ending.is_set()
            if pause_seconds := self._write():
                self._ending.wait(pause_seconds)
                self._has_work.set()


def whole_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines into pieces of which each is one write: a pipe that others write to, too, keeps only these whole."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece
