"""Content of earlier states survives the registries' own garbage collection: docker-registry collects for real."""

import json
import re
import subprocess
from collections.abc import Sequence
from functools import partial

import httpx
import pytest
import yaml

from tests.conftest import StartProxy, StartRegistry
from tests.path.test_collection import config_of
from tests.path.test_referrers import attached_to
from tests.support.product import OCI_MANIFEST, Image, User, make_image
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
KEEPS = {"history": {"keep_content": {"moves": 3, "age": "0s"}}}


def make_index(*images: Image) -> Image:
    """Return an index of images, each for an architecture of its own."""
    manifests = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": image.digest,
            "size": len(image.manifest),
            "platform": {"os": "linux", "architecture": f"arch{number}"},
        }
        for number, image in enumerate(images)
    ]
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return Image(json.dumps(body).encode(), {}, OCI_INDEX)


def keepers(server: Server) -> set[str]:
    """Return the keepers at a registry."""
    answer = httpx.get(f"{server.url}/v2/{REPOSITORY}/tags/list")
    return {tag for tag in answer.json().get("tags") or () if tag.startswith("rp-keep-h-")}


def has_keepers(server: Server, count: int) -> bool:
    """Tell whether a registry has so many keepers."""
    return len(keepers(server)) == count


def push_all(user: User, tag: str, children: Sequence[Image]) -> list[Image]:
    """Push a signed index of images under a tag; return all manifests of it."""
    for child in children:
        user.push(REPOSITORY, child.digest, child)
    index = make_index(*children)
    user.push(REPOSITORY, tag, index)
    signature = attached_to(index.digest, "signature")
    user.push(REPOSITORY, signature.digest, signature)
    return [index, signature, *children]


def whole(user: User, manifests: Sequence[Image]) -> list[int]:
    """Pull manifests by digest with their blobs; return the statuses."""
    paths = [f"manifests/{each.digest}" for each in manifests]
    paths += [f"blobs/{digest}" for each in manifests for digest in each.blobs]
    return [user.get(REPOSITORY, path, Accept=f"{OCI_MANIFEST}, {OCI_INDEX}").status_code for path in paths]


@pytest.mark.parametrize("options", [(), ("-m",)], ids=["plain", "untagged"])
def test_earlier_states_survive_a_collection(
    registries: list[Server], start_proxy: StartProxy, options: tuple[str, ...]
) -> None:
    """A signed index that its tag has left is whole after the collection of both registries, and can be gone back to.

    A manifest that no history names is gone, and no list shows a keeper.
    """
    proxy = start_proxy(registries, KEEPS)
    ann = proxy.add_user("ann", pull_push=["team/**"])
    earlier = push_all(ann, "v1", [make_image(b"arm", label="arm"), make_image(b"amd", label="amd")])
    stray = make_image(b"stray")
    ann.push(REPOSITORY, stray.digest, stray)
    now = make_image(b"now")
    ann.push(REPOSITORY, "v1", now)
    wait_until(lambda: [len(keepers(each)) for each in registries] == [5, 5], "all is kept")
    assert not [tag for tag in ann.get(REPOSITORY, "tags/list").json()["tags"] if tag.startswith("rp-")]
    for registry in registries:
        registry.stop()
        collect = ["docker-registry", "garbage-collect", *options, config_of(registry)]
        subprocess.run(collect, check=True, capture_output=True)
        registry.start()
    with proxy.admin() as admin:
        admin.post("/cache/purge", json={"repository": REPOSITORY}).raise_for_status()
    assert set(whole(ann, [*earlier, now])) == {200}
    if options:
        assert {
            httpx.get(f"{each.url}/v2/{REPOSITORY}/manifests/{stray.digest}").status_code for each in registries
        } == {404}
    assert proxy.command("tag", "rollback", f"{REPOSITORY}:v1").exit_code == 0
    assert ann.head(REPOSITORY, "manifests/v1", Accept=OCI_INDEX).headers["Docker-Content-Digest"] == earlier[0].digest
    compared = proxy.command("replica", "verify").stdout
    assert set(re.findall(r"sha256:[0-9a-f]{64}", compared)) == ({stray.digest} if options else set()), compared


def test_only_the_newest_moves_are_kept(
    registries: list[Server], start_registry: StartRegistry, start_proxy: StartProxy
) -> None:
    """A state that is too old is let go at the next look at everything, and a registry that is added has the others."""
    proxy = start_proxy(registries, KEEPS)
    ann = proxy.add_user("ann", pull_push=["team/**"])
    images = [make_image(f"{number}".encode()) for number in range(5)]
    for number, image in enumerate(images):
        ann.push(REPOSITORY, "v1", image)
        wait_until(partial(has_keepers, registries[0], number + 1), "it is kept")
    third = start_registry("third")
    settings = yaml.safe_load(proxy.config.read_text())
    settings["upstreams"]["main"]["replicas"].append({"url": third.url})
    proxy.config.write_text(yaml.safe_dump(settings))
    proxy.stop()
    proxy.start()
    servers = [*registries, third]
    wait_until(lambda: [len(keepers(each)) for each in servers] == [3, 3, 3], "the oldest are let go", 60)
    assert whole(ann, images[2:]) == [200] * 9
