"""Events of files that other workers write: one inotify instance a process."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from inotify_simple import INotify, flags  # type: ignore[import-untyped]  # it has no stubs

_log = logging.getLogger(__name__)
_MASK = flags.MODIFY | flags.ATTRIB | flags.CLOSE_WRITE | flags.MOVE_SELF
_POLL_SECONDS = 0.05
_CHECK_SECONDS = 0.25


class FileWatch:
    """Wakes its one waiter when the file changed since the last ``wait``."""

    def __init__(self, check_seconds: float) -> None:
        self._check_seconds = check_seconds
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        """Return on an event, or after a while without one.

        Events alone do not suffice: the queue may overflow, and at the death of a writer the event comes before the
        kernel releases its lock.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._check_seconds):
                await self._event.wait()
        self._event.clear()


class FileWatcher:
    """Watches files by their open descriptors, so that a rename does not matter."""

    def __init__(self) -> None:
        self._inotify: INotify | None = None
        self._watches: dict[int, FileWatch] = {}

    @contextmanager
    def watching(self, fd: int) -> Iterator[FileWatch]:
        """Watch the file that ``fd`` is open on; the caller looks at it once after entering."""
        try:
            number = self._start().add_watch(f"/proc/self/fd/{fd}", _MASK)
        except OSError as error:  # the instances or watches of this user are used up: look often instead
            _log.warning("no inotify watch: %s", error)
            yield FileWatch(_POLL_SECONDS)
            return
        self._watches[number] = watch = FileWatch(_CHECK_SECONDS)
        try:
            yield watch
        finally:
            del self._watches[number]
            if self._inotify is not None:
                with contextlib.suppress(OSError):  # the kernel drops the watch itself when the file is gone
                    self._inotify.rm_watch(number)

    def close(self) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    def _start(self) -> INotify:
        if self._inotify is None:
            self._inotify = INotify(nonblocking=True)
            asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._read)
        return self._inotify

    def _read(self) -> None:
        if self._inotify is None:
            return
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                for watch in self._watches.values():
                    watch.notify()
            elif (watched := self._watches.get(event.wd)) is not None:
                watched.notify()
