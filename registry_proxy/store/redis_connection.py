"""Connections to the Redis that a store URL means: by its address, or by what Redis Sentinel says."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

CONNECTIONS_MAX = 32
_REDIS_PORT = 6379
_SENTINEL_PORT = 26379


@dataclass(frozen=True)
class RedisAddress:
    """The parts of a store URL, without its secrets.

    Attributes:
        parts: the URL, its scheme ``redis`` or ``rediss`` and its host the first one.
        sentinels: host and port of every Sentinel; empty where the URL names Redis itself.
        service: the name under which the Sentinels know the primary; "" without Sentinels.
    """

    parts: SplitResult
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""

    def __str__(self) -> str:
        if self.sentinels:
            return f"Redis {self.service} of Sentinel {','.join(f'{host}:{port}' for host, port in self.sentinels)}"
        return f"Redis at {self.parts.hostname}:{self.parts.port or _REDIS_PORT}"


def parse_redis_url(url: str) -> RedisAddress:
    """Read ``redis[s]://[user:password@]host[:port][/number]`` or ``redis[s]+sentinel://[…@]host[:port],…/name[/number]``.

    The query takes what redis-py takes, such as ``ssl_ca_certs``, and ``sentinel_username`` and ``sentinel_password``.

    Raises:
        ValueError: a Sentinel URL does not name the primary, or a port is no number.
    """
    scheme, _, remainder = url.partition("://")
    scheme, _, kind = scheme.partition("+")
    if not kind:
        return RedisAddress(urlsplit(url))
    authority, _, path = remainder.partition("/")  # by hand: urlsplit refuses IPv6 addresses beside others
    credentials, at, hosts = authority.rpartition("@")
    addresses = [urlsplit(f"//{host}") for host in hosts.split(",")]
    parts = urlsplit(f"{scheme}://{credentials}{at}{addresses[0].netloc}/{path}")
    service, _, number = parts.path.removeprefix("/").partition("/")
    if not service:
        raise ValueError("the URL does not name the primary")
    sentinels = tuple((address.hostname or "", address.port or _SENTINEL_PORT) for address in addresses)
    return RedisAddress(parts._replace(path=f"/{number}"), sentinels, unquote(service))


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """A pool whose callers wait for a free connection, as those of a single Redis do."""


def connect(address: RedisAddress, timeout_seconds: float) -> tuple[Redis, Sentinel | None]:
    """Make the client of a Redis, and of its Sentinels where it has any; nothing is sent before the first use.

    Args:
        address: where it is.
        timeout_seconds: how long one answer, and the wait for a free connection, may take.
    """
    said: dict[str, Any] = dict(parse_url(address.parts.geturl()))
    sentinel_login = {key: said.pop(f"sentinel_{key}", None) for key in ("username", "password")}
    answering: dict[str, Any] = {
        "socket_connect_timeout": timeout_seconds / 2,
        "socket_timeout": timeout_seconds,
        # A commit whose answer was lost may have happened: repeating it would meet its own revisions.
        "retry": Retry(NoBackoff(), 0),
        # With them redis-py hands out connections that Redis has closed: after its restart each fails a request.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "decode_responses": True,
    }
    pooled = {**answering, "max_connections": CONNECTIONS_MAX, "timeout": timeout_seconds}
    if not address.sentinels:
        return Redis.from_pool(BlockingConnectionPool(**{**pooled, **said})), None
    over_tls = said.pop("connection_class", None) is SSLConnection
    said = {key: value for key, value in said.items() if key not in {"host", "port"}}  # a Sentinel says them
    tls = {key: value for key, value in said.items() if key.startswith("ssl_")}
    sentinels = {**answering, **sentinel_login, **tls, "ssl": over_tls}
    for deadline in ("socket_connect_timeout", "socket_timeout"):
        sentinels[deadline] = timeout_seconds / 4  # then the next one is asked
    sentinel = Sentinel(address.sentinels, sentinel_kwargs=sentinels)  # type: ignore[no-untyped-call]  # has no types
    pool = _SentinelPool(address.service, sentinel, ssl=over_tls, **{**pooled, **said})  # type: ignore[no-untyped-call]  # has no types
    return Redis.from_pool(pool), sentinel
