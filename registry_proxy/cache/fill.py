"""One fetch of a content for all who want it: readers, workers of the node, clients that come and go."""

import asyncio
import os
import stat
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from registry_proxy.cache.layout import CachePaths, is_sealed
from registry_proxy.cache.partial_file import ABANDONED_MODE, OwnedPartialFile, open_partial_file, read_size
from registry_proxy.cache.progress import FillProgress
from registry_proxy.cache.space import Space
from registry_proxy.cache.watch import FileWatcher
from registry_proxy.cache.writer import PartialFileWriter
from registry_proxy.files.lock import is_at, try_lock
from registry_proxy.ports.content import ByteStream, OpenSource, Reopenings
from registry_proxy.ports.errors import (
    CacheUnavailableError,
    FillFailedError,
    FillLostError,
    UpstreamUnavailableError,
    WrongContentError,
)
from registry_proxy.ports.metrics import CacheFailure, Observer
from registry_proxy.ports.names import CacheResult
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest

_T = TypeVar("_T")
_MAX_ROUNDS = 4
_MAX_MISMATCHES = 3


class _LostError(Exception):
    """The file went away under a follower, or under an owner that had not served it yet: begin anew.

    Args:
        is_wrong: what was in it is known to be wrong, so that nobody may complete a body that began with it.
    """

    def __init__(self, *, is_wrong: bool = False) -> None:
        super().__init__()
        self.is_wrong = is_wrong


