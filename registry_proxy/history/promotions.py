"""Promotion: an image of one repository becomes a tag of another one, copied within the proxy.

What belongs to the image goes along: the children of an index, and a snapshot of all that refers to it, as signatures
do. The tag is written last, and judged as a push is; a promotion that was interrupted leaves contents without a tag.
"""

import os
from asyncio import to_thread
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from registry_proxy.history.record import TagHistory
from registry_proxy.history.ways_back import MovedTag, NoWayBackError
from registry_proxy.operations.contents import found_of, links_of, unless_absent
from registry_proxy.operations.push import Push
from registry_proxy.operations.refused_pushes import no_space, tag_exists
from registry_proxy.operations.warm import Warmer
from registry_proxy.ports.content import BlobReader
from registry_proxy.ports.errors import AbsenceUnknownError, CacheUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.history import Cause
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.uploads import UploadBody, Uploader
from registry_proxy.protocol.descriptor import Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Tag, fallback_tags, parse_digest

_MANIFESTS_MAX = 1000
_PIECE_BYTES = 1024 * 1024
_SHOWN_MAX = 100
_LOOKED_AT = 20
"""Number of the newest moves among which the own one is looked for."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """An image that becomes a tag.

    Args:
        source: the repository that has it.
        image: its tag or digest there.
        target: the repository of the tag.
        tag: the tag.
        is_dry: whether it is only looked whether it can be done.
        may_move: whether the caller may move tags that exist.
        may_push: tells whether the caller may push a tag of the target: for those of signatures.
    """

    source: RoutedRepository
    image: Tag | Digest
    target: RoutedRepository
    tag: Tag
    is_dry: bool = False
    may_move: bool = True
    may_push: Callable[[Tag], bool] = lambda _: True


@dataclass(slots=True)
class _Collected:
    """All that is copied: manifests behind those that they name, the tags of signatures, and blobs."""

    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    tags: dict[Tag, Digest] = field(default_factory=dict)
    blobs: dict[Digest, None] = field(default_factory=dict)
    foreign: dict[Digest, None] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotions:
    """Promotes images.

    Args:
        record: the moves.
        warmer: reads images, and what refers to them.
        push: writes to the target as for a client.
    """

    record: TagHistory
    warmer: Warmer
    push: Push

    async def promote(self, promotion: Promotion, cause: Cause) -> MovedTag:
        """Copy an image, and make it a tag.

        Raises:
            NoWayBackError: a content of the image is missing; nothing was written.
            RegistryError, UpstreamUnavailableError, FillFailedError: as a pull of the source.
            StoreUnavailableError: as a push to the target.
        """
        pull, target, tag = self.warmer.pull, promotion.target, promotion.tag
        digest = (await pull.head_manifest(promotion.source, promotion.image)).descriptor.digest
        self.push.blobs.check_writable(target.upstream)
        current = await self._current(target, tag)
        if not promotion.may_move and current not in {None, digest}:
            raise tag_exists(tag)
        collected = await self._collect(promotion.source, digest)
        if promotion.source != target:
            await self._leave_out_known_tags(promotion, collected)
        if not promotion.is_dry:
            await self._write(promotion, digest, collected, cause)
            moves = await self.record.moves(target, tag, limit=_LOOKED_AT)
            own = next((move for move in moves if move.request_id == cause.actor.request_id), None)
            if own is not None:
                current = None if own.previous is None else parse_digest(own.previous)
        return MovedTag(digest, current)

    async def _current(self, target: RoutedRepository, tag: Tag) -> Digest | None:
        """Return what a tag is; while a replica is down what is on record, as the write of the tag looks itself."""
        try:
            head = await unless_absent(self.warmer.pull.head_manifest(target, tag))
        except UpstreamUnavailableError:
            return await self.record.current(target, tag)
        return None if head is None else head.descriptor.digest

    # ------------------------------------------------------------ at the source

    async def _collect(self, source: RoutedRepository, wanted: Digest) -> _Collected:
        """Return all that belongs to an image. Raises NoWayBackError where a part of it is missing."""
        found, subjects, seen = _Collected(), deque([wanted]), set[Digest]()
        while subjects:
            stack = [(subjects.popleft(), False)]
            while stack:
                digest, has_children = stack.pop()
                if has_children:
                    found.manifests[digest] = found.manifests.pop(digest)  # behind its children
                elif digest not in seen:
                    seen.add(digest)
                    if len(seen) > _MANIFESTS_MAX:
                        raise NoWayBackError(f"more than {_MANIFESTS_MAX} manifests belong to {wanted}")
                    children = await self._read(source, digest, found)
                    if digest in found.manifests:
                        stack += [(digest, True), *((child, False) for child in children)]
                        subjects += await self._find_referrers(source, digest, found)
        blobs = await found_of(lambda blob: self._missing_blob(source, blob), found.blobs)
        if missing := found.missing + [f"blob {blob}" for blob in blobs]:
            raise NoWayBackError(f"{wanted} is not whole: it misses {len(missing)} contents", missing[:_SHOWN_MAX])
        absent = set(await found_of(lambda blob: self._missing_blob(source, blob), found.foreign))
        found.blobs |= dict.fromkeys(layer for layer in found.foreign if layer not in absent)
        return found

    async def _read(self, source: RoutedRepository, digest: Digest, found: _Collected) -> Sequence[Digest]:
        """Note a manifest and its blobs; return the manifests that it names."""
        answer = await unless_absent(self.warmer.pull.get_manifest(source, digest))
        if answer is None:
            found.missing.append(f"manifest {digest}")
            return []
        links = links_of(answer.manifest)
        found.manifests[digest] = answer.manifest
        found.blobs |= dict.fromkeys(blob.digest for blob in links.blobs)
        found.foreign |= dict.fromkeys(layer.digest for layer in links.foreign)
        return [child.digest for child in links.manifests]

    async def _find_referrers(self, source: RoutedRepository, subject: Digest, found: _Collected) -> Sequence[Digest]:
        """Return what refers to a manifest by name of a subject, or by a tag as older signatures do."""
        referrers = list(await self.warmer.find_referrers(source, subject))
        for tag in fallback_tags(subject)[1:]:
            head = await unless_absent(self.warmer.pull.head_manifest(source, tag))
            if head is not None:
                found.tags[tag] = head.descriptor.digest
                referrers.append(head.descriptor.digest)
        return referrers

    async def _missing_blob(self, source: RoutedRepository, blob: Digest) -> Digest | None:
        return blob if await unless_absent(self.warmer.pull.blobs.head_blob(source, blob)) is None else None

    # ------------------------------------------------------------ at the target

    async def _leave_out_known_tags(self, promotion: Promotion, collected: _Collected) -> None:
        """Keep the tags of signatures that the target does not have. Raises DENIED for one that is not the caller's."""
        for tag in list(collected.tags):
            if await unless_absent(self.warmer.pull.head_manifest(promotion.target, tag)) is not None:
                del collected.tags[tag]
            elif not promotion.may_push(tag):
                message = f"the image is signed, and the tag of its signature is not yours to push: {tag}"
                raise RegistryError(ErrorCode.DENIED, message, status=403)

    async def _write(self, promotion: Promotion, wanted: Digest, collected: _Collected, cause: Cause) -> None:
        """Copy what is collected, the image itself last."""
        target = promotion.target
        if promotion.source != target:
            for blob in collected.blobs:
                await self._copy_blob(promotion, blob, Uploader(cause.actor.subject, 0))
            for digest in collected.manifests:
                if digest != wanted:
                    await self._put(target, digest, collected, cause)
            for tag, digest in collected.tags.items():
                await self._put(target, digest, collected, cause, tag)
        await self._put(target, wanted, collected, cause, promotion.tag, may_move=promotion.may_move)

    async def _put(
        self,
        target: RoutedRepository,
        digest: Digest,
        collected: _Collected,
        cause: Cause,
        tag: Tag | None = None,
        *,
        may_move: bool = False,
    ) -> None:
        manifest, tags = collected.manifests[digest], () if tag is None else (tag,)
        media_type = manifest.descriptor.media_type
        await self.push.put_manifest(
            target, digest, media_type, manifest.body, tags=tags, may_move_tags=may_move, cause=cause
        )

    async def _copy_blob(self, promotion: Promotion, blob: Digest, uploader: Uploader) -> None:
        """Have a blob in the target: mounted, or out of the cache, which gets it from the source."""
        target, pull = promotion.target, self.warmer.pull
        if await self._is_there(target, blob):
            return
        if await self.push.mount_blob(target, blob, promotion.source) is not None:
            return
        try:
            reader = await pull.blobs.fill_blob(promotion.source, blob)
        except CacheUnavailableError as error:
            raise no_space(error) from error
        try:
            await self.push.push_blob(target, uploader, blob, UploadBody(_pieces(reader), reader.size_bytes))
        finally:
            reader.close()

    async def _is_there(self, target: RoutedRepository, blob: Digest) -> bool:
        try:
            head = await unless_absent(self.warmer.pull.blobs.head_blob(target, blob))
        except AbsenceUnknownError:  # while a replica is down: to copy it once more does no harm
            return False
        return head is not None and await self.push.is_everywhere(target, ContentKind.BLOB, blob)


async def _pieces(reader: BlobReader) -> AsyncIterator[bytes]:
    """Give the bytes of a blob as they come into the cache."""
    offset = 0
    while offset < reader.size_bytes:
        await reader.wait_beyond(offset)
        piece = await to_thread(os.pread, reader.fd, min(_PIECE_BYTES, reader.available_bytes - offset), offset)
        offset += len(piece)
        yield piece
