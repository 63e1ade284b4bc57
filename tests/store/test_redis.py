"""RedisStore beyond the contract, above all with a Redis that goes away."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Change, Table
from registry_proxy.store import redis as store_redis
from registry_proxy.store.changes import ChangePage
from registry_proxy.store.redis import RedisStore
from registry_proxy.store.redis_connection import CONNECTIONS_MAX
from tests.support.servers import Server, free_port, redis_server, running


@pytest.fixture
async def store(redis: Server, page: ChangePage) -> AsyncIterator[RedisStore]:
    """A store on a running Redis, patient enough for the fsync of a busy disk."""
    store = RedisStore(f"redis://127.0.0.1:{redis.port}/0", page, timeout_seconds=4.0)
    yield store
    await store.aclose()


async def test_a_killed_redis_is_unavailable_and_comes_back(redis: Server, store: RedisStore) -> None:
    """Each call fails with StoreUnavailableError, immediately; acknowledged writes are there when Redis is back."""
    await store.commit([Change(Table.USERS, "ann", {"v": 1})])
    redis.stop(signal.SIGKILL)
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailableError):
            await store.get(Table.USERS, "ann")
        with pytest.raises(StoreUnavailableError):
            await store.list(Table.USERS)
        with pytest.raises(StoreUnavailableError):
            await store.commit([Change(Table.USERS, "ann", {})])
        with pytest.raises(StoreUnavailableError):
            await store.versions()
        with pytest.raises(StoreUnavailableError):
            await store.check_durability()
        with pytest.raises(StoreUnavailableError):
            async with store.lease("k"):
                pass
    redis.start()
    found = await store.get(Table.USERS, "ann")
    assert found is not None
    assert found.value == {"v": 1}
    await store.commit([Change(Table.USERS, "ann", {"v": 2}, expect=found.revision)])


async def test_after_a_restart_no_request_meets_a_connection_of_before(redis: Server, store: RedisStore) -> None:
    """Every connection that rested while Redis restarted is made again: none fails the first request that gets it."""
    await asyncio.gather(*(store.get(Table.USERS, str(number)) for number in range(8)))
    redis.stop(signal.SIGKILL)
    redis.start()
    _, writer = await asyncio.open_connection("127.0.0.1", redis.port)  # gives the loop the time to see the ends
    await asyncio.gather(*(store.get(Table.USERS, str(number)) for number in range(8)))
    writer.close()
    await writer.wait_closed()


async def test_a_redis_that_hangs_is_unavailable(redis: Server, store: RedisStore) -> None:
    """A Redis that accepts connections and never answers costs one time-out, and is used when it is back."""
    await store.versions()
    redis.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailableError):
                await store.get(Table.USERS, "ann")
            with pytest.raises(StoreUnavailableError, match="a moment ago"):
                await store.get(Table.USERS, "ann")
    finally:
        redis.send_signal(signal.SIGCONT)
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                assert await store.get(Table.USERS, "ann") is None
                return
            await asyncio.sleep(0.05)


async def test_starts_while_redis_is_away(tmp_path: Path, page: ChangePage) -> None:
    """A store can be made, and closed, without a server at the address; it works as soon as there is one."""
    server = redis_server(tmp_path / "late", free_port())
    store = RedisStore(f"redis://127.0.0.1:{server.port}/3", page)
    with pytest.raises(StoreUnavailableError):
        await store.versions()
    with running(server):
        await store.commit([Change(Table.USERS, "ann", {})])
        await store.aclose()
    await store.aclose()


async def test_errors_do_not_show_the_password(page: ChangePage) -> None:
    """The error names host and port, and nothing else of the URL."""
    store = RedisStore(f"redis://user:hunter2@127.0.0.1:{free_port()}/0", page)
    with pytest.raises(StoreUnavailableError) as caught:
        await store.versions()
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"
    await store.aclose()


async def test_says_what_redis_may_lose(tmp_path: Path, redis: Server, store: RedisStore, page: ChangePage) -> None:
    """A Redis that does not append and sync each write causes a warning; a durable one does not."""
    assert await store.check_durability() == []
    with running(redis_server(tmp_path / "lax", None, "--appendonly", "no", "--appendfsync", "everysec")) as lax:
        lax_store = RedisStore(f"redis://127.0.0.1:{lax.port}/0", page)
        warnings = await lax_store.check_durability()
        await lax_store.aclose()
    assert len(warnings) == 2
    assert "appendonly no" in warnings[0]
    assert "appendfsync everysec" in warnings[1]


async def test_a_redis_that_hides_its_settings_is_warned_of(tmp_path: Path, page: ChangePage) -> None:
    """Hosted ones forbid CONFIG: that is a warning, no failure."""
    with running(redis_server(tmp_path / "hosted", None, "--rename-command", "CONFIG", "")) as hosted:
        store = RedisStore(f"redis://127.0.0.1:{hosted.port}/0", page)
        warnings = await store.check_durability()
        await store.aclose()
    assert len(warnings) == 1
    assert "does not show its settings" in warnings[0]


async def test_a_long_lease_is_extended(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder keeps its lease for longer than one lease lasts."""
    monkeypatch.setattr(store_redis, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(store_redis, "LEASE_PATIENCE_SECONDS", 3.0)
    async with store.lease("k"):
        with pytest.raises(StoreUnavailableError, match="not obtained"):
            async with store.lease("k"):
                pass
    async with store.lease("k"):
        pass


async def test_a_lost_lease_is_no_error_of_its_holder(
    redis: Server, store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """When Redis forgot the lease, the end of the block logs it and raises nothing: the work is done already."""
    async with store.lease("k"):
        await store._redis.flushall()
    assert "could not be given back" in caplog.text


async def test_many_at_once_share_few_connections(redis: Server, page: ChangePage) -> None:
    """Hundreds of calls at once wait for a connection instead of failing or opening hundreds."""
    store = RedisStore(f"redis://127.0.0.1:{redis.port}/0", page, timeout_seconds=8.0)
    await asyncio.gather(*(store.get(Table.USERS, str(number)) for number in range(300)))
    information = await store._redis.info("clients")
    await store.aclose()
    assert information["connected_clients"] <= CONNECTIONS_MAX + 1


async def test_counts_past_what_lua_prints_exactly(store: RedisStore) -> None:
    """Sequence numbers stay whole numbers where Lua would print 1e+15."""
    await store.versions()  # writes the schema
    await store._redis.hset("registry-proxy:versions", "sequence", str(10**15 - 1))
    revision = await store.commit([Change(Table.USERS, "ann", {})])
    assert revision == 10**15
    await store.commit([Change(Table.USERS, "ann", {}, expect=revision)])


async def test_a_long_list_is_read_in_parts(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis serves others in between: a hundred thousand records stopped it for half a second. Each is listed once."""
    monkeypatch.setattr(store_redis, "_LISTED_AT_ONCE", 10)
    keys = [f"team/{letter}|{number:02}" for letter in "abc" for number in range(10)]
    await store.commit([Change(Table.TAGS, key, {"v": key}) for key in [*keys, "team/a", "zero"]])
    lengths: list[int] = []
    list_script = store._list_script

    async def counted(args: list[str]) -> list[str]:
        answer: list[str] = await list_script(args=args)
        lengths.append(len(answer))
        return answer

    monkeypatch.setattr(store, "_list_script", counted)
    assert [record.key for record in await store.list(Table.TAGS, "team/b|")] == keys[10:20]
    assert [record.key for record in await store.list(Table.TAGS)] == sorted([*keys, "team/a", "zero"])
    assert await store.list(Table.TAGS, "team/d") == []
    assert max(lengths) == 20
