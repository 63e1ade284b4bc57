"""Images as people compare them: layers, environment, entry point, labels, sizes, platforms."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from registry_proxy.operations.contents import found_of, links_of, unless_absent
from registry_proxy.operations.pull import Pull
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.descriptor import Descriptor, Manifest, ManifestLinks
from registry_proxy.protocol.documents import parse_object
from registry_proxy.protocol.platform import platforms_of
from registry_proxy.protocol.reference import Digest, Tag

_CONFIG_MAX_BYTES = 1024 * 1024
_CONFIG_TYPES = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
_IMAGES_MAX = 100
"""Limit of the manifests of an index that are read, to know their sizes."""

_SOURCE = "org.opencontainers.image.source"
_REVISION = "org.opencontainers.image.revision"


@dataclass(frozen=True, slots=True)
class Child:
    """An image of an index: ``platform`` as the index states it, "" where it does not."""

    digest: Digest
    platform: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """An image or index as its manifest and configuration describe it.

    Args:
        digest: of the manifest.
        media_type: of the manifest.
        size_bytes: of the manifest and all that it names; of an index with the first hundred of its images, as far as
            they are there, where an index among them counts with its manifest alone.
        platforms: such as linux/amd64.
        labels: of the configuration, and over them the annotations of the manifest.
        environment: lines NAME=VALUE.
        entrypoint: program and arguments.
        command: arguments that a caller may replace.
        layers: the descriptors.
        children: of an index.
    """

    digest: Digest
    media_type: str
    size_bytes: int
    platforms: Sequence[str] = ()
    labels: Mapping[str, str]
    environment: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    layers: Sequence[Descriptor] = ()
    children: Sequence[Child] = ()

    @property
    def source(self) -> str:
        """Address of the source, as the image says; "" where it does not."""
        return self.labels.get(_SOURCE, "")

    @property
    def revision(self) -> str:
        """The revision of the source, as the image says; "" where it does not."""
        return self.labels.get(_REVISION, "")


class ImageReader:
    """Reads images of repositories.

    Args:
        pull: the verbs of pulling.
    """

    def __init__(self, pull: Pull) -> None:
        self._pull = pull

    async def read(self, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> ImageFacts:
        """Return what an image is. Raises as a pull of its manifest and configuration does."""
        manifest = (await self._pull.get_manifest(routed, tag_or_digest)).manifest
        links = links_of(manifest)
        facts = _facts_of(manifest, links)
        if links.manifests:
            return await self._with_children(routed, manifest, facts, links.manifests)
        return await self._configured(routed, facts, links)

    async def _with_children(
        self, routed: RoutedRepository, manifest: Manifest, facts: ImageFacts, named: Sequence[Descriptor]
    ) -> ImageFacts:
        """Return an index with its images; those of an index in it are not read: there may be very many."""
        stated = platforms_of(manifest.body)
        children = [
            Child(digest, str(stated.get(str(digest), ""))) for digest in dict.fromkeys(each.digest for each in named)
        ]

        async def read(child: Child) -> tuple[ImageFacts, ManifestLinks] | None:
            answer = await unless_absent(self._pull.get_manifest(routed, child.digest))
            links = None if answer is None else links_of(answer.manifest)
            return None if answer is None or links is None else (_facts_of(answer.manifest, links), links)

        images = await found_of(read, children[:_IMAGES_MAX])
        labels: Mapping[str, str] = {}
        if images and _SOURCE not in facts.labels:
            first = await unless_absent(self._configured(routed, *images[0]))
            labels = {} if first is None else first.labels
        return replace(
            facts,
            size_bytes=facts.size_bytes + sum(image.size_bytes for image, _ in images),
            platforms=[child.platform for child in children if child.platform not in {"", "unknown/unknown"}],
            labels={**{name: labels[name] for name in (_SOURCE, _REVISION) if name in labels}, **facts.labels},
            children=children,
        )

    async def _configured(self, routed: RoutedRepository, facts: ImageFacts, links: ManifestLinks) -> ImageFacts:
        config = next((blob for blob in links.blobs[:1] if blob.media_type in _CONFIG_TYPES), None)
        return facts if config is None else _configured(facts, parse_object(await self._read_config(routed, config)))

    async def _read_config(self, routed: RoutedRepository, config: Descriptor) -> bytes:
        if config.size_bytes > _CONFIG_MAX_BYTES:
            return b""
        reader = await self._pull.blobs.fill_blob(routed, config.digest)
        try:
            while not reader.verified:
                await reader.wait_beyond(reader.available_bytes)
            return await asyncio.to_thread(os.pread, reader.fd, _CONFIG_MAX_BYTES, 0)
        finally:
            reader.close()


def _facts_of(manifest: Manifest, links: ManifestLinks) -> ImageFacts:
    return ImageFacts(
        digest=manifest.descriptor.digest,
        media_type=manifest.descriptor.media_type,
        size_bytes=manifest.descriptor.size_bytes + links.content_bytes,
        labels=_texts(parse_object(manifest.body).get("annotations")),
        layers=[*links.blobs[1:], *links.foreign],
    )


def _configured(facts: ImageFacts, config: Mapping[str, Any]) -> ImageFacts:
    runtime = config.get("config")
    runtime = runtime if isinstance(runtime, dict) else {}
    stated = [config.get(name) for name in ("os", "architecture", "variant")]
    platform = "/".join(part for part in stated if isinstance(part, str) and part)
    return replace(
        facts,
        platforms=[platform] if platform else [],
        labels={**_texts(runtime.get("Labels")), **facts.labels},
        environment=_list(runtime.get("Env")),
        entrypoint=_list(runtime.get("Entrypoint")),
        command=_list(runtime.get("Cmd")),
    )


def _texts(value: object) -> Mapping[str, str]:
    return {name: str(text) for name, text in value.items()} if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[str]:
    return [str(each) for each in value] if isinstance(value, list) else []
