"""One fetch for all who ask meanwhile, on a clock of the test's own."""

import asyncio

import pytest

from registry_proxy.upstream.sharing import FRESH_TIMES, SharedFetch


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
    """A fetch that runs already may be too old for a caller; the next one is for all who called before it began."""
    source = Source()
    shared = SharedFetch[int](0, lambda: source.now)
    values = await asyncio.gather(*(shared.get(None, source.fetch) for _ in range(10)))
    assert values == [1, *([2] * 9)]
    assert source.fetches <= 2
    assert shared.callers == 0


async def test_a_failure_is_shared_and_not_kept() -> None:
    """All who waited get the error, and the next caller another try."""
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
