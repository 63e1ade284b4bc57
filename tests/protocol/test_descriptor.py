"""Manifests: their references, and the refusal of bodies that confuse image and index."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.protocol.descriptor import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    MANIFEST_MEDIA_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    derive_media_type,
    parse_manifest,
    stated_media_type,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest

LAYER = "application/vnd.oci.image.layer.v1.tar"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

DIGESTS = st.builds(Digest, st.just("sha256"), st.text("0123456789abcdef", min_size=64, max_size=64))
DESCRIPTORS = st.builds(Descriptor, st.just(LAYER), DIGESTS, st.integers(0, 2**63 - 1))
CHILDREN = st.builds(Descriptor, st.sampled_from(MANIFEST_MEDIA_TYPES), DIGESTS, st.integers(0, 2**63 - 1))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["manifests", "layers", "config", "subject", "mediaType", "digest", "size", "urls"],
            ),
            inner,
        )
    ),
    max_leaves=12,
)


def raw(descriptor: Descriptor, **more: object) -> dict[str, Any]:
    """Return a descriptor in the form of a manifest."""
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size_bytes, **more}


def a_descriptor(letter: str = "a", media_type: str = LAYER) -> Descriptor:
    """Return some descriptor; another letter gives another one."""
    return Descriptor(media_type, Digest("sha256", letter * 64), 1)


def image(**changes: object) -> bytes:
    """Return an OCI image manifest with some fields changed; ... removes one."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": raw(a_descriptor("c")),
        "layers": [raw(a_descriptor())],
        **changes,
    }
    return json.dumps({key: value for key, value in document.items() if value is not ...}).encode()


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
@given(DESCRIPTORS, st.lists(DESCRIPTORS, max_size=4), st.none() | DESCRIPTORS)
def test_an_image_refers_to_config_and_layers(
    media_type: str, config: Descriptor, layers: list[Descriptor], subject: Descriptor | None
) -> None:
    """Every descriptor of an image is found as it was written, config first, with the subject apart."""
    body = image(
        mediaType=media_type,
        config=raw(config),
        layers=[raw(layer) for layer in layers],
        subject=... if subject is None else raw(subject),
    )
    links = parse_manifest(body, media_type)
    assert links.blobs == (config, *layers)
    assert links.manifests == ()
    assert links.manifest_subject == subject


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
@given(st.lists(CHILDREN, max_size=4))
def test_an_index_refers_to_manifests(media_type: str, children: list[Descriptor]) -> None:
    """Every child of an index is found as it was written, whether or not it states its own media type."""
    document = {"schemaVersion": 2, "manifests": [raw(child, platform={"os": "linux"}) for child in children]}
    for stated in ({}, {"mediaType": media_type}):
        links = parse_manifest(json.dumps({**document, **stated}).encode(), media_type)
        assert links.manifests == tuple(children)
        assert links.blobs == ()


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.buildkit.cacheconfig.v0",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.config.v1+json",
    ],
)
def test_a_child_of_an_index_may_be_a_blob(media_type: str) -> None:
    """The media type of a child says that it lies among the blobs; those of manifests no longer in use do not."""
    children = [a_descriptor("1", media_type), a_descriptor("2", "application/vnd.oci.artifact.manifest.v1+json")]
    body = json.dumps({"schemaVersion": 2, "manifests": [raw(child) for child in children]}).encode()
    links = parse_manifest(body, OCI_INDEX)
    assert (links.blobs, links.manifests) == (tuple(children[:1]), tuple(children[1:]))


def test_an_empty_list_of_go_is_empty() -> None:
    """A null list, as Go writes an empty one, has no entries."""
    assert parse_manifest(b'{"manifests": null}', OCI_INDEX).manifests == ()
    assert len(parse_manifest(image(layers=None), OCI_MANIFEST).blobs) == 1


def test_a_foreign_layer_is_not_expected_in_the_repository() -> None:
    """Foreign layers, with and without URLs, may lie elsewhere; a plain layer with URLs may not."""
    with_urls, without, plain = a_descriptor("1", FOREIGN), a_descriptor("2", FOREIGN), a_descriptor("3")
    urls = ["https://elsewhere.example/layer"]
    links = parse_manifest(image(layers=[raw(with_urls, urls=urls), raw(without), raw(plain, urls=urls)]), OCI_MANIFEST)
    assert (links.blobs[1:], links.foreign) == ((plain,), (with_urls, without))


BAD_DESCRIPTORS: list[object] = [
    None,
    [],
    "sha256:" + "a" * 64,
    {},
    {"mediaType": LAYER, "size": 1},
    {"mediaType": LAYER, "digest": 5, "size": 1},
    {"mediaType": 5, "digest": "sha256:" + "a" * 64, "size": 1},
    {"mediaType": LAYER, "digest": "sha256:" + "a" * 64},
    {"mediaType": LAYER, "digest": "sha256:" + "a" * 64, "size": -1},
    {"mediaType": LAYER, "digest": "sha256:" + "a" * 64, "size": 1.0},
    {"mediaType": LAYER, "digest": "sha256:" + "a" * 64, "size": True},
    {"mediaType": LAYER, "digest": "sha256:" + "a" * 64, "size": "1"},
    {"mediaType": LAYER, "digest": "sha256:" + "a" * 64, "size": 2**63},
]


