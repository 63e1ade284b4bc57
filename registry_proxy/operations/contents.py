"""Contents of either kind, manifests and blobs: asked of a registry, named by a manifest, found in the cache."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from registry_proxy.ports.content import BlobCache, Holdings
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.protocol.descriptor import Manifest, ManifestLinks, parse_manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag

_AT_ONCE = 8
_TAGS_MAX = 10_000

_K = TypeVar("_K")
_T = TypeVar("_T")


def ask(reader: RegistryReader, repository: Repository, kind: ContentKind, digest: Digest) -> Awaitable[object]:
    """Ask a registry for a content, for ``has``."""
    if kind is ContentKind.BLOB:
        return reader.stat_blob(repository, digest)
    return reader.fetch_manifest(repository, digest)


async def has(question: Awaitable[object]) -> bool:
    """Tell whether a registry has what it is asked for: False for a 404."""
    return await unless_absent(question) is not None


async def unless_absent(answer: Awaitable[_T]) -> _T | None:
    """Return an answer, None for a 404."""
    try:
        return await answer
    except RegistryError as error:
        if error.status != 404:
            raise
        return None


async def found_of(question: Callable[[_K], Awaitable[_T | None]], keys: Iterable[_K]) -> list[_T]:
    """Ask about each of some keys, a few at once; return the answers in their order, without those that are None."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def ask_one(key: _K) -> _T | None:
        async with limit:
            return await question(key)

    return [answer for answer in await asyncio.gather(*map(ask_one, keys)) if answer is not None]


async def tags_on(reader: RegistryReader, repository: Repository, digest: Digest) -> Sequence[Tag]:
    """Return the tags that are a digest at the registries: each tag of the repository is asked for.

    Raises:
        RegistryError, UpstreamUnavailableError: it cannot be known. DENIED (403) where the repository has too many.
    """
    tags = await unless_absent(reader.list_tags(repository)) or ()
    if len(tags) > _TAGS_MAX:
        message = f"the repository has more than {_TAGS_MAX} tags, too many to find those on a digest"
        raise RegistryError(ErrorCode.DENIED, message, status=403)

    async def if_on_digest(tag: Tag) -> Tag | None:
        found = await unless_absent(reader.resolve_tag(repository, tag))
        return tag if found is not None and found.digest == digest else None

    return await found_of(if_on_digest, tags)


def links_of(manifest: Manifest) -> ManifestLinks:
    """Return what a manifest refers to; nothing for kinds of which we do not know it, such as Docker schema 1."""
    try:
        return parse_manifest(manifest.body, manifest.descriptor.media_type)
    except RegistryError:
        return ManifestLinks((), (), None)


def parts_of(links: ManifestLinks) -> list[tuple[ContentKind, Digest]]:
    """Return the contents that must lie in a repository before a manifest with these links."""
    blobs = [(ContentKind.BLOB, blob.digest) for blob in links.blobs]
    return blobs + [(ContentKind.MANIFEST, child.digest) for child in links.manifests]


def find_cached_manifest(
    holdings: Holdings, cache: BlobCache, routed: RoutedRepository, digest: Digest
) -> Manifest | None:
    """Return a manifest that this node has, and knows its repository to hold."""
    known = holdings.find(routed, ContentKind.MANIFEST, digest)
    body = None if known is None else cache.read_small(digest)
    return None if known is None or body is None else Manifest(known.descriptor, body)


def is_committed(cache: BlobCache, digest: Digest) -> bool:
    """Tell whether a content is complete and verified in the cache; counts as a use for eviction."""
    reader = cache.open_committed(digest)
    if reader is None:
        return False
    reader.close()
    return True
