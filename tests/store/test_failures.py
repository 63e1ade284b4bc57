"""Failures: counted by key, over workers, in memory of a fixed size, and in Redis."""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from registry_proxy.files.shared_page import SharedPage
from registry_proxy.store import failures as module
from registry_proxy.store.changes import ChangePage
from registry_proxy.store.failures import FAILURES_BYTES, NodeFailures
from registry_proxy.store.redis import RedisStore
from tests.support.servers import Server

LIMIT, WINDOW_SECONDS = 3, 60.0


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the failures."""
    return Clock()


@pytest.fixture
def failures(clock: Clock) -> NodeFailures:
    """Failures with that clock."""
    return NodeFailures(SharedPage.in_memory(FAILURES_BYTES), 0, clock)


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[list[ChangePage]]:
    """Two workers of a node."""
    with ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(ChangePage(str(tmp_path / "page")))) for _ in range(2)]


async def test_a_key_waits_until_its_oldest_failure_leaves_the_window(failures: NodeFailures, clock: Clock) -> None:
    """The newest failures count, up to the limit; other keys are not affected."""
    for _ in range(LIMIT):
        assert await failures.wait_seconds("key", LIMIT, WINDOW_SECONDS) == 0
        await failures.note("key", LIMIT, WINDOW_SECONDS)
        clock.now += 10
    assert await failures.wait_seconds("key", LIMIT, WINDOW_SECONDS) == 30
    assert await failures.wait_seconds("other", LIMIT, WINDOW_SECONDS) == 0
    clock.now += 30
    assert await failures.wait_seconds("key", LIMIT, WINDOW_SECONDS) == 0
    await failures.note("key", LIMIT, WINDOW_SECONDS)
    assert await failures.wait_seconds("key", LIMIT, WINDOW_SECONDS) == 10


async def test_failures_of_before_a_restart_of_the_machine_do_not_count(failures: NodeFailures, clock: Clock) -> None:
    """After a restart the clock begins again, with the same file: nobody waits for ever."""
    for _ in range(LIMIT):
        await failures.note("key", LIMIT, WINDOW_SECONDS)
    clock.now = 5.0
    assert await failures.wait_seconds("key", LIMIT, WINDOW_SECONDS) == 0


async def test_ten_thousand_others_push_nobody_out(failures: NodeFailures) -> None:
    """A bucket takes 128 failures; keys are spread over 256, by a secret that differs for each node."""
    for _ in range(LIMIT):
        await failures.note("key", LIMIT, WINDOW_SECONDS)
    for number in range(10_000):
        await failures.note(str(number), LIMIT, WINDOW_SECONDS)
    assert await failures.wait_seconds("key", LIMIT, WINDOW_SECONDS) > 0
    other = NodeFailures(SharedPage.in_memory(FAILURES_BYTES), 0)
    assert failures._find("key") != other._find("key")


async def test_a_full_bucket_forgets_its_oldest(failures: NodeFailures, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entry is replaced, and nothing is written beyond the bucket."""
    monkeypatch.setattr(failures, "_find", lambda key: (key.encode().ljust(16), failures._start))
    for number in range(module._PLACES + 1):
        await failures.note(f"key{number}", 1, WINDOW_SECONDS)
    waits = [await failures.wait_seconds(f"key{number}", 1, WINDOW_SECONDS) > 0 for number in range(129)]
    assert waits == [False] + [True] * 128
    beyond = failures._start + module._BUCKET_BYTES
    assert not any(failures._memory[beyond:])


async def test_workers_count_together(pages: list[ChangePage]) -> None:
    """Failures at all workers count together, also for names that cannot be encoded."""
    for key in ("key", "\ud800"):
        for number in range(LIMIT):
            await pages[number % 2].failures.note(key, LIMIT, WINDOW_SECONDS)
        waits = [await page.failures.wait_seconds(key, LIMIT, WINDOW_SECONDS) for page in pages]
        assert all(50 < wait <= 60 for wait in waits)


async def test_nodes_count_together_in_redis(redis: Server, pages: list[ChangePage], tmp_path: Path) -> None:
    """The clock of Redis counts; keys end with their window, and hold no name from a caller."""
    url = f"redis://127.0.0.1:{redis.port}/0"
    with contextlib.closing(ChangePage(str(tmp_path / "other"))) as other:
        stores = [RedisStore(url, page) for page in (pages[0], other)]
        for number in range(LIMIT):
            assert [await store.failures.wait_seconds("key", LIMIT, WINDOW_SECONDS) for store in stores] == [0, 0]
            await stores[number % 2].failures.note("key", LIMIT, WINDOW_SECONDS)
        waits = [await store.failures.wait_seconds("key", LIMIT, WINDOW_SECONDS) for store in stores]
        assert all(50 < wait <= 60 for wait in waits)
        (name,) = [key async for key in stores[0]._redis.scan_iter("registry-proxy:failures:*")]
        assert "key" not in name.rpartition(":")[2]
        assert 50_000 < await stores[0]._redis.pttl(name) <= 60_000
        assert await stores[0]._redis.llen(name) == LIMIT
        for store in stores:
            await store.aclose()
