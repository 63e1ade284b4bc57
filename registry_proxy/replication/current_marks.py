"""The marks of the journal, kept current: read again when an intent may have changed, and restored to a lost store."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.journal import Moment, Pause
from registry_proxy.ports.metrics import LostContents, Observer, ReplicaPending, ReplicaRefusals
from registry_proxy.ports.store import LOSS_KEY, Change, Store, StoreChanges, Table, read_since, retried
from registry_proxy.protocol.reference import Repository
from registry_proxy.replication.intents import change_of, intent_of, parse_key
from registry_proxy.replication.marks import JournalMarks
from registry_proxy.replication.pauses import find_pause, restored_pause
from registry_proxy.replication.recent_writes import RecentWrites
from registry_proxy.replication.roster import Roster

_log = logging.getLogger(__name__)


class CurrentMarks:
    """The ``MarkSource`` of the readers.

    Args:
        store: holds the intents.
        changes: knows when another worker or node may have written some.
        observer: receives how many keys each replica is behind in.
        replicas: for each upstream the names of its configured replicas, so that a zero is reported too.
        roster: the replicas on record.
        guarded: the upstreams that have a roster, because their replicas can differ.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        changes: StoreChanges,
        observer: Observer,
        replicas: Mapping[str, Sequence[str]],
        *,
        roster: Roster,
        guarded: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._changes = changes
        self._observer = observer
        self._replicas = replicas
        self._roster = roster
        self._guarded = guarded
        self._clock = clock
        self._marks: JournalMarks | None = None
        self._revision = 0
        self._version = (-1, -1)
        self._losses = changes.losses()
        self._loading = asyncio.Lock()
        self._writes = RecentWrites(changes)

    def moment(self) -> Moment:
        """Return the moment of the last snapshot."""
        return self._writes.now()

    def written_since(self, moment: Moment, upstream: str, *, leave_intents: bool) -> Collection[Repository] | None:
        """Return the repositories of an upstream that were written to between a moment and the last snapshot."""
        return self._writes.since(moment, upstream, leave_intents=leave_intents)

    async def marks(self, *, of_all_nodes: bool = False) -> JournalMarks:
        """Return the snapshot, read again when an intent may have changed.

        While the store is away the last snapshot stands.

        Raises:
            StoreUnavailableError: there never was one.
        """
        if of_all_nodes:
            with contextlib.suppress(StoreUnavailableError):
                await self._changes.check()
        if (marks := self._current()) is not None:
            return marks
        async with self._loading:
            if (marks := self._current()) is not None:
                return marks
            version, now = self._versions(), self._clock()
            try:
                losses = self._changes.losses()
                is_same_store = losses == self._losses
                if not is_same_store:
                    await self._restore_lost()
                newcomers, pauses = await self._roster.newcomers(), await self._pauses()
                marks = await self._read(self._marks if is_same_store else None, now, newcomers, pauses)
            except StoreUnavailableError:
                if self._marks is None:
                    raise
                return self._marks
            self._marks, self._losses = marks, losses
            self._version = version
            self._report(marks)
            return marks

    async def _read(
        self,
        known: JournalMarks | None,
        now: float,
        newcomers: Mapping[tuple[str, str], str],
        pauses: Mapping[str, Pause],
    ) -> JournalMarks:
        """Return a snapshot of what is open: from the last one where the store knows what has changed since."""
        found, is_whole = await read_since(self._store, Table.INTENTS, None if known is None else self._revision)
        self._revision = found.version
        intents = {parse_key(key): intent_of(record) for key, record in found.records.items()}
        before = JournalMarks((), now) if known is None or is_whole else known
        if known is before and newcomers == known.newcomers and known.valid_from <= now < known.valid_until:
            self._writes.note(key.routed for key in intents)
        else:
            self._writes.note_all()
        return before.changed(intents, now, newcomers, pauses)

    async def _restore_lost(self) -> None:
        """Write again what the store has lost, as this process remembers it: what replicas miss, and who is new.

        Raises:
            StoreUnavailableError: it does not answer.
        """

        async def attempt() -> None:  # another process may do the same
            await self._store.commit(await self._lost_changes())

        await retried(attempt)

    async def _lost_changes(self) -> list[Change]:
        if self._marks is None:
            return []
        intents = {str(key): change_of(key, intent, expect=0) for key, intent in self._marks.intents}
        pauses = {name: pause for name in self._guarded if (pause := self._marks.pause(name)) is not None}
        changes = [
            *intents.values(),
            *self._roster.remembered(self._marks.newcomers),
            *(restored_pause(name, pause) for name, pause in pauses.items()),
        ]
        found = await self._store.get_all([(change.table, change.key) for change in changes]) if changes else []
        lost = [change for change, record in zip(changes, found, strict=True) if record is None]
        if lost:
            _log.warning("the store was lost: %d records of what replicas miss are written again", len(lost))
        return lost

    async def is_doubtful(self) -> bool:
        """Tell whether the store was lost, and the replicas were not compared since: what they miss is not known.

        Raises:
            StoreUnavailableError: it cannot be known.
        """
        await self._changes.check()
        return await self._store.get(Table.META, LOSS_KEY) is not None

    def _current(self) -> JournalMarks | None:
        marks = self._marks
        if marks is None or self._versions() != self._version:
            return None
        if not marks.valid_from <= self._clock() < marks.valid_until:  # or the clock was put back
            return None
        return marks

    def _versions(self) -> tuple[int, int]:
        return self._changes.version(Table.INTENTS), self._changes.version(Table.META)

    def _report(self, marks: JournalMarks) -> None:
        for upstream, names in self._replicas.items():
            for name in names:
                self._observer.observe(ReplicaPending(upstream, name, marks.pending(name, upstream)))
                self._observer.observe(ReplicaRefusals(upstream, name, marks.refused(name, upstream)))
            self._observer.observe(LostContents(upstream, marks.lost(upstream)))

    async def _pauses(self) -> Mapping[str, Pause]:
        found = {upstream: await find_pause(self._store, upstream) for upstream in self._guarded}
        return {upstream: pause for upstream, pause in found.items() if pause is not None}
