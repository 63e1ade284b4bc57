"""The price of long lists of a replica: one of them is in memory at a time, and their small pages come slowly."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

LIST_MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all pages together; distribution 2.8.2 ignores n and sends every tag at once."""

SHORT_LIST_BYTES: Final = 1024 * 1024
"""A list with more is read alone: some lists of a million names at once would fill the memory."""

QUICK_PAGES: Final = 20
_SMALL_PAGE_BYTES: Final = 8 * 1024
PAGE_SECONDS: Final = 0.02
"""Time between the small pages of long lists: at full speed they would take a core for as long as a list may last."""


class LongLists:
    """Bounds what the long lists of one kind, at one replica, take of this process together.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.room = asyncio.Lock()
        """Held by the one long list that is being read."""

        self._next_page_at = 0.0

    @asynccontextmanager
    async def reading(self) -> AsyncIterator["Reading"]:
        """Begin to read a list."""
        reading = Reading(self)
        try:
            yield reading
        finally:
            if reading.has_room:
                self.room.release()

    async def wait_for_page(self) -> None:
        """Wait until the next small page may be asked for; lists that wait take turns."""
        now = self._clock()
        begins_at = max(now, self._next_page_at)
        self._next_page_at = begins_at + PAGE_SECONDS
        await asyncio.sleep(begins_at - now)


class Reading:
    """One list that is being read, as far as it has come."""

    def __init__(self, lists: LongLists) -> None:
        self._lists = lists
        self._size_bytes = 0
        self._pages = 0
        self._is_small = False
        self.has_room = False

    async def read_page(self, body: AsyncIterable[bytes]) -> bytes | None:
        """Return the next page; None where the list is too long with it."""
        before = self._size_bytes
        chunks: list[bytes] = []
        async for chunk in body:
            self._size_bytes += len(chunk)
            if self._size_bytes > LIST_MAX_BYTES:
                return None
            if self._size_bytes > SHORT_LIST_BYTES and not self.has_room:
                await self._lists.room.acquire()
                self.has_room = True
            chunks.append(chunk)
        self._pages += 1
        self._is_small = self._size_bytes - before < _SMALL_PAGE_BYTES
        return b"".join(chunks)

    async def go_on(self) -> None:
        """Wait until the page behind this one may be asked for."""
        if self._pages >= QUICK_PAGES and self._is_small:
            await self._lists.wait_for_page()
