"""The common limits of a replica's long lists."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from registry_proxy.replica import long_lists
from registry_proxy.replica.long_lists import LIST_MAX_BYTES, PAGE_SECONDS, QUICK_PAGES, SHORT_LIST_BYTES, LongLists
from tests.support.waiting import until


async def body(size_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body of a page in two pieces."""
    yield b"a"
    yield bytes(size_bytes - 1)


async def test_one_long_list_is_read_at_a_time() -> None:
    """A second long list waits until the first one has been used; short ones wait for none."""
    lists = LongLists()
    ended: list[str] = []

    async def read(name: str, size_bytes: int) -> None:
        async with lists.reading() as reading:
            await reading.read_page(body(size_bytes))
            ended.append(name)

    async with asyncio.TaskGroup() as group:
        async with lists.reading() as first:
            await first.read_page(body(SHORT_LIST_BYTES + 1))
            group.create_task(read("long", SHORT_LIST_BYTES + 1))
            group.create_task(read("short", SHORT_LIST_BYTES))
            await until(lambda: bool(ended))
            assert ended == ["short"]
            await first.read_page(body(SHORT_LIST_BYTES))
        await until(lambda: ended == ["short", "long"])


async def test_a_list_is_long_by_all_of_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of a list count together, for the room of a long list and for its limit."""
    monkeypatch.setattr(long_lists, "LIST_MAX_BYTES", LIST_MAX_BYTES // 16)
    pages = 4
    async with LongLists().reading() as reading:
        for _ in range(pages):
            assert not reading.has_room
            assert await reading.read_page(body(SHORT_LIST_BYTES // pages)) is not None
        assert await reading.read_page(body(2)) is not None
        assert reading.has_room
        assert await reading.read_page(body(LIST_MAX_BYTES // 16 - SHORT_LIST_BYTES - 1)) is None


async def test_small_pages_of_long_lists_come_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first ones small pages share a time budget of all lists of the replica; large ones do not wait."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    lists = LongLists(clock=lambda: 100.0)
    async with lists.reading() as one, lists.reading() as other:
        for reading in (one, other):
            for _ in range(QUICK_PAGES - 1):
                await reading.read_page(body(100))
                await reading.go_on()
        assert not waits
        await one.read_page(body(100_000))
        await one.go_on()
        assert not waits
        for reading in (one, other, one):
            await reading.read_page(body(100))
            await reading.go_on()
    assert waits == pytest.approx([0, PAGE_SECONDS, 2 * PAGE_SECONDS])
