"""Room for what comes in: reservations against ``max_size`` and ``min_free``, and eviction by SIEVE.

SIEVE keeps contents in the order in which they came. A hand moves from the oldest to the newest and begins again: what
was used since it last passed stays where it is, the first that was not goes. So what is asked for once, however much of
it, pushes out nothing that is asked for again and again. "Used" is the file's atime, which every worker writes.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from registry_proxy.cache.eviction_queue import EvictionQueue, QueueEntry
from registry_proxy.cache.incoming import Incoming, read_fills, remove_dead_fills
from registry_proxy.cache.layout import CachePaths, CommittedBlob, is_sealed, scan_next, write_small_file
from registry_proxy.cache.ledger import Ledger, LedgerChange, LedgerState, boot_id, shard_of, shards
from registry_proxy.cache.uploads import UploadRoom
from registry_proxy.files.atomic import sync_directory
from registry_proxy.files.lock import locked
from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.ports.metrics import CacheEviction, CacheFailure, Observer
from registry_proxy.protocol.reference import Digest

_ATTEMPTS = 20
"""What one evicts, another worker may take: try again, but not for ever."""

_LAPS = 2
"""In the first lap everything may have been used since the last; what is left after the second cannot go."""

_STEP_BYTES = 16 * 1024 * 1024
_LEAST_STEP_BYTES = 64 * 1024
_STEP_PART = 64
"""What comes in asks for room each time it grew by so much: 16 MiB, or this part of a small cache."""

_MAX_QUARANTINED = 8
_QUARANTINE_PART = 20
_REWRITE_SLACK = 4096
_RECENT_NS = 24 * 3600 * 10**9
"""After a recount, what was used in this time before it counts as used."""


@dataclass(frozen=True, slots=True)
class _Shortage:
    """The bytes that are missing: ``soft`` to keep under ``max_size``, ``hard`` to leave ``min_free``."""

    soft: int
    hard: int

    @property
    def size_bytes(self) -> int:
        """The bytes to evict so that nothing is missing."""
        return max(self.soft, self.hard)


class Space:
    """Decides whether content may come in, evicts for it, and counts what was committed or removed.

    Every method may wait for the disk or for another worker: they are called in threads, but for the properties.

    Args:
        paths: the cache.
        max_size_bytes: what committed content, fills and uploads together may take.
        min_free_bytes: what they leave free on the file system.
        observer: receives evictions.
        find_kept: returns the digests that must not be evicted, besides those that are pinned.
    """

    def __init__(
        self,
        paths: CachePaths,
        *,
        max_size_bytes: int,
        min_free_bytes: int,
        observer: Observer,
        find_kept: Callable[[], Collection[Digest]] = frozenset,
    ) -> None:
        self._paths = paths
        self.max_size_bytes = max_size_bytes
        self._min_free_bytes = min_free_bytes
        self.step_bytes = max(_LEAST_STEP_BYTES, min(_STEP_BYTES, max_size_bytes // _STEP_PART))
        self._observer = observer
        self._find_kept = find_kept
        self._ledger = open_ledger(paths)
        self.uploads = UploadRoom(paths, max_size_bytes)

    def close(self) -> None:
        self._ledger.close()
        self.uploads.close()

    @property
    def committed_bytes(self) -> int:
        return self._ledger.state.committed_bytes

    @property
    def entries(self) -> int:
        return self._ledger.state.entries

    @property
    def incoming_bytes(self) -> int:
        """The bytes that fills and uploads in progress take, with those promised to them."""
        return self._incoming().size_bytes

    def reserve(self, digest: Digest, size_bytes: int) -> None:
        """Publish the size of a fill to the other workers, and make room for its first step.

        An announcement evicts no more than that: a sender may announce what never comes. The fill makes room for each
        further step when it has written those before, with ``make_room(0)``: the step is promised to it by then.

        Raises:
            CacheUnavailableError: larger than the cache, or what could be evicted does not suffice.
            OSError: the disk does not take the promise.
        """
        if size_bytes > self.max_size_bytes:
            raise CacheUnavailableError(f"{size_bytes} bytes are more than the whole cache may hold")
        wanted_bytes = self._shortage(size_bytes).size_bytes - self.uploads.total_bytes
        if wanted_bytes > 0 and wanted_bytes > (evictable_bytes := self._evictable_bytes(self.find_protected())):
            with self._exclusive():
                wanted_bytes -= self._sweep_dead_fills()
            if wanted_bytes > evictable_bytes:
                self._observer.observe(CacheFailure("full"))
                raise CacheUnavailableError(f"no room for {size_bytes} bytes, and too little to evict for them")
        with self._room(min(size_bytes, self.step_bytes), over_max_size=False):
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
        with self._ledger.locked():
            try:
                status = os.stat(target)
            except FileNotFoundError:
                old_bytes = None
            else:
                if is_sealed(status):
                    os.unlink(source)
                    return
                os.unlink(target)  # a rename over it would look like one that did not happen
                old_bytes = status.st_size
            with self._ledger.changing(
                LedgerChange(digest, size_bytes - (old_bytes or 0), 1 if old_bytes is None else 0, present=True)
            ):
                if not self._is_yet_to_be_queued(digest):
                    self._append(CommittedBlob(digest, target, size_bytes, os.stat(source).st_atime_ns))
                os.rename(source, target)
        sync_directory(directory)

    def remove(self, digest: Digest) -> bool:
        """Remove a committed content; return whether it was there."""
        return self._remove(digest) is not None

    def quarantine(self, digest: Digest) -> None:
        """Take a committed content out of use, and keep its bytes while there is room for a look at them."""
        with contextlib.suppress(FileNotFoundError):
            self._remove(digest, into=self._paths.quarantined(digest, "disk"))
        self.trim_quarantine()

    def trim_quarantine(self) -> None:
        """Keep the last few contents of the quarantine, in a small part of the room."""
        room_bytes = self.max_size_bytes // _QUARANTINE_PART
        names = sorted(os.listdir(self._paths.quarantine), key=lambda name: name.rpartition(".")[2], reverse=True)
        for place, name in enumerate(names):
            with contextlib.suppress(FileNotFoundError):
                path = f"{self._paths.quarantine}/{name}"
                room_bytes -= os.stat(path).st_size
                if place >= _MAX_QUARANTINED or room_bytes < 0:
                    os.unlink(path)

    def find_pinned(self) -> set[Digest]:
        """Return what some replica does not have yet."""
        return {Digest(*name.split("-", 1)) for name in os.listdir(self._paths.pins)}

    def find_protected(self) -> set[Digest]:
        """Return what is not evicted."""
        return {*self.find_pinned(), *self._find_kept()}

    def size_of(self, digests: Collection[Digest]) -> int:
        """Return the bytes of those that are committed."""
        total = 0
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(self._paths.blob(digest)).st_size
        return total

    @property
    def must_recount(self) -> bool:
        """Whether the counters may be wrong: after a crash of the machine, or in a directory made by another hand."""
        state = self._ledger.state
        return state.recount_shard >= 0 or state.boot != boot_id()

    def recount(self) -> None:
        """Count what is committed, while everything else goes on; the queue is kept where there is one."""
        with self._exclusive():
            with self._ledger.locked() as ledger:
                state = ledger.state
                reorders = state.boot != boot_id()
                if reorders:
                    state = replace(state, generation=state.generation + 1, records=0, hand=0)
                ledger.write(replace(state, recount_shard=0, recount_bytes=0, recount_entries=0))
            remaining = shards()
            while remaining:
                with self._ledger.locked() as ledger:
                    blobs, remaining = scan_next(self._paths, remaining)
                    if reorders:
                        self._append(*(replace(blob, used_at_ns=time.time_ns() - _RECENT_NS) for blob in blobs))
                    state = ledger.state
                    ledger.write(
                        replace(
                            state,
                            recount_shard=remaining.start,
                            recount_bytes=state.recount_bytes + sum(blob.size_bytes for blob in blobs),
                            recount_entries=state.recount_entries + len(blobs),
                        )
                    )
            with self._ledger.locked() as ledger:
                state = ledger.state
                ledger.write(
                    replace(
                        state,
                        boot=boot_id(),
                        committed_bytes=state.recount_bytes,
                        entries=state.recount_entries,
                        recount_shard=-1,
                    )
                )
            self._remove_old_queues()

    # ------------------------------------------------------------ committed content

    def _append(self, *blobs: CommittedBlob) -> None:
        """Put them at the end of the queue; the caller holds the lock of the page."""
        state = self._ledger.state
        with EvictionQueue(self._paths.order(state.generation)) as queue:
            queue.write(
                *(
                    QueueEntry(number, blob.digest, blob.size_bytes, blob.used_at_ns)
                    for number, blob in enumerate(blobs, state.records)
                )
            )
        self._ledger.write(replace(self._ledger.state, records=state.records + len(blobs)))

    def _is_yet_to_be_queued(self, digest: Digest) -> bool:
        """Tell whether a recount that makes the queue anew will come by it."""
        state = self._ledger.state
        return state.boot != boot_id() and shard_of(digest) >= state.recount_shard >= 0

    def _make_directory(self, path: str) -> None:
        parent = os.path.dirname(path)
        for directory in (parent, path):
            try:
                os.mkdir(directory)
            except FileExistsError:
                continue
            sync_directory(os.path.dirname(directory))

    def _remove(self, digest: Digest, into: str | None = None) -> int | None:
        path = self._paths.blob(digest)
        with self._ledger.locked():
            try:
                size_bytes = os.stat(path).st_size
                with self._ledger.changing(LedgerChange(digest, -size_bytes, -1, present=False)):
                    if into is None:
                        os.unlink(path)
                    else:
                        os.rename(path, into)
            except FileNotFoundError:
                return None
            return size_bytes

    # ------------------------------------------------------------ room

    def _incoming(self) -> Incoming:
        fills = read_fills(self._paths, self.step_bytes)
        return Incoming(fills.size_bytes + self.uploads.total_bytes, fills.unwritten_bytes)

    def _shortage(self, size_bytes: int) -> _Shortage:
        incoming = self._incoming()
        disk = os.statvfs(self._paths.root)
        free_bytes = disk.f_bavail * disk.f_frsize - incoming.unwritten_bytes
        soft = self.committed_bytes + incoming.size_bytes + size_bytes - self.max_size_bytes
        hard = self._min_free_bytes + size_bytes - free_bytes
        return _Shortage(max(0, soft), max(0, hard))

    def _evictable_bytes(self, kept: Collection[Digest]) -> int:
        """Return the bytes of what is committed and may go."""
        return self.committed_bytes - self.size_of(kept)

    @contextmanager
    def _room(self, size_bytes: int, *, over_max_size: bool) -> Iterator[None]:
        for _ in range(_ATTEMPTS):
            with self._ledger.locked():
                shortage = self._shortage(size_bytes)
                if not shortage.size_bytes:
                    yield
                    return
            if not self._evict(shortage, size_bytes, in_vain=over_max_size):
                break
        if not over_max_size or self._shortage(size_bytes).hard:
            self._observer.observe(CacheFailure("full"))
            raise CacheUnavailableError(f"no room for {size_bytes} bytes more, and nothing left to evict")
        yield

    # ------------------------------------------------------------ eviction

    def _evict(self, shortage: _Shortage, size_bytes: int, *, in_vain: bool) -> bool:
        """Remove contents until the shortage is gone; return whether that was possible.

        One worker at a time: the one that waited may find that the other's work was enough. Unless ``in_vain``, nothing
        is removed when all that may go would not be enough.
        """
        with self._exclusive():
            wanted_bytes = min(shortage.size_bytes, self._shortage(size_bytes).size_bytes) - self._sweep_dead_fills()
            if wanted_bytes <= 0:
                return True
            started_at_ns = time.time_ns()
            kept = self.find_protected()
            if not in_vain:
                lacking_bytes = wanted_bytes - self._evictable_bytes(kept)
                if lacking_bytes > 0:
                    freed_bytes = self.uploads.remove_abandoned(lacking_bytes)
                    wanted_bytes -= freed_bytes
                    if lacking_bytes > freed_bytes:
                        return False
            path = self._paths.order(self._ledger.state.generation)
            with EvictionQueue(path) as queue, contextlib.closing(self._circle(queue)) as circle:
                for record in circle if wanted_bytes > 0 else ():
                    wanted_bytes -= self._pass(queue, record, kept, started_at_ns)
                    if wanted_bytes <= 0:
                        break
            self._shorten_queue()
            if wanted_bytes > 0:
                wanted_bytes -= self.uploads.remove_abandoned(wanted_bytes)
            return wanted_bytes <= 0

    def _circle(self, queue: EvictionQueue) -> Generator[QueueEntry]:
        """Move the hand over the records, round and round for two laps; it stays where the caller stops."""
        passed, lap = 0, self._ledger.state.records
        while passed < _LAPS * lap:
            state = self._ledger.state
            hand = state.hand if state.hand < state.records else 0
            end = min(state.records, hand + _LAPS * lap - passed)
            at = hand
            try:
                for record in queue.read(hand, end):
                    at = record.number + 1
                    yield record
                at = end
            finally:
                with self._ledger.locked() as ledger:
                    ledger.write(replace(ledger.state, hand=at))
            passed += max(1, end - hand)

    def _pass(self, queue: EvictionQueue, record: QueueEntry, kept: Collection[Digest], kept_since_ns: int) -> int:
        """Evict one content, or let it be; return the bytes freed."""
        try:
            used_at_ns = os.stat(self._paths.blob(record.digest)).st_atime_ns
        except FileNotFoundError:
            with self._ledger.locked():  # it may be about to get its name
                if not os.path.exists(self._paths.blob(record.digest)):
                    queue.erase(record.number)
            return 0
        # What came or was used after ``kept`` was made may have become one of them.
        if record.digest in kept or used_at_ns > kept_since_ns or os.path.exists(self._paths.pin(record.digest)):
            return 0
        if used_at_ns > record.used_at_ns:
            queue.write(replace(record, used_at_ns=used_at_ns))
            return 0
        freed_bytes = self._remove(record.digest)
        queue.erase(record.number)
        if freed_bytes is None:
            return 0
        self._observer.observe(CacheEviction(freed_bytes))
        return freed_bytes

    def _shorten_queue(self) -> None:
        """Drop the records without content once they are the most."""
        state = self._ledger.state
        if state.records <= 2 * state.entries + _REWRITE_SLACK:
            return
        seen: set[int] = set()  # a content that went and came again has two records: the first one stands

        def is_wanted(record: QueueEntry) -> bool:
            short = hash(record.digest)
            if short in seen or not os.path.exists(self._paths.blob(record.digest)):
                return False
            seen.add(short)
            return True

        with self._ledger.locked() as ledger:
            state = ledger.state
            with EvictionQueue(self._paths.order(state.generation)) as queue:
                path = self._paths.order(state.generation + 1)
                records, hand = queue.rewrite(path, state.records, is_wanted, state.hand)
            ledger.write(replace(state, generation=state.generation + 1, records=records, hand=hand))
        self._remove_old_queues()

    def _remove_old_queues(self) -> None:
        current = os.path.basename(self._paths.order(self._ledger.state.generation))
        for name in os.listdir(self._paths.orders):
            if name != current:
                os.unlink(f"{self._paths.orders}/{name}")

    def _sweep_dead_fills(self) -> int:
        """Remove the fills whose worker died and that nobody took over; return the bytes that were promised to them."""
        before = self._incoming().size_bytes
        return max(0, before - self._incoming().size_bytes) if remove_dead_fills(self._paths) else 0

    def _exclusive(self) -> AbstractContextManager[None]:
        """Exclude the evictions and recounts of every other worker and thread."""
        return locked(f"{self._paths.root}/evict.lock")


def open_ledger(paths: CachePaths) -> Ledger:
    """Open the page of a cache."""

    def is_present(digest: Digest) -> bool:
        return os.path.exists(paths.blob(digest))

    ledger = Ledger(f"{paths.root}/page", is_present)
    with ledger.locked():
        if not ledger.state.boot and not os.listdir(f"{paths.root}/blobs"):
            ledger.write(LedgerState(boot_id()))
    return ledger
