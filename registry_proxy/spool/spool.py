"""The uploads of a node: where each begins, goes on and ends; what became of it; what is kept for replicas."""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import time

from cachetools import FIFOCache

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.layout import read_node_id
from registry_proxy.cache.uploads import owner_of
from registry_proxy.files.atomic import sync_directory
from registry_proxy.files.lock import is_at, try_lock
from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.ports.metrics import CacheFailure
from registry_proxy.ports.uploads import UPLOAD_LIFETIME_SECONDS, SpoolFile, Uploader
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest
from registry_proxy.spool.upload_file import RUNNING_ALGORITHM, RunningHash, UploadFile

_MAX_RUNNING_HASHES = 1000
_MAX_MARKS = 100_000
"""Marks of uploads that ended: each takes an inode of the disk, and a POST with a DELETE makes one."""

_HASHING_AT_ONCE = 4
"""Uploads that are read again at the same time: a quarter of the cache's threads."""

_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

_log = logging.getLogger(__name__)


class DiskSpool:
    """Implements ``ports.uploads.Spool`` in a cache's directory, on its file system, so that a commit is a rename.

    Args:
        cache: whose directory it is.
        is_lasting: whether what lies there outlives a power cut; where it does not, nothing can be pinned.
    """

    def __init__(self, cache: DiskCache, *, is_lasting: bool = True) -> None:
        self.cache = cache
        self._is_lasting = is_lasting
        self.node_id = read_node_id(cache.paths)
        self.room = cache.space.uploads
        self.hashing = asyncio.Semaphore(_HASHING_AT_ONCE)
        self._running: FIFOCache[str, RunningHash] = FIFOCache(_MAX_RUNNING_HASHES)

    def create(self, session_id: str, uploader: Uploader) -> SpoolFile:
        name = self._name(session_id, uploader)
        running = RunningHash(hashlib.new(RUNNING_ALGORITHM, usedforsecurity=False), 0)
        try:
            fd = self.room.open_part(*name)
            try_lock(fd)
        except FileExistsError:
            raise _busy(session_id) from None
        except OSError as error:
            self.cache.observer.observe(CacheFailure("write"))
            _log.warning("an upload begins without the cache: %s", error.strerror)
            fd = -1
        return UploadFile(self, name, fd, running=running)

    def create_tail(self, session_id: str, uploader: Uploader, offset: int) -> SpoolFile:
        name = self._name(session_id, uploader)
        self.room.drop_note(*name)
        return UploadFile(self, name, -1, offset=offset)

    def reopen(self, session_id: str, uploader: Uploader) -> SpoolFile | None:
        name = self._name(session_id, uploader)
        path = self.cache.paths.upload(*name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        if not try_lock(fd):
            os.close(fd)
            raise _busy(session_id)
        if not is_at(fd, path):  # committed or discarded between open and lock
            os.close(fd)
            return None
        running = self._running.pop(session_id, None)
        if running is not None and running.size_bytes != os.fstat(fd).st_size:
            running = None  # another worker wrote the requests in between
        return UploadFile(self, name, fd, running=running)

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
        if not self._is_lasting:
            raise CacheUnavailableError("the content cannot be pinned: the disk of the cache does not answer")
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

        The marks of uploads that ended go when no Location of theirs is valid any more, and the oldest of too many.
        """
        oldest = time.time() - UPLOAD_LIFETIME_SECONDS
        # A cache of an earlier release misses a directory until the next start.
        with contextlib.suppress(FileNotFoundError), os.scandir(self.cache.paths.ends) as entries:
            marks: list[tuple[float, str]] = []
            for entry in entries:
                with contextlib.suppress(OSError):
                    marks.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
            marks.sort()
            for number, (ended_at, path) in enumerate(marks):
                if ended_at >= oldest and len(marks) - number <= _MAX_MARKS:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(path)
        return self.room.sweep()

    def take_gone(self) -> list[bytes]:
        return self.room.take_gone()

    def keep_hash(self, session_id: str, running: RunningHash) -> None:
        """Keep the running hash for the next request of the session, should it come to this worker."""
        self._running[session_id] = running

    def forget_hash(self, session_id: str) -> None:
        self._running.pop(session_id, None)

    @staticmethod
    def _name(session_id: str, uploader: Uploader) -> tuple[str, str]:
        if _SESSION_ID.fullmatch(session_id) is None:
            raise RegistryError(ErrorCode.BLOB_UPLOAD_UNKNOWN, "there is no such upload", detail={})
        return owner_of(uploader.subject), session_id


def _busy(session_id: str) -> RegistryError:
    return RegistryError(
        ErrorCode.BLOB_UPLOAD_INVALID,
        "another request is writing to this upload: send one at a time",
        detail={"session": session_id},
    )


def _end_of(committed: Digest | None) -> str:
    """Return what the mark of an upload that ended says: the beginning of the digest that it became."""
    return "cancelled" if committed is None else f"{committed.algorithm}-{committed.hex[:40]}"
