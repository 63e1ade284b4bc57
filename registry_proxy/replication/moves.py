"""Moves of tags in the commits that make them: numbered by the record of the tag, which each of these commits writes.

The lease of the tag's writers and the expected revision of its record order the moves of all nodes. The number is the
time of the move, or one more than that of the last move where the clock of that node was ahead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from registry_proxy.ports.history import MOVED, Cause, Move, MoveKind, move_key, moves_prefix, next_number, stored_move
from registry_proxy.ports.journal import IntentKey
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.store import Change, Record, Table
from registry_proxy.protocol.reference import RESERVED_TAG_PREFIX, Digest, Tag

_MOVE = "move"
"""The field in the record of a deletion with the move that is entered when the tag is forgotten."""

_UNKNOWN = Cause(Actor(""))


def unnumbered(routed: RoutedRepository, tag: Tag, move: Move) -> Change:
    """Return a change that stands for a move until ``numbered`` has its number."""
    return Change(Table.MOVES, moves_prefix(routed, tag), move.stored(), expect=0)


def numbered(
    changes: Sequence[Change], records: Sequence[Record | None], now: float
) -> tuple[Sequence[Change], list[Record | None]]:
    """Return the changes of a write with the number of its move, and the records they replace.

    A push of what the tag is on record as is no move.

    Args:
        changes: of records; that of the tag has the number of its last move.
        records: what each replaces.
        now: seconds since the epoch.
    """
    move = next((change for change in changes if change.table is Table.MOVES), None)
    if move is None or move.value is None:
        return changes, list(records)
    kept: list[tuple[Change, Record | None]] = []
    for change, record in zip(changes, records, strict=True):
        if change.table is Table.TAGS and f"{change.key}|" == move.key and change.value is not None:
            previous = None if record is None else record.value["digest"]
            if previous == change.value["digest"]:
                kept.append((change, record))
                continue
            number = next_number(now, change.value.get(MOVED, 0))
            entered = replace(Move.from_value(move.value), previous=previous)
            kept.append((replace(change, value={**change.value, MOVED: number}), record))
            kept.append((stored_move(move.key, entered, number), None))
        elif change is not move:
            kept.append((change, record))
    return [change for change, _ in kept], [record for _, record in kept]


def last_moved(*records: Record | None) -> Mapping[str, int]:
    """Return the field with the number of a tag's last move, by the first record that has it; nothing without one."""
    found = next((record.value[MOVED] for record in records if record is not None and MOVED in record.value), None)
    return {} if found is None else {MOVED: found}


def announced_delete(cause: Cause | None, previous: Digest | None = None) -> Mapping[str, Any]:
    """Return the field of a deletion's record with the move that the deletion is of each tag.

    The tags are known only when they are forgotten, which another node may have to do.
    """
    if cause is None:
        return {}
    move = Move.by(replace(cause, kind=MoveKind.DELETE), None, None if previous is None else str(previous))
    return {_MOVE: move.stored()}


def entered_delete(
    key: IntentKey, now: float, record: Record | None, deletion: Record | None
) -> tuple[Sequence[Change], Mapping[str, int]]:
    """Return the change that enters the delete of a tag, and the field with its number for the record of the deletion.

    A tag that has no history, such as a list of referrers that is written by the service itself, gets none, nor does a
    reserved one that goes with its manifest.

    Args:
        key: of the tag.
        now: seconds since the epoch.
        record: of the tag; None where none is on record.
        deletion: of the tag, or of the manifest that it was on.
    """
    last = last_moved(record, deletion)
    announced = None if deletion is None else deletion.value.get(_MOVE)
    is_ours = key.name.startswith(RESERVED_TAG_PREFIX)
    if is_ours or (announced is None and (record is None or not last)):
        return [], last
    move = Move.by(replace(_UNKNOWN, kind=MoveKind.DELETE), None) if announced is None else Move.from_value(announced)
    if record is not None:
        move = replace(move, previous=record.value["digest"])
    number = next_number(now, last.get(MOVED, 0))
    return [stored_move(moves_prefix(key.routed, key.name), move, number)], {MOVED: number}


def taken_back_move(key: IntentKey, record: Record | None) -> Sequence[Change]:
    """Return the change that removes the last move of a tag, whose write left nothing."""
    if record is None or MOVED not in record.value:
        return []
    return [Change(Table.MOVES, move_key(moves_prefix(key.routed, key.name), record.value[MOVED]), None)]