@pytest.mark.parametrize("bad", BAD_DESCRIPTORS)
def test_a_bad_descriptor_is_refused_wherever_it_stands(bad: object) -> None:
    """A descriptor without a field, or with one of a wrong type or value, is MANIFEST_INVALID with its place."""
    for changes, where in (({"config": bad}, "config"), ({"layers": [bad]}, "layers[0]")):
        with pytest.raises(RegistryError, match=where.replace("[", r"\[")) as caught:
            parse_manifest(image(**changes), OCI_MANIFEST)
        assert caught.value.code is ErrorCode.MANIFEST_INVALID


@pytest.mark.parametrize("media_type", [{"mediaType": ...}, {"mediaType": ""}, {"mediaType": None}, {}])
@pytest.mark.parametrize("absent", [..., None])
def test_an_absent_list_is_an_empty_one(media_type: dict[str, object], absent: object) -> None:
    """The registry judges a manifest without layers or children; an empty type counts as none."""
    links = parse_manifest(image(layers=absent, **media_type), OCI_MANIFEST)
    assert len(links.blobs) == 1
    assert parse_manifest(image(config=..., layers=..., manifests=absent, mediaType=""), OCI_INDEX).manifests == ()


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", OCI_MANIFEST),
        (b"{", OCI_MANIFEST),
        (b"[]", OCI_MANIFEST),
        (b"null", OCI_MANIFEST),
        (b"\xff\xfe", OCI_MANIFEST),
        ('{"manifests": []}'.encode("utf-16"), OCI_INDEX),
        (b"[" * 100_000, OCI_MANIFEST),
        (b'{"manifests":' * 50_000, OCI_INDEX),
        (b'{"manifests": [' + b"9" * 10_000 + b"]}", OCI_INDEX),
        (image(mediaType=...), OCI_INDEX),
        (image(mediaType=..., layers=...), DOCKER_LIST),
        (image(manifests=[]), OCI_MANIFEST),  # GHSA-qq97-vm5h-rrhg
        (image(manifests=[], mediaType=OCI_INDEX), OCI_INDEX),
        (image(manifests=[], config=..., mediaType=OCI_INDEX), OCI_INDEX),
        (image(manifests=None, layers=..., mediaType=OCI_INDEX), OCI_INDEX),
        (image(mediaType=OCI_INDEX), OCI_MANIFEST),
        (image(mediaType=5), OCI_MANIFEST),
        (image(), OCI_INDEX),
        (image(), DOCKER_MANIFEST),
        (image(layers={}), OCI_MANIFEST),
        (image(config=...), OCI_MANIFEST),
        (image(subject="sha256:a"), OCI_MANIFEST),
        (image(mediaType=...), "application/json"),
        (image(mediaType=...), ""),
        (image(mediaType=...), DOCKER_SCHEMA1),
    ],
)
def test_a_body_that_is_no_manifest_is_refused(body: bytes, media_type: str) -> None:
    """Broken, too deep, contradicting or two-faced bodies are MANIFEST_INVALID, a 400."""
    with pytest.raises(RegistryError) as caught:
        parse_manifest(body, media_type)
    assert caught.value.code is ErrorCode.MANIFEST_INVALID
    assert caught.value.status == 400


def test_a_bad_digest_is_digest_invalid() -> None:
    """A descriptor whose digest is malformed or of an unknown algorithm is DIGEST_INVALID."""
    layer = {"mediaType": LAYER, "digest": "md5:" + "a" * 32, "size": 1}
    with pytest.raises(RegistryError) as caught:
        parse_manifest(image(layers=[layer]), OCI_MANIFEST)
    assert caught.value.code is ErrorCode.DIGEST_INVALID


@given(
    st.one_of(st.binary(), JSON.map(lambda value: json.dumps(value).encode())), st.sampled_from(MANIFEST_MEDIA_TYPES)
)
def test_any_body(body: bytes, media_type: str) -> None:
    """Any bytes and any JSON are read or refused with an error of the protocol."""
    try:
        links = parse_manifest(body, media_type)
    except RegistryError as error:
        assert error.code in {ErrorCode.MANIFEST_INVALID, ErrorCode.DIGEST_INVALID}  # noqa: PT017 - either is right
    else:
        assert not (links.blobs and links.manifests)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_type_that_is_derived_is_one(body: bytes) -> None:
    """The type derived from any body can be sent in a Content-Type; the body of an image has one."""
    derived = derive_media_type(body)
    assert derived is None or stated_media_type(derived) == derived
    assert derive_media_type(image(mediaType=...)) == OCI_MANIFEST


def test_the_configuration_of_an_image_is_no_manifest() -> None:
    """A document with a "config" that is no descriptor has no type."""
    assert derive_media_type(b'{"architecture":"amd64","config":{"Labels":{}},"rootfs":{}}') is None
