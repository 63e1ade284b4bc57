"""Small contents that rotted on disk without a trace: no kind of request gets a wrong byte of them."""

import json
import random
from collections.abc import Callable

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.path.test_rot import file_of, flip
from tests.support.product import Image, Proxy, User, digest_of, make_image, push_directly, random_bytes
from tests.support.servers import wait_until

REPOSITORY = "team/app"
SIZES = (10, 2_000, 64 * 1024)


def on_new_connections(user: User, path: str, **headers: str) -> list[httpx.Response]:
    """Ask once, on a new connection: its first request is always parsed before it is answered."""
    return [user.get(REPOSITORY, path, **headers)]


def on_one_connection(user: User, path: str, **headers: str) -> list[httpx.Response]:
    """Ask repeatedly on one connection, as clients with keep-alive do."""
    with user.client(REPOSITORY) as client:
        client.get("/manifests/none")
        return [client.get(path, headers=headers) for _ in range(3)]


def large_manifest() -> Image:
    """Return an image whose manifest has more than a mebibyte."""
    image = make_image(random_bytes(100))
    padded = {**json.loads(image.manifest), "annotations": {"padding": "x" * (1 << 20)}}
    return Image(json.dumps(padded).encode(), image.blobs)


@pytest.mark.parametrize("ask", [on_new_connections, on_one_connection])
def test_no_rotten_small_content_is_sent(
    start_proxy: StartProxy, start_registry: StartRegistry, ask: Callable[..., list[httpx.Response]]
) -> None:
    """Blobs up to 64 KiB, whole and in part, and manifests of every size are correct; each rot is counted once."""
    registry = start_registry()
    proxy: Proxy = start_proxy([registry])
    user = proxy.add_user("ann", pull=["team/**"])
    image = make_image(*(random_bytes(size) for size in (*SIZES, *SIZES)))
    large = large_manifest()
    for tag, each in (("1", image), ("large", large)):
        push_directly(registry, REPOSITORY, tag, each)
        user.pull(REPOSITORY, tag)
    blobs = {digest: blob for digest, blob in image.blobs.items() if len(blob) in SIZES}
    rotten = [*blobs, digest_of(image.manifest), digest_of(large.manifest)]
    wait_until(lambda: all(file_of(proxy, digest).exists() for digest in rotten), "all are committed")
    proxy.stop()
    for digest in rotten:
        flip(file_of(proxy, digest), random.Random(digest), leave_trace=False)
    proxy.start()
    for number, (digest, blob) in enumerate(blobs.items()):
        if number % 2:
            assert all(answer.content == blob for answer in ask(user, f"/blobs/{digest}")), len(blob)
        else:
            answers = ask(user, f"/blobs/{digest}", Range=f"bytes=0-{len(blob) - 1}")
            assert all((answer.status_code, answer.content) == (206, blob) for answer in answers), len(blob)
    for each in (image, large):
        assert all(answer.content == each.manifest for answer in ask(user, f"/manifests/{digest_of(each.manifest)}"))
    assert proxy.metric("registry_proxy_cache_errors_total", reason="rot") == len(rotten)
