"""Referrers: listed over all replicas, and kept under the fallback tag for registries that have no list of them.

A registry without the referrers API has the list as an index under a tag. Clients leave that to us, since each push is
answered with OCI-Subject; so it is kept current here, also for clients that ask such a registry itself.
"""

import logging
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from registry_proxy.operations.contents import found_of, has, links_of, unless_absent
from registry_proxy.operations.fallback_tags import FallbackTags
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.warm import fill_whole
from registry_proxy.ports.errors import (
    CacheUnavailableError,
    FillFailedError,
    StoreUnavailableError,
    UpstreamUnavailableError,
)
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.descriptor import Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Tag, fallback_tags, subject_of
from registry_proxy.protocol.referrers import (
    PAGE_MAX_ENTRIES,
    Referrer,
    describe_referrer,
    index_of,
    merge_referrers,
    page_of,
    parse_referrers,
)

_log = logging.getLogger(__name__)


def subject_in(manifest: Manifest) -> Digest | None:
    """Return what a manifest refers to; None for nothing."""
    subject = links_of(manifest).manifest_subject
    return None if subject is None else subject.digest


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """A part of a list of referrers; ``last`` is the digest that the next part begins after, None at the end."""

    index: Manifest
    last: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrers:
    """The list of what refers to a manifest.

    Args:
        pull: reads the manifests that a repository holds.
        tags: keeps the indexes under fallback tags.
    """

    pull: Pull
    tags: FallbackTags

    async def list_page(
        self,
        routed: RoutedRepository,
        subject: Digest,
        artifact_type: str | None,
        *,
        last: str | None = None,
        page_size: int | None = None,
    ) -> ReferrersPage:
        """Return a part of the manifests that refer to one, which need not exist (spec end-12a, end-12b).

        Args:
            routed: the repository.
            subject: the manifest.
            artifact_type: only referrers of this type; None for all.
            last: the digest after which the part begins.
            page_size: None for as many as one part may hold.

        Raises:
            RegistryError: a 502 where a registry answers wrongly.
            UpstreamUnavailableError: the list might miss something.
        """
        entries = await self._find(routed, subject)
        if artifact_type is not None:
            entries = [entry for entry in entries if entry.artifact_type == artifact_type]
        page, more = page_of(entries, last, PAGE_MAX_ENTRIES if page_size is None else page_size)
        return ReferrersPage(index_of(page), str(page[-1].digest) if more else None)

    async def digests(self, routed: RoutedRepository, subject: Digest) -> Sequence[Digest]:
        """Return all manifests that refer to one; errors as for a page."""
        return [entry.digest for entry in await self._find(routed, subject)]

    async def _find(self, routed: RoutedRepository, subject: Digest) -> Sequence[Referrer]:
        held = await self.tags.held(routed, subject)
        listed = {entry.digest for entry in held.listed}
        tagged = await self._existing(routed, [entry for entry in held.tagged if entry.digest not in listed])
        return merge_referrers(held.listed, tagged)

    # ------------------------------------------------------------ the fallback tag

    async def note_push(self, routed: RoutedRepository, subject: Digest, manifest: Manifest) -> None:
        """Have a manifest that was pushed listed under the fallback tag of its subject, where a registry needs that.

        Raises as a push of a manifest.
        """
        tag = fallback_tags(subject)[0]
        async with self.tags.lease(routed, tag):
            held = await self.tags.held(routed, subject)
            if held.needs_tag:
                await self._write(routed, tag, held.tags, [describe_referrer(manifest), *held.listed, *held.tagged])

    async def find_manifest(self, routed: RoutedRepository, digest: Digest) -> Manifest | None:
        """Return a manifest; None where it does not exist."""
        return await unless_absent(self._fetch(routed, digest))

    async def _find_subject(self, routed: RoutedRepository, digest: Digest) -> Digest | None:
        """Return what a manifest refers to; None where it refers to nothing, or does not exist."""
        manifest = await self.find_manifest(routed, digest)
        return None if manifest is None else subject_in(manifest)

    async def note_delete(self, routed: RoutedRepository, subject: Digest, digest: Digest) -> None:
        """Take a manifest that was deleted out of the index under its subject's fallback tag.

        The delete is done: where this fails the entry stays for those who ask a registry itself, and nowhere else.
        """
        tag = fallback_tags(subject)[0]
        try:
            async with self.tags.lease(routed, tag):
                held = await self.tags.held(routed, subject)
                if held.needs_tag and any(entry.digest == digest for entry in held.tagged):
                    left = [entry for entry in (*held.listed, *held.tagged) if entry.digest != digest]
                    await self._write(routed, tag, held.tags, left)
        except (RegistryError, UpstreamUnavailableError, StoreUnavailableError) as error:
            _log.warning("%s was deleted from %s, and the tag %s still lists it: %s", digest, routed, tag, error)

    @asynccontextmanager
    async def replacing(self, routed: RoutedRepository, tag: Tag, index: Manifest) -> AsyncIterator[None]:
        """Let a client push an index under a fallback tag, and list again what the client did not know of.

        Older clients read the index, add to it and push it: without this the last of several at once would win.
        """
        async with self.tags.lease(routed, tag):
            subject = subject_of(tag)
            held = None
            if subject is not None:
                try:
                    held = await self.tags.held(routed, subject)
                except UpstreamUnavailableError:
                    _log.info("%s: not compared with what the tag %s was", routed, tag)
            yield
            if held is None or subject is None:
                return
            try:
                pushed = parse_referrers(index.body, skips_malformed=True)
            except ValueError:
                return
            known = {entry.digest for entry in pushed}
            unknown = [entry for entry in held.tagged if entry.digest not in known]
            left_out = [one for one in unknown if await self._find_subject(routed, one.digest) == subject]
            if left_out:
                await self._write(routed, tag, frozenset({index.descriptor.digest}), [*pushed, *left_out])

    async def _write(
        self, routed: RoutedRepository, tag: Tag, tags: Collection[Digest | None], entries: Sequence[Referrer]
    ) -> None:
        """Put an index under a fallback tag; ``tags`` is what this is at the replicas now."""
        try:
            await self.tags.write(routed, tag, tags, entries)
        except RegistryError as error:
            if error.code is not ErrorCode.MANIFEST_BLOB_UNKNOWN:
                raise
            # Registries take no index that names what is not there: it was deleted past us, or is at another replica
            # alone, which was pushed to past us. That is sent from the cache.
            existing = await self._existing(routed, entries)
            for entry in existing:
                await self._bring(routed, entry.digest)
            await self.tags.write(routed, tag, tags, existing)

    async def _bring(self, routed: RoutedRepository, digest: Digest) -> None:
        """Have a manifest and its blobs in the cache; as far as it takes them."""
        for blob in links_of(await self._fetch(routed, digest)).blobs:
            with suppress(CacheUnavailableError, FillFailedError):
                await fill_whole(self.pull, routed, blob.digest)

    # ------------------------------------------------------------ reading

    async def _existing(self, routed: RoutedRepository, entries: Iterable[Referrer]) -> list[Referrer]:
        """Return the entries of manifests that exist, those without a type as the specification derives them."""

        async def check(entry: Referrer) -> Referrer | None:
            if entry.artifact_type is not None:
                return entry if await has(self.pull.head_manifest(routed, entry.digest)) else None
            manifest = await unless_absent(self._fetch(routed, entry.digest))
            return None if manifest is None else describe_referrer(manifest)

        return await found_of(check, entries)

    async def _fetch(self, routed: RoutedRepository, digest: Digest) -> Manifest:
        cached = self.pull.read_cached_manifest(routed, digest)
        return cached or (await self.pull.get_manifest(routed, digest)).manifest
