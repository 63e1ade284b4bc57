"""The file of a fill in progress, owned by at most one process of the node at a time."""

import contextlib
import os
from collections.abc import Sequence

from registry_proxy.cache.layout import CachePaths, is_sealed, seal
from registry_proxy.files.hashing import hash_file
from registry_proxy.files.lock import unlock
from registry_proxy.protocol.reference import Digest

ABANDONED_MODE = 0o400
"""Of a partial file that was complete and wrong: no owner, and no follower, goes on with it."""


def open_partial_file(paths: CachePaths, digest: Digest) -> int:
    """Open, or create, the file of a fill, for reading; the lock is taken on this descriptor. Raises OSError."""
    return os.open(paths.part(digest), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def read_size(paths: CachePaths, digest: Digest) -> int | None:
    """Return the size that the owner announced, None when it did not, or does not know."""
    try:
        with open(paths.size(digest), encoding="ascii") as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return None


class OwnedPartialFile:
    """The rights of the lock's owner. ``written_bytes`` of the file are in the hash.

    ``found_bytes`` is what a former owner left, ``found_sealed`` whether it died after the digest was right: then
    readers of other workers rely on these bytes.

    Methods that say so are called in threads, one at a time.

    Args:
        paths: the cache.
        digest: what the file must become.
        fd: from ``open_partial_file``, locked and current; belongs to the caller.

    Raises:
        OSError: it cannot be opened for writing.
    """

    def __init__(self, paths: CachePaths, digest: Digest, fd: int) -> None:
        self._paths = paths
        self.digest = digest
        self._lock_fd = fd
        status = os.fstat(fd)
        self.found_bytes = status.st_size
        self.found_sealed = is_sealed(status)
        if self.found_sealed:
            os.fchmod(fd, 0o600)  # its owner died between the digest and the rename
        self._fd = os.open(paths.part(digest), os.O_RDWR | os.O_CLOEXEC)
        self._hasher = digest.hasher()
        self.written_bytes = 0

    def resume(self) -> None:
        """Take what a former owner wrote into the hash (in a thread)."""
        self.written_bytes += hash_file(self._fd, self._hasher, self.written_bytes)

    def truncate(self) -> None:
        """Throw away what a former owner wrote."""
        os.ftruncate(self._fd, 0)
        self.found_bytes = 0

    def append(self, chunks: Sequence[bytes]) -> None:
        """Write and hash (in a thread)."""
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                written = os.pwrite(self._fd, view, self.written_bytes)
                self._hasher.update(view[:written])
                self.written_bytes += written
                view = view[written:]

    def matches(self) -> bool:
        """Tell whether all that is written has the digest."""
        return self._hasher.hexdigest() == self.digest.hex

    def seal(self) -> None:
        """Tell every follower that the digest was right."""
        seal(self._fd)

    def sync(self) -> str:
        """Make it durable (in a thread); return its path."""
        os.fsync(self._fd)
        return self._paths.part(self.digest)

    def forget_size(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._paths.size(self.digest))

    def remove(self) -> None:
        """Remove it: every follower sees that this one failed."""
        # The size goes first: with the file its name is free, and the next owner's size must not be removed.
        self.forget_size()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._paths.part(self.digest))

    def quarantine(self, source: str) -> None:
        """Take it out of use, and keep the bytes for a look at them: every follower sees that this one failed."""
        self.forget_size()
        os.fchmod(self._fd, ABANDONED_MODE)
        os.rename(self._paths.part(self.digest), self._paths.quarantined(self.digest, source))

    def release(self) -> None:
        """Close it and release the lock: the next winner continues from here."""
        unlock(self._lock_fd)  # readers hold duplicates of the descriptor
        os.close(self._fd)
