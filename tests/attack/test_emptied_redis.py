"""A Redis that comes back empty: what it forgot is not taken for the truth."""

import httpx
import redis as client_of_redis

from tests.conftest import StartProxy
from tests.support.product import make_image, random_bytes
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"


def test_an_emptied_redis_costs_no_copy_and_is_told(
    registries: list[Server], start_proxy: StartProxy, redis: Server
) -> None:
    """The only second copy of a push stays pinned and reaches the replica; `/readyz` says so; tokens verify at once."""
    _, second = registries
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    proxy = start_proxy(registries, extra)
    user = proxy.add_user("ann", pull_push=["team/**"])
    second.stop(9)
    image = make_image(random_bytes(1000))
    user.push(REPOSITORY, "1", image)
    assert len(list(proxy.pins.iterdir())) == 3
    keys = httpx.get(f"{proxy.url}/auth/keys", verify=False).json()
    with client_of_redis.Redis(port=redis.port) as client:
        client.flushall()
        wait_until(lambda: client.hlen("registry-proxy:table:keys") > 0, "the key is published again")

    def warnings() -> str:
        return str(httpx.get(f"{proxy.admin_url}/readyz", verify=False).json()["warnings"])

    wait_until(lambda: "the store came back" in warnings(), "it is told")
    assert httpx.get(f"{proxy.url}/auth/keys", verify=False).json() == keys
    assert len(list(proxy.pins.iterdir())) == 3
    second.start()
    accept = {"Accept": image.media_type}
    wait_until(
        lambda: (
            httpx.get(f"{second.url}/v2/{REPOSITORY}/manifests/1", headers=accept, verify=False).content
            == image.manifest
        ),
        "the replica has what it missed",
        timeout_seconds=60,
    )
    wait_until(lambda: "the store came back" not in warnings(), "the replicas were compared", timeout_seconds=60)
