"""A registry that announces bytes and never sends them evicts nothing from the cache."""

import asyncio
import re
from collections.abc import AsyncIterator

from tests.conftest import StartProxy, StartRegistry
from tests.support.disks import MIB
from tests.support.fakes.malice import Asked, Malice, Said
from tests.support.product import digest_of, make_image, random_bytes
from tests.support.servers import Server, wait_until

MAX_SIZE = 32 * MIB


async def _begin(head: bytes) -> AsyncIterator[bytes]:
    """Send the head and the first bytes of a body, and nothing more."""
    yield head + bytes(256 * 1024)
    await asyncio.Event().wait()


def test_an_announced_length_evicts_nothing_before_its_bytes_come(
    start_proxy: StartProxy, start_registry: StartRegistry
) -> None:
    """A blob of 30 MiB that stops after its first bytes leaves the cache to the others, and new content is cached."""
    good, hostile = start_registry(), digest_of(b"never sent")

    def answers(asked: Asked) -> Said:
        if re.search(f"/blobs/{hostile}$", asked.target) is None:
            return None
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {30 * MIB}\r\nContent-Type: application/octet-stream\r\n\r\n"
        return head.encode() if asked.method == "HEAD" else _begin(head.encode())

    with Malice(answers, good.port) as malice:
        settings = {"cache": {"max_size": str(MAX_SIZE), "min_free": "0"}}
        proxy = start_proxy([Server([], malice.port, good.log)], settings)
        ann = proxy.add_user("ann", pull_push=["team/**"])
        hot = make_image(*(random_bytes(4 * MIB) for _ in range(4)))
        ann.push("team/app", "hot", hot)
        evicted = proxy.metric("registry_proxy_cache_evicted_total")
        with ann.client("team/app") as client, client.stream("GET", f"/blobs/{hostile}"):
            wait_until(lambda: [*(proxy.cache / "fills").glob("*.size")] != [], "the length was announced")
            assert proxy.metric("registry_proxy_cache_evicted_total") == evicted
            assert {ann.get("team/app", f"blobs/{each}").headers["X-Cache"] for each in hot.blobs} == {"HIT"}
            more = make_image(random_bytes(4 * MIB), label="more")
            ann.push("team/app", "more", more)
            assert {ann.get("team/app", f"blobs/{each}").headers["X-Cache"] for each in more.blobs} == {"HIT"}
