"""Labels of images: the code that an image was built from, as its configuration or its manifest states it."""

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

from registry_proxy.operations.contents import links_of
from registry_proxy.operations.pull import Pull
from registry_proxy.ports.deployments import ImageLabels
from registry_proxy.ports.errors import CacheUnavailableError, FillFailedError, UpstreamUnavailableError
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.descriptor import Descriptor, Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.platform import platform_of
from registry_proxy.protocol.reference import Digest

CONFIG_MAX_BYTES = 1024 * 1024
_LABEL_MAX_CHARACTERS = 255
_SECONDS = 5.0
_SOURCE, _REVISION = "org.opencontainers.image.source", "org.opencontainers.image.revision"


async def read_labels(pull: Pull, routed: RoutedRepository, digest: Digest) -> ImageLabels:
    """Return the labels of an image; of an index, those of its first image with a platform.

    Labels that cannot be read within seconds, such as those of a configuration above 1 MiB, count as missing.

    Raises:
        RegistryError: the repository does not hold the manifest.
        UpstreamUnavailableError, FillFailedError: it cannot be known.
    """
    manifest = (await pull.get_manifest(routed, digest)).manifest
    try:
        async with asyncio.timeout(_SECONDS):
            found = await _find_labels(pull, routed, manifest)
    except (TimeoutError, RegistryError, UpstreamUnavailableError, FillFailedError, CacheUnavailableError, OSError):
        found = {}
    found = {**_texts_of(_load(manifest.body).get("annotations")), **found}
    return ImageLabels(found.get(_SOURCE, ""), found.get(_REVISION, ""))


async def _find_labels(pull: Pull, routed: RoutedRepository, manifest: Manifest) -> Mapping[str, str]:
    links = links_of(manifest)
    if links.manifests:
        image = (await pull.get_manifest(routed, _first_image(manifest, links.manifests).digest)).manifest
        annotations, links = _texts_of(_load(image.body).get("annotations")), links_of(image)
    else:
        annotations = {}
    if not links.blobs or links.blobs[0].size_bytes > CONFIG_MAX_BYTES:
        return annotations
    config = _load(await _read_blob(pull, routed, links.blobs[0].digest)).get("config")
    return {**annotations, **_texts_of(config.get("Labels") if isinstance(config, dict) else None)}


def _first_image(index: Manifest, children: tuple[Descriptor, ...]) -> Descriptor:
    """Return a child that runs somewhere; those of an unknown platform are attestations."""
    for child in children:
        platform = platform_of(index.body, child.digest)
        if platform is not None and platform.os not in {"", "unknown"}:
            return child
    return children[0]


async def _read_blob(pull: Pull, routed: RoutedRepository, digest: Digest) -> bytes:
    """Return a whole blob of bounded size; b"" for one that is larger than its descriptor says."""
    reader = await pull.blobs.fill_blob(routed, digest)
    try:
        if reader.size_bytes > CONFIG_MAX_BYTES:
            return b""
        while not reader.verified:
            await reader.wait_beyond(reader.available_bytes)
        return await asyncio.to_thread(os.pread, reader.fd, reader.size_bytes, 0)
    finally:
        reader.close()


def _load(body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _texts_of(labels: Any) -> dict[str, str]:
    """Return the labels that can be shown: of printable characters, and not longer than a line."""
    if not isinstance(labels, dict):
        return {}
    texts = {name: labels.get(name) for name in (_SOURCE, _REVISION)}
    return {
        name: text
        for name, text in texts.items()
        if isinstance(text, str) and 0 < len(text) <= _LABEL_MAX_CHARACTERS and text.isprintable()
    }
