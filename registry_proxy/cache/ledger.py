"""The bytes that are committed, and the position of eviction: a page that all workers of the node map.

The page is true at every instant, even if a process is killed: a change of the disk is announced in the page, done, and
closed in the page, all under one lock. The next holder of the lock that finds an announced change looks at the disk and
closes it. The page itself changes by one byte that says which of its two copies counts.
"""

import contextlib
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from registry_proxy.files.shared_page import SharedPage
from registry_proxy.protocol.reference import Digest

_MAGIC = b"rp-page2"
_SELECTOR_AT = len(_MAGIC)
_COPIES_AT = (1024, 2560)
_STATE = struct.Struct("=36s8q136sqqB")
_SHARDS = 256


@dataclass(frozen=True, slots=True)
class LedgerChange:
    """The effect of a rename or an unlink on the counters; ``present``: whether the content exists afterwards."""

    digest: Digest
    size_bytes: int
    entries: int
    present: bool


@dataclass(frozen=True, slots=True)
class LedgerState:
    """The content of the page.

    ``committed_bytes`` and ``entries`` are what lies under ``blobs/``. ``records`` of the order file number
    ``generation`` count, and ``hand`` is the next of them that eviction looks at. During a recount the shards below
    ``recount_shard`` are in ``recount_bytes`` and ``recount_entries``; it is -1 when there is none. ``boot`` is the
    boot of the machine in which all this was written: after another one the page may be older than the disk.
    """

    boot: str
    committed_bytes: int = 0
    entries: int = 0
    generation: int = 0
    records: int = 0
    hand: int = 0
    recount_shard: int = -1
    recount_bytes: int = 0
    recount_entries: int = 0
    change: LedgerChange | None = None

    def settled(self, *, happened: bool) -> "LedgerState":
        """Return the state after the announced change, which happened or did not."""
        change = self.change
        if change is None or not happened:
            return replace(self, change=None)
        counted = shard_of(change.digest) < self.recount_shard
        return replace(
            self,
            committed_bytes=self.committed_bytes + change.size_bytes,
            entries=self.entries + change.entries,
            recount_bytes=self.recount_bytes + change.size_bytes * counted,
            recount_entries=self.recount_entries + change.entries * counted,
            change=None,
        )


def shard_of(digest: Digest) -> int:
    """Return the number of the directory that a committed content lies in, 0 to 255."""
    return int(digest.hex[:2], 16)


def shards() -> range:
    """Return the numbers of all shards."""
    return range(_SHARDS)


class Ledger:
    """The page. Read by anyone at any time, written only under ``locked``.

    Only committed content is counted here. Fills are read from the directory instead, so that a worker
    that was killed leaves nothing behind in a counter.

    Args:
        path: the file of the page; what is not a page of ours is begun anew, as a recount that is still to be made.
        is_present: returns whether a committed content lies on disk, to close the change of a killed worker.
    """

    def __init__(self, path: str, is_present: Callable[[Digest], bool]) -> None:
        self._is_present = is_present
        self._page = SharedPage.at(path)
        self._memory = self._page.memory
        if self._memory[:_SELECTOR_AT] != _MAGIC:
            with self._page.locked():
                if self._memory[:_SELECTOR_AT] != _MAGIC:
                    self.write(LedgerState(boot="", recount_shard=0))
                    self._page.write(0, _MAGIC)

    @property
    def state(self) -> LedgerState:
        """The content of the page now; without the lock it may change at once."""
        while True:
            selector = self._memory[_SELECTOR_AT]
            state = self._read(_COPIES_AT[selector & 1])
            if self._memory[_SELECTOR_AT] == selector:
                return state

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Exclude every other worker and thread; what is inside takes microseconds, milliseconds in a recount."""
        with self._page.locked():
            change = self.state.change
            if change is not None:  # its worker was killed
                self.write(self.state.settled(happened=self._is_present(change.digest) == change.present))
            yield self

    @contextmanager
    def changing(self, change: LedgerChange) -> Iterator[None]:
        """Rename or unlink inside: it is counted if, and only if, it happens. The caller holds the lock."""
        self.write(replace(self.state, change=change))
        try:
            yield
        except BaseException:
            self.write(self.state.settled(happened=self._is_present(change.digest) == change.present))
            raise
        self.write(self.state.settled(happened=True))

    def close(self) -> None:
        """Unmap the page; twice is fine."""
        self._page.close()

    def write(self, state: LedgerState) -> None:
        """Replace the state; the caller holds the lock."""
        selector = (self._memory[_SELECTOR_AT] + 1) % 256
        change = state.change
        content = _STATE.pack(
            state.boot.encode(),
            state.committed_bytes,
            state.entries,
            state.generation,
            state.records,
            state.hand,
            state.recount_shard,
            state.recount_bytes,
            state.recount_entries,
            b"" if change is None else str(change.digest).encode(),
            0 if change is None else change.size_bytes,
            0 if change is None else change.entries,
            change is not None and change.present,
        )
        self._page.write(_COPIES_AT[selector & 1], content)
        self._page.write(_SELECTOR_AT, bytes([selector]))

    def _read(self, offset: int) -> LedgerState:
        boot, a, b, c, d, e, f, g, h, digest, size_bytes, entries, present = _STATE.unpack_from(self._memory, offset)
        algorithm, _, encoded = digest.rstrip(b"\0").decode().partition(":")
        change = LedgerChange(Digest(algorithm, encoded), size_bytes, entries, bool(present)) if algorithm else None
        return LedgerState(boot.rstrip(b"\0").decode(), a, b, c, d, e, f, g, h, change)


def boot_id() -> str:
    """Return what names this boot of the machine, "" where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""
