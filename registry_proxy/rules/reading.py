"""Reading an image that was just pushed: manifests and configurations, from the cache or else from a replica."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

from registry_proxy.operations.contents import find_cached_manifest, links_of, unless_absent
from registry_proxy.operations.refused_pushes import content_unknown
from registry_proxy.ports.content import BlobCache, Holdings
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.protocol.descriptor import Descriptor, Manifest, ManifestLinks
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.rules.image import JudgedImage, annotations_of, attestations_of, describe, parse_config

CONFIG_MAX_BYTES = 1024 * 1024
MANIFESTS_MAX = 100
"""Limit of the manifests that are read for one push: those of an index, and of the indexes in it."""


READ_MAX_BYTES = 16 * 1024 * 1024
"""Limit of the manifests and configurations that an index names, all together."""

_LIMITS = f"{MANIFESTS_MAX} manifests, or {READ_MAX_BYTES // 1024**2} MiB of manifests and configurations"


@dataclass(frozen=True, slots=True)
class _Named:
    """A manifest that waits to be described, with the annotations of the indexes that name it."""

    manifest: Manifest
    links: ManifestLinks
    annotations: Mapping[str, str]
    _: KW_ONLY
    is_attestation: bool


@dataclass(frozen=True, slots=True)
class PushedImages:
    """Reads the images of a manifest, as far as its repository holds them.

    Args:
        cache: holds what was pushed through this node.
        holdings: which manifests a repository holds.
        readers: by upstream.
    """

    cache: BlobCache
    holdings: Holdings
    readers: Mapping[str, RegistryReader]

    async def read(
        self, routed: RoutedRepository, manifest: Manifest, links: ManifestLinks, *, with_configs: bool
    ) -> Sequence[JudgedImage]:
        """Return the images of a manifest, without attestations; those that cannot be judged have a fault.

        Raises:
            UpstreamUnavailableError, RegistryError: a replica does not answer.
            RegistryError: MANIFEST_BLOB_UNKNOWN for a configuration that the repository does not hold.
        """
        found: list[JudgedImage] = []
        waiting: list[_Named] = [_Named(manifest, links, {}, is_attestation=False)]
        read, index, read_bytes = {manifest.descriptor.digest}, 0, 0
        while index < len(waiting):
            each, index = waiting[index], index + 1
            if not each.links.manifests:
                image = describe(each.manifest, each.links, each.annotations)
                if image.is_image or not each.is_attestation:
                    found.append(await self._configured(routed, image, each.links) if with_configs else image)
                continue
            attestations = attestations_of(each.manifest.body)
            inherited = {**each.annotations, **annotations_of(each.manifest.body)}
            for child in each.links.manifests:
                if child.digest in read:
                    continue
                read.add(child.digest)
                if len(read) > MANIFESTS_MAX or read_bytes > READ_MAX_BYTES:
                    return [_faulty(manifest.descriptor, f"the index names more than {_LIMITS}")]
                if (body := await self._manifest(routed, child)) is None:
                    found.append(_faulty(child, f"the manifest {child.digest} of the index is not here"))
                    continue
                links_of_child, is_attestation = links_of(body), str(child.digest) in attestations
                waiting.append(_Named(body, links_of_child, inherited, is_attestation=is_attestation))
                read_bytes += len(body.body) + sum(blob.size_bytes for blob in links_of_child.blobs[:1])
        return found

    async def _manifest(self, routed: RoutedRepository, child: Descriptor) -> Manifest | None:
        cached = find_cached_manifest(self.holdings, self.cache, routed, child.digest)
        if cached is not None:
            return cached
        return await unless_absent(self.readers[routed.upstream].fetch_manifest(routed.repository, child.digest))

    async def _configured(self, routed: RoutedRepository, image: JudgedImage, links: ManifestLinks) -> JudgedImage:
        if not image.is_image:
            return image
        config = links.blobs[0]
        if config.size_bytes > CONFIG_MAX_BYTES:
            return replace(image, fault=f"the configuration has {config.size_bytes} bytes")
        parsed = parse_config(await self._config(routed, config))
        return replace(image, config=parsed, fault="" if parsed else "the configuration cannot be read")

    async def _config(self, routed: RoutedRepository, config: Descriptor) -> bytes:
        """Return a configuration; "" where it is larger than it was said to be, or not what its digest says.

        One of another repository is not read: a refusal would show what it contains.
        """
        is_held = self.holdings.find(routed, ContentKind.BLOB, config.digest) is not None
        if is_held and (cached := self.cache.read_small(config.digest)) is not None:
            return cached if len(cached) <= config.size_bytes else b""
        body = bytearray()
        try:
            async with self.readers[routed.upstream].open_blob(routed.repository, config.digest) as stream:
                async for piece in stream:
                    body += piece
                    if len(body) > config.size_bytes:
                        return b""
        except RegistryError as error:
            raise content_unknown([config.digest]) if error.status == 404 else error from error
        return bytes(body) if config.digest.matches(bytes(body)) else b""


def _faulty(descriptor: Descriptor, fault: str) -> JudgedImage:
    return JudgedImage(digest=descriptor.digest, fault=fault)
