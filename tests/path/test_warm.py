"""The running product fills its cache ahead of requests: with a real registry, and by command."""

import json

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import Proxy, digest_of, make_image, push_directly, random_bytes
from tests.support.servers import blob_gets, wait_until

MIB = 2**20
REPOSITORY = "team/app"


def is_cached(proxy: Proxy, digest: str) -> bool:
    """Tell whether the proxy's cache holds a blob, whole."""
    with proxy.admin() as admin:
        blobs = admin.get("/cache/blobs", params={"limit": 1000}).json()["items"]
    return digest in {blob["digest"] for blob in blobs}


def test_the_first_blob_of_a_pull_brings_the_others(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """With `cache.prefetch` a GET of the manifest and HEADs fetch nothing; a GET of one blob fetches all, once each."""
    registry = start_registry()
    proxy = start_proxy([registry], {"cache": {"prefetch": True}})
    user = proxy.add_user("ann", pull=["team/**"])
    image = make_image(*(random_bytes(MIB) for _ in range(4)))
    push_directly(registry, REPOSITORY, "latest", image)
    assert user.head(REPOSITORY, "manifests/latest").status_code == 200
    assert user.get(REPOSITORY, f"manifests/{image.digest}").content == image.manifest
    config, *layers = image.blobs
    for digest in layers:
        assert user.head(REPOSITORY, f"blobs/{digest}").status_code == 200
    assert [len(blob_gets(registry, digest)) for digest in image.blobs] == [0] * 5
    assert user.get(REPOSITORY, f"blobs/{config}").content == image.blobs[config]
    for digest in layers:
        wait_until(lambda digest=digest: is_cached(proxy, digest), "fetched ahead")  # type: ignore[misc]  # one line
    assert user.pull(REPOSITORY, "latest") == image
    assert [len(blob_gets(registry, digest)) for digest in image.blobs] == [1] * 5


def test_images_are_warmed_by_command(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """`cache warm` returns when the cache has everything; an absent image is named, with status 1."""
    registry = start_registry()
    proxy = start_proxy([registry])
    one, two = make_image(random_bytes(MIB)), make_image(random_bytes(MIB), label="two")
    push_directly(registry, REPOSITORY, "latest", one)
    push_directly(registry, REPOSITORY, "2", two)

    done = proxy.command("cache", "warm", REPOSITORY, f"{REPOSITORY}@{two.digest}", "--json")
    assert done.exit_code == 0, done.output
    jobs = json.loads(done.stdout)
    assert [job["image"] for job in jobs] == [f"{REPOSITORY}:latest", f"{REPOSITORY}@{two.digest}"]
    assert all(is_cached(proxy, digest) for image in (one, two) for digest in (*image.blobs, image.digest))
    failed = proxy.command("cache", "warm", f"{REPOSITORY}:none", REPOSITORY)
    assert failed.exit_code == 1
    assert f"{REPOSITORY}:none" in failed.stderr
    for wrong in (["Team/App"], [REPOSITORY, "--platform", "linux"]):
        refused = proxy.command("cache", "warm", *wrong)
        assert refused.exit_code == 1
    registry.stop()
    user = proxy.add_user("ann", pull=["team/**"])
    assert user.pull(REPOSITORY, "latest") == one
    assert digest_of(one.manifest) == one.digest
