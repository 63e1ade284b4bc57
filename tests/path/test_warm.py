"""Filling before anybody asks, by the running product: with a real registry, and by command."""

import json
import os
import subprocess
import sys

import httpx

from tests.conftest import StartProxy, StartRegistry
from tests.path.test_done import blob_gets
from tests.product import ADMIN_PASSWORD, OCI_MANIFEST, Image, Proxy, digest_of, make_image, random_bytes
from tests.servers import Server, wait_until

MIB = 2**20
REPOSITORY = "team/app"


def push_past(registry: Server, image: Image, tag: str) -> None:
    """Push an image to a registry past the proxy."""
    with httpx.Client(base_url=f"{registry.url}/v2/{REPOSITORY}") as client:
        for digest, blob in image.blobs.items():
            location = client.post("/blobs/uploads/").headers["Location"]
            client.put(httpx.URL(location).copy_merge_params({"digest": digest}), content=blob).raise_for_status()
        headers = {"Content-Type": OCI_MANIFEST}
        client.put(f"/manifests/{tag}", content=image.manifest, headers=headers).raise_for_status()


def is_cached(proxy: Proxy, digest: str) -> bool:
    """Tell whether a blob lies in the proxy's cache, whole."""
    with proxy.admin() as admin:
        blobs = admin.get("/cache/blobs", params={"limit": 1000}).json()["items"]
    return digest in {blob["digest"] for blob in blobs}


def test_the_first_blob_of_a_pull_brings_the_others(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """With `cache.prefetch`: GET manifest, HEADs, nothing; GET of one blob: all are fetched, once each."""
    registry = start_registry()
    proxy = start_proxy([registry], {"cache": {"prefetch": True}})
    user = proxy.add_user("ann", pull=["team/**"])
    image = make_image(*(random_bytes(MIB) for _ in range(4)))
    push_past(registry, image, "latest")
    assert user.head(REPOSITORY, "manifests/latest").status_code == 200
    assert user.get(REPOSITORY, f"manifests/{image.digest}").content == image.manifest
    config, *layers = image.blobs
    for digest in layers:
        assert user.head(REPOSITORY, f"blobs/{digest}").status_code == 200
    assert [blob_gets(registry, digest) for digest in image.blobs] == [0] * 5
    assert user.get(REPOSITORY, f"blobs/{config}").content == image.blobs[config]
    for digest in layers:
        wait_until(lambda digest=digest: is_cached(proxy, digest), "fetched ahead")  # type: ignore[misc]  # one line
    assert user.pull(REPOSITORY, "latest") == image
    assert [blob_gets(registry, digest) for digest in image.blobs] == [1] * 5


def test_images_are_warmed_by_command(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """`cache warm` returns when all of it is cached; what is not there is named, with 1."""
    registry = start_registry()
    proxy = start_proxy([registry])
    one, two = make_image(random_bytes(MIB)), make_image(random_bytes(MIB), label="two")
    push_past(registry, one, "latest")
    push_past(registry, two, "2")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "registry_proxy", "cache", "warm", *arguments]
        account = {"REGISTRY_PROXY_ADMIN_USER": "admin", "REGISTRY_PROXY_ADMIN_PASSWORD": ADMIN_PASSWORD}
        environment = {**os.environ, **account, "REGISTRY_PROXY_ADMIN_URL": proxy.admin_url}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    done = run(REPOSITORY, f"{REPOSITORY}@{two.digest}", "--json")
    assert done.returncode == 0, done
    jobs = json.loads(done.stdout)
    assert [job["image"] for job in jobs] == [f"{REPOSITORY}:latest", f"{REPOSITORY}@{two.digest}"]
    assert all(is_cached(proxy, digest) for image in (one, two) for digest in (*image.blobs, image.digest))
    failed = run(f"{REPOSITORY}:none", REPOSITORY)
    assert failed.returncode == 1
    assert f"{REPOSITORY}:none" in failed.stderr
    for wrong in (["Team/App"], [REPOSITORY, "--platform", "linux"]):
        refused = run(*wrong)
        assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    registry.stop()
    user = proxy.add_user("ann", pull=["team/**"])
    assert user.pull(REPOSITORY, "latest") == one
    assert digest_of(one.manifest) == one.digest
