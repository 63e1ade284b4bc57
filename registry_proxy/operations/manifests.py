"""Writing manifests: at a quorum of replicas, in the cache, and known to the repository from then on."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from registry_proxy.operations.contents import is_committed
from registry_proxy.operations.proofs import HoldingProofs
from registry_proxy.operations.refused_pushes import content_unknown, no_space, tag_exists
from registry_proxy.ports.content import BlobCache, Holdings
from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.ports.history import Cause
from registry_proxy.ports.manifests import ManifestReplicas
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.rules import ImageRules
from registry_proxy.ports.uploads import Spool
from registry_proxy.protocol.descriptor import Manifest, ManifestLinks
from registry_proxy.protocol.reference import Digest, Tag


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestWriter:
    """Writes manifests and tags, for clients and for the lists of referrers.

    Args:
        replicas: writes to the replicas.
        proofs: knows which contents a manifest may name.
        cache: keeps manifests.
        holdings: notes which repository holds them.
        spool: keeps what a replica misses.
        rules: judge what clients make of tags.
    """

    replicas: ManifestReplicas
    proofs: HoldingProofs
    cache: BlobCache
    holdings: Holdings
    spool: Spool
    rules: ImageRules

    def referrers_lease(self, routed: RoutedRepository, tag: Tag) -> AbstractAsyncContextManager[None]:
        """Exclude others who change the index under a fallback tag; taken before the leases of ``write``."""
        return self.replicas.referrers_lease(routed, tag)

    async def write(
        self,
        routed: RoutedRepository,
        tag: Tag | None,
        manifest: Manifest,
        links: ManifestLinks,
        *,
        may_move_tags: bool,
        cause: Cause | None = None,
    ) -> Sequence[str]:
        """Write a manifest, and its tag when given, for a client; return warnings for the client.

        A write of our own has no cause, and so no event, and no rule is for it.

        Raises:
            RegistryError: MANIFEST_BLOB_UNKNOWN, DENIED, what the replicas answer, UNAVAILABLE without a quorum.
        """
        if absent := await self.proofs.find_absent(routed, links):
            raise content_unknown(absent)
        descriptor = manifest.descriptor
        async with (
            self.rules.judging(routed, tag, manifest, links, cause) as verdict,
            self.replicas.lease(routed, descriptor.digest, tag),
        ):
            refuse_move = verdict.refuse_move if may_move_tags or tag is None else tag_exists(tag)
            written = await self.replicas.put(routed, tag, manifest, cause, refuse_move=refuse_move)
            await self._keep(manifest, must=bool(written.missing))
            self.holdings.remember(routed, ContentKind.MANIFEST, descriptor)
            if tag is not None:
                self.holdings.move_tag(routed, tag, descriptor, recorded=written.revision)
            return verdict.warnings

    def pin(self, digest: Digest) -> None:
        """Keep a content until all replicas have it. Raises UNAVAILABLE where the disk cannot."""
        try:
            self.spool.pin(digest)
        except CacheUnavailableError as error:
            raise no_space(error) from error

    async def _keep(self, manifest: Manifest, *, must: bool) -> None:
        """Have a manifest in the cache: the lease that is held keeps a repair from unpinning it before it is there."""
        digest = manifest.descriptor.digest
        if must:
            self.pin(digest)
        await self.cache.store(digest, manifest.body)
        if must and not is_committed(self.cache, digest):
            raise no_space(CacheUnavailableError("the manifest cannot be kept for the replica that misses it"))
