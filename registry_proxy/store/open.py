"""Which store a URL means."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from registry_proxy.store.changes import ChangePage, StoreWatch
from registry_proxy.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from registry_proxy.store.redis import RedisStore

_REDIS_SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel")
_SQLITE = "sqlite:///"


@asynccontextmanager
async def open_store(
    url: str,
    page_path: str | None,
    compared: Callable[[float], None] = lambda _: None,
    *,
    may_create: bool = True,
) -> AsyncIterator[tuple["SqliteStore | RedisStore", StoreWatch]]:
    """Open the store of a worker, and the watch over its changes, for the length of a with block.

    An unreachable Redis is no error here: each use of the store says so until it is back.

    Args:
        url: ``sqlite:///relative``, ``sqlite:////absolute``, or of a Redis (``redis_connection.parse_redis_url``).
        page_path: see ``ChangePage``.
        compared: see ``StoreWatch``.
        may_create: make a SQLite file that is not there; else that is an error, for an empty store answers falsely.

    Raises:
        ValueError: the URL is none of these.
        SchemaTooNewError: a later release wrote the store.
        StoreUnavailableError: the SQLite file cannot be opened, or is not there and may not be made.
    """
    async with AsyncExitStack() as stack:
        page = ChangePage(page_path)
        stack.callback(page.close)
        store: SqliteStore | RedisStore
        if url.startswith(_SQLITE) and len(url) > len(_SQLITE):
            store = SqliteStore(url.removeprefix(_SQLITE), page, may_create=may_create)
            stack.push_async_callback(store.aclose)
            await store.versions()
        elif url.partition("://")[0] in _REDIS_SCHEMES:
            store = _redis_store(url, page)
            stack.push_async_callback(store.aclose)
        else:
            raise ValueError(f"a store is sqlite:///path, or one of {', '.join(_REDIS_SCHEMES)}://")
        watch = StoreWatch(store, page, compared=compared)
        stack.push_async_callback(watch.aclose)
        await watch.start()
        yield store, watch


def _redis_store(url: str, page: ChangePage) -> "RedisStore":
    from registry_proxy.store.redis import RedisStore  # noqa: PLC0415 - a fifth of a worker's start that SQLite is spared

    return RedisStore(url, page)
