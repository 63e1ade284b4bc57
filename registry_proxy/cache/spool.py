"""The uploads of a node: bytes of a push as they come in, followed by the senders to the replicas."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.layout import read_node_id, seal
from registry_proxy.files.durable import sync_directory
from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.ports.uploads import UPLOAD_LIFETIME_SECONDS, SpoolFile
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest

if TYPE_CHECKING:
    from hashlib import _Hash

_T = TypeVar("_T")
_RUNNING_ALGORITHM = "sha256"
_IDLE_SECONDS = 6 * 3600
_MAX_RUNNING_HASHES = 1000
_READ_BYTES = 1024 * 1024
_SPACE_CHECK_BYTES = 16 * 1024 * 1024
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class _RunningHash:
    """The hash of the first ``size_bytes`` of an upload, kept between its requests."""

    hasher: "_Hash"
    size_bytes: int


class DiskSpool:
    """Implements ``ports.content.Spool`` in a cache's directory, on its file system, so that a commit is a rename."""

    def __init__(self, cache: DiskCache) -> None:
        self.cache = cache
        self.node_id = read_node_id(cache.paths)
        self._running: OrderedDict[str, _RunningHash] = OrderedDict()

    def create(self, session_id: str) -> SpoolFile:
        path = self._path(session_id)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.cache.observer.cache_error("write")
            raise CacheUnavailableError(f"no upload can be started: {error.strerror}") from error
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return UploadFile(self, session_id, fd, _RunningHash(hashlib.new(_RUNNING_ALGORITHM, usedforsecurity=False), 0))

    def create_tail(self, offset: int) -> SpoolFile:
        try:
            with tempfile.TemporaryFile(dir=self.cache.paths.uploads) as nameless:
                fd = os.dup(nameless.fileno())
            os.ftruncate(fd, offset)  # a hole takes no room, and the senders find each byte where it is in the upload
        except OSError as error:
            self.cache.observer.cache_error("write")
            raise CacheUnavailableError(f"no upload can be gone on with: {error.strerror}") from error
        return UploadFile(self, None, fd, None)

    def reopen(self, session_id: str) -> SpoolFile | None:
        path = self._path(session_id)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = os.path.samestat(os.fstat(fd), os.stat(path))
        except BlockingIOError:
            os.close(fd)
            raise RegistryError(
                ErrorCode.BLOB_UPLOAD_INVALID,
                "another request is writing to this upload: send one at a time",
                detail={"session": session_id},
            ) from None
        except OSError:
            current = False
        if not current:  # committed or discarded between open and lock
            os.close(fd)
            return None
        running = self._running.pop(session_id, None)
        if running is not None and running.size_bytes != os.fstat(fd).st_size:
            running = None  # another worker wrote the requests in between
        return UploadFile(self, session_id, fd, running)

    def mark_ended(self, session_id: str, committed: Digest | None = None) -> bool:
        """Remember it. A disk that does not take the mark leaves the Location good, for an upload from the start."""
        # A symbolic link is made whole or not at all, and one this short takes no block of the disk.
        try:
            os.symlink(_end_of(committed), self.cache.paths.ended(session_id))
        except FileExistsError:
            return not self.has_ended(session_id, committed)
        except OSError:
            return True
        return True

    def has_ended(self, session_id: str, committed: Digest | None = None) -> bool:
        try:
            found = os.readlink(self.cache.paths.ended(session_id))
        except OSError:
            return False
        return committed is None or found != _end_of(committed)

    def pin(self, digest: Digest) -> None:
        """Keep it, whether it is committed already or will be. Raises CacheUnavailableError when the disk fails."""
        try:
            os.close(os.open(self.cache.paths.pin(digest), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            sync_directory(self.cache.paths.pins)  # a push is acknowledged for it
        except OSError as error:
            raise CacheUnavailableError(f"the content cannot be pinned: {error.strerror}") from error

    def unpin(self, digest: Digest) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.cache.paths.pin(digest))

    def pinned(self, min_age_seconds: float) -> list[Digest]:
        oldest, found = time.time() - min_age_seconds, []
        with os.scandir(self.cache.paths.pins) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # unpinned meanwhile
                    if entry.stat().st_mtime <= oldest:
                        found.append(Digest(*entry.name.split("-", 1)))
        return found

    def holds(self, digest: Digest) -> bool:
        return self.cache.is_on_disk(digest)

    def sweep(self) -> int:
        """Remove the uploads that nobody writes to and nobody wrote to for six hours; return how many.

        The marks of uploads that ended go when no Location of theirs is valid any more.
        """
        _remove_old(self.cache.paths.ends, UPLOAD_LIFETIME_SECONDS)
        return _remove_old(self.cache.paths.uploads, _IDLE_SECONDS)

    def keep_hash(self, session_id: str, running: _RunningHash) -> None:
        """Keep the running hash for the next request of the session, should it come to this worker."""
        self._running[session_id] = running
        if len(self._running) > _MAX_RUNNING_HASHES:
            self._running.popitem(last=False)

    def forget_hash(self, session_id: str) -> None:
        self._running.pop(session_id, None)

    def _path(self, session_id: str) -> str:
        if _SESSION_ID.fullmatch(session_id) is None:
            raise RegistryError(ErrorCode.BLOB_UPLOAD_UNKNOWN, "there is no such upload", detail={})
        return self.cache.paths.upload(session_id)


def _end_of(committed: Digest | None) -> str:
    """Return what the mark of an upload that ended says: the beginning of the digest that it became."""
    return "cancelled" if committed is None else f"{committed.algorithm}-{committed.hex[:40]}"


def _remove_old(directory: str, age_seconds: float) -> int:
    removed = 0
    # A cache of an earlier release lacks a directory until the next start.
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > age_seconds:
                    removed += _remove_if_unused(entry.path)
    return removed


def _remove_if_unused(path: str) -> bool:
    if os.path.islink(path):
        os.unlink(path)
        return True
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(fd)
    return True


class UploadFile:
    """Implements ``ports.content.SpoolFile``. Made by ``DiskSpool``, with the lock of the file held on ``fd``.

    Without a session ID it is a tail: a file without a name, whose bytes begin where it ends now.
    """

    def __init__(self, spool: DiskSpool, session_id: str | None, fd: int, running: _RunningHash | None) -> None:
        self._spool = spool
        self._tools = spool.cache.tools
        self._session_id = session_id
        self._fd = fd
        self._size_bytes = os.fstat(fd).st_size
        self.start_offset = self._size_bytes if session_id is None else 0
        self._room_until = self._size_bytes
        self._hasher = None if running is None else running.hasher
        self._finished = False
        self._ended = False
        self._working = 0
        self._closing = False
        self._changed: asyncio.Future[None] | None = None

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    async def write(self, chunk: bytes) -> None:
        """Append, and hash in the same pass. Raises CacheUnavailableError when the disk does not take it.

        A write that is cancelled is still done to its end, so that size, hash and file agree.
        """
        try:
            await self._in_thread(self._append, chunk)
        except OSError as error:
            self._spool.cache.observer.cache_error("write")
            raise CacheUnavailableError(f"the upload cannot be kept: {error.strerror}") from error
        finally:
            self._wake()

    async def wait_beyond(self, offset: int) -> bool:
        while self._size_bytes <= offset:
            if self._finished:
                return False
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._changed)
        return True

    def finish_request(self) -> None:
        self._finished = True
        self._wake()

    async def digest(self, algorithm: str) -> Digest:
        if algorithm == _RUNNING_ALGORITHM and self._hasher is not None:
            return Digest(algorithm, self._hasher.hexdigest())
        hasher = await self._in_thread(self._hash, algorithm)
        if algorithm == _RUNNING_ALGORITHM:
            self._hasher = hasher
        return Digest(algorithm, hasher.hexdigest())

    async def commit(self, digest: Digest) -> None:
        """Make it the committed content. Raises CacheUnavailableError when the disk fails."""
        assert self._session_id is not None  # noqa: S101 - a tail is not the content of any digest
        try:
            await self._in_thread(self._commit, self._spool.cache.paths.upload(self._session_id), digest)
        except OSError as error:
            self._spool.cache.observer.cache_error("write")
            raise CacheUnavailableError(f"the upload cannot be committed: {error.strerror}") from error
        self._ended = True
        self._spool.cache.report_size()

    def close(self) -> None:
        """Release it; twice is fine. The descriptor outlives a write that is still under way in a thread."""
        if not self._closing:
            self._closing = True
            if self._hasher is not None and self._session_id is not None and not self._ended:
                self._spool.keep_hash(self._session_id, _RunningHash(self._hasher, self._size_bytes))
            self.finish_request()
            self._close_when_idle()

    def discard(self) -> None:
        if not self._ended:
            self._ended = True
            if self._session_id is not None:
                self._spool.forget_hash(self._session_id)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._spool.cache.paths.upload(self._session_id))
        self.close()

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
        if self._size_bytes + len(chunk) > self._room_until:
            self._room_until = self._size_bytes + len(chunk) + _SPACE_CHECK_BYTES
            self._tools.space.make_room(len(chunk), over_max_size=True)
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self._fd, view, self._size_bytes)
            if self._hasher is not None:
                self._hasher.update(view[:written])
            self._size_bytes += written
            view = view[written:]

    def _hash(self, algorithm: str) -> "_Hash":
        hasher = hashlib.new(algorithm, usedforsecurity=False)
        offset = 0
        while chunk := os.pread(self._fd, _READ_BYTES, offset):
            hasher.update(chunk)
            offset += len(chunk)
        return hasher

    def _commit(self, path: str, digest: Digest) -> None:
        seal(self._fd)
        os.fsync(self._fd)
        self._tools.space.commit(path, digest, self._size_bytes)
        # What came in over max_size goes out again now; what is pinned may exceed it for a while.
        self._tools.space.make_room(0, over_max_size=True)

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
