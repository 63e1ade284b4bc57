"""BuildKit builds from images in the registry, and exports images, attestations and caches to it."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.clients import Client
from tests.acceptance.conftest import LogIn, new_image
from tests.acceptance.layout import INDEX
from tests.support.product import OCI_MANIFEST, Image, Proxy, User, make_image, random_bytes

pytestmark = [pytest.mark.acceptance("buildctl", "buildkitd"), pytest.mark.timeout(120)]
_PASSWORD = "password of a user"
_FOUND = {
    "_type": "https://in-toto.io/Statement/v0.1",
    "predicateType": "https://spdx.dev/Document",
    "predicate": {"spdxVersion": "SPDX-2.3", "SPDXID": "SPDXRef-DOCUMENT", "name": "a scan of the tests"},
}
_SCAN = f"echo '{json.dumps(_FOUND)}' >$BUILDKIT_SCAN_DESTINATION/found.spdx.json"


class Builds:
    """Builds of one small image on a base image, by buildctl for a logged-in user."""

    def __init__(self, client: Client, address: str, base: str) -> None:
        self._client = client
        self._address = ("--addr", address)
        self.base = base
        context = client.home / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM {client.name(base)}\nCOPY content /content\n")
        (context / "content").write_bytes(random_bytes(2000))

    def name(self, name: str) -> str:
        """Return a repository with its tag, with the registry's address."""
        return self._client.name(name)

    def build(self, target: str, *options: str) -> str:
        """Build the image, and push it; return the output of buildctl."""
        local = ("--progress", "plain", "--local", "context=context", "--local", "dockerfile=context")
        output = f"type=image,name={self.name(target)},push=true"
        return self._client.run(
            *self._address, "build", "--frontend", "dockerfile.v0", *local, "--output", output, *options
        )

    def forget(self) -> None:
        """Make the builder forget everything that it has built and pulled."""
        self._client.run(*self._address, "prune", "--all")


@pytest.fixture
def builds(outage: Proxy, buildkitd: str, tmp_path: Path) -> Iterator[Builds]:
    """Give builds on an image that was pushed while both replicas were up."""
    client = Client("buildctl", tmp_path / "home", outage.host)
    client.log_in("ann", _PASSWORD)
    builds = Builds(client, buildkitd, "before/buildctl:1")
    yield builds
    builds.forget()


def read(user: User, repository: str, reference: str) -> dict[str, Any]:
    """Return a manifest or an index."""
    answer = user.get(repository, f"manifests/{reference}", Accept=f"{OCI_MANIFEST}, {INDEX}")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def check_cache(builds: Builds, user: User, repository: str, *, image_manifest: bool) -> None:
    """Export the cache with all stages, and build once more with only that cache."""
    cache = f"type=registry,ref={builds.name(f'{repository}:cache')}"
    form = f"mode=max,oci-mediatypes=true,image-manifest={str(image_manifest).lower()}"
    builds.build(f"{repository}:1", "--export-cache", f"{cache},{form}")
    assert read(user, repository, "cache")["mediaType"] == (OCI_MANIFEST if image_manifest else INDEX)
    first = read(user, repository, "1")
    builds.forget()
    printed = builds.build(f"{repository}:2", "--import-cache", cache)
    assert "CACHED" in printed, printed
    assert read(user, repository, "2")["layers"] == first["layers"]


@pytest.mark.parametrize("image_manifest", [False, True], ids=["index", "image-manifest"])
def test_a_cache_is_exported_and_imported(builds: Builds, outage: Proxy, *, image_manifest: bool) -> None:
    """In both forms, with both replicas up and with either down, the next build takes its steps from the cache."""
    check_cache(builds, User(outage, "ann", _PASSWORD), "built/cached", image_manifest=image_manifest)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.acceptance(kind)) for kind in ("distribution", "olareg")]
)
def test_other_registries_take_a_cache_as_an_image(kind: str, log_in: LogIn, product: Proxy, buildkitd: str) -> None:
    """Distribution 3, which refuses an index of layers, accepts the cache in the form of an image."""
    user = User(product, "ann", _PASSWORD)
    user.push(f"{kind}/base", "1", new_image())
    builds = Builds(log_in("buildctl"), buildkitd, f"{kind}/base:1")
    check_cache(builds, user, f"{kind}/cached", image_manifest=True)
    builds.forget()


def test_attestations_are_pushed_with_the_image(builds: Builds, outage: Proxy) -> None:
    """Provenance and a bill of materials lie in the index of the image, under a separate platform."""
    user = User(outage, "ann", _PASSWORD)
    user.push("built/scanner", "1", scanner())
    generator = f"attest:sbom=generator={builds.name('built/scanner:1')}"
    builds.build("built/attested:1", "--opt", "attest:provenance=mode=max", "--opt", generator)
    image, attestation = read(user, "built/attested", "1")["manifests"]
    assert attestation["annotations"]["vnd.docker.reference.type"] == "attestation-manifest"
    assert attestation["annotations"]["vnd.docker.reference.digest"] == image["digest"]
    layers = read(user, "built/attested", attestation["digest"])["layers"]
    provenance, materials = sorted(layer["annotations"]["in-toto.io/predicate-type"] for layer in layers)
    assert (provenance.startswith("https://slsa.dev/provenance/"), materials) == (True, "https://spdx.dev/Document")
    found = [user.get("built/attested", f"blobs/{layer['digest']}").json() for layer in layers]
    assert "a scan of the tests" in json.dumps(found)
    assert outage.host in json.dumps(found)  # the base image is a material


def scanner() -> Image:
    """Return an image that BuildKit runs to list the contents of another one: a shell that finds nothing."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add("/bin/busybox", "bin/sh")
    return make_image(layer.getvalue(), Entrypoint=["/bin/sh", "-c", _SCAN])
