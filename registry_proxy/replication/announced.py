"""Events of a write: what they say of the state before it, and from when on they may be delivered."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from registry_proxy.ports.journal import IntentKey
from registry_proxy.ports.outbox import TAG_MOVES, OutboxEntry
from registry_proxy.ports.store import Change, Record, Table


def announced(
    changes: Sequence[Change], records: Sequence[Record | None], intents: Iterable[IntentKey], writing_until: float
) -> tuple[Sequence[Change], list[Record | None]]:
    """Return the changes of a write with its events as they are while it is under way, and the records they replace.

    A push that moves nothing, because the tag or manifest is on record as it is pushed, has no event.

    Args:
        changes: of records, and new entries of the outbox.
        records: what each replaces.
        intents: the keys that the write makes so.
        writing_until: when the write is over in any case, in seconds since the epoch.
    """
    before = {(change.table, change.key): record for change, record in zip(changes, records, strict=True)}
    kept: list[tuple[Change, Record | None]] = []
    for change, record in zip(changes, records, strict=True):
        if change.table is not Table.OUTBOX or change.value is None:
            kept.append((change, record))
            continue
        entry = OutboxEntry.of(change.value)
        event, replaced = entry.event, _replaced(entry, before)
        if replaced is not None and event.type in TAG_MOVES:
            event = replace(event, previous=replaced.value["digest"])
        if replaced is None or event.previous not in {"", event.digest}:
            intent = next((str(key) for key in intents if key.name == (event.tag or event.digest)), "")
            entry = replace(entry, event=event, writing_until=writing_until, intent=intent)
            kept.append((replace(change, value=entry.stored()), record))
    return [change for change, _ in kept], [record for _, record in kept]


def _replaced(entry: OutboxEntry, before: dict[tuple[Table, str], Record | None]) -> Record | None:
    table, name = (Table.TAGS, entry.event.tag) if entry.event.tag else (Table.MANIFESTS, entry.event.digest)
    return next(
        (record for (each, key), record in before.items() if each is table and key.rpartition("|")[2] == name), None
    )


def ready(change: Change, revision: int) -> Change:
    """Return the change by which an entry of the outbox may be delivered, given the revision that stored it."""
    value = change.value and OutboxEntry.of(change.value).concluded().stored()
    return replace(change, value=value, expect=revision)
