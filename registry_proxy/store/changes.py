"""The spreading of changes in the store: at once on the node that made it, within a second on the others."""

import asyncio
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping

from registry_proxy.files.shared_page import SharedPage
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import LOSS_KEY, Change, Store, Table
from registry_proxy.store.failures import FAILURES_BYTES, NodeFailures
from registry_proxy.tasks import end, repeat, spawn

POLL_INTERVAL_SECONDS = 0.5

_log = logging.getLogger(__name__)
_PAGE_BYTES = 4096  # of the counters; what follows them holds the failures
_ENTRY = struct.Struct("=QQ")  # counter, sequence number of the table's last change
_OFFSETS = {table: index * _ENTRY.size for index, table in enumerate(Table)}
_COUNTER = struct.Struct("=Q")
_LOSSES = _PAGE_BYTES // _COUNTER.size - 1
_SLOTS = {table: index * 2 for index, table in enumerate(Table)}


class ChangePage:
    """Memory shared by all workers of a node, with a counter for each table; ``failures`` are in it, too.

    Beside the counter stands the sequence number the table was last seen with, so that what several workers learn of
    one change counts once. The counter itself only rises: no reader can meet the same number for other content, even
    when a store comes back from a backup with lower sequence numbers.

    Args:
        path: a file of the node, made when missing; None for a page of this process alone, which only reads.
    """

    def __init__(self, path: str | None) -> None:
        size_bytes = _PAGE_BYTES + FAILURES_BYTES
        if path is None:
            self._page = SharedPage.in_memory(size_bytes)
        else:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._page = SharedPage.at(path, size_bytes)
        self._counters = memoryview(self._page.memory).cast("Q")
        self.failures = NodeFailures(self._page, _PAGE_BYTES)

    def version(self, table: Table) -> int:
        """Return the counter of a table."""
        return self._counters[_SLOTS[table]]

    def note(self, versions: Mapping[Table, int]) -> None:
        """Count a change for each table whose sequence number is not the one known so far."""
        noted = self.known()
        if all(noted[table] == sequence for table, sequence in versions.items()):
            return  # without the lock, whose holder may wait for a disk that hangs
        with self._page.locked():
            for table, sequence in versions.items():
                counter, known = self._entry(table)
                if known != sequence:
                    self._page.write(_OFFSETS[table], _ENTRY.pack(counter + 1, sequence))

    def losses(self) -> int:
        """Return how often the store was found to be older than it had been."""
        return self._counters[_LOSSES]

    def note_loss(self) -> None:
        """Count that the store was found to be older than it had been; before any of its numbers is noted."""
        with self._page.locked():
            self._page.write(_LOSSES * _COUNTER.size, _COUNTER.pack(self.losses() + 1))

    def known(self) -> Mapping[Table, int]:
        """Return the sequence number that each table was last seen with."""
        return {table: self._entry(table)[1] for table in _OFFSETS}

    def _entry(self, table: Table) -> tuple[int, int]:
        counter, sequence = _ENTRY.unpack_from(self._page.memory, _OFFSETS[table])
        return counter, sequence

    def note_commit(self, tables: Iterable[Table], sequence: int) -> None:
        """Count a commit that changed these tables and got this sequence number."""
        self.note(dict.fromkeys(tables, sequence))

    def close(self) -> None:
        """Unmap the page; twice is fine."""
        self._counters.release()
        self._page.close()


class StoreWatch:
    """Asks the store for its versions twice a second, and gives them to all who compare (ports.store.StoreChanges).

    It is the sure way for what other nodes commit, and for a commit whose process died before it could say so.

    Args:
        store: is asked.
        page: receives the versions of changed tables.
        compared: receives the time of each answered question to the store, in seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        page: ChangePage,
        compared: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._page = page
        self._compared = compared
        self._contact_at = float("-inf")
        self._is_silent = self._is_told_silent = False
        self._told_losses = page.losses()
        self._task: asyncio.Task[None] | None = None

    def version(self, table: Table) -> int:
        """Return a number that differs whenever the table may have changed since."""
        return self._page.version(table)

    def losses(self) -> int:
        """Return a number that rises when the store turns out to be empty, or older than it was."""
        return self._page.losses()

    def seconds_since_contact(self) -> float:
        """Return how long ago the store last answered here; infinite when it never did."""
        return time.monotonic() - self._contact_at

    def is_silent(self) -> bool:
        """Tell whether the store failed to answer when it was last asked here."""
        return self._is_silent

    async def check(self) -> None:
        """Compare with the store now.

        Raises:
            StoreUnavailableError: it does not answer.
        """
        asked_at, began_at, known = time.monotonic(), time.time(), self._page.known()
        try:
            versions = await self._store.versions()
            if any(versions.get(table, 0) < sequence for table, sequence in known.items()):
                self._page.note_loss()
            if (losses := self._page.losses()) != self._told_losses:
                await self._tell_loss()
                self._told_losses = losses
        except StoreUnavailableError:
            self._is_silent = True
            raise
        self._is_silent = False
        self._page.note({table: versions.get(table, 0) for table in Table})
        self._contact_at = asked_at
        self._compared(began_at)

    async def _tell_loss(self) -> None:
        """Record that commits are missing in the store which this node has seen; proofs that need all of them go."""
        _log.error("the store is older than it was: it was lost, or restored from a copy")
        records = await self._store.list(Table.COMPARED)
        loss = Change(Table.META, LOSS_KEY, {"noticed_at": time.time(), "compared": []})
        await self._store.commit([loss, *(Change(Table.COMPARED, record.key, None) for record in records)])

    async def start(self) -> None:
        """Look once, so that nothing that happened before is missed, then go on in the background."""
        await self._look()
        self._task = spawn(repeat(self._look, POLL_INTERVAL_SECONDS), "store watch")

    async def aclose(self) -> None:
        """Stop watching."""
        if self._task is not None:
            await end(self._task)
            self._task = None

    async def _look(self) -> None:
        try:
            await self.check()
        except StoreUnavailableError as error:
            if not self._is_told_silent:
                _log.warning("the store does not answer: %s", error)
            self._is_told_silent = True
        else:
            if self._is_told_silent:
                _log.warning("the store answers again")
            self._is_told_silent = False
