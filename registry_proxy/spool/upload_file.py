"""One upload of a node: written once, read by the senders behind the writer, committed by a rename.

Its bytes lie in a file. Once the disk, or the share of its subject, has no room for more, the upload goes on without
the cache: what comes then is kept in memory until the senders have it, and the replicas alone have the whole.
"""

import contextlib
import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from registry_proxy.cache.layout import seal
from registry_proxy.files.hashing import hash_file
from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.ports.metrics import CacheFailure
from registry_proxy.protocol.reference import Digest
from registry_proxy.tasks import Wakeup

if TYPE_CHECKING:
    from hashlib import _Hash

    from registry_proxy.spool.spool import DiskSpool

_T = TypeVar("_T")
RUNNING_ALGORITHM = "sha256"
_READ_BYTES = 1024 * 1024
_INLINE_BYTES = 256 * 1024
_HASHED_AT_ONCE_BYTES = 16 * 1024 * 1024
_WINDOW_BYTES = 1024 * 1024
"""How much of an upload without the cache waits in memory for the slowest of its senders."""

_LAG_SECONDS = 10.0
"""How long one sender may hold up an upload without the cache, all in all, when another one has everything."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningHash:
    """The hash of the first ``size_bytes`` of an upload, kept between its requests."""

    hasher: "_Hash"
    size_bytes: int


class UploadReader:
    """Implements ``ports.SpoolReader``; made by ``UploadFile``. ``offset`` is before all that it still has to read."""

    def __init__(self, file: "UploadFile", offset: int) -> None:
        self.offset = offset
        self.is_dropped = False
        self._file = file

    async def read(self, offset: int) -> bytes:
        self.offset = offset
        return await self._file.read(self)

    def close(self) -> None:
        """Let go of what it has not read; twice is fine."""
        self._file.detach(self)


class UploadFile:
    """Implements ``ports.SpoolFile``. Made by ``DiskSpool``, with the lock of the file held on ``fd``.

    Args:
        spool: where it belongs.
        name: owner and session.
        fd: its file; -1 where there is none, so that it goes on without the cache from here on.
        offset: where it is, without a file.
        running: the hash of what it has so far.
    """

    def __init__(
        self,
        spool: "DiskSpool",
        name: tuple[str, str],
        fd: int,
        *,
        offset: int = 0,
        running: RunningHash | None = None,
    ) -> None:
        self._spool = spool
        self._tools = spool.cache.tools
        self._name = name
        self._fd = fd
        self._has_file = fd >= 0
        self.size_bytes = offset if fd < 0 else os.fstat(fd).st_size
        self.start_offset = offset
        self._on_disk_bytes = self._room_until = self._counted_bytes = self.size_bytes
        self._hasher = None if running is None else running.hasher
        self._is_past_disk = fd < 0
        self._readers: list[UploadReader] = []
        self._window: deque[tuple[int, bytes]] = deque()
        self._lag_seconds = 0.0
        self._finished = False
        self._ended = False
        self._working = 0
        self._closing = False
        self._changed, self._read_on = Wakeup(), Wakeup()

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are in the file."""
        return not self.size_bytes or not (self._is_past_disk or self.start_offset)

    async def write(self, chunk: bytes) -> None:
        """Append, and hash in the same pass; what has no room on the disk is kept until the senders have it.

        A write that is cancelled is still done to its end, so that size, hash and file agree.
        """
        if not self._is_past_disk:
            before = self.size_bytes
            try:
                await self._in_thread(self._append, chunk)
            except (OSError, CacheUnavailableError) as error:
                self._leave_disk(error)
                chunk = chunk[self.size_bytes - before :]
            else:
                return
            finally:
                self._changed.notify()
        await self._pass_on(chunk)

    async def wait_beyond(self, offset: int) -> bool:
        while self.size_bytes <= offset:
            if self._finished:
                return False
            await self._changed.wait()
        return True

    def finish_request(self) -> None:
        self._finished = True
        self._changed.notify()

    async def digest(self, algorithm: str) -> Digest | None:
        if algorithm == RUNNING_ALGORITHM and self._hasher is not None:
            return Digest(algorithm, self._hasher.hexdigest())
        if not self.is_whole:
            return None
        hasher = await self._hash(algorithm)
        if algorithm == RUNNING_ALGORITHM:
            self._hasher = hasher
        return Digest(algorithm, hasher.hexdigest())

    async def commit(self, digest: Digest) -> None:
        """Make it the committed content. Raises CacheUnavailableError when the disk fails, or has no file of it."""
        if not self._has_file:
            raise CacheUnavailableError("the upload is not on the disk")
        try:
            await self._in_thread(self._commit, self._spool.cache.paths.upload(*self._name), digest)
        except OSError as error:
            self._spool.cache.observer.observe(CacheFailure("write"))
            raise CacheUnavailableError(f"the upload cannot be committed: {error.strerror}") from error
        self._end()
        self._spool.cache.report_size()

    def close(self, note: bytes | None = None) -> None:
        """Release it; twice is fine. The descriptor outlives a write that is still under way in a thread."""
        if self._closing:
            return
        self._closing = True
        if not self._ended:
            if note is not None and self.size_bytes:
                self._spool.room.write_note(*self._name, note)
            if self._is_past_disk or not self.size_bytes:  # without bytes it begins anew
                self._unlink()
            else:
                self._count(self.size_bytes)
                if self._hasher is not None:
                    self._spool.keep_hash(self._name[1], RunningHash(self._hasher, self.size_bytes))
        self.finish_request()
        self._resume_writer()
        self._close_when_idle()

    def discard(self) -> None:
        if not self._ended:
            self._unlink()
            self._end()
        self.close()

    def _end(self) -> None:
        self._ended, self._has_file = True, False
        self._count(0)
        self._spool.forget_hash(self._name[1])
        self._spool.room.drop_note(*self._name)

    # ------------------------------------------------------------ readers

    def open_reader(self, offset: int) -> UploadReader:
        reader = UploadReader(self, offset)
        self._readers.append(reader)
        return reader

    def detach(self, reader: UploadReader) -> None:
        """Keep nothing for a reader any more."""
        if reader in self._readers:
            self._readers.remove(reader)
            self._resume_writer()

    async def read(self, reader: UploadReader) -> bytes:
        """Return the next piece for a reader; see ``ports.SpoolReader``."""
        self._resume_writer()
        if not await self.wait_beyond(reader.offset):
            return b""
        offset, end = reader.offset, self._on_disk_bytes if self._is_past_disk else self.size_bytes
        if offset >= end:
            for start, piece in self._window:
                if start <= offset < start + len(piece) and not reader.is_dropped:
                    return piece[offset - start :]
        elif self._fd >= 0:
            with contextlib.suppress(OSError):
                # Just behind the writer they are in the page cache and read at once; who lags waits in a thread.
                if end - offset <= _INLINE_BYTES:
                    piece = os.pread(self._fd, end - offset, offset)
                else:
                    piece = await self._in_thread(os.pread, self._fd, min(end - offset, _READ_BYTES), offset)
                if piece:
                    return piece
        raise CacheUnavailableError("the next bytes of the upload are not here any more")

    def _resume_writer(self) -> None:
        """Drop what every reader has, and wake the writer."""
        if not self._is_past_disk:
            return
        least = min((reader.offset for reader in self._readers), default=self.size_bytes)
        while self._window and self._window[0][0] + len(self._window[0][1]) <= least:
            self._window.popleft()
        if least >= self._on_disk_bytes and self._has_file:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            self._unlink()
        self._read_on.notify()

    # ------------------------------------------------------------ without the cache

    def _leave_disk(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self._spool.cache.observer.observe(CacheFailure("write"))
        _log.warning("an upload goes on without the cache: %s", error)
        self._is_past_disk = True
        self._on_disk_bytes = self.size_bytes

    async def _pass_on(self, chunk: bytes) -> None:
        if self._hasher is not None:
            if len(chunk) <= _INLINE_BYTES:
                self._hasher.update(chunk)
            else:
                await self._in_thread(self._hasher.update, chunk)
        self._window.append((self.size_bytes, chunk))
        self.size_bytes += len(chunk)
        self._changed.notify()
        self._resume_writer()
        while self._window and self.size_bytes - self._window[0][0] > _WINDOW_BYTES and not self._closing:
            await self._wait_for_readers()

    async def _wait_for_readers(self) -> None:
        """Return when a reader has moved; one that holds up another for too long gets no more."""
        slowest = min(self._readers, key=lambda reader: reader.offset)
        is_alone = all(reader.offset < self.size_bytes for reader in self._readers)
        began = time.monotonic()
        await self._read_on.wait(None if is_alone else _LAG_SECONDS)
        if not is_alone:
            self._lag_seconds += time.monotonic() - began
            if self._lag_seconds > _LAG_SECONDS:
                self._lag_seconds = 0.0
                slowest.is_dropped = True
                self.detach(slowest)

    # ------------------------------------------------------------ the file

    def _unlink(self) -> None:
        if self._has_file:
            self._has_file = False
            self._count(0)
            with contextlib.suppress(OSError):
                os.unlink(self._spool.cache.paths.upload(*self._name))

    def _count(self, size_bytes: int) -> None:
        """Have the room of all uploads know how much this one takes."""
        if size_bytes != self._counted_bytes:
            grown_bytes, self._counted_bytes = size_bytes - self._counted_bytes, size_bytes
            if not self._spool.room.count_now(self._name[0], grown_bytes):
                with contextlib.suppress(RuntimeError):  # the node ends: the next sweep counts
                    self._tools.executor.submit(self._spool.room.count, self._name[0], grown_bytes)

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        self._working += 1
        try:
            return await self._tools.in_thread(function, *arguments)
        finally:
            self._working -= 1
            self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._closing and self._working == 0 and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, chunk: bytes) -> None:
        if self.size_bytes + len(chunk) > self._room_until:
            # No more than it has already: of many that grow side by side, what nobody looks at stays below the shares.
            room_until = self.size_bytes + len(chunk) + min(self.size_bytes, self._tools.space.step_bytes)
            self._spool.room.admit(*self._name, self.size_bytes + len(chunk))
            self._counted_bytes = self.size_bytes + len(chunk)
            self._tools.space.make_room(len(chunk), over_max_size=True)
            self._room_until = room_until
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self._fd, view, self.size_bytes)
            if self._hasher is not None:
                self._hasher.update(view[:written])
            self.size_bytes += written
            view = view[written:]

    async def _hash(self, algorithm: str) -> "_Hash":
        """Read all of it again, a piece at a time: other uploads take turns, and other work has threads left."""
        hasher = hashlib.new(algorithm, usedforsecurity=False)
        offset, read_bytes = 0, -1
        self._working += 1  # between two pieces, too: the file stays open
        try:
            while read_bytes:
                async with self._spool.hashing:
                    read_bytes = await self._in_thread(hash_file, self._fd, hasher, offset, _HASHED_AT_ONCE_BYTES)
                offset += read_bytes
        finally:
            self._working -= 1
            self._close_when_idle()
        return hasher

    def _commit(self, path: str, digest: Digest) -> None:
        seal(self._fd)
        os.fsync(self._fd)
        self._tools.space.commit(path, digest, self.size_bytes)
        # What came in over max_size goes out again now; what is pinned may exceed it for a while.
        self._tools.space.make_room(0, over_max_size=True)
