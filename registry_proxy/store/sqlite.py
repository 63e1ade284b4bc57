"""The embedded store: one SQLite file, shared by the workers of one node (ports.store.Store)."""

import asyncio
import builtins
import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, TypeVar

from registry_proxy.files.lock import open_locked
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.store import TRACED_COMMITS, TRACED_TABLES, Change, Difference, Failures, Record, Table
from registry_proxy.store.changes import ChangePage
from registry_proxy.store.schema import SCHEMA_KEY, SCHEMA_TABLE, SCHEMA_VERSION, check_schema

LEASE_PATIENCE_SECONDS = 30.0

_T = TypeVar("_T")
_BUSY_TIMEOUT_MS = 10_000
_LEASE_POLL_SECONDS = (0.001, 0.05)  # first and longest pause between two tries
_FIRST_CHARACTER = "\0"
"""Behind a key it makes the least text above it."""

_LAST_CHARACTER = "\U0010ffff"
# From one head to the next: the first key behind all that begin with the head and "|", which "}" follows.
_HEADS = """
WITH RECURSIVE found(head) AS (
    SELECT (SELECT substr(key, 1, instr(key || '|', '|') - 1) FROM records
            WHERE tbl = :tbl AND key >= :first AND key < :last ORDER BY key LIMIT 1)
    UNION ALL
    SELECT (SELECT substr(key, 1, instr(key || '|', '|') - 1) FROM records
            WHERE tbl = :tbl AND key >= found.head || '}' AND key < :last ORDER BY key LIMIT 1)
    FROM found WHERE found.head IS NOT NULL
)
SELECT head FROM found WHERE head IS NOT NULL
"""

