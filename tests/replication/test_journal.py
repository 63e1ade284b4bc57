"""The journal: the writes that count against a replica, and their times."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import ReturnReason, RoutedRepository
from registry_proxy.ports.store import Change, Record, Store, Table
from registry_proxy.protocol.reference import Repository, Tag, digest_of
from registry_proxy.replication.intents import WRITING_SECONDS
from registry_proxy.replication.journal import Journal
from registry_proxy.store.open import open_store
from registry_proxy.store.sqlite import SqliteStore
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.replicas import ROUTED

LATEST = Tag("latest")
OLD, NEW = digest_of(b"old"), digest_of(b"new")
TAG_KEY = IntentKey(ROUTED, IntentKind.TAG, LATEST)
NAMES = ["a", "b"]


class Clock:
    """A clock that a test sets."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def open_journal(directory: Path, clock: Clock | None = None) -> AsyncIterator[tuple[Journal, Store]]:
    """Open a journal over a new store."""
    async with open_store(f"sqlite:///{directory / 'store.db'}", str(directory / "page")) as (store, changes):
        yield Journal(store, changes, RecordingObserver(), {"main": NAMES}, clock=clock or Clock()), store


async def test_marks_are_those_who_did_not_confirm(tmp_path: Path) -> None:
    """A replica that did not confirm misses the tag and counts as behind in that repository; another one does not."""
    async with open_journal(tmp_path) as (journal, _):
        write = await journal.begin({TAG_KEY: (NEW, "type")}, NAMES)
        await journal.conclude(write, {"a"})
        marks = await journal.current.marks()
        assert marks.misses_tag("b", ROUTED, LATEST)
        assert not marks.misses_tag("a", ROUTED, LATEST)
        assert not marks.misses_tag("b", ROUTED, Tag("other"))
        assert not marks.misses_any("b", RoutedRepository("main", Repository("other")))
        assert (marks.pending("a", "main"), marks.pending("b", "main"), marks.pending("b", "hub")) == (0, 1, 0)


async def test_a_write_under_way_counts_against_nobody_and_an_abandoned_one_against_all(tmp_path: Path) -> None:
    """An intent of a node that died in mid-fan-out counts against all replicas a minute later."""
    clock = Clock()
    async with open_journal(tmp_path, clock) as (journal, _):
        await journal.begin({TAG_KEY: (NEW, "type")}, NAMES)
        assert not (await journal.current.marks()).misses_any("a", ROUTED)
        clock.now += WRITING_SECONDS
        marks = await journal.current.marks()
        assert marks.misses_tag("a", ROUTED, LATEST)
        assert marks.misses_tag("b", ROUTED, LATEST)


async def test_a_replica_stays_behind_while_a_newer_write_is_under_way(tmp_path: Path) -> None:
    """A replica that missed the last move of a tag is not asked for it during the next one."""
    async with open_journal(tmp_path) as (journal, _):
        await journal.conclude(await journal.begin({TAG_KEY: (OLD, "type")}, NAMES), {"a"})
        write = await journal.begin({TAG_KEY: (NEW, "type")}, NAMES)
        marks = await journal.current.marks()
        assert marks.misses_tag("b", ROUTED, LATEST)
        assert not marks.misses_tag("a", ROUTED, LATEST)
        await journal.conclude(write, {"a", "b"})
        assert not (await journal.current.marks()).misses_any("b", ROUTED)


async def test_withdrawing_puts_back_what_was(tmp_path: Path) -> None:
    """Intents and records are as before the write; absent ones are absent again."""
    async with open_journal(tmp_path) as (journal, store):
        await journal.conclude(await journal.begin({TAG_KEY: (OLD, "type")}, NAMES), {"a"})
        before = {record.key: record.value for record in await store.list(Table.INTENTS)}
        manifest = IntentKey(ROUTED, IntentKind.MANIFEST, str(NEW))
        record = Change(Table.TAGS, "main/team/app|latest", {"digest": str(NEW)})
        write = await journal.begin({TAG_KEY: (NEW, "type"), manifest: (NEW, "type")}, NAMES, [record])
        assert len(await store.list(Table.INTENTS)) == 2
        await journal.withdraw(write)
        assert {record.key: record.value for record in await store.list(Table.INTENTS)} == before
        assert await store.list(Table.TAGS) == []


async def test_a_confirmation_between_begin_and_conclude_is_not_lost(tmp_path: Path) -> None:
    """When another push heals one of the keys meanwhile, the end of the write still counts for every key of it."""
    async with open_journal(tmp_path) as (journal, store):
        manifest = IntentKey(ROUTED, IntentKind.MANIFEST, str(NEW))
        write = await journal.begin({TAG_KEY: (NEW, "type"), manifest: (NEW, "type")}, NAMES)
        assert not await journal.confirm(manifest, NEW, "b")
        assert not (await journal.current.marks()).misses_any("a", ROUTED)
        await journal.conclude(write, {"a"})
        assert {record.key: record.value["missing"] for record in await store.list(Table.INTENTS)} == {
            str(TAG_KEY): ["b"]
        }


