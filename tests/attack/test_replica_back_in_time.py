"""A replica restored from an older copy, or swapped with another, never serves an older tag without a warning."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from tests.conftest import StartProxy
from tests.support.product import OCI_MANIFEST, Image, Proxy, User, make_image, notice_down, random_bytes
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"
TAGS = [f"1.{number}" for number in range(6)]


def data_of(registry: Server) -> Path:
    """Return the directory of a registry's storage."""
    return registry.log.parent / "data"


def keep_copy(registry: Server) -> Path:
    """Copy the storage of a registry, as a backup does."""
    copy = registry.log.parent / "copy"
    shutil.copytree(data_of(registry), copy)
    return copy


def put_back(registry: Server, copy: Path) -> None:
    """Replace a registry's storage by a copy, under the running process, which has no cache of it."""
    data_of(registry).rename(registry.log.parent / "newer")
    copy.rename(data_of(registry))


def start(start_proxy: StartProxy, registries: Sequence[Server]) -> tuple[Proxy, User]:
    """Start a proxy that asks the registries for a tag at each request."""
    replicas = [{"url": server.url} for server in registries]
    proxy = start_proxy([], {"upstreams": {"main": {"replicas": replicas, "tag_ttl": "0s"}}})
    return proxy, proxy.add_user("ann", pull_push=["team/**"], delete=["team/**"])


def push_all(user: User, label: str) -> dict[str, Image]:
    """Push another image under each tag."""
    layer = random_bytes(1000)
    images = {tag: make_image(layer, label=f"{label} {tag}") for tag in TAGS}
    for tag, image in images.items():
        user.push(REPOSITORY, tag, image)
    return images


def tags_at_proxy(user: User) -> dict[str, str | None]:
    """Return the digest of each tag according to the proxy; None for an absent tag."""
    heads = {tag: user.head(REPOSITORY, f"manifests/{tag}") for tag in TAGS}
    return {tag: head.headers.get("Docker-Content-Digest") for tag, head in heads.items()}


def held(registry: Server) -> dict[str, str | None]:
    """Return the digest of each tag according to a registry, asked past the proxy."""
    with httpx.Client(base_url=f"{registry.url}/v2/{REPOSITORY}", verify=False) as client:
        heads = {tag: client.head(f"/manifests/{tag}", headers={"Accept": OCI_MANIFEST}) for tag in TAGS}
    return {tag: head.headers.get("Docker-Content-Digest") for tag, head in heads.items()}


def wait_until_healed(proxy: Proxy) -> None:
    """Return once both replicas are up and miss nothing."""
    wait_until(
        lambda: (
            proxy.metric("registry_proxy_replica_state", state="up") == 2
            and proxy.metric("registry_proxy_replica_pending") == 0
        ),
        "both replicas are up",
        timeout_seconds=60,
    )


def digests(images: dict[str, Image]) -> dict[str, str]:
    """Return the digest of each image by its tag."""
    return {tag: image.digest for tag, image in images.items()}


def test_a_replica_put_back_from_an_older_copy_is_not_believed(
    registries: list[Server], start_proxy: StartProxy
) -> None:
    """Each tag has its last digest immediately; the replica is compared and repaired without a request, and counted."""
    first, second = registries
    proxy, user = start(start_proxy, registries)
    old = push_all(user, "old")
    gone = old[TAGS[0]]
    copy = keep_copy(second)
    new = push_all(user, "new")
    with user.client(REPOSITORY, "delete") as client:
        assert client.delete(f"/manifests/{gone.digest}").status_code == 202
    put_back(second, copy)
    assert held(second) == digests(old)
    for _ in range(3):
        assert tags_at_proxy(user) == digests(new)
    wait_until(lambda: proxy.metric("registry_proxy_replica_returned_total") > 0, "it is counted")
    wait_until_healed(proxy)
    assert held(first) == held(second) == digests(new)
    assert user.get(REPOSITORY, f"manifests/{gone.digest}").status_code == 404


def test_a_restart_with_an_older_copy_is_noticed_before_a_request(
    registries: list[Server], start_proxy: StartProxy
) -> None:
    """Deleted tags stay deleted, and the replica counts as behind before the first request after its return."""
    first, second = registries
    proxy, user = start(start_proxy, registries)
    old = push_all(user, "old")
    copy = keep_copy(second)
    with user.client(REPOSITORY, "delete") as client:
        for image in old.values():
            assert client.delete(f"/manifests/{image.digest}").status_code == 202
    second.stop(9)
    put_back(second, copy)
    notice_down(user, REPOSITORY)
    second.start()
    wait_until(lambda: proxy.metric("registry_proxy_replica_state", state="down") == 0, "it is seen to be back")
    for image in old.values():
        assert user.get(REPOSITORY, f"manifests/{image.digest}").status_code == 404
    assert tags_at_proxy(user) == dict.fromkeys(TAGS)
    wait_until_healed(proxy)
    assert held(first) == held(second) == dict.fromkeys(TAGS)


def test_alone_it_answers_with_a_warning(registries: list[Server], start_proxy: StartProxy) -> None:
    """While the other one is down, recorded contents are served; an older tag only with a Warning."""
    first, second = registries
    proxy, user = start(start_proxy, registries)
    old = push_all(user, "old")
    copy = keep_copy(second)
    new = make_image(random_bytes(1000), label="new")
    user.push(REPOSITORY, TAGS[0], new)
    put_back(second, copy)
    first.stop(9)
    for _ in range(2):  # in the second round the older storage is known
        # The recorded digest is in the cache: it is the tag's digest.
        assert user.head(REPOSITORY, f"manifests/{TAGS[0]}").headers["Docker-Content-Digest"] == new.digest
        kept = user.head(REPOSITORY, f"manifests/{TAGS[1]}")
        assert kept.headers["Docker-Content-Digest"] == old[TAGS[1]].digest
        assert "Warning" not in kept.headers
    proxy.stop()
    shutil.rmtree(proxy.cache / "repositories")
    proxy.start()
    older = user.get(REPOSITORY, f"manifests/{TAGS[0]}")
    assert (older.status_code, older.headers["Docker-Content-Digest"]) == (200, old[TAGS[0]].digest)
    assert "older" in older.headers["Warning"]


@pytest.mark.soak  # its short form is in tests/repair/test_inspection.py
def test_two_registries_that_were_swapped_are_recognised(registries: list[Server], start_proxy: StartProxy) -> None:
    """A registry's missing contents stay recorded under its new address: no older tag or deleted one comes back."""
    first, second = registries
    proxy, user = start(start_proxy, registries)
    push_all(user, "old")
    second.stop(9)
    new = push_all(user, "new")
    first.stop(9)
    for registry in registries:
        data_of(registry).rename(registry.log.parent / "moved")
    for registry, other in ((first, second), (second, first)):
        (other.log.parent / "moved").rename(data_of(registry))
    first.start()
    wait_until(lambda: proxy.metric("registry_proxy_replica_state", state="down") == 1, "the first one is back")
    assert {tag: digest for tag, digest in tags_at_proxy(user).items() if digest != new[tag].digest} == {}
    second.start()
    wait_until_healed(proxy)
    assert tags_at_proxy(user) == digests(new)
    assert held(first) == held(second) == digests(new)
