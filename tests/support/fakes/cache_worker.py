"""A process that shares a cache with a test: fills, commits and drops until it ends or is killed."""

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from registry_proxy.cache.disk import DiskCache
from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.ports.uploads import Uploader
from registry_proxy.spool.spool import DiskSpool
from tests.support.fakes.cache import MIB, Answer, Events, Source, content, read_all


async def fill_and_stop(cache: DiskCache, size_bytes: int, stop_at: int) -> None:
    """Own a fill, report when it reaches ``stop_at``, and wait for a line on stdin to continue."""
    body, digest = content(size_bytes)
    answer = Answer(body, pause_at=stop_at)
    reader, result = await cache.open_or_fill(digest, Source(answer))
    await answer.reached.wait()
    await reader.wait_beyond(stop_at - 2 * MIB)
    print("stopped", result.value, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    answer.resume.set()
    assert await read_all(reader) == body
    print("done", flush=True)


async def follow(cache: DiskCache, size_bytes: int) -> None:
    """Get a content that another worker may be fetching; report how, and how often the source was asked."""
    body, digest = content(size_bytes)
    source = Source(Answer(body))
    reader, result = await cache.open_or_fill(digest, source)
    print("opened", result.value, flush=True)
    assert await read_all(reader) == body
    print("done", source.offsets, flush=True)


async def churn(cache: DiskCache, seed: int) -> None:
    """Fill, push, drop and pin at random without an end."""
    chance = random.Random(seed)
    spool = DiskSpool(cache)
    print("churning", flush=True)
    while True:
        number = chance.randrange(40)
        body, digest = content(number * 40_000, number)
        # For a moment the other worker may hold all the room: then a caller passes the content through.
        with contextlib.suppress(CacheUnavailableError):
            match chance.randrange(4):
                case 0:
                    upload = spool.create(os.urandom(8).hex(), Uploader("user:ann", 0))
                    await upload.write(body)
                    await upload.commit(digest)
                    upload.close()
                case 1:
                    cache.drop(digest)
                case _:
                    reader, _ = await cache.open_or_fill(digest, Source(Answer(body)))
                    assert await read_all(reader) == body


_TASKS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "fill_and_stop": fill_and_stop,
    "follow": follow,
    "churn": churn,
}


async def main(path: str, max_size_bytes: int, task: str, arguments: list[int]) -> None:
    """Run one of the tasks above on the cache at ``path``."""
    cache = DiskCache(path, max_size_bytes, 0, Events())
    try:
        await _TASKS[task](cache, *arguments)
    finally:
        await cache.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], [int(argument) for argument in sys.argv[4:]]))
