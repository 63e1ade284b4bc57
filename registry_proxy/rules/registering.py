"""Registering images as bases that were not pushed through us, or before there was a rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from registry_proxy.operations.contents import links_of
from registry_proxy.operations.pull import Pull
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Digest, Repository, Tag
from registry_proxy.rules.bases import KnownImages
from registry_proxy.rules.floors import chain_ids
from registry_proxy.rules.reading import PushedImages


@dataclass(frozen=True, slots=True)
class RegisteredBases:
    """Reads images, and remembers them as those on which others may stand.

    Args:
        pull: finds the manifest of a tag.
        images: reads the images of a manifest.
        known: remembers them.
    """

    pull: Pull
    images: PushedImages
    known: KnownImages

    async def register(
        self, routed: RoutedRepository, repository: Repository, tag: Tag, digest: Digest | None
    ) -> Sequence[str]:
        """Remember an image under ``repository:tag``; return the chains of its layers, one for each platform.

        Args:
            routed: where it lies.
            repository: its canonical name.
            tag: its name in patterns of bases.
            digest: of an image that the tag was; None for the one that it is.

        Raises: as a pull; StoreUnavailableError.
        """
        manifest = (await self.pull.get_manifest(routed, digest or tag)).manifest
        found = await self.images.read(routed, manifest, links_of(manifest), with_configs=True)
        configs = [image.config for image in found if image.is_image and image.config is not None]
        chains = [chain_ids(config.diff_ids)[-1] for config in configs if config.diff_ids]
        for chain in chains:
            await self.known.remember(chain, f"{repository}:{tag}")
        return chains
