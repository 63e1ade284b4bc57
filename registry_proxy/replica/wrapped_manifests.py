"""Manifests that a registry does not take as they are, stored there in wrappers (docs/decisions/, 71 and 72).

A registry is asked for a manifest by its digest first, and gets it as it is. Where it does not take that, it gets the
wrapper, under a reserved tag in the same repository: so the manifest is found again by its digest, and outlives a
garbage collection. A manifest that the registry has as it is costs nothing more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from cachetools import FIFOCache

from registry_proxy.protocol.descriptor import Descriptor, Manifest, is_foreign, parse_manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, kept_tag
from registry_proxy.protocol.wrapped import has_urls, may_be_wrapper, unwrap, wrap
from registry_proxy.replica.answers import not_found
from registry_proxy.replica.failure import ReplicaFailedError
from registry_proxy.replica.manifests import Manifests

_KNOWN_TO_ALL = "sha256"
_UNKNOWN_DIGEST = frozenset({400, 404, 405})
"""Statuses by which registries refuse a digest that they do not know."""

_REFUSALS = frozenset({400, 404, 422})
"""Statuses by which registries refuse a manifest for what it names."""

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
            manifest = await self._stored.get(repository, tag_or_digest)
        except RegistryError as error:
            if error.status not in _UNKNOWN_DIGEST:
                raise
            wrapper = await self._find_wrapper(repository, tag_or_digest)
            original = None if wrapper is None else unwrap(wrapper.body)
            if original is not None and original.descriptor.digest == tag_or_digest:
                return original
            if error.status == 404:
                raise
            raise not_found(ErrorCode.MANIFEST_UNKNOWN, {"digest": str(tag_or_digest)}) from error
        if await self._original(repository, manifest) is not manifest:  # else a delete of it would take the manifest
            raise not_found(ErrorCode.MANIFEST_UNKNOWN, {"digest": str(tag_or_digest)})
        return manifest

    async def put(self, repository: Repository, tag_or_digest: Tag | Digest, manifest: Manifest) -> None:
        """Store a manifest, in a wrapper where the registry does not know its digest, or refuses what it names.

        Raises:
            RegistryError: the refusal, of the wrapper where there is one, so that it names only the missing parts;
                SIZE_INVALID where the wrapper would be too large.
        """
        tag = None if isinstance(tag_or_digest, Digest) else tag_or_digest
        refusal: RegistryError | None = None
        try:
            if await self._is_taken(repository, tag, manifest):
                return
        except RegistryError as error:
            if error.status not in _REFUSALS:
                raise
            refusal = error
        names = await self._names(repository, manifest)
        if refusal is not None and not names and not has_urls(manifest):
            raise refusal
        await self._put_wrapper(repository, tag, manifest, names)

    async def _put_wrapper(
        self, repository: Repository, tag: Tag | None, manifest: Manifest, names: Mapping[str, Descriptor | None]
    ) -> None:
        """Store the wrapper of a manifest: the one that is there, where other tags may be on it, else a new one."""
        kept = kept_tag(manifest.descriptor.digest)
        wrapper = await self._find_wrapper(repository, manifest.descriptor.digest)
        if wrapper is None:
            wrapper = await asyncio.to_thread(wrap, manifest, names)
        await self._stored.put(repository, kept, wrapper)
        if tag is not None:
            await self._stored.put(repository, tag, wrapper)

    async def delete(self, repository: Repository, digest: Digest) -> None:
        """Delete a manifest with all its tags, stored either way; a 404 counts as done."""
        wrapper = await self._name_of_wrapper(repository, digest)
        if wrapper is not None:
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
        if original is None or await self._name_of_wrapper(repository, original.descriptor.digest) is None:
            return manifest
        return original

    async def _is_taken(self, repository: Repository, tag: Tag | None, manifest: Manifest) -> bool:
        """Tell whether the registry stores a manifest by its digest, and puts the tag on that.

        Raises:
            RegistryError: it knows such digests, and refuses the manifest.
        """
        digest = manifest.descriptor.digest
        if digest.algorithm == _KNOWN_TO_ALL:
            return await self._stored.put(repository, tag or digest, manifest)
        try:
            return await self._stored.put(repository, digest, manifest, tag=tag)
        except RegistryError as error:
            if error.status not in _UNKNOWN_DIGEST or error.code in _ABOUT_CONTENT:
                raise
        except ReplicaFailedError as error:
            if error.outcome != "mismatch":
                raise
        return False

    async def _names(self, repository: Repository, manifest: Manifest) -> dict[str, Descriptor | None]:
        """Return what the registry has in place of what a manifest names; None for what lies elsewhere."""
        limit = asyncio.Semaphore(_AT_ONCE)
        try:
            links = parse_manifest(manifest.body, manifest.descriptor.media_type)
        except RegistryError:  # Docker schema 1, say
            return {}

        async def blob(part: Descriptor) -> tuple[Descriptor, Descriptor | None]:
            async with limit:
                name = await self._name_of_blob(repository, part.digest)
                return part, None if name is None else Descriptor(part.media_type, name, part.size_bytes)

        async def child(part: Descriptor) -> tuple[Descriptor, Descriptor | None]:
            async with limit:
                return part, await self._name_of_wrapper(repository, part.digest)

        questions = [child(part) for part in _once(links.manifests)]
        questions += [blob(part) for part in _once([*links.blobs, *links.foreign]) if _is_asked(part)]
        found = await asyncio.gather(*questions)
        return {str(one.digest): name for one, name in found if name is not None or is_foreign(one.media_type)}

    async def _name_of_wrapper(self, repository: Repository, digest: Digest) -> Descriptor | None:
        """Return the wrapper of a manifest; None where there is none."""
        wrapper = await self._find_wrapper(repository, digest)
        return None if wrapper is None else wrapper.descriptor

    async def _find_wrapper(self, repository: Repository, digest: Digest) -> Manifest | None:
        """Return the wrapper of a manifest, by a GET: some registries answer HEAD as no registry should."""
        try:
            return await self._stored.get(repository, kept_tag(digest))
        except RegistryError as error:
            if error.status != 404:
                raise
            return None


def _once(parts: Iterable[Descriptor]) -> Iterable[Descriptor]:
    return {part.digest: part for part in parts}.values()


def _is_asked(blob: Descriptor) -> bool:
    """Tell whether a registry may have another name for a blob, or not have it and take a wrapper nevertheless."""
    return blob.digest.algorithm != _KNOWN_TO_ALL or is_foreign(blob.media_type)
