"""Labels of images, over ports in memory: foreign text, read once and within bounds."""

import json
from typing import Any

import pytest

from registry_proxy.history.labels import read_labels
from registry_proxy.ports.deployments import ImageLabels
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.protocol.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, digest_of
from tests.operations.test_warm import APP, Bench

CONFIG = "application/vnd.oci.image.config.v1+json"
CONFIG_MAX_BYTES = 1024 * 1024
SOURCE, REVISION = "org.opencontainers.image.source", "org.opencontainers.image.revision"
LABELS = {SOURCE: "https://git.example/team/app", REVISION: "0123abcd"}
FOUND = ImageLabels(LABELS[SOURCE], LABELS[REVISION])


@pytest.fixture
async def bench() -> Bench:
    """Give an upstream in memory."""
    return Bench()


def add(bench: Bench, document: Any, media_type: str = OCI_MANIFEST) -> Digest:
    """Put a manifest into the upstream."""
    body = json.dumps({"schemaVersion": 2, **document}).encode()
    descriptor = Descriptor(media_type, digest_of(body), len(body))
    bench.reader.manifests[APP.repository, descriptor.digest] = Manifest(descriptor, body)
    return descriptor.digest


def add_image(bench: Bench, config: bytes, **fields: Any) -> Digest:
    """Put an image with a configuration into the upstream."""
    digest = bench.reader.add_blob(APP.repository, config)
    described = {"mediaType": CONFIG, "digest": str(digest), "size": len(config)}
    return add(bench, {"config": described, "layers": [], **fields})


def config_of(labels: Any) -> bytes:
    """Return a configuration with labels."""
    return json.dumps({"config": {"Labels": labels}}).encode()


async def test_labels_are_those_of_the_configuration_and_annotations(bench: Bench) -> None:
    """An annotation of the manifest adds to the labels of the configuration."""
    assert await read_labels(bench.pull, APP, add_image(bench, config_of(LABELS))) == FOUND
    half = add_image(bench, config_of({REVISION: "0123abcd"}), annotations={SOURCE: LABELS[SOURCE]})
    assert await read_labels(bench.pull, APP, half) == FOUND


async def test_an_index_has_the_labels_of_its_first_image(bench: Bench) -> None:
    """Attestations, which have an unknown platform, come after it."""
    attestation = add_image(bench, config_of({REVISION: "of the attestation"}))
    image = add_image(bench, config_of(LABELS))
    platforms = {image: {"os": "linux", "architecture": "a"}, attestation: {"os": "unknown", "architecture": "unknown"}}
    children = [
        {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 1, "platform": platform}
        for digest, platform in platforms.items()
    ]
    assert await read_labels(bench.pull, APP, add(bench, {"manifests": children}, OCI_INDEX)) == FOUND


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"no JSON",
        b"[" * 10_000,
        b"[]",
        b'{"config": []}',
        config_of([]),
        config_of({SOURCE: "\x1b[2J", REVISION: "x" * 256}),
        config_of(LABELS) + b" " * CONFIG_MAX_BYTES,
    ],
)
async def test_labels_that_cannot_be_read_or_shown_are_missing(bench: Bench, config: bytes) -> None:
    """A receipt without labels is better than none; escape sequences and long texts are left out."""
    assert await read_labels(bench.pull, APP, add_image(bench, config)) == ImageLabels()


async def test_a_large_configuration_is_not_even_fetched(bench: Bench) -> None:
    """The descriptor has its size; for a wrong size the first MiB is read."""
    large = b" " * CONFIG_MAX_BYTES + config_of(LABELS)
    await read_labels(bench.pull, APP, add_image(bench, large))
    assert bench.reader.count("stat_blob") == 0
    described = {"mediaType": CONFIG, "digest": str(digest_of(large)), "size": 100}
    lying = add(bench, {"config": described, "layers": []})
    assert await read_labels(bench.pull, APP, lying) == ImageLabels()
    missing = {**described, "digest": str(digest_of(b"missing"))}
    assert await read_labels(bench.pull, APP, add(bench, {"config": missing, "layers": []})) == ImageLabels()


async def test_an_absent_manifest_is_distinct_from_an_unknown_one(bench: Bench) -> None:
    """An absent manifest is a 404; an unknown one proves nothing about the repository."""
    with pytest.raises(RegistryError) as refused:
        await read_labels(bench.pull, APP, digest_of(b"absent"))
    assert refused.value.status == 404
    bench.reader.is_down = True
    with pytest.raises(UpstreamUnavailableError):
        await read_labels(bench.pull, APP, digest_of(b"absent"))
