"""Wrappers: manifests that carry another one, which a registry does not take as it is.

Distribution stores a manifest under its sha256 alone, and its garbage collection knows blobs by theirs alone. The
wrapper of a manifest is the same manifest with every name in sha256, as far as the registry has one, and carries the
manifest itself in an annotation. A client that goes past us finds an image with the same configuration and layers, and
the garbage collection keeps all of them.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from typing import Any

from registry_proxy.protocol.descriptor import (
    DOCKER_LIST,
    MANIFEST_MAX_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    stated_media_type,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import digest_of
from registry_proxy.protocol.referrers import Referrer, describe_referrer

_BODY = "registry-proxy.manifest"
_MEDIA_TYPE = "registry-proxy.media-type"
_ALGORITHM = "registry-proxy.algorithm"
_DESCRIPTION = {
    "org.opencontainers.image.description": "Stands for a manifest that this registry does not take: pull that "
    "through registry-proxy."
}
_BLOCK_BYTES = 4096
_SAME = Descriptor("", digest_of(b""), 0)


def may_be_wrapper(descriptor: Descriptor) -> bool:
    """Tell whether a manifest that is known by a HEAD may be a wrapper: their size is a multiple of 4096 bytes."""
    return descriptor.size_bytes % _BLOCK_BYTES == 0 and descriptor.media_type in {OCI_INDEX, OCI_MANIFEST}


def is_wrapper(body: bytes) -> bool:
    """Tell whether a manifest has the annotation of wrappers, which clients may not write."""
    return (_BODY.encode() in body or b"\\u" in body) and _BODY in _annotations(_load(body))


def has_urls(manifest: Manifest) -> bool:
    """Tell whether a layer of a manifest has ``urls``, which registries may refuse wherever it lies."""
    layers = _load(manifest.body).get("layers")
    return isinstance(layers, list) and any(isinstance(layer, dict) and layer.get("urls") for layer in layers)


def wrap(manifest: Manifest, names: Mapping[str, Descriptor | None]) -> Manifest:
    """Return the wrapper of a manifest.

    Args:
        manifest: one that ``parse_manifest`` has taken.
        names: what the registry has in place of a descriptor, by the digest that the manifest names; None for a layer
            that it does not have, which the wrapper leaves out.

    Raises:
        RegistryError: SIZE_INVALID (413) where the wrapper would be larger than registries take.
    """
    document = _load(manifest.body)
    is_index = manifest.descriptor.media_type in {OCI_INDEX, DOCKER_LIST}
    wrapper: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX if is_index else OCI_MANIFEST}
    if is_index:
        wrapper["manifests"] = _renamed(document.get("manifests"), names)
    else:
        (wrapper["config"],) = _renamed([document["config"]], names)
        wrapper["layers"] = _renamed(document.get("layers"), names)
    if document.get("subject") is not None:
        wrapper["subject"] = document["subject"]
    wrapper["annotations"] = {
        **_DESCRIPTION,
        _MEDIA_TYPE: manifest.descriptor.media_type,
        _ALGORITHM: manifest.descriptor.digest.algorithm,
        _BODY: base64.b64encode(zlib.compress(manifest.body)).decode(),
    }
    body = json.dumps(wrapper, separators=(",", ":")).encode()
    body += b" " * (-len(body) % _BLOCK_BYTES)
    if len(body) > MANIFEST_MAX_BYTES:
        message = "the registry behind does not take this manifest as it is, and it is too large to be kept otherwise"
        detail = {"digest": str(manifest.descriptor.digest)}
        raise RegistryError(ErrorCode.SIZE_INVALID, message, detail=detail, status=413)
    return Manifest(Descriptor(wrapper["mediaType"], digest_of(body), len(body)), body)


def unwrap(body: bytes) -> Manifest | None:
    """Return the manifest in a wrapper, named by the digest that it was pushed by; None for another manifest.

    Whether a repository holds that manifest, and did not get the wrapper by another way, is for the caller to find out.
    """
    return _unwrapped(_annotations(_load(body))) if is_wrapper(body) else None


def unwrap_referrer(entry: Referrer) -> Referrer:
    """Return the entry of a list of referrers as that of the manifest in the wrapper, where it is one."""
    original = _unwrapped(_annotations(entry.fields))
    return entry if original is None else describe_referrer(original)


def _unwrapped(annotations: Mapping[str, Any]) -> Manifest | None:
    try:
        packed, media_type, algorithm = (annotations[key] for key in (_BODY, _MEDIA_TYPE, _ALGORITHM))
        unpacking = zlib.decompressobj()
        body = unpacking.decompress(base64.b64decode(packed, validate=True), MANIFEST_MAX_BYTES)
        digest = digest_of(body, algorithm)
    except (ValueError, KeyError, TypeError, binascii.Error, zlib.error):
        return None
    if not unpacking.eof or not isinstance(media_type, str) or stated_media_type(media_type) != media_type:
        return None
    return Manifest(Descriptor(media_type, digest, len(body)), body)


def _renamed(descriptors: list[dict[str, Any]] | None, names: Mapping[str, Descriptor | None]) -> list[dict[str, Any]]:
    renamed = []
    for descriptor in descriptors or ():
        known = names.get(descriptor["digest"], _SAME)
        if known is None:
            continue
        fields = {key: value for key, value in descriptor.items() if key not in {"data", "urls"}}
        if known is not _SAME:
            fields |= {"mediaType": known.media_type, "digest": str(known.digest), "size": known.size_bytes}
        renamed.append(fields)
    return renamed


def _load(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body.decode())
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _annotations(fields: Mapping[str, Any]) -> dict[str, Any]:
    annotations = fields.get("annotations")
    return annotations if isinstance(annotations, dict) else {}
