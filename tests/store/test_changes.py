"""ChangePage and StoreWatch: no change is missed, and none is reported twice."""

import asyncio
import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_proxy.ports.store import Change, Table
from registry_proxy.store.changes import ChangePage, StoreWatch
from registry_proxy.store.open import open_store
from tests.support.servers import Server
from tests.support.waiting import until


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[tuple[ChangePage, ChangePage]]:
    """Two openings of one page, as in two workers."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(ChangePage(str(tmp_path / "d" / "page")))) for _ in range(2)]
        yield made[0], made[1]


def test_counts_by_table(pages: tuple[ChangePage, ChangePage]) -> None:
    """A commit counts for its own tables in every worker, and for no others."""
    one, two = pages
    before = [two.version(table) for table in Table]
    one.note_commit([Table.USERS, Table.TAGS], 7)
    moved = [table for table, version in zip(Table, before, strict=True) if two.version(table) != version]
    assert moved == [Table.USERS, Table.TAGS]


def test_the_same_sequence_counts_once(pages: tuple[ChangePage, ChangePage]) -> None:
    """A commit that several workers notice is one change."""
    one, two = pages
    one.note_commit([Table.USERS], 7)
    seen = one.version(Table.USERS)
    two.note_commit([Table.USERS], 7)
    assert one.version(Table.USERS) == seen


def test_a_store_that_went_back_is_a_change(pages: tuple[ChangePage, ChangePage]) -> None:
    """After a restored backup the same sequence number stands for other content, and counts as a change."""
    one, _ = pages
    seen = set()
    for sequence in (7, 5, 7, 5):
        one.note_commit([Table.USERS], sequence)
        seen.add(one.version(Table.USERS))
    assert len(seen) == 4


def test_survives_reopening(tmp_path: Path) -> None:
    """A worker that starts later continues the count of the page."""
    path = str(tmp_path / "page")
    with contextlib.closing(ChangePage(path)) as page:
        page.note_commit([Table.USERS], 3)
        seen = page.version(Table.USERS)
    with contextlib.closing(ChangePage(path)) as page:
        assert page.version(Table.USERS) == seen


def _note_many(path: str, first: int) -> None:
    with contextlib.closing(ChangePage(path)) as page:
        for sequence in range(first, first + 500):
            page.note_commit([Table.USERS], sequence)


def test_processes_lose_no_count(tmp_path: Path) -> None:
    """Four processes that note 500 different commits each make 2000 changes."""
    path = str(tmp_path / "page")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_note_many, args=(path, number * 1000 + 1)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    with contextlib.closing(ChangePage(path)) as page:
        assert page.version(Table.USERS) == 2000


async def test_the_watch_bears_an_outage(redis: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While Redis is away the age of the last contact grows and one line is logged; then it continues by itself.

    A metric receives each contact, and nothing else.
    """
    url = f"redis://127.0.0.1:{redis.port}/0"
    began_at, contacts = time.time(), list[float]()
    async with open_store(url, str(tmp_path / "page"), contacts.append) as (_, watch):
        assert watch.seconds_since_contact() < 5
        assert began_at <= contacts[-1] <= time.time()
        redis.stop(signal.SIGKILL)
        await until(lambda: watch.seconds_since_contact() > 1.2)
        assert caplog.text.count("does not answer") == 1
        assert watch.is_silent()
        last = contacts[-1]
        redis.start()
        await until(lambda: watch.seconds_since_contact() < 1)
        assert contacts[-1] > last + 1
        assert not watch.is_silent()
        assert "the store answers again" in caplog.text


async def test_the_watch_starts_while_the_store_is_away(redis: Server, tmp_path: Path) -> None:
    """A node starts with Redis away: the store was never reached, and nothing raises."""
    redis.stop()
    async with open_store(f"redis://127.0.0.1:{redis.port}/0", str(tmp_path / "page")) as (store, watch):
        assert watch.seconds_since_contact() == float("inf")
        assert isinstance(watch, StoreWatch)
        redis.start()
        await until(lambda: watch.seconds_since_contact() < 5)
        assert await store.versions()


async def test_a_store_put_back_from_a_copy_proves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A recorded comparison ends as soon as a node notices an older store, also at the node's next start."""
    database, page = tmp_path / "store.db", str(tmp_path / "page")
    comparison, push = Change(Table.COMPARED, "main", {"names": ["a"]}), Change(Table.TAGS, "main/a|1", {"digest": "d"})
    async with open_store(f"sqlite:///{database}", page) as (store, _):
        await store.commit([comparison])
    copy = database.read_bytes()
    async with open_store(f"sqlite:///{database}", page) as (store, watch):
        await store.commit([push])
        await watch.check()
        assert await store.list(Table.COMPARED)
    database.write_bytes(copy)
    async with open_store(f"sqlite:///{database}", page) as (store, watch):
        assert not await store.list(Table.COMPARED)
        assert "lost, or restored from a copy" in caplog.text
        await store.commit([comparison])
        await watch.check()
        assert await store.list(Table.COMPARED)


async def test_a_commit_beside_the_look_is_no_loss(tmp_path: Path) -> None:
    """Commits noted while the store is asked for its versions do not count as missing in it."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, watch):
        await store.commit([Change(Table.COMPARED, "main", {"names": ["a"]})])
        commits = [store.commit([Change(Table.TAGS, f"main/a|{n}", {"digest": "d"})]) for n in range(30)]
        await asyncio.gather(*commits, *(watch.check() for _ in range(30)))
        assert await store.list(Table.COMPARED)


def test_the_page_has_no_holes(tmp_path: Path) -> None:
    """A change on a full disk kills no worker: the room of the page is allocated when it is opened."""
    path = tmp_path / "page"
    with contextlib.closing(ChangePage(str(path))):
        assert path.stat().st_blocks * 512 >= path.stat().st_size > 0
