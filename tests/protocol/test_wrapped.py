"""Wrappers: their content, their difference from other manifests, and foreign look-alikes."""

import base64
import json
import zlib

import pytest

from registry_proxy.protocol.descriptor import (
    MANIFEST_MAX_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_manifest,
)
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Tag, digest_of, is_tag, kept_digest, kept_tag
from registry_proxy.protocol.wrapped import is_wrapper, may_be_wrapper, unwrap, wrap
from tests.support.fakes.images import Parts, image, index


def manifest_of(parts: Parts) -> Manifest:
    """Return the manifest of an image."""
    return Manifest(parts.descriptor, parts.manifest)


@pytest.mark.parametrize("parts", [image(b"layer", algorithm="sha512"), index(image(b"1"), algorithm="sha512")])
def test_a_wrapper_carries_its_manifest(parts: Parts) -> None:
    """A wrapper is a manifest in sha256 that gives back the exact bytes, type and digest; its size identifies it."""
    manifest = manifest_of(parts)
    wrapper = wrap(manifest, {})
    assert unwrap(wrapper.body) == manifest
    assert wrapper.descriptor.digest == digest_of(wrapper.body)
    assert may_be_wrapper(wrapper.descriptor)
    assert not may_be_wrapper(manifest.descriptor)
    assert is_wrapper(wrapper.body)
    assert not is_wrapper(manifest.body)
    assert unwrap(manifest.body) is None


def test_a_wrapper_names_what_the_registry_knows() -> None:
    """Each part is named as the registry names it, so that its garbage collection keeps it."""
    parts = image(b"layer", algorithm="sha512")
    links = parse_manifest(parts.manifest, OCI_MANIFEST)
    names = {
        str(blob.digest): Descriptor(blob.media_type, digest_of(content), blob.size_bytes)
        for blob, content in zip(links.blobs, parts.blobs, strict=True)
    }
    wrapper = wrap(manifest_of(parts), names)
    named = parse_manifest(wrapper.body, OCI_MANIFEST)
    assert [blob.digest for blob in named.blobs] == [digest_of(content) for content in parts.blobs]


def test_a_manifest_that_cannot_be_kept_is_too_large() -> None:
    """A manifest that does not fit into another manifest is refused with 413."""
    document = json.loads(image(b"layer", algorithm="sha512").manifest)
    noise = base64.b85encode(b"".join(digest_of(str(i).encode(), "sha512").hex.encode() for i in range(25_000)))
    document["annotations"] = {"noise": noise.decode()}
    body = json.dumps(document).encode()
    assert len(body) < MANIFEST_MAX_BYTES
    manifest = Manifest(Descriptor(OCI_MANIFEST, digest_of(body, "sha512"), len(body)), body)
    try:
        assert unwrap(wrap(manifest, {}).body) == manifest
    except RegistryError as error:
        assert error.status == 413  # noqa: PT017 - which of both depends on how well it can be compressed


@pytest.mark.parametrize(
    "annotations",
    [
        None,
        {},
        {"registry-proxy.manifest": 1},
        {"registry-proxy.manifest": "no base64!"},
        {"registry-proxy.manifest": base64.b64encode(b"not packed").decode()},
        {"registry-proxy.manifest": base64.b64encode(zlib.compress(bytes(MANIFEST_MAX_BYTES + 1))).decode()},
        {"registry-proxy.algorithm": "md5"},
        {"registry-proxy.algorithm": ["sha512"]},
        {"registry-proxy.media-type": "no type"},
        {"registry-proxy.media-type": 1},
    ],
)
def test_another_manifest_is_no_wrapper(annotations: dict[str, object] | None) -> None:
    """No annotations of another manifest are read as a wrapper's, or cause a failure."""
    valid = json.loads(wrap(manifest_of(image(b"1", algorithm="sha512")), {}).body)["annotations"]
    document = {"annotations": annotations and valid | annotations}
    assert unwrap(json.dumps(document).encode()) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"annotations": []}', b'"registry-proxy"'])
def test_other_bodies_are_no_wrappers(body: bytes) -> None:
    """A body of any kind is no wrapper, and has no part of one."""
    assert unwrap(body) is None
    assert not is_wrapper(body)


def test_an_escaped_annotation_is_seen() -> None:
    """A client cannot hide the reserved annotation behind escapes of JSON."""
    body = b'{"annotations": {"\\u0072egistry-pro\\u0078y.manifest": ""}}'
    assert is_wrapper(body)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_reserved_tag_names_its_manifest(algorithm: str) -> None:
    """The tag that keeps a manifest is a tag, and leads back to the digest; no other spelling of it does."""
    digest = digest_of(b"content", algorithm)
    tag = kept_tag(digest)
    assert is_tag(tag)
    assert kept_digest(tag) == digest
    for other in (Tag("latest"), Tag("rp-keep-"), Tag(f"{tag}A"), Tag(tag[:-1]), Tag("rp-keep-md5-AAAA")):
        assert kept_digest(other) is None


def test_an_index_keeps_its_shape() -> None:
    """The wrapper of an index is an index, with the place of each child unchanged."""
    child = image(b"1", algorithm="sha512")
    parts = index(child, algorithm="sha512")
    kept = wrap(manifest_of(child), {})
    wrapper = wrap(manifest_of(parts), {str(child.digest): kept.descriptor})
    assert wrapper.descriptor.media_type == OCI_INDEX
    assert parse_manifest(wrapper.body, OCI_INDEX).manifests == (kept.descriptor,)
