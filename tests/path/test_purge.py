"""Purging a manifest for good: at both registries, also at one that was away, in the cache, and for every way back."""

import json

import httpx
import pytest

from tests.conftest import StartProxy
from tests.path.test_history import at_registries, roll_back
from tests.path.test_keepers import KEEPS, REPOSITORY, keepers
from tests.support.product import Image, Proxy, User, digest_of, make_image
from tests.support.servers import Server, wait_until

SECRET, BASE = digest_of(b"secret"), digest_of(b"base")


@pytest.fixture
def proxy(registries: list[Server], start_proxy: StartProxy) -> Proxy:
    """A proxy that keeps content, in front of two registries."""
    return start_proxy(registries, KEEPS)


@pytest.fixture
def ann(proxy: Proxy) -> User:
    """A user with every right in team/."""
    return proxy.add_user("ann", pull_push_delete=["team/**"])


def traces(proxy: Proxy, digest: str) -> list[str]:
    """Return the files of a content on the disk of the node."""
    name = digest.partition(":")[2]
    return [str(path) for root in (proxy.cache, proxy.audit) for path in root.rglob(f"*{name}*")]


def statuses(server: Server, image: Image) -> dict[str, int]:
    """Return the status of a manifest and its blobs at a registry, by digest."""
    url = f"{server.url}/v2/{REPOSITORY}"
    found = {digest: httpx.head(f"{url}/blobs/{digest}").status_code for digest in image.blobs}
    return found | {image.digest: httpx.head(f"{url}/manifests/{image.digest}").status_code}


def test_a_purged_manifest_is_nowhere(proxy: Proxy, ann: User, registries: list[Server]) -> None:
    """Its tags, keepers and own layers are gone, also where a registry was away; a layer of another image stays."""
    leaky, clean = make_image(b"base", b"secret", label="leaky"), make_image(b"base", b"clean")
    for tag, image in (("v1", leaky), ("other", leaky), ("v1", clean)):
        ann.push(REPOSITORY, tag, image)
    wait_until(lambda: [len(keepers(each)) for each in registries] == [2, 2], "both states are kept")
    registries[1].stop()
    command = proxy.command(
        "manifest", "purge", f"{REPOSITORY}@{leaky.digest}", "--reason", "a secret", "--yes", "--json"
    )
    assert command.exit_code == 0, command.stderr
    purged = json.loads(command.stdout)
    assert (set(purged["blobs"]), purged["shared_blobs"]) == ({*leaky.blobs} - {BASE}, [BASE])
    for path in (f"manifests/{leaky.digest}", "manifests/other"):
        assert ann.get(REPOSITORY, path).status_code == 404
    for verb, tag in (("rollback", "v1"), ("restore", "other")):
        assert roll_back(proxy, tag, verb).status_code == 409
    registries[1].start()
    wait_until(lambda: proxy.metric("registry_proxy_replica_pending", upstream="main") == 0, "it is repaired", 60)
    gone = dict.fromkeys((*leaky.blobs, leaky.digest), 404) | {BASE: 200}
    assert [statuses(each, leaky) for each in registries] == [gone, gone]
    assert at_registries(registries, "other") == {None}
    assert at_registries(registries) == {clean.digest}
    wait_until(lambda: not traces(proxy, leaky.digest) and not traces(proxy, SECRET), "the cache is clean")
    assert ann.get(REPOSITORY, f"blobs/{SECRET}").status_code == 404
    assert ann.pull(REPOSITORY, "v1").digest == clean.digest
    found = proxy.command("audit", "search", "--action", "manifests.purge.post", "--repository", REPOSITORY, "--json")
    assert json.loads(found.stdout)["detail"]["asked"]["reason"] == "a secret"


def test_a_deleted_manifest_can_be_purged(proxy: Proxy, ann: User) -> None:
    """A restore would bring it back out of the cache, until the purge; a digest that never was is 404."""
    leaky = make_image(b"base", b"secret")
    ann.push(REPOSITORY, "v1", leaky)
    with ann.client(REPOSITORY, "delete") as client:
        assert client.delete(f"/manifests/{leaky.digest}").status_code == 202
    assert roll_back(proxy, "v1", "restore", dry_run=True).status_code == 200
    with proxy.admin() as admin:
        asked = {"repository": REPOSITORY, "digest": leaky.digest, "reason": "a secret"}
        purged = admin.post("/manifests/purge", json=asked)
        assert (purged.status_code, set(purged.json()["blobs"])) == (200, {*leaky.blobs}), purged.text
        assert admin.post("/manifests/purge", json={**asked, "digest": digest_of(b"never")}).status_code == 404
        assert admin.post("/manifests/purge", json={**asked, "reason": ""}).status_code == 400
    assert roll_back(proxy, "v1", "restore").status_code == 409
    wait_until(lambda: not traces(proxy, SECRET), "the cache is clean")
    ann.push(REPOSITORY, "v1", leaky)
    assert ann.pull(REPOSITORY, "v1").digest == leaky.digest
