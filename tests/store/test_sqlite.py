"""SqliteStore beyond the contract."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Change, Table
from registry_proxy.store.changes import ChangePage
from registry_proxy.store.open import open_store
from registry_proxy.store.sqlite import SqliteStore


async def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    """The database and SQLite's files beside it have mode 0600: they hold password hashes."""
    path = tmp_path / "deep" / "er" / "store.db"
    async with open_store(f"sqlite:///{path}", str(tmp_path / "page")) as (store, _):
        await store.commit([Change(Table.USERS, "ann", {})])
        files = [file for file in path.parent.iterdir() if file.is_file()]
        assert len(files) == 3
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_is_durable(tmp_path: Path) -> None:
    """The connection writes ahead and syncs each commit: NORMAL would lose acknowledged ones in a power cut."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        assert isinstance(store, SqliteStore)
        assert await store._run(lambda db: db.execute("PRAGMA journal_mode")) == [("wal",)]
        assert await store._run(lambda db: db.execute("PRAGMA synchronous")) == [(2,)]


async def test_a_held_lease_leaves_no_file(tmp_path: Path) -> None:
    """Lock files do not pile up, one for each tag ever pushed."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        async with store.lease("a"), store.lease("b"):
            assert len(os.listdir(tmp_path / "store.db.leases")) == 2
        assert os.listdir(tmp_path / "store.db.leases") == []


_OPENER = """
import asyncio, sys
from registry_proxy.ports.store import Change, Table
from registry_proxy.store.open import open_store

async def main():
    async with open_store(sys.argv[1], sys.argv[2]) as (store, _):
        async with store.lease("k"):
            await store.commit([Change(Table.USERS, sys.argv[3], {})])

asyncio.run(main())
"""


def test_many_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    """Workers that start together on a new file all get it, with one schema."""
    url, page = f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")
    processes = [
        subprocess.Popen([sys.executable, "-c", _OPENER, url, page, str(number)], stderr=subprocess.PIPE)
        for number in range(8)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        assert connection.execute("SELECT count(*) FROM records WHERE tbl = 'users'").fetchone() == (8,)


async def test_a_file_that_is_no_database_is_an_unavailable_store(tmp_path: Path) -> None:
    """A file of another kind, or a directory, is named in the error and not touched."""
    (tmp_path / "text").write_text("precious " * 1000)
    (tmp_path / "directory").mkdir()
    for name in ("text", "directory"):
        with pytest.raises(StoreUnavailableError, match=name):
            async with open_store(f"sqlite:///{tmp_path / name}", str(tmp_path / "page")):
                pass
    assert (tmp_path / "text").read_text() == "precious " * 1000


async def test_a_store_that_is_locked_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another program keeps the file locked, a commit fails as unavailable; afterwards it works."""
    monkeypatch.setattr("registry_proxy.store.sqlite._BUSY_TIMEOUT_MS", 50)
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        with contextlib.closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as intruder:
            intruder.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="locked"):
                await store.commit([Change(Table.USERS, "ann", {})])
            assert await store.get(Table.USERS, "ann") is None
            intruder.execute("ROLLBACK")
        await store.commit([Change(Table.USERS, "ann", {})])


async def test_a_cancelled_commit_leaves_the_store_usable(tmp_path: Path) -> None:
    """A commit whose caller leaves is done whole or not at all, and the next one works."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        task = asyncio.ensure_future(store.commit([Change(Table.USERS, "a", {}), Change(Table.GROUPS, "a", {})]))  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await store.commit([Change(Table.USERS, "b", {})])
        assert (await store.get(Table.USERS, "a") is None) == (await store.get(Table.GROUPS, "a") is None)


async def test_closing_twice_is_fine(tmp_path: Path) -> None:
    """The second close does nothing."""
    page = ChangePage(str(tmp_path / "page"))
    store = SqliteStore(str(tmp_path / "store.db"), page)
    await store.versions()
    await store.aclose()
    await store.aclose()
    page.close()
    page.close()
