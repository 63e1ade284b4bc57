"""Proof that a repository holds a content, for upstreams whose replicas answer for a digest in any repository.

There an answer of a replica says nothing about the repository that was named. A repository holds what was pushed or
mounted to it through us, what its tags are, and what a manifest names that it holds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import TypeVar

from registry_proxy.operations.contents import (
    ask,
    find_cached_manifest,
    found_of,
    has,
    links_of,
    parts_of,
    unless_absent,
)
from registry_proxy.operations.flight import SingleFlight
from registry_proxy.ports.content import BlobCache, Holdings
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import RegistryReader, Separation
from registry_proxy.ports.uploads import PushedBlobs
from registry_proxy.protocol.descriptor import Manifest, ManifestLinks
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Tag

HOLDING_FRESH_SECONDS = 24 * 3600.0
"""Past this age a holding is asked for again; it stands when nobody answers."""

_WALK_SECONDS = 10.0
_WALK_SHARE = 10
"""A walk over a repository is valid for so long, or for so many times as long as it took."""

_WALKS_MAX = 64
_DIGESTS_MAX = 100_000
"""Digests remembered of manifests, and as many of walks: some 30 MB each. A walk over more is remembered alone."""

_T = TypeVar("_T")
_UNKNOWN = {ContentKind.BLOB: ErrorCode.BLOB_UNKNOWN, ContentKind.MANIFEST: ErrorCode.MANIFEST_UNKNOWN}


class HoldingProofs:
    """Tells what repositories hold where the replicas cannot be believed, and costs nothing where they can.

    Its methods raise RegistryError and UpstreamUnavailableError as ``Pull``.

    Args:
        readers: by upstream.
        separations: by upstream, whether its replicas can be believed.
        holdings: what is known on this node.
        cache: where manifests may lie.
        recorded: returns the manifests that were pushed to a repository through any node.
        pushed: the blobs that were.
    """

    def __init__(
        self,
        *,
        readers: Mapping[str, RegistryReader],
        separations: Mapping[str, Separation],
        holdings: Holdings,
        cache: BlobCache,
        recorded: Callable[[RoutedRepository], Awaitable[Iterable[Digest]]],
        pushed: PushedBlobs,
    ) -> None:
        self._readers = readers
        self._separations = separations
        self._holdings = holdings
        self._cache = cache
        self._recorded = recorded
        self._pushed = pushed
        self._links: dict[Digest, frozenset[Digest]] = {}
        self._linked = 0
        self._walks: SingleFlight[Collection[Digest]] = SingleFlight()
        self._walked: dict[RoutedRepository, tuple[float, Collection[Digest]]] = {}

    # ------------------------------------------------------------ questions

    async def ask(
        self, routed: RoutedRepository, kind: ContentKind, digest: Digest, question: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Return the answer of the replicas to a question, if it is one about this repository.

        Raises:
            RegistryError: BLOB_UNKNOWN or MANIFEST_UNKNOWN when nothing proves that the repository holds the content.
        """
        separation = self._separations[routed.upstream]
        if not separation.is_mixed(kind):
            answer = await question()
            if separation.is_settled(kind) or await self._is_proved_here(routed, kind, digest):
                return answer
            await self._verify(routed, kind, digest)
            if not separation.is_mixed(kind):
                return answer
        await self.require(routed, kind, digest)
        return await question()

    async def require(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> None:
        """Raise as ``ask`` unless the repository is proved to hold a content, or its replicas can be believed."""
        known = self._holdings.find(routed, kind, digest)
        is_fresh = known is not None and known.age_seconds < HOLDING_FRESH_SECONDS
        if is_fresh or not self._separations[routed.upstream].is_mixed(kind):
            return
        try:
            is_proved = await self._is_proved(routed, kind, digest)
        except (RegistryError, UpstreamUnavailableError):
            if known is None:
                raise
            return
        if not is_proved:
            self._holdings.forget(routed, kind, digest)
            raise RegistryError(_UNKNOWN[kind], "the repository does not hold it", detail={"digest": str(digest)})

    async def is_held(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        """Tell whether a repository holds a content."""
        known = self._holdings.find(routed, kind, digest)
        if known is not None and known.age_seconds < HOLDING_FRESH_SECONDS:
            return True
        return await has(self.ask(routed, kind, digest, lambda: self._look_up(routed, kind, digest)))

    def _look_up(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> Awaitable[object]:
        return ask(self._readers[routed.upstream], routed.repository, kind, digest)

    async def _verify(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> None:
        """Find out whether the replica that answered can be believed; where it has died since, ask another one."""
        separation = self._separations[routed.upstream]
        try:
            await separation.verify(kind)
        except UpstreamUnavailableError:
            await self._look_up(routed, kind, digest)
            await separation.verify(kind)

    async def may_mount(self, source: RoutedRepository, digest: Digest) -> bool:
        """Tell whether a replica may be asked to mount a blob from a repository."""
        is_apart = self._separations[source.upstream].is_apart(ContentKind.BLOB)
        return is_apart or await self.is_held(source, ContentKind.BLOB, digest)

    async def find_absent(self, routed: RoutedRepository, links: ManifestLinks) -> list[Digest]:
        """Return what a manifest names and its repository does not hold; nothing where the registry judges that itself.

        To name a digest would else be enough to hold it.
        """
        separation = self._separations[routed.upstream]
        if all(separation.is_apart(kind) for kind in ContentKind):
            return []
        absent = [digest for kind, digest in parts_of(links) if not await self.is_held(routed, kind, digest)]
        return absent if any(separation.is_mixed(kind) for kind in ContentKind) else []

    async def note_push(self, routed: RoutedRepository, digest: Digest) -> None:
        """Record a pushed or mounted blob for all nodes, where the replicas prove nothing."""
        if not self._separations[routed.upstream].is_apart(ContentKind.BLOB):
            await self._pushed.note(routed, digest)

    async def note_delete(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> None:
        """Forget what proved a content that was deleted from a repository."""
        self._walked.pop(routed, None)
        if kind is ContentKind.BLOB and not self._separations[routed.upstream].is_apart(kind):
            await self._pushed.forget(routed, digest)

    async def named(self, routed: RoutedRepository) -> Collection[Digest]:
        """Return what the manifests of a repository name now, and these; those past us without a tag are not known."""
        self._walked.pop(routed, None)
        return await self._walk(routed)

    # ------------------------------------------------------------ proof

    async def _is_proved(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        if await self._is_proved_here(routed, kind, digest):
            return True
        if kind is ContentKind.BLOB and await self._pushed.has(routed, digest):
            return True
        return digest in await self._walk(routed)

    async def _is_proved_here(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        """Tell whether what this node knows of the repository proves it: costs no request."""
        if kind is ContentKind.MANIFEST and self._holdings.has_tag_on(routed, digest):
            return True
        for known in self._holdings.manifests_of(routed):
            links = self._links.get(known)
            if links is None:
                manifest = find_cached_manifest(self._holdings, self._cache, routed, known)
                if manifest is None:
                    continue
                links = self._read_links(manifest)
                await asyncio.sleep(0)  # there may be thousands
            if digest in links:
                return True
        return False

    def _read_links(self, manifest: Manifest) -> frozenset[Digest]:
        digest = manifest.descriptor.digest
        found = self._links.get(digest)
        if found is None:
            found = frozenset(part for _, part in parts_of(links_of(manifest)))
            self._linked += len(found) + 1
            if self._linked > _DIGESTS_MAX:
                self._links.clear()
                self._linked = len(found) + 1
            self._links[digest] = found
        return found

    async def _walk(self, routed: RoutedRepository) -> Collection[Digest]:
        """Return all that the manifests of a repository name, and these themselves: a while old at most."""
        until, held = self._walked.get(routed, (0.0, frozenset[Digest]()))
        if time.monotonic() < until:
            return held
        held, _ = await self._walks.run(routed, lambda: self._walk_now(routed))
        return held

    async def _walk_now(self, routed: RoutedRepository) -> Collection[Digest]:
        began, reader = time.monotonic(), self._readers[routed.upstream]

        async def resolve(tag: Tag) -> Digest | None:
            resolved = await unless_absent(reader.resolve_tag(routed.repository, tag))
            return None if resolved is None else resolved.digest

        async def read(digest: Digest) -> ManifestLinks | None:
            manifest = await unless_absent(self._fetch(routed, digest))
            return None if manifest is None else links_of(manifest)

        tags = await unless_absent(reader.list_tags(routed.repository))
        tagged = await found_of(resolve, tags or ())
        fresh = {*await self._recorded(routed), *tagged}
        held = set(fresh)
        while fresh:
            read_links = await found_of(read, fresh)
            held |= {blob.digest for links in read_links for blob in links.blobs}
            fresh = {child.digest for links in read_links for child in links.manifests} - held
            held |= fresh
        walked = sum(len(each) for _, each in self._walked.values()) + len(held)
        if len(self._walked) >= _WALKS_MAX or walked > _DIGESTS_MAX:
            self._walked.clear()
        took = time.monotonic() - began
        self._walked[routed] = (time.monotonic() + max(_WALK_SECONDS, _WALK_SHARE * took), held)
        return held

    async def _fetch(self, routed: RoutedRepository, digest: Digest) -> Manifest:
        cached = find_cached_manifest(self._holdings, self._cache, routed, digest)
        return cached or await self._readers[routed.upstream].fetch_manifest(routed.repository, digest)
