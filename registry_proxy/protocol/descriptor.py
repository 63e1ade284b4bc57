"""Descriptors and manifests (image-spec "Content Descriptors", "Image Manifest", "Image Index")."""

import json
import re
from dataclasses import dataclass
from typing import Any

from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, parse_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

_FOREIGN_LAYERS = (
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
)
_MANIFEST_KIND = re.compile(r"\.(manifest|index)\.")
"""Found in the media type of every manifest, also of kinds that are no longer in use, and of no blob."""

_SIZE_MAX_BYTES = 2**63 - 1  # a Go int64, which is what every registry stores it in

MANIFEST_MEDIA_TYPES = (
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1_SIGNED,
    DOCKER_SCHEMA1,
)
"""Sent as Accept on every manifest request: without it registries convert, or answer 404 for what they hold."""

BLOB_MEDIA_TYPE = "application/octet-stream"
MANIFEST_MAX_BYTES = 4 * 1024 * 1024
"""The largest manifest taken (spec: registries SHOULD accept 4 MB at least)."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Identity of content: its media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as stored: its exact bytes and the media type it was pushed with."""

    descriptor: Descriptor
    body: bytes


@dataclass(frozen=True, slots=True)
class ManifestLinks:
    """The references of a manifest: ``blobs`` must lie in its repository before it, ``manifests`` are its children.

    An index may name blobs, too: the cache that BuildKit exports is an index of layers. ``foreign`` are the
    non-distributable layers, which clients push or not (image-spec, "Non-Distributable Layers"). ``manifest_subject``
    is the manifest that it annotates, which need not exist.
    """

    blobs: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]
    manifest_subject: Descriptor | None
    foreign: tuple[Descriptor, ...] = ()

    @property
    def content_bytes(self) -> int:
        """The size of all blobs."""
        return sum(blob.size_bytes for blob in (*self.blobs, *self.foreign))


_WORD = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(f"{_WORD}/{_WORD}")
_MEDIA_TYPE_MAX_LENGTH = 255
_GENERIC_MEDIA_TYPES = frozenset({BLOB_MEDIA_TYPE, "binary/octet-stream", "application/json", "text/plain"})
"""Web servers and object stores send these for files of unknown type."""


def _invalid(message: str, detail: object = None) -> RegistryError:
    return RegistryError(ErrorCode.MANIFEST_INVALID, message, detail=detail)


def _parse_descriptor(value: Any, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise _invalid(f"{where} is not a descriptor", {"path": where})
    media_type, digest, size_bytes = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise _invalid(f"mediaType or digest is missing in {where}", {"path": where})
    if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or not 0 <= size_bytes <= _SIZE_MAX_BYTES:
        raise _invalid(f"{where} has no valid size", {"path": where})
    return Descriptor(media_type, parse_digest(digest), size_bytes)


def _parse_descriptors(document: dict[str, Any], field: str) -> list[Descriptor]:
    # Go writes an empty list that was never touched as null, or leaves it out; registries take both.
    values = document.get(field)
    if values is None:
        return []
    if not isinstance(values, list):
        raise _invalid(f"{field} is not a list", {"path": field})
    return [_parse_descriptor(value, f"{field}[{i}]") for i, value in enumerate(values)]


def is_foreign(media_type: str) -> bool:
    """Tell whether a layer is non-distributable; whether it has ``urls`` does not decide that, says the image-spec."""
    return media_type.startswith(_FOREIGN_LAYERS)


def _load_object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body.decode())  # of bytes, json would also take UTF-16 and UTF-32
    except RecursionError as error:  # 100,000 nested "[" are legal JSON
        raise _invalid("the manifest is nested too deeply") from error
    except ValueError as error:
        raise _invalid(f"the manifest is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _invalid("the manifest is not a JSON object")
    return document


def stated_media_type(header: str | None) -> str | None:
    """Return the media type in a Content-Type of a manifest, without parameters.

    Args:
        header: its value.

    Returns:
        None where it does not name a type of manifest: absent, generic, malformed (RFC 9110, 8.3.1) or too long.
    """
    text = (header or "").partition(";")[0].strip(" \t")
    is_valid = len(text) <= _MEDIA_TYPE_MAX_LENGTH and _MEDIA_TYPE.fullmatch(text) is not None
    return text if is_valid and text.lower() not in _GENERIC_MEDIA_TYPES else None


def derive_media_type(body: bytes) -> str | None:
    """Return the media type that a manifest names itself, or has by its shape; None when the body is no manifest."""
    try:
        document = _load_object(body)
    except RegistryError:
        return None
    named = document.get("mediaType")
    if isinstance(named, str) and stated_media_type(named) == named:
        return named
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    config = document.get("config")
    if isinstance(config, dict) and "digest" in config:  # the configuration of an image has a "config", too
        return OCI_MANIFEST
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1_SIGNED if "signatures" in document else DOCKER_SCHEMA1
    return None


def parse_manifest(body: bytes, media_type: str) -> ManifestLinks:
    """Return what the manifest refers to.

    Args:
        body: the exact bytes.
        media_type: the Content-Type it came with, without parameters.

    A list that is absent is an empty one: the registry judges whether a manifest does without.

    Raises:
        RegistryError: MANIFEST_INVALID when the body is not JSON, contradicts its media type, holds both
            ``manifests`` and ``layers`` (GHSA-qq97-vm5h-rrhg), or a descriptor is malformed; DIGEST_INVALID.
    """
    document = _load_object(body)
    is_index = media_type in {OCI_INDEX, DOCKER_LIST}
    if (is_index or "manifests" in document) and ("layers" in document or "config" in document):
        raise _invalid("the manifest holds both manifests and layers: image or index, not both")
    stated = document.get("mediaType")
    if stated not in (None, "", media_type):  # Go writes "" where nothing was set
        raise _invalid(
            "the manifest's mediaType differs from its Content-Type",
            {"mediaType": str(stated)[:200], "contentType": media_type[:200]},
        )
    subject = document.get("subject")
    manifest_subject = None if subject is None else _parse_descriptor(subject, "subject")
    if is_index:
        children = _parse_descriptors(document, "manifests")
        manifests = tuple(child for child in children if _MANIFEST_KIND.search(child.media_type))
        blobs = tuple(child for child in children if not _MANIFEST_KIND.search(child.media_type))
        return ManifestLinks(blobs, manifests, manifest_subject)
    if media_type in {OCI_MANIFEST, DOCKER_MANIFEST}:
        config = _parse_descriptor(document.get("config"), "config")
        layers = _parse_descriptors(document, "layers")
        own = tuple(layer for layer in layers if not is_foreign(layer.media_type))
        foreign = tuple(layer for layer in layers if is_foreign(layer.media_type))
        return ManifestLinks((config, *own), (), manifest_subject, foreign)
    raise _invalid("the media type is not one of an OCI or Docker schema 2 manifest", {"contentType": media_type[:200]})
