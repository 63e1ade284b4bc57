"""Writing a partial behind the stream that feeds it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from registry_proxy.cache.partial_file import OwnedPartialFile

_MAX_PENDING_BYTES = 1024 * 1024


class PartialFileWriter:
    """Writes and hashes in a thread while the next chunks arrive.

    Bytes that arrive during one write are the next one, so a fast sender gets large writes and a slow sender's bytes
    are never kept waiting. At most ``_MAX_PENDING_BYTES`` and one chunk wait in memory.
    """

    def __init__(self, partial: OwnedPartialFile, executor: Executor, on_written: Callable[[int], None]) -> None:
        self._part = partial
        self._executor = executor
        self._on_written = on_written
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    async def write(self, chunk: bytes) -> None:
        """Take a chunk. Raises the OSError of an earlier one."""
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)
        self._start()
        while self._pending_bytes > _MAX_PENDING_BYTES and self._writing is not None:
            await asyncio.wait([self._writing])
        if self._error is not None:
            raise self._error

    async def drain(self) -> None:
        """Return when all is written and no thread uses the file any more, even when cancelled meanwhile.

        Raises:
            OSError: something could not be written.
        """
        cancelled: asyncio.CancelledError | None = None
        while self._writing is not None:
            try:
                await asyncio.wait([self._writing])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        if self._writing is not None or not self._pending or self._error is not None:
            return
        chunks, self._pending, self._pending_bytes = self._pending, [], 0
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(self._executor, self._part.append, chunks)
        self._writing.add_done_callback(self._written)

    def _written(self, writing: "asyncio.Future[None]") -> None:
        self._writing = None
        self._error = writing.exception()
        self._on_written(self._part.written_bytes)
        self._start()
