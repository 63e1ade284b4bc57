"""A Redis that comes back empty: the proxy does not trust its missing records."""

import shutil

import httpx
import redis as client_of_redis

from tests.attack.test_replica_back_in_time import data_of
from tests.conftest import StartProxy
from tests.support.product import Proxy, make_image, notice_down, random_bytes
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"


def test_an_emptied_redis_costs_no_copy_and_is_reported(
    registries: list[Server], start_proxy: StartProxy, redis: Server
) -> None:
    """The only second copy of a push stays pinned and reaches the replica; `/readyz` warns; tokens stay valid."""
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
    wait_until(lambda: is_reported(proxy), "it is reported")
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
    wait_until(lambda: not is_reported(proxy), "the replicas were compared", timeout_seconds=60)


def test_an_image_without_a_tag_outlives_an_emptied_redis_and_then_the_storage_of_a_replica(
    registries: list[Server], start_proxy: StartProxy, redis: Server
) -> None:
    """No registry lists an image whose tag has moved on: the node that knows it copies it all the same."""
    _, second = registries
    proxy = start_proxy(registries, {"store": f"redis://127.0.0.1:{redis.port}/0"})
    user = proxy.add_user("ann", pull_push=["team/**"])
    old, new = make_image(random_bytes(1000)), make_image(random_bytes(1000))
    for image in (old, new):
        user.push(REPOSITORY, "1", image)
    with client_of_redis.Redis(port=redis.port) as client:
        client.flushall()
    wait_until(lambda: is_reported(proxy), "the loss is noticed")
    wait_until(lambda: not is_reported(proxy), "the replicas were compared", timeout_seconds=60)
    second.stop(9)
    shutil.rmtree(data_of(second))
    notice_down(user, REPOSITORY)
    second.start()
    wait_until(
        lambda: (
            httpx.get(
                f"{second.url}/v2/{REPOSITORY}/manifests/{old.digest}",
                headers={"Accept": old.media_type},
                verify=False,
            ).content
            == old.manifest
        ),
        "the replica has the image that no tag names",
        timeout_seconds=60,
    )


def is_reported(proxy: Proxy) -> bool:
    """Tell whether a node warns that the store was lost and the replicas were not compared since."""
    return "the store came back" in str(httpx.get(f"{proxy.admin_url}/readyz", verify=False).json()["warnings"])