async def test_a_newer_write_of_a_key_is_the_truth(tmp_path: Path) -> None:
    """The end of an overtaken write changes no newer state, and confirmations of the newer one are then in doubt."""
    async with open_journal(tmp_path) as (journal, _):
        overtaken = await journal.begin({TAG_KEY: (OLD, "type")}, NAMES)
        newer = await journal.begin({TAG_KEY: (NEW, "type")}, NAMES)
        await journal.conclude(overtaken, {"a", "b"})
        await journal.withdraw(overtaken)
        assert not await journal.confirm(TAG_KEY, OLD, "a")
        await journal.conclude(newer, {"a"})
        found = await journal.find(TAG_KEY)
        assert found is not None
        assert (found.digest, found.missing) == (NEW, ("a", "b"))


async def test_another_worker_sees_marks_at_once(tmp_path: Path) -> None:
    """Of two journals over one store and page, each answers with the records of the other."""
    async with open_journal(tmp_path) as (one, _), open_journal(tmp_path) as (other, _):
        assert not (await other.current.marks()).misses_any("b", ROUTED)
        await one.conclude(await one.begin({TAG_KEY: (NEW, "type")}, NAMES), {"a"})
        assert (await other.current.marks()).misses_tag("b", ROUTED, LATEST)


async def test_a_write_reads_nothing_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ten thousands of open intents a push costs no more than with none: only changes are read."""
    async with open_journal(tmp_path) as (journal, _):
        for number in range(50):
            key = IntentKey(ROUTED, IntentKind.TAG, Tag(f"v{number}"))
            await journal.conclude(await journal.begin({key: (OLD, "type")}, NAMES), {"a"})
        assert (await journal.current.marks()).pending("b", "main") == 50
        listed: list[Table] = []
        list_records = SqliteStore.list

        async def noted(store: SqliteStore, table: Table, prefix: str = "") -> list[Record]:
            listed.append(table)
            return await list_records(store, table, prefix)

        monkeypatch.setattr(SqliteStore, "list", noted)
        await journal.conclude(await journal.begin({TAG_KEY: (NEW, "type")}, NAMES), {"a"})
        marks = await journal.current.marks()
        assert (marks.pending("b", "main"), marks.misses_tag("b", ROUTED, LATEST)) == (51, True)
        assert Table.INTENTS not in listed


async def test_over_shared_storage_nothing_is_recorded(tmp_path: Path) -> None:
    """Replicas over one store cannot diverge: there are records and no intents."""
    async with open_journal(tmp_path) as (journal, store):
        record = Change(Table.TAGS, "main/team/app|latest", {"digest": str(NEW)})
        write = await journal.begin({TAG_KEY: (NEW, "type")}, [], [record])
        await journal.conclude(write, {"a"})
        assert await store.list(Table.INTENTS) == []
        assert len(await store.list(Table.TAGS)) == 1


async def test_without_the_store_the_last_marks_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """During an outage of the store a replica that was behind stays behind, and reads go on."""
    async with open_journal(tmp_path) as (journal, store):
        await journal.conclude(await journal.begin({TAG_KEY: (NEW, "type")}, NAMES), {"a"})
        await journal.current.marks()
        await store.commit([Change(Table.INTENTS, "main/x|tag|y", None)])

        async def unavailable(table: Table, prefix: str = "") -> list[object]:
            raise StoreUnavailableError(f"{table} {prefix}")

        monkeypatch.setattr(store, "list", unavailable)
        assert (await journal.current.marks()).misses_tag("b", ROUTED, LATEST)


async def test_the_content_of_a_lost_store_is_written_again(tmp_path: Path) -> None:
    """Open intents, newcomers and pauses in memory are on record again, and the store's answer is doubtful."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, changes):
        journal = Journal(store, changes, RecordingObserver(), {"main": NAMES}, guarded=["main"])
        await journal.roster.note()
        key = IntentKey(ROUTED, IntentKind.TAG, "latest")
        await journal.miss(key, digest_of(b"1"), "", "b")
        await journal.roster.doubt("main", "a", ReturnReason.OLDER)
        before = (await journal.current.marks()).why_new("a", "main")
        assert before
        assert not await journal.current.is_doubtful()
        for table in Table:
            records = await store.list(table)
            await store.commit([Change(table, record.key, None) for record in records])
        changes._page.note_loss()  # as the watch does when it finds an older store
        marks = await journal.current.marks()
        assert marks.has_tag_intent("b", ROUTED, "latest")
        assert marks.why_new("a", "main") == before
        assert await journal.current.is_doubtful()


async def test_a_clock_that_is_put_back_keeps_no_write_open(tmp_path: Path) -> None:
    """The end of an abandoned write, set before, lies too far in the future: it counts against all."""
    clock = Clock()
    async with open_journal(tmp_path, clock) as (journal, _):
        key = IntentKey(ROUTED, IntentKind.TAG, "latest")
        await journal.begin({key: (digest_of(b"1"), "")}, NAMES)
        assert not (await journal.current.marks()).has_tag_intent("a", ROUTED, "latest")
        clock.now -= 3600
        marks = await journal.current.marks()
        assert [name for name in NAMES if marks.has_tag_intent(name, ROUTED, "latest")] == NAMES
