"""`registry-proxy import`: the images of another registry, with signatures, come through the proxy to its replicas."""

import json
from typing import Any

import httpx
import pytest
from typer.testing import Result

from registry_proxy.cli.importing import SOURCE_PASSWORD_VARIABLE
from registry_proxy.protocol.descriptor import OCI_INDEX, OCI_MANIFEST
from tests.conftest import StartProxy, StartRegistry
from tests.support.product import Image, Proxy, digest_of, make_image, push_blob_directly, push_directly
from tests.support.servers import Server

EMPTY = b"{}"


def put(registry: Server, repository: str, reference: str, document: dict[str, Any]) -> str:
    """Put a manifest at a registry; return its digest."""
    body = json.dumps(document).encode()
    headers = {"Content-Type": document["mediaType"]}
    url = f"{registry.url}/v2/{repository}/manifests/{reference}"
    httpx.put(url, content=body, headers=headers, verify=False).raise_for_status()
    return digest_of(body)


def describe(media_type: str, digest: str, size_bytes: int) -> dict[str, Any]:
    """Return a descriptor."""
    return {"mediaType": media_type, "digest": digest, "size": size_bytes}


def get(registry: Server, repository: str, path: str) -> httpx.Response:
    """Get an object of a repository from a registry."""
    accept = {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}"}
    return httpx.get(f"{registry.url}/v2/{repository}/{path}", headers=accept, verify=False)


def run_import(proxy: Proxy, source: Server, *arguments: str) -> Result:
    """Run the import into a proxy."""
    return proxy.command("import", source.url, "--target", f"http://{proxy.host}", *arguments)


@pytest.fixture
def source(start_registry: StartRegistry) -> Server:
    """A registry with two images of one base, a multi-platform image, and a signature and an SBOM on it."""
    registry = start_registry("source")
    base = b"the base" * 1000
    images: list[Image] = [make_image(base, b"one"), make_image(base, b"two")]
    push_directly(registry, "team/one", "1.0", images[0])
    push_directly(registry, "team/one", "2.0", images[1])
    push_directly(registry, "other/two", "latest", images[1])
    children = []
    for image in images:
        push_directly(registry, "team/multi", image.digest, image)
        children.append(describe(OCI_MANIFEST, image.digest, len(image.manifest)))
    index = put(registry, "team/multi", "1.0", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children})
    empty = describe("application/vnd.oci.empty.v1+json", push_blob_directly(registry, "team/multi", EMPTY), len(EMPTY))
    about = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [empty]}
    put(registry, "team/multi", f"{index.replace(':', '-')}.sig", about)
    sbom = {**about, "artifactType": "application/spdx", "subject": describe(OCI_INDEX, index, 1)}
    digest = put(registry, "team/multi", digest_of(json.dumps(sbom).encode()), sbom)
    referrers = [describe(OCI_MANIFEST, digest, len(json.dumps(sbom)))]
    put(
        registry,
        "team/multi",
        index.replace(":", "-"),
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": referrers},
    )
    return registry


def test_images_come_with_all_that_belongs_to_them(
    source: Server, registries: list[Server], start_proxy: StartProxy
) -> None:
    """Images, children, signatures by tag and referrers are in both replicas; a second run finds everything there."""
    proxy = start_proxy(registries)
    result = run_import(proxy, source, "--repository", "team/**", "--tags", "*.0", "--prefix", "old/", "--json")
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert (outcome["found"], outcome["copied"], outcome["present"], outcome["failed"]) == (3, 3, 0, {})
    tags = get(source, "team/multi", "tags/list").json()["tags"]
    for registry in registries:
        assert sorted(get(registry, "old/team/multi", "tags/list").json()["tags"]) == sorted(tags)
        for tag in tags:
            copied = get(registry, "old/team/multi", f"manifests/{tag}").content
            assert copied == get(source, "team/multi", f"manifests/{tag}").content
        names = httpx.get(f"{registry.url}/v2/_catalog", verify=False).json()["repositories"]
        assert names == ["old/team/multi", "old/team/one"]
    again = run_import(proxy, source, "--repository", "team/**", "--tags", "*.0", "--prefix", "old/")
    assert (again.exit_code, again.stderr) == (0, "0 images copied (0 B), 3 were there already.\n")


def test_images_that_could_not_be_copied_are_listed(
    source: Server, start_registry: StartRegistry, start_proxy: StartProxy
) -> None:
    """Failures are listed with name and reason, exit status 1; the rest is copied; the next run tries them again."""
    proxy = start_proxy([start_registry()])
    digest = json.loads(get(source, "team/one", "manifests/2.0").content)["layers"][1]["digest"]
    layers = source.log.parent / "data/docker/registry/v2/repositories/team/one/_layers/sha256"
    there, elsewhere = layers / digest.partition(":")[2], layers / "elsewhere"
    there.rename(elsewhere)
    result = run_import(proxy, source, "--repository", "team/one")
    assert result.exit_code == 1
    assert "1 image was not copied" in result.stderr
    assert "team/one:2.0: BLOB_UNKNOWN" in result.stderr
    elsewhere.rename(there)
    again = run_import(proxy, source, "--repository", "team/one")
    assert again.exit_code == 0, again.output
    assert "1 image copied" in again.stderr


def test_a_registry_that_cannot_be_used_is_named(
    source: Server, start_registry: StartRegistry, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says that the source is away, has no such repository, or does not know the user's password."""
    proxy = start_proxy([start_registry()])
    missing = run_import(proxy, source, "--repository", "none/here")
    assert (missing.exit_code, "none/here: NAME_UNKNOWN" in missing.stderr) == (1, True)
    lost = run_import(proxy, source, "--source-user", "ann")
    assert (lost.exit_code, "The password of ann at the source is not known" in lost.stderr) == (1, True)
    monkeypatch.setenv(SOURCE_PASSWORD_VARIABLE, "a password that nobody sees")
    source.stop()
    away = run_import(proxy, source, "--source-user", "ann")
    assert (away.exit_code, source.url in away.stderr, "a password" in away.output) == (1, True, False)
    assert "Traceback" not in away.output
    none = run_import(proxy, proxy, "--tags", "v9*")
    assert (none.exit_code, "has no image that matches --repository ** --tags v9*" in none.stderr) == (1, True)
    assert run_import(proxy, source, "--tags", "a b").exit_code == 2
