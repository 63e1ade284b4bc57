"""Pulling manifests and blobs (spec, "Pull"): from the cache when the repository holds the digest, else upstream.

A digest is global, the right to read it is not: bytes leave only when a replica, or our own commit, said that THIS
repository holds them (its holding). A tag is asked for, a digest is cached for ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from registry_proxy.operations.ask import Ask, answer_of
from registry_proxy.operations.flight import SingleFlight
from registry_proxy.operations.proofs import HOLDING_FRESH_SECONDS, HoldingProofs
from registry_proxy.operations.pull_blobs import PullBlobs
from registry_proxy.operations.tags import RecordedTags, ResolvedTag, TagResolver, TagRules
from registry_proxy.ports.content import BlobCache, Holding, Holdings
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.metrics import CacheRequest, Observer
from registry_proxy.ports.names import CacheResult, ContentKind, RoutedRepository
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.protocol.descriptor import Descriptor, Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Tag

_HIT = CacheRequest(ContentKind.MANIFEST, CacheResult.HIT)  # made once: most requests end with it


class ManifestAnswer(NamedTuple):
    """A manifest to serve; ``warning`` is the value of a Warning header where the tag could not be asked for."""

    manifest: Manifest
    result: CacheResult
    warning: str | None


class ManifestHead(NamedTuple):
    """The answer to a HEAD of a manifest; fields as in ``ManifestAnswer``."""

    descriptor: Descriptor
    result: CacheResult
    warning: str | None


@dataclass(frozen=True, slots=True)
class _Fetched:
    manifest: Manifest
    was_here: bool


class Pull:
    """The verbs of pulling.

    Every method raises RegistryError (404 only when every current replica said so), and UpstreamUnavailableError
    or FillFailedError when the upstream could not, or did not rightly, answer.

    Args:
        readers: by upstream; wait for a replica to come back.
        impatient_readers: by upstream; do not wait: used where something older can stand in.
        cache: bytes on local disk.
        holdings: which repository holds what.
        proofs: whether an answer of the upstream is one about the repository.
        observer: receives hits and misses.
        tag_rules: by upstream, how long a tag is answered without asking, and despite which errors.
        records: the records of tags; None for none.
    """

    def __init__(
        self,
        *,
        readers: Mapping[str, RegistryReader],
        impatient_readers: Mapping[str, RegistryReader],
        cache: BlobCache,
        holdings: Holdings,
        proofs: HoldingProofs,
        observer: Observer,
        tag_rules: Mapping[str, TagRules],
        records: RecordedTags | None = None,
    ) -> None:
        self._readers = readers
        self._impatient_readers = impatient_readers
        self._cache = cache
        self._holdings = holdings
        self._proofs = proofs
        self._observer = observer
        self._tags = TagResolver(
            readers=readers,
            impatient_readers=impatient_readers,
            holdings=holdings,
            observer=observer,
            rules=tag_rules,
            records=records,
            content=self._find_manifest,
        )
        self._fetches: SingleFlight[_Fetched] = SingleFlight()
        self.blobs = PullBlobs(
            readers=readers,
            impatient_readers=impatient_readers,
            cache=cache,
            holdings=holdings,
            proofs=proofs,
            observer=observer,
        )
        """The verbs of pulling blobs."""

    def find_manifest(
        self, routed: RoutedRepository, tag_or_digest: Tag | Digest
    ) -> ManifestAnswer | Ask[ManifestAnswer]:
        """Return a manifest, counted as a hit, where it is here; else the way to it."""
        if isinstance(tag_or_digest, Digest):
            digest: Digest | None = tag_or_digest
        else:
            resolved = self._tags.find(routed, tag_or_digest)
            digest = None if resolved is None else resolved.digest
        manifest = None if digest is None else self.read_cached_manifest(routed, digest)
        if manifest is None:
            return Ask(partial(self._ask_manifest, routed, tag_or_digest))
        self._observer.observe(_HIT)
        return ManifestAnswer(manifest, CacheResult.HIT, None)

    async def get_manifest(self, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> ManifestAnswer:
        """Return the manifest with its exact bytes and media type."""
        return await answer_of(self.find_manifest(routed, tag_or_digest))

    async def _ask_manifest(self, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> ManifestAnswer:
        if isinstance(tag_or_digest, Digest):
            manifest, result = await self._fetch_once(routed, tag_or_digest)
            warning = None
        else:
            manifest, result, warning = await self._tagged_manifest(routed, tag_or_digest)
        self._observer.observe(CacheRequest(ContentKind.MANIFEST, result))
        return ManifestAnswer(manifest, result, warning)

    def read_cached_manifest(self, routed: RoutedRepository, digest: Digest) -> Manifest | None:
        """Return a manifest that the repository is known to hold and that is here, else None; counts nothing."""
        holding = self._fresh(routed, digest)
        body = None if holding is None else self._cache.read_small(digest)
        return None if holding is None or body is None else Manifest(holding.descriptor, body)

    def find_manifest_head(
        self, routed: RoutedRepository, tag_or_digest: Tag | Digest
    ) -> ManifestHead | Ask[ManifestHead]:
        """Return a manifest's descriptor where nobody has to be asked for it; else the way to it."""
        if isinstance(tag_or_digest, Digest):
            holding = self._fresh(routed, tag_or_digest)
            known = None if holding is None else holding.descriptor
        else:
            resolved = self._tags.find(routed, tag_or_digest)
            known = None if resolved is None else self._described(routed, resolved)
        if known is None:
            return Ask(partial(self._ask_manifest_head, routed, tag_or_digest))
        return ManifestHead(known, CacheResult.HIT, None)

    async def head_manifest(self, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> ManifestHead:
        """Return the manifest's descriptor; a tag costs the upstream at most one HEAD."""
        return await answer_of(self.find_manifest_head(routed, tag_or_digest))

    async def _ask_manifest_head(self, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> ManifestHead:
        if isinstance(tag_or_digest, Digest):
            manifest, result = await self._fetch_once(routed, tag_or_digest)
            return ManifestHead(manifest.descriptor, result, None)
        resolved = await self._tags.resolve(routed, tag_or_digest)
        result = CacheResult.MISS if resolved.was_asked else CacheResult.HIT
        return ManifestHead(self._described(routed, resolved), result, resolved.warning)

    def _described(self, routed: RoutedRepository, resolved: ResolvedTag) -> Descriptor:
        """Return the descriptor of the manifest that a tag is, as its repository holds it."""
        holding = self._fresh(routed, resolved.digest)
        return resolved.descriptor if holding is None else holding.descriptor

    async def _tagged_manifest(self, routed: RoutedRepository, tag: Tag) -> tuple[Manifest, CacheResult, str | None]:
        resolved = await self._tags.resolve(routed, tag)
        try:
            manifest, result = await self._manifest(routed, resolved.digest)
        except RegistryError as error:
            if error.status != 404:
                raise
            # The tag was moved or deleted, and what it was is gone, since a replica named it: ask once more.
            self._holdings.forget_tag(routed, tag)
            resolved = await self._tags.resolve(routed, tag)
            manifest, result = await self._manifest(routed, resolved.digest)
        return manifest, result, resolved.warning

    async def _manifest(self, routed: RoutedRepository, digest: Digest) -> tuple[Manifest, CacheResult]:
        manifest = self.read_cached_manifest(routed, digest)
        return await self._fetch_once(routed, digest) if manifest is None else (manifest, CacheResult.HIT)

    async def _fetch_once(self, routed: RoutedRepository, digest: Digest) -> tuple[Manifest, CacheResult]:
        fetched, is_first = await self._fetches.run((routed, digest), lambda: self._fetch_manifest(routed, digest))
        if fetched.was_here:
            return fetched.manifest, CacheResult.HIT
        return fetched.manifest, CacheResult.MISS if is_first else CacheResult.LATCH

    async def _fetch_manifest(self, routed: RoutedRepository, digest: Digest) -> _Fetched:
        """Fetch it, which learns the holding; where a holding has only aged, what is here can stand in."""
        known = self._holdings.find(routed, ContentKind.MANIFEST, digest)
        body = None if known is None else self._cache.read_small(digest)
        asked_at = self._holdings.moment(routed)
        readers = self._readers if body is None else self._impatient_readers
        try:
            reader = readers[routed.upstream]
            manifest = await self._proofs.ask(
                routed, ContentKind.MANIFEST, digest, lambda: reader.fetch_manifest(routed.repository, digest)
            )
        except (RegistryError, UpstreamUnavailableError) as error:
            if isinstance(error, RegistryError) and error.status == 404:
                self._holdings.forget(routed, ContentKind.MANIFEST, digest)
                raise
            if known is None or body is None:
                raise
            return _Fetched(Manifest(known.descriptor, body), was_here=True)
        await self._cache.store(digest, manifest.body)
        self._holdings.remember(routed, ContentKind.MANIFEST, manifest.descriptor, asked_at=asked_at)
        return _Fetched(manifest, was_here=False)

    async def _find_manifest(self, routed: RoutedRepository, digest: Digest) -> Descriptor | None:
        """Return the descriptor of a manifest that can be served; None where it cannot."""
        try:
            manifest, _ = await self._manifest(routed, digest)
        except (RegistryError, UpstreamUnavailableError):
            return None
        return manifest.descriptor

    def _fresh(
        self, routed: RoutedRepository, digest: Digest, kind: ContentKind = ContentKind.MANIFEST
    ) -> Holding | None:
        holding = self._holdings.find(routed, kind, digest)
        return holding if holding is not None and holding.age_seconds < HOLDING_FRESH_SECONDS else None