# One entry for each schema version, applied in order; an entry never changes once released.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE records (
            tbl TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, revision INTEGER NOT NULL,
            PRIMARY KEY (tbl, key)
        ) WITHOUT ROWID""",
        "CREATE TABLE versions (tbl TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID",
    ),
)


# What each commit changed in a traced table, and the version before it: a reader without a gap missed nothing. It is
# no part of the schema: a release that knows nothing of it leaves a gap.
_TRACE = """CREATE TABLE IF NOT EXISTS trace (
    tbl TEXT NOT NULL, revision INTEGER NOT NULL, previous INTEGER NOT NULL, keys TEXT NOT NULL,
    PRIMARY KEY (tbl, revision)
) WITHOUT ROWID"""


class SqliteStore:
    """Records in a SQLite file, by one connection in one thread that is opened at the first use.

    Make it after the worker was started, never before a fork. The directory ``<path>.leases`` beside the file holds
    one lock file for each lease that is held.

    Args:
        path: the database file.
        page: receives every commit, in the thread that made it and before ``commit`` returns.
        may_create: make the file and its directory when they are missing.
    """

    def __init__(self, path: str, page: ChangePage, *, may_create: bool = True) -> None:
        self._path = path
        self._may_create = may_create
        self._page = page
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None

    @property
    def failures(self) -> Failures:
        """Failures that the workers of the node count together."""
        return self._page.failures

    async def get(self, table: Table, key: str) -> Record | None:
        rows = await self._run(
            lambda db: db.execute("SELECT value, revision FROM records WHERE tbl = ? AND key = ?", (table, key))
        )
        return Record(key, json.loads(rows[0][0]), rows[0][1]) if rows else None

    async def get_all(self, keys: Sequence[tuple[Table, str]]) -> Sequence[Record | None]:
        query = "SELECT tbl, key, value, revision FROM records WHERE (tbl, key) IN (VALUES {})"
        places, values = ", ".join(["(?, ?)"] * len(keys)), [part for key in keys for part in key]
        rows = await self._run(lambda db: db.execute(query.format(places), values))
        found = {(table, key): Record(key, json.loads(value), revision) for table, key, value, revision in rows}
        return [found.get((table.value, key)) for table, key in keys]

    async def list(self, table: Table, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[Record]:
        first = max(prefix, after + _FIRST_CHARACTER) if after else prefix
        query = "SELECT key, value, revision FROM records WHERE tbl = ? AND key >= ? AND key < ? ORDER BY key LIMIT ?"

        def read() -> builtins.list[Record]:
            at_most = -1 if limit is None else limit
            rows = self._connect().execute(query, (table, first, prefix + _LAST_CHARACTER, at_most))
            return [Record(key, json.loads(value), revision) for key, value, revision in rows]

        return await self._in_thread(read)

    async def changed_since(self, table: Table, version: int) -> Difference | None:
        return await self._in_thread(lambda: _changed_since(self._connect(), table, version))

    async def heads(self, table: Table, prefix: str = "") -> Sequence[str]:
        where = {"tbl": table, "first": prefix, "last": prefix + _LAST_CHARACTER}
        rows = await self._run(lambda db: db.execute(_HEADS, where))
        return [head for (head,) in rows]

    async def count(self, table: Table, prefix: str = "") -> int:
        query = "SELECT count(*) FROM records WHERE tbl = ? AND key >= ? AND key < ?"
        ((count,),) = await self._run(lambda db: db.execute(query, (table, prefix, prefix + _LAST_CHARACTER)))
        return int(count)

    async def commit(self, changes: Sequence[Change], *, versions: Mapping[Table, int] = MappingProxyType({})) -> int:
        # Encoded here, so that a value that is no JSON fails in the caller and not inside the transaction.
        values = [None if change.value is None else json.dumps(change.value) for change in changes]
        return await self._in_thread(lambda: self._commit(changes, values, versions if changes else {}))

    async def versions(self) -> Mapping[Table, int]:
        rows = await self._run(lambda db: db.execute("SELECT tbl, version FROM versions"))
        known = {table.value: table for table in Table}
        return {known[name]: version for name, version in rows if name in known}

    async def check_durability(self) -> builtins.list[str]:
        """Return no warning: every commit is synced to the disk before it returns."""
        return []

    @contextlib.asynccontextmanager
    async def lease(self, key: str) -> AsyncIterator[None]:
        """Hold an exclusive lease over all workers of the node; see ports.store.Store."""
        directory = f"{self._path}.leases"
        os.makedirs(directory, mode=0o700, exist_ok=True)
        # A file for each key: shared files would let one task wait for itself when it takes two leases.
        path = os.path.join(directory, hashlib.sha256(key.encode()).hexdigest()[:40])
        deadline = time.monotonic() + LEASE_PATIENCE_SECONDS
        pause = _LEASE_POLL_SECONDS[0]
        while (fd := open_locked(path)) is None:
            if time.monotonic() > deadline:
                raise StoreUnavailableError(f"the lease on {key} was not obtained within {LEASE_PATIENCE_SECONDS:g} s")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LEASE_POLL_SECONDS[1])
        try:
            yield
        finally:
            os.unlink(path)
            os.close(fd)

    async def aclose(self) -> None:
        """Close the file; twice is fine."""
        with contextlib.suppress(RuntimeError):  # the executor was shut down before
            await asyncio.get_running_loop().run_in_executor(self._executor, self._disconnect)
        self._executor.shutdown(wait=False)

    # ------------------------------------------------------------ in the thread

    async def _run(self, query: Callable[[sqlite3.Connection], sqlite3.Cursor]) -> "builtins.list[tuple[Any, ...]]":
        return await self._in_thread(lambda: query(self._connect()).fetchall())

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except sqlite3.Error as error:
            raise StoreUnavailableError(f"the store {self._path} cannot be used: {error}") from error
        except OSError as error:
            raise StoreUnavailableError(f"the store {self._path} cannot be opened: {error.strerror}") from error

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._may_create:
                os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
            elif not os.path.exists(self._path):
                place = f"{os.path.abspath(self._path)} is not there (the working directory is {os.getcwd()})"
                raise StoreUnavailableError(f"the store {place}")
            # SQLite gives its -wal and -shm files the mode of the database: make that first, for the owner alone.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # NORMAL loses acknowledged commits in a power cut
        with _transaction(connection):
            connection.execute(_TRACE)
            found = _schema_version(connection)
            check_schema(found, f"the store {self._path}")
            if found < SCHEMA_VERSION:
                for statements in _MIGRATIONS[found:]:
                    for statement in statements:
                        connection.execute(statement)
                _write(connection, [Change(SCHEMA_TABLE, SCHEMA_KEY, {})], [json.dumps({"version": SCHEMA_VERSION})])

    def _commit(self, changes: Sequence[Change], values: Sequence[str | None], versions: Mapping[Table, int]) -> int:
        connection = self._connect()
        with _transaction(connection):
            for table, version in versions.items():
                _check_version(connection, table, version)
            for change in changes:
                if change.expect is not None:
                    _check(connection, change, change.expect)
            sequence = _write(connection, changes, values)
        self._page.note_commit({change.table for change in changes}, sequence)
        return sequence

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _schema_version(connection: sqlite3.Connection) -> int:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone() is None:
        return 0
    query = "SELECT value FROM records WHERE tbl = ? AND key = ?"
    (value,) = connection.execute(query, (SCHEMA_TABLE, SCHEMA_KEY)).fetchone()
    version: int = json.loads(value)["version"]
    return version


def _check(connection: sqlite3.Connection, change: Change, expect: int) -> None:
    query = "SELECT revision FROM records WHERE tbl = ? AND key = ?"
    row = connection.execute(query, (change.table, change.key)).fetchone()
    revision = 0 if row is None else row[0]
    if revision != expect:
        raise ConflictError(f"{change.table} {change.key} has revision {revision}, expected {expect}")


def _check_version(connection: sqlite3.Connection, table: Table, expect: int) -> None:
    version = _version_of(connection, table)
    if version != expect:
        raise ConflictError(f"{table} has version {version}, expected {expect}")


def _write(connection: sqlite3.Connection, changes: Sequence[Change], values: Sequence[str | None]) -> int:
    (sequence,) = connection.execute("SELECT coalesce(max(version), 0) FROM versions").fetchone()
    if not changes:
        return int(sequence)
    sequence += 1
    for table in {change.table for change in changes} & TRACED_TABLES:
        _trace(connection, table, int(sequence), [change.key for change in changes if change.table is table])
    for change, value in zip(changes, values, strict=True):
        if value is None:
            connection.execute("DELETE FROM records WHERE tbl = ? AND key = ?", (change.table, change.key))
        else:
            row = (change.table, change.key, value, sequence)
            connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", row)
        connection.execute("INSERT OR REPLACE INTO versions VALUES (?, ?)", (change.table, sequence))
    return int(sequence)


def _version_of(connection: sqlite3.Connection, table: Table) -> int:
    row = connection.execute("SELECT version FROM versions WHERE tbl = ?", (table,)).fetchone()
    return 0 if row is None else int(row[0])


def _trace(connection: sqlite3.Connection, table: Table, sequence: int, keys: Sequence[str]) -> None:
    row = (table, sequence, _version_of(connection, table), json.dumps(keys))
    connection.execute("INSERT OR REPLACE INTO trace VALUES (?, ?, ?, ?)", row)
    oldest = sequence - TRACED_COMMITS
    connection.execute("DELETE FROM trace WHERE tbl = ? AND revision NOT BETWEEN ? AND ?", (table, oldest, sequence))


def _changed_since(connection: sqlite3.Connection, table: Table, version: int) -> Difference | None:
    connection.execute("BEGIN")  # all of it as it is at one moment
    try:
        query = "SELECT revision, previous, keys FROM trace WHERE tbl = ? AND revision > ? ORDER BY revision"
        keys: dict[str, None] = {}
        for revision, previous, changed in connection.execute(query, (table, version)):
            if previous != version:
                return None
            version = revision
            keys |= dict.fromkeys(json.loads(changed))
        if version != _version_of(connection, table):
            return None
        records: dict[str, Record | None] = {}
        for key in keys:
            query = "SELECT value, revision FROM records WHERE tbl = ? AND key = ?"
            row = connection.execute(query, (table, key)).fetchone()
            records[key] = None if row is None else Record(key, json.loads(row[0]), row[1])
        return Difference(version, records)
    finally:
        connection.execute("COMMIT")
