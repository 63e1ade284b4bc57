"""The blob cache of a node, seen from one worker."""

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from registry_proxy import tasks
from registry_proxy.cache.fill import Fill, FillTools
from registry_proxy.cache.layout import CachePaths, CommittedBlob, age_seconds, is_sealed, scan_next, scan_shard, seal
from registry_proxy.cache.ledger import shard_of, shards
from registry_proxy.cache.memory import SmallContents
from registry_proxy.cache.progress import CommittedReader
from registry_proxy.cache.space import Space
from registry_proxy.cache.watch import FileWatcher
from registry_proxy.files.atomic import atomic_file, write_all
from registry_proxy.files.hashing import hash_file
from registry_proxy.ports.content import BlobReader, CachedBlob, OpenSource
from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.ports.metrics import CacheBytes, CacheFailure, Observer, ScrubbedBytes
from registry_proxy.ports.names import CacheResult
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest

_SMALL_BYTES = 4 * 1024 * 1024  # the largest manifest
_COMPARED_BYTES = 64 * 1024
_MEMORY_ENTRY_BYTES = 256 * 1024
_MEMORY_BYTES = 32 * 1024 * 1024
_TOUCH_SECONDS = 60
_MAX_TOUCHES = 100_000
_THREADS = 16
_READ_BYTES = 1024 * 1024

_log = logging.getLogger(__name__)


