"""The roster: which replicas of an upstream are on record as holding what was acknowledged (docs/decisions/52).

A replica that comes new, or that turns out not to hold any more what it had confirmed, is a newcomer: it may hold
anything and miss anything until it was compared with the others.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from registry_proxy.ports.errors import ConflictError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.metrics import Observer, ReplicaReturn
from registry_proxy.ports.names import ReturnReason
from registry_proxy.ports.store import Change, Record, Store, Table, retried, revision_of
from registry_proxy.replication.intents import Intent, change_of, intent_of, parse_key, record_of

_NEW = "it is new: it is compared with the others, and gives no tags until then"
_DELETIONS_AT_ONCE = 500

_log = logging.getLogger(__name__)


_REASONS = {
    ReturnReason.OLDER: "it holds an older state than it had confirmed, as after a restore from a copy",
    ReturnReason.EMPTY: "its storage is empty and was not before",
    ReturnReason.OTHER: "another registry answers at its address than before",
    ReturnReason.EXCHANGED: "its registry is the one of another replica, which cannot be asked",
}


def roster_key(upstream: str) -> str:
    """Return the key of a roster in the table META."""
    return f"members/{upstream}"


def sentinel_key(upstream: str, replica: str) -> str:
    """Return the key in the table META of the digest of a replica's sentinel."""
    return f"sentinel/{upstream}/{replica}"


