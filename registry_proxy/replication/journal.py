"""The journal: which replicas miss which write. State, not history (docs/decisions/08).

An intent is stored before a manifest, a tag or a delete touches the first replica, naming every replica as missing it;
those that confirmed are taken out at the end, and with the last one the intent goes. While the write is under way its
replicas are as good as before it: only when ``writing_until`` has passed does an intent that nobody concluded, because
its node died, count against all of them.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from registry_proxy.ports.errors import ConflictError
from registry_proxy.ports.journal import IntentKey, IntentKind, Pause
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Change, Record, Store, StoreChanges, Table, retried, revision_of
from registry_proxy.protocol.reference import Digest, parse_digest
from registry_proxy.replication.announced import announced, ready
from registry_proxy.replication.current_marks import CurrentMarks
from registry_proxy.replication.intents import (
    NO_REFUSALS,
    WRITING_SECONDS,
    Intent,
    change_of,
    intent_of,
    record_of,
    revise_intent,
)
from registry_proxy.replication.moves import numbered
from registry_proxy.replication.pauses import find_pause
from registry_proxy.replication.roster import Roster
from registry_proxy.replication.tag_records import moved
from registry_proxy.replication.witnesses import is_witness, witness_of

_log = logging.getLogger(__name__)

_NEW = frozenset({Table.OUTBOX, Table.MOVES})
"""Tables of records that a write adds: none of them replaces one."""


@dataclass(frozen=True, slots=True)
class OpenWrite:
    """A write whose intents are stored and which waits for ``conclude`` or ``withdraw``.

    ``tags`` are the records that it made and its end writes once more, ``events`` the entries of the outbox. ``paused``
    is the replica that it may not touch.
    """

    intents: Mapping[IntentKey, Intent]
    previous: Sequence[tuple[Table, str, Record | None]]
    revision: int
    tags: Sequence[Change] = ()
    events: Sequence[Change] = ()
    paused: str | None = None

    @property
    def was_open(self) -> bool:
        """Tell whether a replica may have missed one of the keys before."""
        return any(table is Table.INTENTS and record is not None for table, _, record in self.previous)


class Journal:
    """Writes intents; ``current`` gives the marks they make. For the arguments see ``CurrentMarks``."""

    def __init__(
        self,
        store: Store,
        changes: StoreChanges,
        observer: Observer,
        replicas: Mapping[str, Sequence[str]],
        *,
        guarded: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._clock = clock
        self.roster = Roster(store, replicas, guarded, observer)
        self.current = CurrentMarks(
            store, changes, observer, replicas, roster=self.roster, guarded=guarded, clock=clock
        )

    async def is_writing(self, pause: Pause, upstream: str) -> bool:
        """Tell whether a write may still be under way that began before a pause was on record."""
        now = self._clock()
        for record in await self._store.list(Table.INTENTS, f"{upstream}/"):
            until = Intent.from_value(record.value).writing_until
            # The time is for an intent of which a replica was confirmed meanwhile, which gave it a later revision.
            if now < until and (record.revision < pause.revision or until < pause.since + WRITING_SECONDS):
                return True
        return False

    async def miss(self, key: IntentKey, digest: Digest | None, media_type: str, replica: str) -> bool:
        """Note that a replica misses the intended digest of a key, None for deleted; return whether that is so now.

        Nothing happens when the key has another digest.
        """

        def revise(found: Intent | None) -> Intent | None:
            intent = found or Intent(digest, media_type, ())
            if intent.digest != digest or replica in intent.refused:
                return None
            is_known = replica in intent.missing
            return intent if is_known else replace(intent, missing=(*intent.missing, replica), is_lost=False)

        return await revise_intent(self._store, key, revise) is not None

    async def missed_contents(self, upstream: str) -> Sequence[tuple[IntentKey, Intent]]:
        """Return the manifests and blobs of an upstream that some replica misses, but those being written now."""
        marks = await self.current.marks()
        return [
            (key, intent)
            for key, intent in marks.intents
            if key.routed.upstream == upstream and key.kind is not IntentKind.TAG and intent.digest is not None
            if intent.missing and not intent.is_under_way(self._clock())
        ]

    async def find(self, key: IntentKey) -> Intent | None:
        """Return the open intent of a key, from the store itself."""
        return intent_of(await self._store.get(Table.INTENTS, str(key)))

    async def begin(
        self,
        contents: Mapping[IntentKey, tuple[Digest | None, str]],
        replicas: Sequence[str],
        changes: Sequence[Change] = (),
    ) -> OpenWrite:
        """Store the intents of a write and the records it makes, in one commit, and remember what was there before.

        Args:
            contents: for each key its intended digest (None for deleted) and media type.
            replicas: the names of all that must have it; none over shared storage, which cannot diverge.
            changes: further records, such as the tag's, entries of the outbox, and a move of the tag.
        """
        return await retried(lambda: self._try_begin(contents if replicas else {}, replicas, changes))

    async def _try_begin(
        self,
        contents: Mapping[IntentKey, tuple[Digest | None, str]],
        replicas: Sequence[str],
        changes: Sequence[Change],
    ) -> OpenWrite:
        now = self._clock()
        previous: list[tuple[Table, str, Record | None]] = []
        intents: dict[IntentKey, Intent] = {}
        for key, (digest, media_type) in contents.items():
            record = await self._store.get(Table.INTENTS, str(key))
            previous.append((Table.INTENTS, str(key), record))
            before = intent_of(record) or Intent(digest, media_type, ())
            behind, until = before.replicas_behind(now), now + WRITING_SECONDS
            intents[key] = Intent(digest, media_type, tuple(replicas), behind, until, before.refused)
        records = [None if one.table in _NEW else await self._store.get(one.table, one.key) for one in changes]
        changes, records = announced(changes, records, list(intents), now + WRITING_SECONDS)
        changes = [await self._moved(one, record) for one, record in zip(changes, records, strict=True)]
        changes, records = numbered(changes, records, now)
        previous += [(one.table, one.key, record) for one, record in zip(changes, records, strict=True)]
        stored = [Change(Table.INTENTS, str(key), intent.to_value()) for key, intent in intents.items()]
        expecting = [
            replace(change, expect=revision_of(record))
            for change, (_, _, record) in zip([*stored, *changes], previous, strict=True)
        ]
        witnesses = [witness_of(key) for key, intent in intents.items() if is_witness(key, intent.digest)]
        revision = await self._store.commit([*expecting, *witnesses]) if expecting else 0
        # Without intents a push of no tag would otherwise end without a commit, which those who keep lists wait for.
        tables = {Table.TAGS} if intents else {Table.TAGS, Table.MANIFESTS}
        tags = [replace(change, expect=revision) for change in changes if change.table in tables]
        events = [ready(change, revision) for change in changes if change.table is Table.OUTBOX]
        # Looked for after the commit: a later pause finds these intents, and waits for their end.
        pause = await find_pause(self._store, next(iter(intents)).routed.upstream) if intents else None
        return OpenWrite(intents, previous, revision, tags, events, None if pause is None else pause.replica)

    async def _moved(self, change: Change, before: Record | None) -> Change:
        """Return a change of a tag's record with what the tag was before."""
        deleted = None
        if change.table is Table.TAGS and before is None:
            routed, _, tag = change.key.partition("|")
            deleted = await self._store.get(Table.DELETIONS, f"{routed}|{IntentKind.TAG}|{tag}")
        return moved(change, before, deleted)

    async def conclude(
        self, write: OpenWrite, confirmed: Collection[str], refused: Mapping[str, str] = NO_REFUSALS
    ) -> int:
        """Take the replicas that confirmed it out of its intents; with the last one the intent goes.

        Those that ``refused`` it for good, and why, stay in it as such. Its events may be delivered from now on. The
        records of its tags are written once more: a reader that asked a replica while the write was under way may have
        got the earlier tag, and remembers that with the earlier revision. Returns the new one.
        """
        concluded = [
            change_of(key, intent.concluded(refused).without(confirmed), expect=write.revision)
            for key, intent in write.intents.items()
        ]
        if not (concluded or write.tags or write.events):
            return write.revision
        try:
            return await self._store.commit([*concluded, *write.tags, *write.events])
        except ConflictError:  # somebody confirmed one of the keys, or a newer write has taken it over
            for key, intent in write.intents.items():
                await retried(partial(self._conclude_changed, key, intent, confirmed, refused))
                reached = [name for name in intent.missing if name != write.paused]
                await self.note_late(key, intent.digest, reached, revision=write.revision)
        for event in write.events:
            with contextlib.suppress(ConflictError):  # it was taken from the outbox already
                await self._store.commit([event])
        with contextlib.suppress(ConflictError):  # a newer write has the last word
            return await self._store.commit(write.tags)
        return write.revision

    async def _conclude_changed(
        self, key: IntentKey, concluded: Intent, confirmed: Collection[str], refused: Mapping[str, str]
    ) -> None:
        record = await self._store.get(Table.INTENTS, str(key))
        intent = intent_of(record)
        if intent is not None and intent.digest == concluded.digest:
            proven = {name for name in confirmed if name not in intent.doubted}
            current = intent.concluded(refused).without(proven)
            await self._store.commit([change_of(key, current, expect=revision_of(record))])

    async def note_late(
        self, key: IntentKey, written: Digest | None, replicas: Collection[str], *, revision: int | None = None
    ) -> None:
        """Note that a write may have reached replicas after a newer one of its key: they may not have what that made.

        So it is where a process stood still for longer than its lease lasts. Nothing happens when the newer write made
        the same.

        Args:
            key: of the write.
            written: what the late write made of it, None for deleted.
            replicas: those that it may have reached.
            revision: of its begin, to know a deletion that came after; None where that does not matter.
        """
        if not await retried(lambda: self._try_note_late(key, written, replicas, revision)):
            return
        if key.kind is IntentKind.MANIFEST and written is None:  # the delete took every tag on it as well
            for record in await self._store.list(Table.TAGS, f"{key.routed}|"):
                if record.value["digest"] == key.name:
                    tag = record.key.rpartition("|")[2]
                    await self.note_late(IntentKey(key.routed, IntentKind.TAG, tag), None, replicas)

    async def _try_note_late(
        self, key: IntentKey, written: Digest | None, replicas: Collection[str], revision: int | None
    ) -> bool:
        record = await self._store.get(Table.INTENTS, str(key))
        truth = intent_of(record) or await self._recorded(key, revision)
        if truth is None or truth.digest == written or truth.is_lost:
            return False
        late = tuple(name for name in replicas if name not in truth.refused)
        await self._store.commit([change_of(key, truth.doubting(late), expect=revision_of(record))])
        _log.warning("a write of %s came late, after a newer one: %s may miss it", key, ", ".join(late))
        return True

    async def _recorded(self, key: IntentKey, revision: int | None) -> Intent | None:
        """Return the recorded state of a key without an intent, if there is one."""
        if key.kind is IntentKind.BLOB:
            return None
        record = await self._store.get(*record_of(key))
        if record is None:
            deletion = None if revision is None else await self._store.get(Table.DELETIONS, str(key))
            is_newer = deletion is not None and revision is not None and deletion.revision > revision
            return Intent(None, "", ()) if is_newer else None
        if key.kind is IntentKind.MANIFEST:
            return Intent(parse_digest(key.name), record.value["media_type"], ())
        manifest = await self._store.get(Table.MANIFESTS, f"{key.routed}|{record.value['digest']}")
        media_type = "" if manifest is None else manifest.value["media_type"]
        return Intent(parse_digest(record.value["digest"]), media_type, ())

    async def withdraw(self, write: OpenWrite) -> None:
        """Put back what was there before a write that no replica took."""
        restored = [
            Change(table, key, None if record is None else record.value, expect=write.revision)
            for table, key, record in write.previous
        ]
        if not restored:
            return
        try:
            await self._store.commit(restored)
        except ConflictError:
            for change in restored:
                with contextlib.suppress(ConflictError):  # what a newer write has made of it stands
                    await self._store.commit([change])

    async def record_blob(self, routed: RoutedRepository, digest: Digest, missing: Sequence[str]) -> bool:
        """Make the intent of a pushed blob say which replicas miss it; return whether there was or is one."""
        key = IntentKey(routed, IntentKind.BLOB, str(digest))
        before = await self._store.get(Table.INTENTS, str(key))
        if before is None and not missing:
            return False
        await self._store.commit([change_of(key, Intent(digest, "", tuple(missing)))])
        return True

    async def confirm(self, key: IntentKey, digest: Digest | None, replica: str) -> bool:
        """Take one replica out of the open intent of a key, None for deleted; return whether that closed it.

        Nothing happens when the key has another digest by now.
        """

        def revise(intent: Intent | None) -> Intent | None:
            is_open = intent is not None and intent.digest == digest and replica in {*intent.missing, *intent.refused}
            return intent.without({replica}) if intent is not None and is_open else None

        revised = await revise_intent(self._store, key, revise)
        return revised is not None and not revised.missing
