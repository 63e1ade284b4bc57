"""A directory in memory for what the processes of a node share and a disk that stalls must not hold up."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Awaitable, Iterable
from contextlib import suppress

from registry_proxy.cache.layout import CachePaths, prepare_cache, read_node_id
from registry_proxy.config.model import Settings
from registry_proxy.files.lock import try_lock

MARK = "disk-is-silent"
"""The file that says that the disk of the cache does not answer."""

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the directory below is made for this user alone, and looked at before it is used
_NEEDED_BYTES = 16 * 1024 * 1024
_NEEDED_BYTES_OF_A_WORKER = 8 * 1024 * 1024  # its metrics, and those of the one that takes its place in a reload
_CACHE_BYTES = 256 * 1024 * 1024


class NodeMemory:
    """The directory of one node, made by ``claim_memory``.

    It is named after the directory of the cache, so that a node finds what it left when it was killed.
    """

    def __init__(self, path: str, lock: int) -> None:
        self.path = path
        self.mark = f"{path}/{MARK}"
        self.metrics = f"{path}/metrics"
        self._lock = lock
        self._node_id: str | None = None

    def remember_node(self, cache_path: str) -> None:
        """Read from the cache how this node is called, for the caches that take its place."""
        with suppress(OSError):
            self._node_id = read_node_id(CachePaths(cache_path))

    def set_mark(self, *, is_silent: bool) -> None:
        """Tell all processes of the node whether the disk of the cache answers."""
        with suppress(OSError):
            if is_silent:
                os.close(os.open(self.mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            else:
                os.unlink(self.mark)

    def make_cache(self, number: int) -> str:
        """Make an empty cache, for the generation of that number; return its path. Raises OSError."""
        path = self.cache(number)
        for left in (path, f"{path}.audit"):  # by an attempt that failed
            shutil.rmtree(left, ignore_errors=True)
        os.makedirs(f"{path}.audit", mode=0o700)
        if self._node_id is not None:
            with open(CachePaths(path).node_ids[0], "w", encoding="ascii") as file:
                file.write(self._node_id)
        prepare_cache(path)
        return path

    def cache(self, number: int) -> str:
        """Return the path of the cache of a generation."""
        return f"{self.path}/cache-{number}"

    async def remove_cache(self, number: int, ends: Iterable[Awaitable[object]]) -> None:
        """Remove the cache of a generation once all of its workers have ended."""
        await asyncio.gather(*ends)
        for path in (self.cache(number), f"{self.cache(number)}.audit"):
            shutil.rmtree(path, ignore_errors=True)

    def stand_in(self, settings: Settings, number: int) -> Settings:
        """Return settings with a small cache in memory in place of the one on disk. Raises OSError."""
        path = self.make_cache(number)
        disk = os.statvfs(path)
        free_bytes = disk.f_bavail * disk.f_frsize
        size_bytes = min(_CACHE_BYTES, free_bytes // 4)
        cache = settings.cache.model_copy(
            update={"path": path, "max_size_bytes": size_bytes, "min_free_bytes": max(0, free_bytes - 2 * size_bytes)}
        )
        audit = settings.audit.model_copy(update={"path": settings.audit_path})
        return settings.model_copy(update={"cache": cache, "audit": audit})

    def close(self) -> None:
        """Give the memory back."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def claim_memory(cache_path: str, workers: int) -> NodeMemory | None:
    """Take the directory of the node with this cache, emptied; None where the machine has no memory to give.

    Args:
        cache_path: a directory that exists, and that the caller holds against other nodes.
        workers: how many the node has.
    """
    with suppress(OSError):
        status = os.stat(cache_path)
        text = f"{os.path.realpath(cache_path)} {status.st_dev} {status.st_ino}"
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = f"{_SHARED_MEMORY}/registry-proxy-{os.geteuid()}-{name}"
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        memory = os.statvfs(lock)
        has_room = memory.f_bavail * memory.f_frsize >= _NEEDED_BYTES + workers * _NEEDED_BYTES_OF_A_WORKER
        if _is_ours(os.fstat(lock)) and has_room and try_lock(lock):
            _empty(path)
            return NodeMemory(path, lock)
        os.close(lock)
    return None


def _is_ours(status: os.stat_result) -> bool:
    """Tell whether nobody else can write to a directory: everybody may make some where it lies."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _empty(path: str) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
