"""From the outbox into the lanes: each event is queued for every subscription that takes it, and numbered there."""

import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from registry_proxy.events.backlog import Backlog
from registry_proxy.events.delivery import Delivery, Lane
from registry_proxy.events.subscription import Subscription
from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.ports.errors import ConflictError
from registry_proxy.ports.outbox import EventType, OutboxEntry, RegistryEvent
from registry_proxy.ports.store import LOSS_KEY, Change, Record, Store, Table

_AT_ONCE = 100
_READ_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class _Stored:
    """An entry and its record."""

    entry: OutboxEntry
    record: Record

    @property
    def subject(self) -> tuple[str, str]:
        """The tag, or the digest, whose events stay in order."""
        event = self.entry.event
        return event.repository, event.tag or event.digest


class FanOut:
    """Moves events on; one process of all nodes at a time, under the lease of the deliveries.

    Args:
        store: holds outbox, lanes and deliveries.
        subscriptions: as they are now.
        backlog: counts what is queued.
        queued_max: limit of the deliveries that wait for one subscription; later ones are dropped, and a gap says so.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        subscriptions: CurrentSubscriptions,
        backlog: Backlog,
        queued_max: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._backlog = backlog
        self._queued_max = queued_max
        self._clock = clock

    async def run_once(self) -> tuple[set[Lane], bool]:
        """Move some of the entries that are ready; return the lanes that got one, and whether entries are left.

        Raises:
            StoreUnavailableError.
        """
        records = await self._list()
        stored = [_Stored(OutboxEntry.of(record.value), record) for record in records]
        ready = self._ready(stored, await self._under_way(stored))[:_AT_ONCE]
        if not ready:
            return set(), bool(stored)
        try:
            return await self._move(ready), len(ready) < len(stored)
        except ConflictError:  # a write was concluded or taken back meanwhile: look again
            return set(), True

    async def _list(self) -> Sequence[Record]:
        """Return entries of the outbox: of as many repositories as are read at once, but all of each."""
        records = await self._store.list(Table.OUTBOX, limit=_READ_AT_ONCE)
        if len(records) < _READ_AT_ONCE:
            return records
        first, last = (record.key.partition("|")[0] for record in (records[0], records[-1]))
        if first == last:
            return await self._store.list(Table.OUTBOX, f"{first}|")
        return [record for record in records if not record.key.startswith(f"{last}|")]

    async def note_loss(self) -> set[Lane]:
        """Queue a gap for every subscription when the store came back without its content; return the lanes.

        Raises:
            StoreUnavailableError.
        """
        loss = await self._store.get(Table.META, LOSS_KEY)
        if loss is None:
            return set()
        subscriptions = await self._subscriptions.current()
        lanes = [Lane(each.name, "") for each in subscriptions if each.enabled and each.can_express(EventType.GAP)]
        for lane in lanes:
            queue = _Queue(lane, await self._store.get(Table.LANES, str(lane)), self._clock())
            queue.note_loss(loss.value["noticed_at"])
            await self._store.commit(queue.changes())
            self._backlog.add(lane, queue.queued_count, 0)
        return set(lanes)

    async def _under_way(self, stored: Sequence[_Stored]) -> set[str]:
        """Return the keys of the entries whose writes were not concluded.

        Many of them are not compared with their intents: they wait for their own end.
        """
        now = self._clock()
        writing = [one for one in stored if one.entry.writing_until > now]
        asked = [one for one in writing if one.entry.intent][:_AT_ONCE]
        intents = await self._store.get_all([(Table.INTENTS, one.entry.intent) for one in asked]) if asked else []
        over = {
            one.record.key
            for one, intent in zip(asked, intents, strict=True)
            if intent is None or intent.value["writing_until"] <= now
        }
        return {one.record.key for one in writing} - over

    @staticmethod
    def _ready(stored: Sequence[_Stored], under_way: Collection[str]) -> list[_Stored]:
        """Return the entries that may go, in the order of the commits that made them so.

        The node of a write that is not concluded may have died. Its entry goes when its time is over, or before that
        of a later write to the same tag: that one follows on what it had recorded.
        """
        ready, overtaken = [], set[tuple[str, str]]()
        for one in sorted(stored, key=lambda each: each.record.revision, reverse=True):
            if one.record.key not in under_way or one.subject in overtaken:
                ready.append(one)
                overtaken.add(one.subject)
        return ready[::-1]

    async def _move(self, ready: Sequence[_Stored]) -> set[Lane]:
        subscriptions = await self._subscriptions.current()
        room = {each.name: self._queued_max - self._backlog.queued(each.name) for each in subscriptions}
        queues: dict[Lane, _Queue] = {}
        for one in ready:
            for subscription in _receivers(subscriptions, one.entry):
                lane = Lane(subscription.name, one.entry.event.repository)
                if lane not in queues:
                    record = await self._store.get(Table.LANES, str(lane))
                    tells_gaps = subscription.can_express(EventType.GAP)
                    queues[lane] = _Queue(lane, record, self._clock(), tells_gaps=tells_gaps)
                room[subscription.name] -= queues[lane].add(one.entry, has_room=room[subscription.name] > 0)
        changes = [Change(Table.OUTBOX, one.record.key, None, expect=one.record.revision) for one in ready]
        for queue in queues.values():
            changes += queue.changes()
        await self._store.commit(changes)
        for lane, queue in queues.items():
            self._backlog.add(lane, queue.queued_count, queue.dropped_count)
        return set(queues)


def _receivers(subscriptions: Iterable[Subscription], entry: OutboxEntry) -> list[Subscription]:
    if entry.subscription:  # a test or replay: also of what it would not take by itself
        return [each for each in subscriptions if each.name == entry.subscription]
    return [each for each in subscriptions if each.takes(entry.event)]


class _Queue:
    """The additions to one lane."""

    def __init__(self, lane: Lane, record: Record | None, now: float, *, tells_gaps: bool = True) -> None:
        self._lane = lane
        self._tells_gaps = tells_gaps
        self._revision = 0 if record is None else record.revision
        self._value = {"number": 0, "dropped": 0, **({} if record is None else record.value)}
        self._now = now
        self._deliveries: list[Change] = []
        self.dropped_count = 0

    @property
    def queued_count(self) -> int:
        """The number of deliveries that were added."""
        return len(self._deliveries)

    def add(self, entry: OutboxEntry, *, has_room: bool) -> int:
        """Queue an event, behind the gap where events before it were dropped; return how many were queued."""
        if not has_room:
            self._value["number"] += 1
            self._value["dropped"] += 1
            self.dropped_count += 1
            return 0
        before = len(self._deliveries)
        if dropped := self._value["dropped"]:
            last = self._value["number"]
            if self._tells_gaps:
                self.add_gap("too many events waited", first_number=last - dropped + 1, last_number=last)
            self._value["dropped"] = 0
        self._put(entry.event, is_replay=entry.is_replay)
        return len(self._deliveries) - before

    def add_gap(self, reason: str, **detail: Any) -> None:
        """Queue an event that says that others are missing."""
        repository, detail = self._lane.repository, {"reason": reason, **detail}
        gap = RegistryEvent(
            id=str(uuid.uuid4()), type=EventType.GAP, at=self._now, repository=repository, detail=detail
        )
        self._put(gap, is_replay=False)

    def note_loss(self, noticed_at: float) -> None:
        """Queue the gap that a loss of the store left, once for each loss."""
        if self._value.get("loss_at") != noticed_at:
            self._value["loss_at"] = noticed_at
            self.add_gap("the store of the registry proxy was lost, or restored from an older copy")

    def changes(self) -> list[Change]:
        """Return what the additions change."""
        return [*self._deliveries, Change(Table.LANES, str(self._lane), self._value, expect=self._revision)]

    def _put(self, event: RegistryEvent, *, is_replay: bool) -> None:
        self._value["number"] += 1
        delivery = Delivery(event=event, queued_at=self._now, is_replay=is_replay)
        key = self._lane.key(self._value["number"])
        self._deliveries.append(Change(Table.DELIVERIES, key, delivery.stored(), expect=0))
