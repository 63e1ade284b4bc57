"""Manifests that a registry does not take as they are, stored there in wrappers (docs/decisions/68).

A registry is asked for a manifest by its digest first, and gets it as it is. Where it does not take that, it gets the
wrapper, under a reserved tag in the same repository: so the manifest is found again by its digest, and outlives a
garbage collection. What is named by sha256 costs nothing more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from cachetools import FIFOCache

from registry_proxy.protocol.descriptor import Descriptor, Manifest, ManifestLinks, parse_manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, kept_tag
from registry_proxy.protocol.wrapped import may_be_wrapper, unwrap, wrap
from registry_proxy.replica.answers import not_found
from registry_proxy.replica.failure import ReplicaFailedError
from registry_proxy.replica.manifests import Manifests

_KNOWN_TO_ALL = "sha256"
_UNKNOWN_DIGEST = frozenset({400, 404, 405})
"""Statuses by which registries refuse a digest that they do not know."""

_ABOUT_CONTENT = frozenset({ErrorCode.MANIFEST_BLOB_UNKNOWN, ErrorCode.SIZE_INVALID})
"""Codes of a refusal that is about the manifest, whatever its digest is."""

_AT_ONCE = 8
_REMEMBERED = 1000


class WrappedManifests:
    """The requests of ``Manifests``, as if the registry took every manifest by every digest; errors are the same.

    Args:
        stored: the manifests as they are stored.
        name_of_blob: returns the digest that a registry itself names a blob by; None where it does not have it.
    """

    def __init__(
        self, stored: Manifests, name_of_blob: Callable[[Repository, Digest], Awaitable[Digest | None]]
    ) -> None:
        self._stored = stored
        self._name_of_blob = name_of_blob
        self._originals: FIFOCache[tuple[Repository, Digest], Descriptor] = FIFOCache(_REMEMBERED)

    async def head(self, repository: Repository, tag: Tag) -> Descriptor | None:
        """Ask by HEAD what a tag is: of a wrapper, the manifest in it. What may be a wrapper costs a GET, once."""
        found = await self._stored.head(repository, tag)
        if found is None or not may_be_wrapper(found):
            return found
        original = self._originals.get((repository, found.digest))
        if original is None:
            original = (await self._original(repository, await self._stored.get(repository, found.digest))).descriptor
            self._originals[repository, found.digest] = original
        return original

    async def get(self, repository: Repository, tag_or_digest: Tag | Digest) -> Manifest:
        """Return a manifest; its bytes were compared with the digest, whatever led to them."""
        if not isinstance(tag_or_digest, Digest):
            manifest = await self._stored.get(repository, tag_or_digest)
            return await self._original(repository, manifest)
        try:
            return await self._stored.get(repository, tag_or_digest)
        except RegistryError as error:
            if tag_or_digest.algorithm == _KNOWN_TO_ALL or error.status not in _UNKNOWN_DIGEST:
                raise
        original = unwrap((await self._stored.get(repository, kept_tag(tag_or_digest))).body)
        if original is None or original.descriptor.digest != tag_or_digest:
            raise not_found(ErrorCode.MANIFEST_UNKNOWN, {"digest": str(tag_or_digest)})
        return original

    async def put(self, repository: Repository, tag_or_digest: Tag | Digest, manifest: Manifest) -> None:
        """Store a manifest, in a wrapper where the registry does not know its digest.

        Raises:
            RegistryError: SIZE_INVALID where the wrapper would be too large.
        """
        digest = manifest.descriptor.digest
        if digest.algorithm == _KNOWN_TO_ALL:
            await self._stored.put(repository, tag_or_digest, manifest)
            return
        tag = None if isinstance(tag_or_digest, Digest) else tag_or_digest
        if await self._is_taken(repository, tag, manifest):
            return
        names = await self._names(repository, parse_manifest(manifest.body, manifest.descriptor.media_type))
        wrapper = await asyncio.to_thread(wrap, manifest, names)
        await self._stored.put(repository, kept_tag(digest), wrapper)
        if tag is not None:
            await self._stored.put(repository, tag, wrapper)

    async def delete(self, repository: Repository, digest: Digest) -> None:
        """Delete a manifest with all its tags, stored either way; a 404 counts as done."""
        wrapper = None
        if digest.algorithm != _KNOWN_TO_ALL and (wrapper := await self._wrapper(repository, digest)) is not None:
            await self._stored.delete(repository, wrapper.digest)
        try:
            await self._stored.delete(repository, digest)
        except RegistryError as error:
            if wrapper is None or error.status not in _UNKNOWN_DIGEST:
                raise

    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        """Delete a tag that exists."""
        await self._stored.delete_tag(repository, tag)

    async def _original(self, repository: Repository, manifest: Manifest) -> Manifest:
        """Return the manifest in a wrapper that the repository keeps; every other manifest as it is.

        A wrapper that came by another way, copied from another repository, is an ordinary manifest.
        """
        original = unwrap(manifest.body)
        if original is None or original.descriptor.digest.algorithm == _KNOWN_TO_ALL:
            return manifest
        kept = await self._wrapper(repository, original.descriptor.digest)
        return manifest if kept is None or kept.digest != manifest.descriptor.digest else original

    async def _is_taken(self, repository: Repository, tag: Tag | None, manifest: Manifest) -> bool:
        """Tell whether the registry stores a manifest by its digest, and puts the tag on that."""
        try:
            return await self._stored.put(repository, manifest.descriptor.digest, manifest, tag=tag)
        except RegistryError as error:
            if error.status not in _UNKNOWN_DIGEST or error.code in _ABOUT_CONTENT:
                raise
        except ReplicaFailedError as error:
            if error.outcome != "mismatch":
                raise
        return False

    async def _names(self, repository: Repository, links: ManifestLinks) -> dict[str, Descriptor]:
        """Return what the registry has in place of what a manifest names."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def blob(part: Descriptor) -> tuple[str, Descriptor | None]:
            async with limit:
                name = await self._name_of_blob(repository, part.digest)
                found = None if name is None else Descriptor(part.media_type, name, part.size_bytes)
                return str(part.digest), found

        async def child(part: Descriptor) -> tuple[str, Descriptor | None]:
            async with limit:
                return str(part.digest), await self._wrapper(repository, part.digest)

        questions = [blob(part) for part in _not_known_to_all(links.blobs)]
        questions += [child(part) for part in _not_known_to_all(links.manifests)]
        return {name: found for name, found in await asyncio.gather(*questions) if found is not None}

    async def _wrapper(self, repository: Repository, digest: Digest) -> Descriptor | None:
        """Return the wrapper of a manifest; None where there is none."""
        try:
            tag = kept_tag(digest)
            return await self._stored.head(repository, tag) or (await self._stored.get(repository, tag)).descriptor
        except RegistryError as error:
            if error.status != 404:
                raise
            return None


def _not_known_to_all(parts: Iterable[Descriptor]) -> Iterable[Descriptor]:
    return {part.digest: part for part in parts if part.digest.algorithm != _KNOWN_TO_ALL}.values()
