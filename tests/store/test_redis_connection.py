"""Redis behind Sentinels and behind TLS: real redis-server, real redis-sentinel."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Change, Table
from registry_proxy.store.changes import ChangePage
from registry_proxy.store.redis import RedisStore
from registry_proxy.store.redis_connection import parse_redis_url
from tests.conftest import require_program
from tests.support.servers import Server, free_port, redis_server, running

PATIENCE_SECONDS = 8.0
"""The time limit of one answer; a Sentinel has a quarter. A busy machine needs it."""


@dataclass(frozen=True)
class Group:
    """A primary, its replica, and a Sentinel that promotes the replica half a second after the primary is gone."""

    primary: Server
    replica: Server
    sentinel: Server

    @property
    def url(self) -> str:
        """The URL of the store."""
        return f"redis+sentinel://:hush@127.0.0.1:{self.sentinel.port}/main/2"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """Start the three of them."""
    require_program("redis-server")
    login = ("--requirepass", "hush", "--masterauth", "hush")
    primary = redis_server(tmp_path / "primary", None, *login)
    replica = redis_server(tmp_path / "replica", None, *login, "--replicaof", f"127.0.0.1 {primary.port}")
    port = free_port()
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {primary.port} 1\n"
        "sentinel auth-pass main hush\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 5000\n"
    )
    sentinel = Server(["redis-server", str(settings), "--sentinel"], port, tmp_path / "sentinel.log")
    with running(primary), running(replica), running(sentinel):
        yield Group(primary, replica, sentinel)


async def until_it_works(store: RedisStore, change: Change) -> None:
    """Commit a change as soon as the store accepts it."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await store.commit([change])
                return
            await asyncio.sleep(0.05)


async def until_copied(group: Group) -> None:
    """Return when the Sentinel knows of a replica that follows the primary."""
    reader, writer = await asyncio.open_connection("127.0.0.1", group.sentinel.port)
    async with asyncio.timeout(30):
        while True:
            writer.write(b"SENTINEL REPLICAS main\r\n")
            answer = await reader.read(65536)
            if b"master-link-status\r\n$2\r\nok" in answer:
                break
            await asyncio.sleep(0.05)
    writer.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_commits_outlive_the_primary(group: Group, page: ChangePage, number: signal.Signals) -> None:
    """A primary that is killed or hangs is replaced by its replica, which has all earlier writes.

    Also when the first Sentinel accepts connections and never answers.
    """
    await until_copied(group)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = group.url.replace("@", f"@127.0.0.1:{silent.getsockname()[1]},")
        store = RedisStore(url, page, timeout_seconds=PATIENCE_SECONDS)
        await store.commit([Change(Table.USERS, "ann", {"v": 1})])
        group.primary.send_signal(number)
        await until_it_works(store, Change(Table.USERS, "bob", {"v": 2}))
        assert [(record.key, record.value) for record in await store.list(Table.USERS)] == [
            ("ann", {"v": 1}),
            ("bob", {"v": 2}),
        ]
        async with store.lease("k"):
            pass
        await store.aclose()


async def test_a_write_that_no_replica_has_is_reported(
    group: Group, page: ChangePage, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a Redis replica writes go on, and the log says once that a fail-over may lose them."""
    await until_copied(group)
    store = RedisStore(group.url, page, timeout_seconds=PATIENCE_SECONDS)
    await store.commit([Change(Table.USERS, "ann", {"v": 1})])
    assert "fail-over" not in caplog.text
    group.replica.stop(signal.SIGKILL)
    for version in range(3):
        await store.commit([Change(Table.USERS, "ann", {"v": version})])
    await store.aclose()
    assert caplog.text.count("a fail-over now may lose it") == 1


async def test_sentinels_that_are_all_away_are_an_unavailable_store(page: ChangePage) -> None:
    """The error names the Sentinels and the primary, and no password."""
    port = free_port()
    store = RedisStore(f"redis+sentinel://:hush@127.0.0.1:{port}/main", page)
    with pytest.raises(StoreUnavailableError, match=f"Redis main of Sentinel 127.0.0.1:{port}.*no Sentinel") as refusal:
        await store.versions()
    await store.aclose()
    assert "hush" not in str(refusal.value)


def test_a_url_of_sentinels_is_read_whole() -> None:
    """Ports default to 26379, brackets hold an IPv6 address, the name may be percent-encoded, the number stays."""
    address = parse_redis_url("rediss+sentinel://u:p%40@a,b:2,[::1]:3/my%20main/4?ssl_ca_certs=/ca.pem")
    assert address.sentinels == (("a", 26379), ("b", 2), ("::1", 3))
    assert address.service == "my main"
    assert address.parts.geturl() == "rediss://u:p%40@a/4?ssl_ca_certs=/ca.pem"


async def test_redis_over_tls(tmp_path: Path, certificate: Path, page: ChangePage) -> None:
    """A Redis that speaks only TLS is used with its authority, and refused without."""
    require_program("redis-server")
    tls = ["--tls-cert-file", str(certificate), "--tls-key-file", str(certificate.with_name("key.pem"))]
    port = free_port()
    server = redis_server(tmp_path / "redis", port, "--tls-port", str(port), "--tls-auth-clients", "no", *tls)
    server = Server([*server.arguments, "--port", "0"], port, server.log)
    with running(server):
        store = RedisStore(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}", page)
        await store.commit([Change(Table.USERS, "ann", {"v": 1})])
        await store.aclose()
        stranger = RedisStore(f"rediss://127.0.0.1:{port}/0", page)
        with pytest.raises(StoreUnavailableError, match="certificate"):
            await stranger.versions()
        await stranger.aclose()