class Roster:
    """Keeps the rosters of the guarded upstreams. Every method raises StoreUnavailableError.

    Args:
        store: holds them, for all nodes.
        replicas: for each upstream the names of its configured replicas.
        guarded: the upstreams whose replicas can differ.
        observer: receives the replicas that returned as something else.
    """

    def __init__(
        self, store: Store, replicas: Mapping[str, Sequence[str]], guarded: Collection[str], observer: Observer
    ) -> None:
        self._store = store
        self._replicas = replicas
        self._guarded = guarded
        self._observer = observer

    async def note(self) -> None:
        """Put on record who the replicas of an upstream are, the first time, and who is none any more.

        One that comes later, or comes back, may hold or miss anything: see ``JournalMarks.is_newcomer``.
        Where none of those on record is left there is nothing to compare with, and all are taken as they are.
        """
        for upstream in self._guarded:
            record = await self._store.get(Table.META, roster_key(upstream))
            configured = list(self._replicas[upstream])
            names = configured if record is None else [name for name in record.value["names"] if name in configured]
            if record is None or names != record.value["names"]:
                with contextlib.suppress(ConflictError):  # another worker or node did so
                    await self._store.commit(_change(upstream, record, names or configured, _reasons(record)))

    async def admit(self, upstream: str, replica: str) -> None:
        """Put a newcomer on the roster: it holds what the others hold."""
        record = await self._store.get(Table.META, roster_key(upstream))
        names = [] if record is None else record.value["names"]
        if replica not in names:
            reasons = {name: why for name, why in _reasons(record).items() if name != replica}
            await self._store.commit(_change(upstream, record, [*names, replica], reasons)[:1])

    async def newcomers(self) -> Mapping[tuple[str, str], str]:
        """Return the newcomers, by upstream and name, and why each is one."""
        found: dict[tuple[str, str], str] = {}
        for upstream in self._guarded:
            record = await self._store.get(Table.META, roster_key(upstream))
            if record is not None:
                reasons = _reasons(record)
                names = [name for name in self._replicas[upstream] if name not in record.value["names"]]
                found |= {(upstream, name): reasons.get(name, _NEW) for name in names}
        return found

    def remembered(self, newcomers: Mapping[tuple[str, str], str]) -> Sequence[Change]:
        """Return the changes that put on record again who is new, after the store has lost it."""
        changes = []
        for upstream in {upstream for upstream, _ in newcomers}:
            names = [name for name in self._replicas[upstream] if (upstream, name) not in newcomers]
            reasons = {name: why for (of, name), why in newcomers.items() if of == upstream}
            changes += _change(upstream, None, names, reasons)[:1]
        return changes

    async def doubt(self, upstream: str, replica: str, why: ReturnReason) -> bool:
        """Take a replica from the roster that is not what it was; return False where it stays.

        The replica may have contents again that were deleted through us: it gets tombstones for them. The last replica
        stays: there is nothing to compare it with.

        Args:
            upstream: of the replica.
            replica: its name.
            why: how it is known.
        """
        if upstream not in self._guarded:
            return False
        record = await self._store.get(Table.META, roster_key(upstream))
        names = list(self._replicas[upstream]) if record is None else record.value["names"]
        if replica not in names:
            return False
        # One that was exchanged may be found at the other replica.
        sentinel = [] if why is ReturnReason.EXCHANGED else [Change(Table.META, sentinel_key(upstream, replica), None)]
        others = [name for name in names if name != replica and name in self._replicas[upstream]]
        if not others:
            self._observer.observe(ReplicaReturn(upstream, replica, why))
            _log.error(
                "replica %s/%s: %s, and no other one can replace its missing contents", upstream, replica, _REASONS[why]
            )
            await self._store.commit(sentinel)
            return False
        await self._add_tombstones(upstream, replica)
        when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
        reason = f"{_REASONS[why]} (noticed {when}): it is compared with the others"
        reasons = {**_reasons(record), replica: reason}
        try:
            await self._store.commit([*_change(upstream, record, others, reasons), *sentinel])
        except ConflictError:  # another worker or node came first
            return False
        self._observer.observe(ReplicaReturn(upstream, replica, why))
        _log.error("replica %s/%s: %s", upstream, replica, reason)
        return True

    async def _add_tombstones(self, upstream: str, replica: str) -> None:
        """Have a replica miss the deletions of manifests that are on record."""
        deleted = [parse_key(record.key) for record in await self._store.list(Table.DELETIONS, f"{upstream}/")]
        keys = [key for key in deleted if key.kind is IntentKind.MANIFEST]
        for first in range(0, len(keys), _DELETIONS_AT_ONCE):
            batch = keys[first : first + _DELETIONS_AT_ONCE]
            await retried(partial(self._miss_deletions, batch, replica))

    async def _miss_deletions(self, keys: Sequence[IntentKey], replica: str) -> None:
        records = await self._store.get_all([(Table.INTENTS, str(key)) for key in keys] + [*map(record_of, keys)])
        changes = [
            change
            for key, intent, manifest in zip(keys, records[: len(keys)], records[len(keys) :], strict=True)
            if manifest is None and (intent is None or intent.value["digest"] is None)  # else pushed again
            for change in (_tombstone(key, intent, replica), Change(*record_of(key), None, expect=0))
        ]
        if changes:
            await self._store.commit(changes)


def _tombstone(key: IntentKey, record: Record | None, replica: str) -> Change:
    before = intent_of(record) or Intent(None, "", ())
    missing = tuple(sorted({*before.missing, replica}))
    behind = () if record is None else tuple({*before.behind, replica})
    intent = Intent(None, "", missing, behind, before.writing_until)
    return change_of(key, intent, expect=revision_of(record))


def _reasons(record: Record | None) -> Mapping[str, str]:
    reasons: Mapping[str, str] = {} if record is None else record.value.get("reasons", {})
    return reasons


def _change(upstream: str, record: Record | None, names: Sequence[str], reasons: Mapping[str, str]) -> list[Change]:
    """Return the changes of a roster. A comparison holds for the replicas of its time, and for no others."""
    kept = {name: why for name, why in reasons.items() if name not in names}
    value = {"names": list(names), **({"reasons": kept} if kept else {})}
    roster = Change(Table.META, roster_key(upstream), value, expect=revision_of(record))
    return [roster, Change(Table.COMPARED, upstream, None)]