@dataclass(frozen=True, slots=True)
class FillTools:
    """The tools of every fill of a cache."""

    paths: CachePaths
    space: Space
    watcher: FileWatcher
    executor: Executor
    observer: Observer
    open_committed: Callable[[Digest], tuple[int, int] | None]
    """Returns a descriptor and the size in bytes."""

    async def in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run it in a thread and wait for its end even when cancelled: it uses descriptors that are closed after."""
        work = asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            while not work.done():
                try:
                    await asyncio.wait([work])
                except asyncio.CancelledError:
                    continue
            if not work.cancelled():
                work.exception()
            raise


class Fill:
    """Brings one content into the cache, by fetching it or by following the worker that does.

    ``progress`` is what readers see. It is replaced when bytes that were handed out turned out wrong: those readers
    must not complete their bodies, and the next ones get the second try.
    """

    def __init__(self, digest: Digest, source: OpenSource, tools: FillTools) -> None:
        self.digest = digest
        self.progress = FillProgress()
        self._source = source
        self._tools = tools
        self._mismatches = 0

    async def run(self, on_end: Callable[[], None]) -> None:
        """Go on until the content is committed, or cannot be; never raises but for cancellation.

        Args:
            on_end: called before the readers learn of a failure, so that their next try is a new fill.
        """
        try:
            await self._run_rounds()
        except asyncio.CancelledError:
            on_end()
            self.progress.fail(FillFailedError("the service is stopping"))
            raise
        except OSError as error:
            self._tools.observer.observe(CacheFailure("write"))
            on_end()
            lost = FillLostError(f"the cache cannot take it: {error.strerror}")
            lost.__cause__ = error
            self.progress.fail(lost)
        except Exception as error:
            on_end()
            self.progress.fail(error)
            if not isinstance(error, _EXPECTED):
                raise
        else:
            on_end()

    async def _run_rounds(self) -> None:
        for _ in range(_MAX_ROUNDS):
            progress = self.progress
            with progress.held():
                try:
                    await self._run_round(progress)
                    return
                except _LostError as error:
                    kind = FillFailedError if error.is_wrong else FillLostError
                    self._renew(kind("the worker that fetched it gave up"))
                except WrongContentError as error:
                    self._tools.observer.observe(CacheFailure("mismatch"))
                    self._mismatches += 1
                    if self._mismatches >= _MAX_MISMATCHES:
                        raise
                    self._renew(error)
        raise FillFailedError("the fill was lost again and again")

    def _renew(self, error: Exception) -> None:
        """Begin anew; readers with bytes of this try must not get those of the next."""
        if self.progress.handed_out:
            self.progress.fail(error)
            self.progress = FillProgress()
        else:
            self.progress.reset()

    async def _run_round(self, progress: FillProgress) -> None:
        paths = self._tools.paths
        fd = open_partial_file(paths, self.digest)
        progress.take_file(fd)
        if not try_lock(fd):
            progress.result = CacheResult.LATCH
            await self._follow(progress, fd)
            if progress.verified:
                return
        if not is_at(fd, paths.part(self.digest)):
            raise _LostError
        committed = self._tools.open_committed(self.digest)
        if committed is not None:
            self._take_committed(progress, *committed)
            return
        await self._own(progress, fd)

    def _take_committed(self, progress: FillProgress, fd: int, size_bytes: int) -> None:
        """Another worker committed it between our look and our lock: remove the empty partial file, which is ours."""
        os.unlink(self._tools.paths.part(self.digest))
        progress.take_file(fd)
        progress.result = CacheResult.HIT
        progress.verify(size_bytes)

    async def _follow(self, progress: FillProgress, fd: int) -> None:
        """Follow the owner in another worker until the digest was right, or return with its lock when it died."""
        with self._tools.watcher.watching(fd) as watch:
            while True:
                locked = try_lock(fd)
                # The size first: while the file has its name, the size is that of this file's owner.
                size_bytes = read_size(self._tools.paths, self.digest)
                status = os.fstat(fd)
                if is_sealed(status):
                    progress.verify(status.st_size)
                    return
                is_wrong = stat.S_IMODE(status.st_mode) == ABANDONED_MODE
                if is_wrong or status.st_nlink == 0:
                    raise _LostError(is_wrong=is_wrong)
                progress.size_bytes = progress.size_bytes if size_bytes is None else size_bytes
                progress.advance(status.st_size)
                if locked:
                    return
                await watch.wait()

    async def _own(self, progress: FillProgress, fd: int) -> None:
        partial = OwnedPartialFile(self._tools.paths, self.digest, fd)
        try:
            await self._take_over(progress, partial)
            await self._fetch(progress, partial)
        except asyncio.CancelledError:
            raise  # this worker stops: the file stays for the next one
        except WrongContentError as error:
            partial.quarantine(error.sender or "unknown")
            self._tools.space.trim_quarantine()
            raise
        except BaseException:
            partial.remove()
            raise
        else:
            await self._commit(partial)
        finally:
            partial.release()

    async def _take_over(self, progress: FillProgress, partial: OwnedPartialFile) -> None:
        """Continue from the bytes that a dead owner left; without a known size they are dropped."""
        progress.size_bytes = read_size(self._tools.paths, self.digest)
        if partial.found_sealed:
            progress.size_bytes = partial.found_bytes
        elif progress.size_bytes is None:
            partial.truncate()
        if partial.found_bytes:
            await self._tools.in_thread(partial.resume)
            progress.advance(partial.written_bytes)

    async def _fetch(self, progress: FillProgress, partial: OwnedPartialFile) -> None:
        """Fetch what is missing and compare the digest; goes on with another stream while there is progress."""
        if partial.found_bytes and partial.written_bytes == progress.size_bytes:
            self._check(progress, partial, is_proven=False)
            return
        reopenings = Reopenings()
        while True:
            before, has_begun = partial.written_bytes, False
            try:
                async with self._source(before) as stream:
                    has_begun = True
                    await self._copy(stream, progress, partial)
                    self._check(progress, partial, is_proven=before == 0 and stream.size_bytes is not None)
                return
            except UpstreamUnavailableError as error:
                if partial.written_bytes == 0 and not has_begun:
                    raise  # nobody can answer; one that broke off may have sent the size already
                pause_seconds = reopenings.broke_off(partial.written_bytes - before)
                if pause_seconds is None:
                    raise FillFailedError(f"no replica could go on: {error}") from error
            await asyncio.sleep(pause_seconds)

    async def _copy(self, stream: ByteStream, progress: FillProgress, partial: OwnedPartialFile) -> None:
        await self._accept_size(stream.size_bytes, progress)
        skip = partial.written_bytes - stream.offset
        if skip < 0:
            raise WrongContentError("the stream starts after the offset asked for", is_proven=False)
        received, step_bytes = partial.written_bytes, self._tools.space.step_bytes
        room_until = received - received % step_bytes + step_bytes
        writer = PartialFileWriter(partial, self._tools.executor, progress.advance)
        try:
            async for chunk in stream:
                fresh = chunk[skip:] if skip else chunk
                skip -= len(chunk) - len(fresh)
                if progress.size_bytes is not None and received + len(fresh) > progress.size_bytes:
                    raise WrongContentError("more bytes came than were announced", is_proven=False)
                while received + len(fresh) > room_until:
                    head, fresh = fresh[: room_until - received], fresh[room_until - received :]
                    await writer.write(head)
                    await writer.drain()
                    received = room_until
                    await self._tools.in_thread(self._make_room, progress.size_bytes)
                    room_until += step_bytes
                received += len(fresh)
                if fresh:
                    await writer.write(fresh)
        finally:
            await writer.drain()
        if progress.size_bytes is not None and partial.written_bytes < progress.size_bytes:
            raise UpstreamUnavailableError("the stream ended before the announced length")

    async def _accept_size(self, size_bytes: int | None, progress: FillProgress) -> None:
        if progress.size_bytes is not None:
            if size_bytes not in {None, progress.size_bytes}:
                raise WrongContentError("replicas announce different lengths", is_proven=False)
        elif size_bytes is not None:
            await self._tools.in_thread(self._tools.space.reserve, self.digest, size_bytes)
            progress.size_bytes = size_bytes

    def _make_room(self, announced_bytes: int | None) -> None:
        """Make room for the next step, which is reserved already where the size was announced."""
        space = self._tools.space
        space.make_room(space.step_bytes if announced_bytes is None else 0, over_max_size=False)

    def _check(self, progress: FillProgress, partial: OwnedPartialFile, *, is_proven: bool) -> None:
        """Compare the digest; if right release the tail at once: fsync of a large file takes seconds."""
        if not partial.matches():
            raise WrongContentError("the content does not have its digest", is_proven=is_proven)
        partial.seal()
        progress.verify(partial.written_bytes)

    async def _commit(self, partial: OwnedPartialFile) -> None:
        """Put it into the cache; readers have all of it already, so that a failure costs only the next ones."""

        def commit() -> None:
            path = partial.sync()
            partial.forget_size()
            self._tools.space.commit(path, self.digest, partial.written_bytes)

        try:
            await self._tools.in_thread(commit)
        except OSError:
            self._tools.observer.observe(CacheFailure("write"))
            partial.remove()


_EXPECTED = (RegistryError, FillFailedError, UpstreamUnavailableError, CacheUnavailableError)
