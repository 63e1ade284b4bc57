"""Images as rules judge them, from manifests and configurations of any content."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.protocol.descriptor import OCI_MANIFEST, Descriptor, Manifest, parse_manifest
from registry_proxy.protocol.reference import digest_of
from registry_proxy.rules.image import JudgedImage, annotations_of, attestations_of, describe, parse_config

CONFIG, LAYER = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"
DIGEST = str(digest_of(b"x"))


def described(config: str, *layers: str, **further: object) -> JudgedImage:
    """Return the image of a manifest with these media types; each blob has 10 bytes."""
    blobs = [{"mediaType": each, "digest": DIGEST, "size": 10} for each in (config, *layers)]
    body = json.dumps({"schemaVersion": 2, "config": blobs[0], "layers": blobs[1:], **further}).encode()
    manifest = Manifest(Descriptor(OCI_MANIFEST, digest_of(body), len(body)), body)
    return describe(manifest, parse_manifest(body, OCI_MANIFEST), {"a": "of the index", "b": "of the index"})


def test_a_manifest_is_described() -> None:
    """Size, layers, media types and annotations are those of the manifest, over those of its index."""
    image = described(CONFIG, LAYER, LAYER, annotations={"a": "own"})
    assert (image.layer_count, image.media_types) == (2, [OCI_MANIFEST, CONFIG, LAYER])
    assert image.size_bytes > 30
    assert image.annotations == {"a": "own", "b": "of the index"}


@pytest.mark.parametrize(
    ("config", "layers", "is_image"),
    [
        (CONFIG, [LAYER], True),
        (CONFIG, [], True),
        ("application/vnd.docker.container.image.v1+json", ["application/vnd.docker.image.rootfs.diff.tar.gzip"], True),
        (CONFIG, ["application/vnd.oci.image.layer.nondistributable.v1.tar"], True),
        (CONFIG, ["application/vnd.in-toto+json", LAYER], True),
        (CONFIG, ["application/vnd.dev.cosign.simplesigning.v1+json"], False),
        (CONFIG, ["application/vnd.in-toto+json"], False),
        ("application/vnd.cncf.helm.config.v1+json", ["application/vnd.cncf.helm.chart.content.v1.tar+gzip"], False),
    ],
)
def test_images_are_told_from_artifacts(*, config: str, layers: list[str], is_image: bool) -> None:
    """One layer of an image makes an image: a signature with it would be a way around the rules."""
    assert described(config, *layers).is_image is is_image


def test_a_configuration_is_read() -> None:
    """Labels, platform, user and time of creation are read; nanoseconds are no hindrance."""
    about = {"os": "linux", "architecture": "arm", "variant": "v7", "created": "2024-01-31T08:00:00.123456789Z"}
    config = parse_config(json.dumps({**about, "config": {"User": "app", "Labels": {"a": "b"}}}).encode())
    assert config is not None
    assert (config.platform, config.user, config.labels) == ("linux/arm/v7", "app", {"a": "b"})
    assert config.created_at == pytest.approx(1706688000.123456)


@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_content_can_be_read(content: bytes | str) -> None:
    """Foreign content makes no error."""
    body = content if isinstance(content, bytes) else content.encode()
    parse_config(body)
    annotations_of(body)
    attestations_of(body)


@given(
    st.dictionaries(
        st.sampled_from(["config", "os", "architecture", "created", "manifests", "annotations"]),
        st.none() | st.integers() | st.text() | st.lists(st.dictionaries(st.text(), st.text())) | st.just({"User": 3}),
        min_size=1,
    )
)
def test_any_types_of_fields_can_be_read(fields: dict[str, object]) -> None:
    """Fields of other types count as missing."""
    body = json.dumps(fields).encode()
    assert parse_config(body) is not None
    annotations_of(body)
    attestations_of(body)


def test_attestations_are_found_by_their_annotation() -> None:
    """The children that an index calls attestations are known by digest."""
    children = [
        {"digest": "sha256:a", "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        {"digest": "sha256:b", "annotations": {"vnd.docker.reference.type": "other"}},
        {"digest": "sha256:c"},
    ]
    assert attestations_of(json.dumps({"manifests": children}).encode()) == {"sha256:a"}
