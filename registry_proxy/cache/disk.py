"""The blob cache of a node, seen from one worker."""

import asyncio
import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

from registry_proxy import tasks
from registry_proxy.cache.fill import Fill, FillTools
from registry_proxy.cache.layout import CachePaths, is_sealed, scan_blobs, seal
from registry_proxy.cache.memory import SmallContents
from registry_proxy.cache.progress import CommittedReader
from registry_proxy.cache.space import Space
from registry_proxy.cache.watch import FileWatcher
from registry_proxy.ports import BlobReader, CacheResult, CacheUnavailableError, Observer, OpenSource
from registry_proxy.spec.errors import RegistryError
from registry_proxy.spec.reference import Digest

_SMALL_BYTES = 1024 * 1024
_MEMORY_ENTRY_BYTES = 256 * 1024
_MEMORY_BYTES = 32 * 1024 * 1024
_TOUCH_SECONDS = 60
_MAX_TOUCHES = 100_000
_THREADS = 16
_READ_BYTES = 1024 * 1024


class DiskCache:
    """Implements ``ports.BlobCache``. The directory was made ready by ``prepare_cache``; workers share it freely.

    Args:
        path: the cache directory of this node.
        max_size_bytes: what committed content and fills together may take.
        min_free_bytes: what they leave free on the file system.
        observer: is told of cache errors and sizes.
    """

    def __init__(
        self, path: "str | os.PathLike[str]", max_size_bytes: int, min_free_bytes: int, observer: Observer
    ) -> None:
        self.paths = CachePaths(os.fspath(path))
        self.space = Space(self.paths, max_size_bytes=max_size_bytes, min_free_bytes=min_free_bytes)
        self.observer = observer
        self.tools = FillTools(
            paths=self.paths,
            space=self.space,
            watcher=FileWatcher(),
            executor=ThreadPoolExecutor(_THREADS, thread_name_prefix="cache"),
            observer=observer,
            open_committed=self._open,
        )
        self._memory = SmallContents(_MEMORY_BYTES)
        self._fills: dict[Digest, Fill] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._touched: dict[Digest, float] = {}

    async def close(self) -> None:
        """Stop: fills in progress are left to the other workers of the node. Twice is fine."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        self.tools.executor.shutdown()
        self.tools.watcher.close()
        self.space.close()

    def open_committed(self, digest: Digest) -> BlobReader | None:
        opened = self._open(digest)
        return None if opened is None else CommittedReader(*opened)

    def read_small(self, digest: Digest, *, only_on_disk: bool = False) -> bytes | None:
        content = self._memory.get(digest)
        if content is not None and (not only_on_disk or self._is_on_disk(digest)):
            self._touch(digest, self.paths.blob(digest))
            return content
        opened = self._open(digest)
        if opened is None:
            return None
        fd, size_bytes = opened
        try:
            if size_bytes > _SMALL_BYTES:
                return None
            content = os.pread(fd, size_bytes, 0)
        except OSError:
            return None
        finally:
            os.close(fd)
        if not digest.matches(content):  # the whole is in hand: a bit that rotted on disk is found here for little
            self.observer.cache_error("mismatch")
            self.drop(digest)
            return None
        if size_bytes <= _MEMORY_ENTRY_BYTES:
            self._memory.put(digest, content)
        return content

    async def open_or_fill(self, digest: Digest, source: OpenSource) -> tuple[BlobReader, CacheResult]:
        while True:
            reader = self.open_committed(digest)
            if reader is not None:
                return reader, CacheResult.HIT
            fill = self._fills.get(digest)
            joined = fill is not None
            if fill is None:
                fill = self._start(digest, source)
            progress = fill.progress
            try:
                reader = await progress.open_reader()
            except RegistryError:
                if joined:
                    continue  # an answer about the repository of the one who started it: ask for ours
                raise
            if joined and progress.result is CacheResult.MISS:
                return reader, CacheResult.LATCH
            return reader, progress.result

    async def store(self, digest: Digest, content: bytes) -> None:
        if len(content) <= _MEMORY_ENTRY_BYTES:
            self._memory.put(digest, content)
        if os.path.exists(self.paths.blob(digest)):
            return
        try:
            await self.tools.in_thread(self._store, digest, content)
        except OSError:
            self.observer.cache_error("write")
        except CacheUnavailableError:
            return
        self.report_size()

    def is_filling(self, digest: Digest) -> bool:
        return digest in self._fills or os.path.exists(self.paths.part(digest))

    def drop(self, digest: Digest) -> None:
        self._memory.drop(digest)
        try:
            self.space.remove(digest)
        except OSError:
            self.observer.cache_error("evict")
        self.report_size()

    def stats(self) -> dict[str, int]:
        """Return ``committed_bytes``, ``entries``, ``filling_bytes``, ``pinned_bytes`` and ``max_size_bytes``."""
        pinned_bytes = self._pinned_bytes()
        filling_bytes = self.space.incoming_bytes
        self.observer.cache_bytes("pinned", pinned_bytes)
        self.observer.cache_bytes("filling", filling_bytes)
        self.report_size()
        return {
            "committed_bytes": self.space.committed_bytes,
            "entries": self.space.entries,
            "filling_bytes": filling_bytes,
            "pinned_bytes": pinned_bytes,
            "max_size_bytes": self.space.max_size_bytes,
        }

    async def purge(self, digest: Digest | None) -> int:
        """Remove one content, or all; return how many. What is pinned stays: it may be the only copy of a push."""
        if digest is None:
            self._memory.clear()
        else:
            self._memory.drop(digest)
        removed = await self.tools.in_thread(self._purge, digest)
        self.report_size()
        return removed

    async def verify(self) -> list[Digest]:
        """Read every committed content, drop those that are not what their name says, and return them."""
        bad = await self.tools.in_thread(self._verify)
        for digest in bad:
            self.observer.cache_error("mismatch")
            self.drop(digest)
        await self.tools.in_thread(self.space.recount)
        self.report_size()
        return bad

    def report_size(self) -> None:
        """Tell the observer how much is committed on the node."""
        self.observer.cache_bytes("committed", self.space.committed_bytes)

    def _start(self, digest: Digest, source: OpenSource) -> Fill:
        fill = self._fills[digest] = Fill(digest, source, self.tools)

        def ended() -> None:
            del self._fills[digest]
            self.report_size()

        task = tasks.spawn(fill.run(ended), f"fill {digest}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return fill

    def _open(self, digest: Digest) -> tuple[int, int] | None:
        path = self.paths.blob(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        status = os.fstat(fd)
        if not is_sealed(status):
            os.close(fd)
            self.observer.cache_error("mismatch")
            self.drop(digest)
            return None
        self._touch(digest, fd)
        return fd, status.st_size

    def _is_on_disk(self, digest: Digest) -> bool:
        try:
            return is_sealed(os.stat(self.paths.blob(digest)))
        except OSError:
            return False

    def _touch(self, digest: Digest, file: int | str) -> None:
        """Record a use for eviction, at most once a minute."""
        now = time.monotonic()
        if now - self._touched.get(digest, -_TOUCH_SECONDS) < _TOUCH_SECONDS:
            return
        if len(self._touched) >= _MAX_TOUCHES:
            self._touched.clear()
        self._touched[digest] = now
        with contextlib.suppress(OSError):
            if is_sealed(os.stat(file)):  # setting the times of a file that was tampered with would hide it
                os.utime(file, ns=(time.time_ns(), 0))

    def _store(self, digest: Digest, content: bytes) -> None:
        self.space.make_room(len(content), over_max_size=False)
        temporary = self.paths.temporary()
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "wb", closefd=False) as file:
                    file.write(content)
                seal(fd)
                os.fsync(fd)
            finally:
                os.close(fd)
            self.space.commit(temporary, digest, len(content))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def _purge(self, digest: Digest | None) -> int:
        pinned = set(os.listdir(self.paths.pins))
        digests = [blob.digest for blob in scan_blobs(self.paths)] if digest is None else [digest]
        removed = 0
        for each in digests:
            if f"{each.algorithm}-{each.hex}" not in pinned:
                removed += self.space.remove(each)
        return removed

    def _pinned_bytes(self) -> int:
        total = 0
        for name in os.listdir(self.paths.pins):
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(self.paths.blob(Digest(*name.split("-", 1)))).st_size
        return total

    def _verify(self) -> list[Digest]:
        bad = []
        for blob in scan_blobs(self.paths):
            hasher = blob.digest.hasher()
            with contextlib.suppress(FileNotFoundError), open(blob.path, "rb", buffering=0) as file:
                sealed = is_sealed(os.fstat(file.fileno()))
                while chunk := file.read(_READ_BYTES):
                    hasher.update(chunk)
                if not sealed or hasher.hexdigest() != blob.digest.hex:
                    bad.append(blob.digest)
        return bad