class DiskCache:
    """Implements ``ports.content.BlobCache``. ``prepare_cache`` made the directory ready; workers share it freely.

    Args:
        path: the cache directory of this node.
        max_size_bytes: what committed content and fills together may take.
        min_free_bytes: what they leave free on the file system.
        observer: receives cache errors and sizes.
        find_kept: returns what must not be evicted; called in a thread, before each eviction.
        check_share: which part of the openings, 0 to 1, reads the whole content and compares its digest first.
    """

    def __init__(
        self,
        path: "str | os.PathLike[str]",
        max_size_bytes: int,
        min_free_bytes: int,
        observer: Observer,
        *,
        find_kept: Callable[[], Collection[Digest]] = frozenset,
        check_share: float = 0.0,
    ) -> None:
        self.paths = CachePaths(os.fspath(path))
        self.space = Space(
            self.paths,
            max_size_bytes=max_size_bytes,
            min_free_bytes=min_free_bytes,
            observer=observer,
            find_kept=find_kept,
        )
        self.observer = observer
        self.tools = FillTools(
            paths=self.paths,
            space=self.space,
            watcher=FileWatcher(),
            executor=ThreadPoolExecutor(_THREADS, thread_name_prefix="cache"),
            observer=observer,
            open_committed=self._open,
        )
        self._check_share = check_share
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

    async def open_checked(self, digest: Digest) -> BlobReader | None:
        opened = self._open(digest)
        if opened is None:
            return None
        fd, size_bytes = opened
        if size_bytes <= _COMPARED_BYTES:
            content = self._memory.get(digest)
            if content is not None:
                os.close(fd)
            elif (content := self._read_compared(digest, fd, size_bytes)) is None:
                return None
            return CommittedReader(_in_memory(content), size_bytes)
        if random.random() >= self._check_share:  # noqa: S311 - a sample, no secret
            return CommittedReader(fd, size_bytes)
        os.close(fd)
        if await self._is_right(CommittedBlob(digest, self.paths.blob(digest), size_bytes, 0), 0):
            return self.open_committed(digest)
        self.reject(digest, "an opening")
        return None

    def read_small(self, digest: Digest, *, only_on_disk: bool = False) -> bytes | None:
        content = self._memory.get(digest)
        if content is not None and (not only_on_disk or self.is_on_disk(digest)):
            self._touch(digest, self.paths.blob(digest))
            return content
        opened = self._open(digest)
        if opened is None:
            return None
        fd, size_bytes = opened
        if size_bytes > _SMALL_BYTES:
            os.close(fd)
            return None
        return self._read_compared(digest, fd, size_bytes)

    async def open_or_fill(self, digest: Digest, source: OpenSource) -> tuple[BlobReader, CacheResult]:
        reader = self.open_committed(digest)
        return await self.fill(digest, source) if reader is None else (reader, CacheResult.HIT)

    async def fill(self, digest: Digest, source: OpenSource) -> tuple[BlobReader, CacheResult]:
        while True:
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
            self.observer.observe(CacheFailure("write"))
        except CacheUnavailableError:
            return
        self.report_size()

    def is_on_disk(self, digest: Digest) -> bool:
        """Tell whether a content is committed, and its file as it was left; counts as no use."""
        try:
            return is_sealed(os.stat(self.paths.blob(digest)))
        except OSError:
            return False

    def is_filling(self, digest: Digest) -> bool:
        return digest in self._fills or os.path.exists(self.paths.part(digest))

    def drop(self, digest: Digest) -> None:
        self._memory.drop(digest)
        try:
            self.space.remove(digest)
        except OSError:
            self.observer.observe(CacheFailure("evict"))
        self.report_size()

    def stats(self) -> dict[str, int]:
        """Return ``committed_bytes``, ``entries``, ``filling_bytes``, ``pinned_bytes`` and ``max_size_bytes``."""
        pinned_bytes = self.space.size_of(self.space.find_pinned())
        filling_bytes = self.space.incoming_bytes
        self.observer.observe(CacheBytes("pinned", pinned_bytes))
        self.observer.observe(CacheBytes("filling", filling_bytes))
        self.report_size()
        return {
            "committed_bytes": self.space.committed_bytes,
            "entries": self.space.entries,
            "filling_bytes": filling_bytes,
            "pinned_bytes": pinned_bytes,
            "max_size_bytes": self.space.max_size_bytes,
        }

    async def list_blobs(self, after: Digest | None, limit: int) -> list[CachedBlob]:
        """Return committed contents in the order of their digests' hexadecimal digits.

        Args:
            after: where to go on, None to begin.
            limit: how many at most.
        """
        return await self.tools.in_thread(self._list_blobs, after, limit)

    async def purge(self, digests: Collection[Digest] | None) -> int:
        """Remove some contents, or all; return how many. Pinned content stays: it may be the only copy of a push."""
        for digest in digests or ():
            self._memory.drop(digest)
        if digests is None:
            self._memory.clear()
        removed = await self.tools.in_thread(self._purge, digests)
        self.report_size()
        return removed

    def reject(self, digest: Digest, found_by: str) -> None:
        """Put a committed content that is not what its digest says into quarantine, where nobody is served from."""
        _log.error("the cached content of %s is not what its digest says: quarantined", digest, extra={"by": found_by})
        self.observer.observe(CacheFailure("rot"))
        self._memory.drop(digest)
        with contextlib.suppress(OSError):
            self.space.quarantine(digest)
        self.report_size()

    async def verify(self) -> list[Digest]:
        """Read every committed content; return what was not what its name says, and is in quarantine now."""
        bad: list[Digest] = []
        remaining = shards()
        while remaining:
            found, remaining = await self.check_next(remaining)
            bad += found
        await self.recount()
        return bad

    async def check_next(self, remaining: range, bytes_per_second: int = 0) -> tuple[list[Digest], range]:
        """Read the committed contents of the first shard that holds any; return the bad ones and the shards after it.

        Args:
            remaining: the shards that are still to be read, at least one.
            bytes_per_second: the speed at most; 0 for any.
        """
        bad = []
        blobs, remaining = await self.tools.in_thread(scan_next, self.paths, remaining)
        for blob in blobs:
            if not await self._is_right(blob, bytes_per_second):
                self.reject(blob.digest, "a scrub")
                bad.append(blob.digest)
        return bad, remaining

    async def recount(self) -> None:
        """Count what is committed, so that the counters equal the disk after every manual change."""
        await self.tools.in_thread(self.space.recount)
        self.report_size()

    def report_size(self) -> None:
        """Tell the observer how much is committed on the node."""
        self.observer.observe(CacheBytes("committed", self.space.committed_bytes))

    async def _is_right(self, blob: CommittedBlob, bytes_per_second: int) -> bool:
        """Compare a content with its digest; what vanished meanwhile is right."""
        try:
            fd = _open_unnoticed(blob.path)
        except FileNotFoundError:
            return True
        try:
            if not is_sealed(os.fstat(fd)):
                return False
            hasher, offset = blob.digest.hasher(), 0
            while read_bytes := await self.tools.in_thread(hash_file, fd, hasher, offset, _READ_BYTES):
                offset += read_bytes
                self.observer.observe(ScrubbedBytes(read_bytes))
                if bytes_per_second:
                    await asyncio.sleep(read_bytes / bytes_per_second)
            return hasher.hexdigest() == blob.digest.hex
        except OSError as error:
            _log.warning("the cached content of %s cannot be read: %s", blob.digest, error.strerror)
            return False
        finally:
            os.close(fd)

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
            self.reject(digest, "its times or mode")
            return None
        self._touch(digest, fd)
        return fd, status.st_size

    def _read_compared(self, digest: Digest, fd: int, size_bytes: int) -> bytes | None:
        """Read a small content whole, and close it; None when it cannot be read, or rotted without a trace."""
        try:
            content = os.pread(fd, size_bytes, 0)
        except OSError:
            return None
        finally:
            os.close(fd)
        if not digest.matches(content):
            self.reject(digest, "a reading")
            return None
        if size_bytes <= _MEMORY_ENTRY_BYTES:
            self._memory.put(digest, content)
        return content

    def _touch(self, digest: Digest, file: int | str) -> None:
        """Record a use for eviction, at most once a minute; what follows the first within a minute is one with it."""
        now = time.monotonic()
        if now - self._touched.get(digest, -_TOUCH_SECONDS) < _TOUCH_SECONDS:
            return
        if len(self._touched) >= _MAX_TOUCHES:
            self._touched.clear()
        self._touched[digest] = now
        with contextlib.suppress(OSError):
            status = os.stat(file)
            # Setting the times of a file that was tampered with would hide it.
            if is_sealed(status) and age_seconds(status.st_atime_ns) > _TOUCH_SECONDS:
                os.utime(file, ns=(time.time_ns(), 0))

    def _store(self, digest: Digest, content: bytes) -> None:
        self.space.make_room(len(content), over_max_size=False)

        def commit(temporary: str, _: str) -> None:
            self.space.commit(temporary, digest, len(content))

        with atomic_file(self.paths.blob(digest), commit, temporary=self.paths.temporary()) as fd:
            write_all(fd, content)
            seal(fd)

    def _list_blobs(self, after: Digest | None, limit: int) -> list[CachedBlob]:
        found: list[CachedBlob] = []
        kept = self.space.find_protected()
        for shard in shards()[0 if after is None else shard_of(after) :]:
            blobs = sorted(scan_shard(self.paths, shard), key=lambda each: _by_hex(each.digest))
            found += [
                CachedBlob(blob.digest, blob.size_bytes, blob.used_at_ns / 1e9, blob.digest in kept)
                for blob in blobs
                if after is None or _by_hex(blob.digest) > _by_hex(after)
            ]
            if len(found) >= limit:
                break
        return found[:limit]

    def _purge(self, digests: Collection[Digest] | None) -> int:
        def committed() -> Iterator[Digest]:
            for shard in shards():
                for blob in scan_shard(self.paths, shard):
                    yield blob.digest

        pinned = self.space.find_pinned()
        chosen = committed() if digests is None else digests
        return sum(self.space.remove(each) for each in chosen if each not in pinned)


def _open_unnoticed(path: str) -> int:
    """Open a file so that reading it counts as no use of it, and does not push others out of the page cache."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    except PermissionError:  # not our file: somebody copied the cache
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NOREUSE)
    return fd


def _in_memory(content: bytes) -> int:
    """Return the descriptor of a file in memory with this content: what was compared is what is sent."""
    fd = os.memfd_create("content")
    os.write(fd, content)
    return fd


def _by_hex(digest: Digest) -> tuple[str, str]:
    return digest.hex, digest.algorithm
