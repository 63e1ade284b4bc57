"""Content management: deleting manifests and blobs (spec, "Content Management")."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from registry_proxy.operations.proofs import HoldingProofs
from registry_proxy.operations.referrers import Referrers, subject_in
from registry_proxy.ports.content import Holdings
from registry_proxy.ports.deletions import Deletions
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.protocol.descriptor import Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Tag, other_digests_of
from registry_proxy.tasks import run_to_end


@dataclass(frozen=True, slots=True, kw_only=True)
class Manage:
    """The verbs of deleting. Once begun, a delete goes on when the caller is cancelled."""

    holdings: Holdings
    proofs: HoldingProofs
    deletions: Deletions
    referrers: Referrers

    async def delete_manifest(
        self,
        routed: RoutedRepository,
        tag_or_digest: Tag | Digest,
        actor: Actor | None = None,
        *,
        overrides_rules: bool = False,
    ) -> Digest:
        """Delete a manifest by digest, with every tag on it, or a tag alone (spec end-9); return the digest.

        The content goes with the digest: a manifest that was pushed by its sha512 as well is gone by both.
        Only an administrator may override the rules of images, and only for a digest.

        Raises:
            RegistryError: UNSUPPORTED (405) where the replicas do not delete; DENIED (403) on a read-only upstream, or
                by a rule; MANIFEST_UNKNOWN; UNAVAILABLE without a quorum.
            UpstreamUnavailableError: whether it exists cannot be known now.
        """
        self.deletions.check_writable(routed.upstream)
        if isinstance(tag_or_digest, Digest):
            delete = self._delete_manifest(routed, tag_or_digest, actor, overrides_rules=overrides_rules)
            return await run_to_end(delete, "delete of a manifest")
        return await run_to_end(self._delete_tag(routed, tag_or_digest, actor), "delete of a tag")

    async def delete_blob(self, routed: RoutedRepository, digest: Digest) -> None:
        """Delete a blob from a repository (spec end-10); errors as for a manifest, with BLOB_UNKNOWN."""
        self.deletions.check_writable(routed.upstream)
        await run_to_end(self._delete_blob(routed, digest), "delete of a blob")

    async def _delete_tag(self, routed: RoutedRepository, tag: Tag, actor: Actor | None) -> Digest:
        async with self.deletions.lease(routed, tag):
            await self.deletions.check_rules(routed, tag, actor)
            digest = await self.deletions.delete_tag(routed, tag, actor)
            self.holdings.end_tag(routed, tag)
            return digest

    async def _delete_manifest(
        self, routed: RoutedRepository, digest: Digest, actor: Actor | None, *, overrides_rules: bool
    ) -> Digest:
        """Delete a manifest under each digest by which the repository holds it, the one that was named last."""
        await self.proofs.require(routed, ContentKind.MANIFEST, digest)
        manifest = await self._find_manifest(routed, digest)
        others = [] if manifest is None else other_digests_of(manifest.body, digest)
        async with AsyncExitStack() as leases:
            for name in sorted([digest, *others], key=str):
                await leases.enter_async_context(self.deletions.lease(routed, name))
            judged = () if overrides_rules else (digest, *others)
            tags = {name: await self.deletions.check_rules(routed, name, actor) for name in judged}
            deleted = [name for name in others if await self._is_held(routed, name)] + [digest]
            for name in deleted:
                is_known = name != digest or self._is_known(routed, name)
                author = actor if name == digest else None  # one content, one event
                await self.deletions.delete_manifest(routed, name, author, is_known=is_known, tags=tags.get(name, ()))
                self.holdings.end(routed, ContentKind.MANIFEST, name)
                self.holdings.forget_tags_of(routed, name)
                await self.proofs.note_delete(routed, ContentKind.MANIFEST, name)
        if manifest is not None and (subject := subject_in(manifest)) is not None:
            for name in deleted:
                await self.referrers.note_delete(routed, subject, name)
        return digest

    async def _find_manifest(self, routed: RoutedRepository, digest: Digest) -> Manifest | None:
        try:
            return await self.referrers.find_manifest(routed, digest)
        except (RegistryError, UpstreamUnavailableError):
            return None  # a manifest that cannot be read can be deleted all the same

    async def _is_held(self, routed: RoutedRepository, digest: Digest) -> bool:
        return self._is_known(routed, digest) or await self.deletions.holds(routed, digest)

    def _is_known(self, routed: RoutedRepository, digest: Digest) -> bool:
        return self.holdings.find(routed, ContentKind.MANIFEST, digest) is not None

    async def _delete_blob(self, routed: RoutedRepository, digest: Digest) -> None:
        await self.proofs.require(routed, ContentKind.BLOB, digest)
        async with self.deletions.lease(routed, digest):
            is_known = self.holdings.find(routed, ContentKind.BLOB, digest) is not None
            await self.deletions.delete_blob(routed, digest, is_known=is_known)
            self.holdings.end(routed, ContentKind.BLOB, digest)
            await self.proofs.note_delete(routed, ContentKind.BLOB, digest)
