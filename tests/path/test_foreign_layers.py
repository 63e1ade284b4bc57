"""Layers that lie elsewhere, through the running product before registries that refuse manifests with them."""

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.path.test_import import run_import
from tests.path.test_referrers import delete, is_equal
from tests.path.test_repair import contents
from tests.support.product import (
    OCI_MANIFEST,
    Image,
    Proxy,
    User,
    digest_of,
    make_image,
    push_blob_directly,
    push_directly,
    random_bytes,
)
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
URLS = ["https://layers.example/windows"]


def with_foreign(image: Image, layer: bytes = b"elsewhere", media_type: str = FOREIGN, **more: object) -> Image:
    """Return an image with one more layer, which is not among its blobs; it has unknown fields and its own spaces."""
    document = json.loads(image.manifest)
    foreign = {"mediaType": media_type, "digest": digest_of(layer), "size": len(layer), **more}
    document |= {"layers": [foreign, *document["layers"]], "unknown": {"field": [1, None]}}
    return Image(json.dumps(document, indent=1).encode(), image.blobs)


def index_of(*images: Image) -> Image:
    """Return an index of images."""
    children = [{"mediaType": OCI_MANIFEST, "digest": one.digest, "size": len(one.manifest)} for one in images]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}
    return Image(json.dumps(document).encode(), {}, OCI_INDEX)


def is_given(user: User, reference: str, image: Image) -> bool:
    """Tell whether HEAD and GET give an image's manifest, byte for byte; pull all its blobs that lie here."""
    accept = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"}
    head = user.head(REPOSITORY, f"manifests/{reference}", **accept)
    answer = user.get(REPOSITORY, f"manifests/{reference}", **accept)
    for digest, blob in image.blobs.items():
        assert user.get(REPOSITORY, f"blobs/{digest}").content == blob
    stated = {one.headers.get("Docker-Content-Digest") for one in (head, answer)}
    types = {one.headers.get("Content-Type") for one in (head, answer)}
    return (stated, types, answer.content) == ({image.digest}, {image.media_type}, image.manifest)


def liberal(start_registry: StartRegistry) -> Server:
    """Start a registry that accepts foreign layers with URLs."""
    registry = start_registry("liberal")
    config = Path(registry.arguments[-1])
    registry.stop()
    config.write_text(config.read_text() + "validation: {manifests: {urls: {allow: ['.*']}}}\n")
    registry.start()
    return registry


def lose_everything(proxy: Proxy) -> None:
    """Start again without the store and the cache, and so without the users."""
    proxy.stop()
    for entry in [*proxy.root.glob("store.db*"), proxy.cache / "blobs", proxy.cache / "repositories"]:
        entry.rename(proxy.root / f"lost-{entry.name}")
    proxy.start()


@pytest.mark.parametrize(
    "image",
    [
        with_foreign(make_image(b"layer"), urls=URLS),
        with_foreign(make_image(b"layer")),
        with_foreign(make_image(b"layer"), media_type=DOCKER_FOREIGN, urls=URLS),
        with_foreign(make_image(b"layer"), b"layer", urls=URLS),  # it exists, and has URLs
        with_foreign(make_image(b"layer"), b"layer", "application/vnd.oci.image.layer.v1.tar", urls=URLS),
    ],
    ids=["urls", "no-urls", "docker", "pushed", "ordinary-with-urls"],
)
def test_an_image_with_layers_elsewhere_is_kept(
    registries: list[Server], start_proxy: StartProxy, image: Image
) -> None:
    """It is served by tag and digest, byte for byte, also after the loss of store and cache, without our own tags."""
    proxy = start_proxy(registries)
    user = proxy.add_user("ann", pull_push=["**"])
    user.push(REPOSITORY, "windows", image)
    assert is_given(user, "windows", image)
    assert is_given(user, image.digest, image)
    assert user.get(REPOSITORY, "tags/list").json()["tags"] == ["windows"]
    verified = proxy.command("replica", "verify")
    assert (verified.exit_code, "no difference found" in verified.stderr) == (0, True), verified.output
    lose_everything(proxy)
    user = proxy.add_user("ann", pull_push=["**"])
    assert is_given(user, image.digest, image)
    assert is_given(user, "windows", image)


