"""Fallback tags: indexes of referrers for registries that have no list of them (spec, "Referrers Tag Schema")."""

from collections.abc import Awaitable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from registry_proxy.operations.contents import found_of, has, links_of
from registry_proxy.operations.manifests import ManifestWriter
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import HeldReferrers, UpstreamReader
from registry_proxy.protocol.reference import Digest, Tag, fallback_tags
from registry_proxy.protocol.referrers import Referrer, index_of, merge_referrers


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackTags:
    """Reads and writes the indexes under fallback tags; who writes one holds its lease.

    Args:
        readers: by upstream.
        writer: writes manifests.
    """

    readers: Mapping[str, UpstreamReader]
    writer: ManifestWriter

    def lease(self, routed: RoutedRepository, tag: Tag) -> AbstractAsyncContextManager[None]:
        """Exclude the other writers of a fallback tag, on all nodes. Raises StoreUnavailableError."""
        return self.writer.referrers_lease(routed, tag)

    def held(self, routed: RoutedRepository, subject: Digest) -> Awaitable[HeldReferrers]:
        """Return all that the replicas hold; see ``UpstreamReader.list_referrers``."""
        return self.readers[routed.upstream].list_referrers(routed.repository, subject)

    async def write(
        self, routed: RoutedRepository, tag: Tag, tags: Collection[Digest | None], entries: Iterable[Referrer]
    ) -> None:
        """Put an index under a fallback tag, where it is another one; raises as a push of a manifest.

        Args:
            routed: the repository.
            tag: the tag.
            tags: its digests at the replicas, as far as they are known.
            entries: the referrers that the index lists; registries insist that each exists.
        """
        index = index_of(merge_referrers(entries))
        if set(tags) != {index.descriptor.digest}:
            await self.writer.write(routed, tag, index, links_of(index), may_move_tags=True)

    async def merge(
        self, routed: RoutedRepository, subject: Digest, tags: Collection[Digest | None], entries: Iterable[Referrer]
    ) -> None:
        """Put an index under a subject's fallback tag that has all entries, and all that the replicas hold.

        The other arguments and errors are those of ``write``.
        """
        tag = fallback_tags(subject)[0]
        async with self.lease(routed, tag):
            held = await self.held(routed, subject)
            listed = merge_referrers(held.listed, held.tagged, entries)
            await self.write(routed, tag, tags, await self._existing(routed, listed))

    async def _existing(self, routed: RoutedRepository, entries: Iterable[Referrer]) -> list[Referrer]:
        reader = self.readers[routed.upstream]

        async def check(entry: Referrer) -> Referrer | None:
            return entry if await has(reader.fetch_manifest(routed.repository, entry.digest)) else None

        return await found_of(check, entries)
