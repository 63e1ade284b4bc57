"""Whether the disk of the cache answers. A thread touches it; nothing else of the process that asks ever does."""

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOOK_SECONDS = 0.5
_PAUSE_SECONDS = 1.0
_PROBE_BYTES = 4096


class DiskWatch:
    """Watches one directory.

    Args:
        directory: of the cache.
        patience_seconds: a call that takes longer counts as one that never returns.
        calm_seconds: how long a disk that was silent must answer before it is believed.
    """

    def __init__(self, directory: str, patience_seconds: float, calm_seconds: float) -> None:
        self.is_silent = False
        self._probe = f"{directory}/probe"
        self._patience_seconds = patience_seconds
        self._calm_seconds = calm_seconds
        self._asked = self._answered = 0  # both are written by the thread alone
        self._ending = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Touch the disk for the length of a with block. A thread that waits for it then is left behind."""
        threading.Thread(target=self._run, name="disk watch", daemon=True).start()
        try:
            yield
        finally:
            self._ending.set()

    async def changed(self) -> None:
        """Return when the disk has become silent, or answers again; ``is_silent`` says which."""
        silent_for = calm_for = 0.0
        while True:
            answered = self._answered
            await asyncio.sleep(_LOOK_SECONDS)  # counted, not the clock: this process may itself have been stopped
            is_waiting = self._asked != answered and self._answered == answered
            silent_for = silent_for + _LOOK_SECONDS if is_waiting else 0.0
            calm_for = 0.0 if is_waiting else calm_for + _LOOK_SECONDS
            if (calm_for >= self._calm_seconds) if self.is_silent else (silent_for >= self._patience_seconds):
                self.is_silent = not self.is_silent
                return

    def _run(self) -> None:
        while not self._ending.wait(_PAUSE_SECONDS):
            self._asked += 1
            with suppress(OSError):  # a disk that fails answers: what fails is dealt with where it is used
                _touch(self._probe)
            self._answered = self._asked


def _touch(path: str) -> None:
    """Write to the disk, and read from it what is in no memory. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < _PROBE_BYTES:
            os.pwrite(fd, bytes(_PROBE_BYTES), 0)
            os.fsync(fd)
        os.utime(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(fd, _PROBE_BYTES, 0)
    finally:
        os.close(fd)
