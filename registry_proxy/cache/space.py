"""Room for what comes in: reservations against ``max_size`` and ``min_free``, and eviction by least recent use."""

import contextlib
import fcntl
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from registry_proxy.cache.accounts import Accounts
from registry_proxy.cache.layout import CachePaths, CommittedBlob, is_sealed, scan_blobs, write_small_file
from registry_proxy.durable import sync_directory
from registry_proxy.ports import CacheUnavailableError
from registry_proxy.spec.reference import Digest

_ATTEMPTS = 20
"""What one evicts, another worker may take: try again, but not for ever."""


@dataclass(frozen=True, slots=True)
class _Incoming:
    """What fills and uploads hold and will hold. ``unwritten_bytes`` are promised to fills, but not on disk yet."""

    size_bytes: int
    unwritten_bytes: int


@dataclass(frozen=True, slots=True)
class _Shortage:
    """How many bytes are missing: ``soft`` to keep under ``max_size``, ``hard`` to leave ``min_free``."""

    soft: int
    hard: int


class Space:
    """Decides whether content may come in, evicts for it, and counts what was committed or removed.

    Every method may wait for the disk or for another worker: they are called in threads, but for the properties.
    """

    def __init__(self, paths: CachePaths, *, max_size_bytes: int, min_free_bytes: int) -> None:
        self._paths = paths
        self.max_size_bytes = max_size_bytes
        self._min_free_bytes = min_free_bytes
        self._accounts = Accounts(f"{paths.root}/page")
        self._victims: deque[CommittedBlob] = deque()

    def close(self) -> None:
        self._accounts.close()

    @property
    def committed_bytes(self) -> int:
        return self._accounts.committed_bytes

    @property
    def entries(self) -> int:
        return self._accounts.entries

    @property
    def incoming_bytes(self) -> int:
        """What the fills and uploads in progress take, counting what is promised to them."""
        return self._incoming().size_bytes

    def reserve(self, digest: Digest, size_bytes: int) -> None:
        """Promise room to a fill and publish its size to the other workers.

        Raises:
            CacheUnavailableError: larger than the cache, or what could be evicted does not suffice.
            OSError: the disk does not take the promise.
        """
        if size_bytes > self.max_size_bytes:
            raise CacheUnavailableError(f"{size_bytes} bytes are more than the whole cache may hold")
        with self._room(size_bytes, over_max_size=False):
            write_small_file(self._paths, self._paths.size(digest), b"%d\n" % size_bytes)

    def make_room(self, size_bytes: int, *, over_max_size: bool) -> None:
        """Evict until what is already coming in fits, and ``size_bytes`` more.

        Args:
            size_bytes: how much more.
            over_max_size: whether to go on when nothing more can be evicted: an upload may exceed ``max_size`` for a
                while, never ``min_free``.

        Raises:
            CacheUnavailableError: it cannot be made to fit.
        """
        with self._room(size_bytes, over_max_size=over_max_size):
            pass

    def commit(self, source: str, digest: Digest, size_bytes: int) -> None:
        """Rename a sealed and fsynced file into place and count it; content that is there already is kept instead."""
        target = self._paths.blob(digest)
        directory = os.path.dirname(target)
        self._make_directory(directory)
        with self._accounts.locked():
            try:
                status = os.stat(target)
            except FileNotFoundError:
                os.rename(source, target)
                self._accounts.add(size_bytes, 1)
            else:
                if is_sealed(status):
                    os.unlink(source)
                    return
                os.rename(source, target)
                self._accounts.add(size_bytes - status.st_size, 0)
        sync_directory(directory)

    def remove(self, digest: Digest) -> bool:
        """Remove a committed content; tell whether it was there."""
        return self._remove(self._paths.blob(digest)) is not None

    def recount(self) -> list[CommittedBlob]:
        """Return what is committed, and correct the counters by it: a killed worker may have left them wrong."""
        changes = self._accounts.changes
        blobs = scan_blobs(self._paths)
        with self._accounts.locked():
            if self._accounts.changes == changes:
                self._accounts.write(_total(blobs), len(blobs))
        return blobs

    def _make_directory(self, path: str) -> None:
        parent = os.path.dirname(path)
        for directory in (parent, path):
            try:
                os.mkdir(directory)
            except FileExistsError:
                continue
            sync_directory(os.path.dirname(directory))

    def _remove(self, path: str) -> int | None:
        with self._accounts.locked():
            try:
                size_bytes = os.stat(path).st_size
                os.unlink(path)
            except FileNotFoundError:
                return None
            self._accounts.add(-size_bytes, -1)
            return size_bytes

    def _incoming(self) -> _Incoming:
        written: dict[str, int] = {}
        promised: dict[str, int] = {}
        for directory in (self._paths.fills, self._paths.uploads):
            with os.scandir(directory) as entries:
                for entry in entries:
                    name, _, kind = entry.name.rpartition(".")
                    with contextlib.suppress(FileNotFoundError, ValueError):
                        if kind == "size":
                            with open(entry.path, encoding="ascii") as file:
                                promised[name] = int(file.read())
                        else:
                            written[name] = entry.stat().st_size
        total = sum(max(written.get(name, 0), promised.get(name, 0)) for name in written.keys() | promised.keys())
        return _Incoming(total, total - sum(written.values()))

    def _shortage(self, size_bytes: int) -> _Shortage:
        incoming = self._incoming()
        disk = os.statvfs(self._paths.root)
        free_bytes = disk.f_bavail * disk.f_frsize - incoming.unwritten_bytes
        soft = self._accounts.committed_bytes + incoming.size_bytes + size_bytes - self.max_size_bytes
        hard = self._min_free_bytes + size_bytes - free_bytes
        return _Shortage(max(0, soft), max(0, hard))

    @contextmanager
    def _room(self, size_bytes: int, *, over_max_size: bool) -> Iterator[None]:
        for _ in range(_ATTEMPTS):
            with self._accounts.locked():
                shortage = self._shortage(size_bytes)
                if shortage == _Shortage(0, 0):
                    yield
                    return
            if not self._evict(shortage, size_bytes, in_vain=over_max_size):
                break
        if not over_max_size or self._shortage(size_bytes).hard:
            raise CacheUnavailableError(f"no room for {size_bytes} bytes more, and nothing left to evict")
        yield

    def _evict(self, shortage: _Shortage, size_bytes: int, *, in_vain: bool) -> bool:
        """Remove the least recently used until the shortage is gone; tell whether that was possible.

        One worker at a time: the one that waited may find that the other's work was enough. Unless ``in_vain``, nothing
        is removed when all that may go would not be enough.
        """
        with _exclusive(f"{self._paths.root}/evict.lock"):
            now = self._shortage(size_bytes)
            wanted_bytes = min(max(shortage.soft, shortage.hard), max(now.soft, now.hard))
            wanted_bytes -= self._sweep_dead_fills()
            if wanted_bytes > _total(self._victims):
                self._victims = deque(self._by_least_use())
                if wanted_bytes > _total(self._victims) and not in_vain:
                    return False
            while wanted_bytes > 0:
                if not self._victims:  # the list was old, and most of it was used since
                    self._victims = deque(self._by_least_use())
                    if wanted_bytes > _total(self._victims):
                        return False
                wanted_bytes -= self._evict_one(self._victims.popleft())
            return True

    def _by_least_use(self) -> list[CommittedBlob]:
        pinned = set(os.listdir(self._paths.pins))
        blobs = [blob for blob in self.recount() if f"{blob.digest.algorithm}-{blob.digest.hex}" not in pinned]
        return sorted(blobs, key=lambda blob: blob.used_at_ns)

    def _evict_one(self, blob: CommittedBlob) -> int:
        """Remove it unless it was used or pinned since it was listed; return the bytes freed."""
        try:
            if os.stat(blob.path).st_atime_ns > blob.used_at_ns or os.path.exists(self._paths.pin(blob.digest)):
                return 0
        except FileNotFoundError:
            return 0
        return self._remove(blob.path) or 0

    def _sweep_dead_fills(self) -> int:
        """Remove the fills whose worker died and that nobody took over; return the bytes that were promised to them."""
        before = self._incoming().size_bytes
        names = [name.removesuffix(".part") for name in os.listdir(self._paths.fills) if name.endswith(".part")]
        removed = False
        for name in names:
            removed |= _remove_if_dead(f"{self._paths.fills}/{name}.part", f"{self._paths.fills}/{name}.size")
        return max(0, before - self._incoming().size_bytes) if removed else 0


def _total(blobs: Iterable[CommittedBlob]) -> int:
    return sum(blob.size_bytes for blob in blobs)


def _remove_if_dead(part: str, size: str) -> bool:
    with contextlib.suppress(OSError):
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(part)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(size)
                os.unlink(part)
                return True
        finally:
            os.close(fd)
    return False


@contextmanager
def _exclusive(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
