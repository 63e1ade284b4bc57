"""Reading pushed images: bounds of what one index can have the service read."""

import json
from unittest.mock import Mock

import pytest

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, parse_manifest
from registry_proxy.protocol.reference import Digest, Repository, digest_of
from registry_proxy.rules import reading
from registry_proxy.rules.reading import PushedImages

ROUTED = RoutedRepository("main", Repository("team/app"))


def manifest_of(document: dict[str, object], media_type: str) -> Manifest:
    """Return a manifest."""
    body = json.dumps({"schemaVersion": 2, **document}).encode()
    return Manifest(Descriptor(media_type, digest_of(body), len(body)), body)


def images_of(*manifests: Manifest) -> PushedImages:
    """Return a reader of images over a replica with these manifests."""
    by_digest = {each.descriptor.digest: each for each in manifests}

    class Reader:
        async def fetch_manifest(self, _: Repository, digest: Digest) -> Manifest:
            return by_digest[digest]

    return PushedImages(Mock(), Mock(find=Mock(return_value=None)), {"main": Reader()})  # type: ignore[dict-item]


def child(number: int) -> Manifest:
    """Return an image without layers."""
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(digest_of(b"c")), "size": number}
    return manifest_of({"config": config, "layers": []}, OCI_MANIFEST)


def index_of(*children: Manifest) -> Manifest:
    """Return an index."""
    named = [
        {"mediaType": each.descriptor.media_type, "digest": str(each.descriptor.digest), "size": 1} for each in children
    ]
    return manifest_of({"manifests": named}, OCI_INDEX)


@pytest.mark.parametrize(("limit", "value"), [("MANIFESTS_MAX", 4), ("READ_MAX_BYTES", 500)])
async def test_an_index_is_read_only_so_far(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """Beyond the number of manifests, or of bytes, the whole index cannot be judged."""
    monkeypatch.setattr(reading, limit, value)
    children = [child(number) for number in range(1, 6)]
    whole, few = index_of(*children), index_of(*children[:2])
    images = images_of(*children)
    (found,) = await images.read(ROUTED, whole, parse_manifest(whole.body, OCI_INDEX), with_configs=False)
    assert found.fault.startswith("the index names more than")
    found_few = await images.read(ROUTED, few, parse_manifest(few.body, OCI_INDEX), with_configs=False)
    assert [image.fault for image in found_few] == ["", ""]


async def test_an_index_in_an_index_is_read_once() -> None:
    """Each manifest is read once, however often indexes name it."""
    one = child(1)
    inner = index_of(one)
    outer = index_of(inner, one, inner)
    found = await images_of(one, inner).read(ROUTED, outer, parse_manifest(outer.body, OCI_INDEX), with_configs=False)
    assert [image.digest for image in found] == [one.descriptor.digest]