def test_a_layer_that_is_nowhere_is_still_refused(registries: list[Server], start_proxy: StartProxy) -> None:
    """A manifest with a distributable layer that nobody pushed is refused; the answer names the layer."""
    user = start_proxy(registries).add_user("ann", pull_push=["**"])
    user.push(REPOSITORY, "plain", make_image())
    image = with_foreign(make_image(b"never pushed"), urls=URLS)
    answer = user.push_manifest(REPOSITORY, "windows", image)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "MANIFEST_BLOB_UNKNOWN"), answer.text
    assert digest_of(b"never pushed") in answer.text
    assert user.get(REPOSITORY, "tags/list").json()["tags"] == ["plain"]


def test_an_index_of_such_an_image_is_kept(registries: list[Server], start_proxy: StartProxy) -> None:
    """An index in an index is kept too; an index of ordinary images is stored unchanged."""
    proxy = start_proxy(registries)
    user = proxy.add_user("ann", pull_push=["**"])
    windows, linux = with_foreign(make_image(b"windows"), urls=URLS), make_image(b"linux")
    both, plain = index_of(windows, linux), index_of(linux)
    for image in (windows, linux):
        user.push(REPOSITORY, image.digest, image)
    for tag, index in (("both", both), ("nested", index_of(both, linux)), ("plain", plain)):
        assert user.push_manifest(REPOSITORY, tag, index).status_code == 201
    assert contents(registries[0])["plain"] == plain.digest
    lose_everything(proxy)
    user = proxy.add_user("ann", pull_push=["**"])
    assert is_given(user, "nested", index_of(both, linux))
    assert is_given(user, both.digest, both)
    assert is_given(user, windows.digest, windows)
    assert user.get(REPOSITORY, "tags/list").json()["tags"] == ["both", "nested", "plain"]


def test_a_registry_that_was_away_gets_it(registries: list[Server], start_proxy: StartProxy) -> None:
    """The repaired registry alone serves an image, its index, and tags moved to and from such an image."""
    first, second = registries
    proxy = start_proxy(registries)
    user = proxy.add_user("ann", pull_push=["**"])
    windows, linux = with_foreign(make_image(random_bytes(1000)), urls=URLS), make_image(b"linux")
    user.push(REPOSITORY, "to", linux)
    user.push(REPOSITORY, "from", windows)
    second.stop(9)
    user.push(REPOSITORY, "to", windows)
    user.push(REPOSITORY, "from", linux)
    assert user.push_manifest(REPOSITORY, "index", index_of(windows, linux)).status_code == 201
    assert is_given(user, "to", windows)
    second.start()
    wait_until(lambda: is_equal(proxy, second), "the registry is repaired")
    assert contents(first) == contents(second)
    first.stop(9)
    proxy.stop()
    (proxy.cache / "blobs").rename(proxy.root / "lost-blobs")
    (proxy.cache / "repositories").rename(proxy.root / "lost-repositories")
    proxy.start()
    assert is_given(user, "to", windows)
    assert is_given(user, "from", linux)
    assert is_given(user, "index", index_of(windows, linux))


def test_deletes_leave_nothing(registries: list[Server], start_proxy: StartProxy) -> None:
    """A deleted tag leaves the rest; a deleted manifest takes its tags and its keepers along, at every registry."""
    proxy = start_proxy(registries)
    user = proxy.add_user("ann", pull_push_delete=["**"])
    image = with_foreign(make_image(b"layer"), urls=URLS)
    for tag in ("one", "two"):
        user.push(REPOSITORY, tag, image)
    delete(user, "one")
    assert user.get(REPOSITORY, "manifests/one").status_code == 404
    assert is_given(user, "two", image)
    delete(user, image.digest)
    for reference in ("two", image.digest):
        assert user.get(REPOSITORY, f"manifests/{reference}").status_code == 404
    lose_everything(proxy)
    user = proxy.add_user("ann", pull_push=["**"])
    assert user.get(REPOSITORY, f"manifests/{image.digest}").status_code == 404
    assert contents(registries[0]) == contents(registries[1]) == {}


