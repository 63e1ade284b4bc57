"""The content of the store as one file: to come back after a loss, or to move from one kind of store to the other.

A file is lines of JSON: what it is, one record a line, and the number and the SHA-256 of all before. It holds hashes of
passwords and secrets: it is written for its owner alone.

The journal of an old backup says what replicas lacked, and what tags were, at its time. Applied later it would bring
older tags back. It is restored only where nothing was written since, for a move.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiofiles

from registry_proxy.files import atomic
from registry_proxy.ports.errors import ConflictError
from registry_proxy.ports.store import Change, Record, Store, Table
from registry_proxy.store.open import open_store
from registry_proxy.store.schema import SCHEMA_KEY, SCHEMA_TABLE

FORMAT = "registry-proxy backup"
VERSION = 1
STANDARD_STREAM = "-"
_ATTEMPTS = 20
_CHANGES_MAX = 150_000
"""Redis takes about a million arguments in one call, five for each change."""

_OF_A_NODE = frozenset({Table.KEYS, Table.LOCATION_KEYS})
"""Each node publishes its own keys when it starts; secrets that sign uploads stay where they are."""

_JOURNAL = frozenset({Table.INTENTS, Table.TAGS, Table.DELETIONS, Table.COMPARED, Table.WITNESSES})

_Contents = dict[Table, dict[str, Mapping[str, Any]]]


class BackupError(Exception):
    """A backup cannot be made, read or restored; the message says why, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class Backup:
    """The records of a store at one moment; ``made_at`` in seconds since the epoch."""

    made_at: float
    contents: Mapping[Table, Mapping[str, Mapping[str, Any]]]

    @property
    def count(self) -> int:
        """The number of records in it."""
        return sum(len(records) for records in self.contents.values())

    @property
    def pending(self) -> int:
        """The number of writes that some replica lacked."""
        return len(self.contents.get(Table.INTENTS, {}))


async def backup_store(url: str, path: str, *, replaces: bool) -> Backup:
    """Write what the store at ``url`` holds to a file; return it.

    Raises:
        BackupError: it holds no user, as each store does that a node has used; or as ``take`` and ``write_file``.
        StoreUnavailableError: it does not answer, or is not there.
    """
    async with open_store(url, None, may_create=False) as (store, _):
        backup = await take(store)
    if not backup.contents[Table.USERS]:
        raise BackupError("nothing to back up: the store is empty, so no node has used it. Is `store` the right one?")
    write_file(backup, path, replaces=replaces)
    return backup


async def restore_store(url: str, page_path: str, path: str, *, moves: bool, replaces: bool) -> tuple[Backup, int]:
    """Restore a file; return it and how many records were written. Raises as ``read_file`` and ``restore``."""
    backup = await read_file(path)
    async with open_store(url, page_path) as (store, _):
        return backup, await restore(store, backup, moves=moves, replaces=replaces)


async def take(store: Store) -> Backup:
    """Read everything that belongs into a backup, as of one moment.

    Raises:
        BackupError: the store changes faster than it can be read.
        StoreUnavailableError: it does not answer.
    """
    # There may be very many, none ever changes, and the newest may be missing: they are no part of the moment.
    history = {record.key: record.value for record in await store.list(Table.MOVES)}
    for _ in range(_ATTEMPTS):
        before = await store.versions()
        contents: _Contents = {Table.MOVES: history}
        for table in Table:
            # A store that was restored proves nothing.
            if table not in _OF_A_NODE | {Table.COMPARED, Table.MOVES}:
                contents[table] = {record.key: record.value for record in await store.list(table)}
        contents[SCHEMA_TABLE].pop(SCHEMA_KEY, None)
        if await store.versions() == before:
            return Backup(time.time(), contents)
    raise BackupError("the store changes faster than it can be read: try again when less is pushed")


def write_file(backup: Backup, path: str, *, replaces: bool) -> None:
    """Write a backup, whole or not at all, readable by its owner alone; ``-`` is standard output.

    Raises:
        BackupError: a file is there already, and ``replaces`` does not let it go; or it cannot be written.
    """
    if path == STANDARD_STREAM:
        sys.stdout.buffer.write(_encode(backup))
        sys.stdout.buffer.flush()
        return
    if os.path.lexists(path) and not replaces:
        raise BackupError(f"{path} is there already: name another file, or say that this one may go (--replace)")
    try:
        atomic.write_file(path, _encode(backup))
    except OSError as error:
        raise BackupError(f"{path} cannot be written: {error.strerror}") from error


