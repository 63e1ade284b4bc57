"""One fetch for all simultaneous callers, on a clock of the test."""

import asyncio

import pytest

from registry_proxy.upstream import sharing
from registry_proxy.upstream.sharing import FRESH_TIMES, SharedFetch, SharedLists
from tests.support.waiting import until


class Source:
    """A value that takes a second to fetch: the number of the fetch."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fetches = 0
        self.error: Exception | None = None

    async def fetch(self) -> int:
        self.fetches += 1
        number = self.fetches
        self.now += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return number


async def test_a_value_stands_in_proportion_to_its_price() -> None:
    """It is good for ten times as long as it took, up to the bound, and for the same version alone."""
    source = Source()
    shared = SharedFetch[int](20, lambda: source.now)
    assert await shared.get("a", source.fetch) == 1
    source.now += FRESH_TIMES - 0.01
    assert await shared.get("a", source.fetch) == 1
    assert await shared.get("b", source.fetch) == 2
    source.now += FRESH_TIMES
    assert await shared.get("b", source.fetch) == 3
    never_old = SharedFetch[int](0, lambda: source.now)
    assert [await never_old.get("a", source.fetch) for _ in range(2)] == [4, 5]


async def test_those_who_wait_share_the_next_fetch() -> None:
    """A running fetch may be too old for a caller; the next one is for all who called before it began."""
    source = Source()
    shared = SharedFetch[int](0, lambda: source.now)
    values = await asyncio.gather(*(shared.get(None, source.fetch) for _ in range(10)))
    assert values == [1, *([2] * 9)]
    assert source.fetches <= 2
    assert shared.callers == 0


async def test_a_failure_is_shared_and_not_kept() -> None:
    """All waiting callers get the error, and the next caller another try."""
    source = Source()
    source.error = ValueError("no")
    shared = SharedFetch[int](100, lambda: source.now)
    results = await asyncio.gather(*(shared.get("a", source.fetch) for _ in range(5)), return_exceptions=True)
    assert {str(result) for result in results} == {"no"}
    assert source.fetches <= 2
    source.error = None
    assert await shared.get("a", source.fetch) == source.fetches


async def test_the_next_caller_goes_on_where_one_leaves() -> None:
    """A caller that is cancelled in its fetch leaves it to another one."""
    source = Source()
    shared = SharedFetch[int](0, lambda: source.now)
    began = asyncio.Event()

    async def endless() -> int:
        began.set()
        await asyncio.Event().wait()
        return 0

    first = asyncio.ensure_future(shared.get(None, endless))  # noqa: TID251 - cancelled below
    await began.wait()
    second = asyncio.ensure_future(shared.get(None, source.fetch))  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == 1


async def test_kept_lists_fit_into_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list that was used longest ago makes room; one larger than the whole room is not kept at all."""
    monkeypatch.setattr(sharing, "FRESH_TIMES", 1e9)
    fetched: list[str] = []
    lists = SharedLists(max_bytes=2 * 1500 * 100)

    async def read(key: str, count: int = 1500) -> None:
        async def fetch() -> list[str]:
            fetched.append(key)
            return [f"v{number:05}" for number in range(count)]

        assert len(await lists.get_names(key, 0, fetch, lambda *_: True)) == count

    for key in ("a", "b", "a", "c", "a", "c", "b"):
        await read(key)
    assert fetched == ["a", "b", "c", "b"]
    for _ in range(2):
        await read("large", 5000)
    assert fetched[4:] == ["large", "large"]
    assert not lists._running


async def test_a_kept_list_leaves_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is released without another request for it."""
    monkeypatch.setattr(sharing, "FRESH_TIMES", 1e9)
    monkeypatch.setattr(sharing, "FRESH_MAX_SECONDS", 0.05)
    lists = SharedLists()

    async def fetch() -> list[str]:
        return [f"v{number:05}" for number in range(1500)]

    await lists.get_names("a", 0, fetch, lambda *_: True)
    assert lists._kept
    await until(lambda: not lists._kept)


async def test_a_failed_list_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next caller fetches it again."""
    monkeypatch.setattr(sharing, "FRESH_TIMES", 1e9)
    lists = SharedLists()

    async def fetch() -> list[str]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await lists.get_names("a", 0, fetch, lambda *_: True)
    assert not lists._kept
    assert not lists._running