def test_a_registry_that_takes_it_beside_one_that_does_not(
    start_registry: StartRegistry, start_proxy: StartProxy
) -> None:
    """One registry stores it unchanged, the other one by a keeper; they count as equal, and each serves it alone."""
    taking, strict = liberal(start_registry), start_registry("strict")
    proxy = start_proxy([taking, strict])
    user = proxy.add_user("ann", pull_push_delete=["**"])
    image = with_foreign(make_image(b"layer"), urls=URLS)
    user.push(REPOSITORY, "windows", image)
    assert contents(taking)["windows"] == image.digest != contents(strict)["windows"]
    verified = proxy.command("replica", "verify")
    assert (verified.exit_code, "no difference found" in verified.stderr) == (0, True), verified.output
    for gone, alone in ((taking, strict), (strict, taking)):
        gone.stop(9)
        proxy.stop()
        (proxy.cache / "blobs").rename(proxy.root / f"lost-{alone.port}")
        proxy.start()
        assert is_given(user, "windows", image)
        assert is_given(user, image.digest, image)
        gone.start()
        wait_until(lambda server=gone: is_equal(proxy, server), "it is up")  # type: ignore[misc]  # bound here
    delete(user, image.digest)
    assert contents(taking) == contents(strict) == {}


def test_an_import_brings_what_the_source_has(
    start_registry: StartRegistry, registries: list[Server], start_proxy: StartProxy
) -> None:
    """A foreign layer that lies at the source is copied; one that lies elsewhere stays there."""
    source = liberal(start_registry)
    held = with_foreign(make_image(b"layer"), b"pushed as well", urls=URLS)
    push_blob_directly(source, REPOSITORY, b"pushed as well")
    push_directly(source, REPOSITORY, "held", held)
    push_directly(source, REPOSITORY, "away", with_foreign(make_image(b"layer"), urls=URLS))
    proxy = start_proxy(registries)
    result = run_import(proxy, source)
    assert result.exit_code == 0, result.output
    user = proxy.add_user("ann", pull=["**"])
    assert is_given(user, "held", held)
    assert is_given(user, "away", with_foreign(make_image(b"layer"), urls=URLS))
    assert user.get(REPOSITORY, f"blobs/{digest_of(b'pushed as well')}").content == b"pushed as well"
    assert user.get(REPOSITORY, f"blobs/{digest_of(b'elsewhere')}").status_code == 404


def test_a_keeper_cannot_be_pushed_as_it_is(registries: list[Server], start_proxy: StartProxy) -> None:
    """A client that copies it past the proxy and pushes it through the proxy gets an error with the right way."""
    proxy = start_proxy(registries)
    user = proxy.add_user("ann", pull_push=["**"])
    user.push(REPOSITORY, "windows", with_foreign(make_image(b"layer"), urls=URLS))
    url = f"{registries[0].url}/v2/{REPOSITORY}/manifests/windows"
    kept = httpx.get(url, headers={"Accept": OCI_MANIFEST}, verify=False)
    answer = user.push_manifest(REPOSITORY, "copy", Image(kept.content, {}))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "MANIFEST_INVALID")


def test_a_foreign_layer_that_was_pushed_is_carried(registries: list[Server], start_proxy: StartProxy) -> None:
    """A registry that lost it gets it again, with the image, and the registry's garbage collection keeps it."""
    _, second = registries
    proxy = start_proxy(registries)
    user = proxy.add_user("ann", pull_push=["**"])
    image = with_foreign(make_image(b"layer"), b"pushed as well", urls=URLS)
    assert user.push_blob(REPOSITORY, b"pushed as well").status_code == 201
    user.push(REPOSITORY, "windows", image)
    path = f"blobs/{digest_of(b'pushed as well')}"
    second.stop()
    shutil.rmtree(Path(second.arguments[-1]).parent / "data")
    second.start()
    assert proxy.command("replica", "repair").exit_code == 0
    wait_until(lambda: is_equal(proxy, second), "the registry is repaired")
    for registry in registries:
        collect = ["docker-registry", "garbage-collect", "--delete-untagged", registry.arguments[-1]]
        subprocess.run(collect, check=True, capture_output=True, timeout=60)
        assert httpx.get(f"{registry.url}/v2/{REPOSITORY}/{path}", verify=False).content == b"pushed as well"
    assert proxy.command("replica", "verify").exit_code == 0
    assert is_given(user, image.digest, image)