def _encode(backup: Backup) -> bytes:
    header = {"format": FORMAT, "version": VERSION, "made_at": backup.made_at}
    lines = b"".join(json.dumps(document).encode() + b"\n" for document in (header, *_documents(backup)))
    return lines + json.dumps({"records": backup.count, "sha256": hashlib.sha256(lines).hexdigest()}).encode() + b"\n"


def _documents(backup: Backup) -> Sequence[Mapping[str, Any]]:
    return [
        {"table": table.value, "key": key, "value": value}
        for table, records in backup.contents.items()
        for key, value in records.items()
    ]


async def read_file(path: str) -> Backup:
    """Read a backup and check all of it; ``-`` is standard input.

    Raises:
        BackupError: it is none, of a later release, or damaged.
        OSError: it cannot be read.
    """
    if path == STANDARD_STREAM:
        lines = sys.stdin.buffer.readlines()
    else:
        async with aiofiles.open(path, "rb") as file:
            lines = await file.readlines()
    try:
        header = json.loads(lines[0])
        if header["format"] != FORMAT:
            raise BackupError(f"{path} is not a backup of registry-proxy")
        version, made_at = int(header["version"]), float(header["made_at"])
    except (ValueError, KeyError, TypeError, IndexError):
        raise BackupError(f"{path} is not a backup of registry-proxy") from None
    if version > VERSION:
        raise BackupError(f"{path} was made by a later release (format {version}): restore it with that one")
    contents: _Contents = {table: {} for table in Table}
    try:
        end = json.loads(lines[-1])
        is_whole = end == {"records": len(lines) - 2, "sha256": hashlib.sha256(b"".join(lines[:-1])).hexdigest()}
        for line in lines[1:-1]:
            document = json.loads(line)
            contents[Table(document["table"])][document["key"]] = dict(document["value"])
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise BackupError(f"{path} is damaged: it is not what was written, or not all of it")
    return Backup(made_at, contents)


async def restore(store: Store, backup: Backup, *, moves: bool, replaces: bool) -> int:
    """Make the store hold what a backup does, all of it or nothing; return how many records were written.

    Earlier bearer and refresh tokens are revoked, so that none that was revoked after the backup
    becomes good again. Passwords, secrets of robots and personal tokens are as they were.

    Args:
        store: where to.
        backup: what.
        moves: the journal, too: nothing was written anywhere since the backup was made.
        replaces: what the store holds now may go.

    Raises:
        BackupError: the store is not empty, or the backup too large for one commit.
        StoreUnavailableError: it does not answer.
    """
    left_out = _OF_A_NODE if moves else _OF_A_NODE | _JOURNAL
    changes: list[Change] = []
    for table in Table:
        if table in left_out:
            continue
        current = {record.key: record for record in await store.list(table) if record.key != SCHEMA_KEY}
        if current and not replaces and table is Table.USERS:
            raise BackupError(
                "the store holds users already: restore into an empty one, or say that they may go (--replace)"
            )
        wanted = dict(backup.contents.get(table, {}))
        if table is Table.SUBJECTS:
            wanted = _void_tokens(backup, current)
        changes += [Change(table, key, value, expect=_revision(current.get(key))) for key, value in wanted.items()]
        changes += [
            Change(table, key, None, expect=record.revision) for key, record in current.items() if key not in wanted
        ]
    history = [change for change in changes if change.table is Table.MOVES]
    others = [change for change in changes if change.table is not Table.MOVES]
    if len(others) > _CHANGES_MAX:
        raise BackupError(f"{len(others)} records are more than can be restored at once ({_CHANGES_MAX})")
    try:
        for first in range(0, len(changes), _CHANGES_MAX):  # only moves are behind the first commit
            await store.commit([*others, *history][first : first + _CHANGES_MAX])
    except ConflictError:
        raise BackupError("somebody changes the store meanwhile: stop the nodes and try again") from None
    return sum(change.value is not None for change in changes)


def _revision(record: Record | None) -> int:
    return 0 if record is None else record.revision


def _void_tokens(backup: Backup, current: Mapping[str, Record]) -> dict[str, Mapping[str, Any]]:
    """Return the generation of each subject, higher than any that a token was given for here or before the backup."""
    known = backup.contents.get(Table.SUBJECTS, {})
    subjects = {*known, *current, "anonymous"}
    subjects |= {f"user:{name}" for name in backup.contents.get(Table.USERS, {})}
    subjects |= {f"robot:{name}" for name in backup.contents.get(Table.ROBOTS, {})}

    def generation(subject: str) -> int:
        now = current.get(subject)
        return max(int(known.get(subject, {}).get("generation", 0)), 0 if now is None else int(now.value["generation"]))

    return {subject: {**known.get(subject, {}), "generation": generation(subject) + 1} for subject in subjects}
