"""Purging manifests: content that must not come back, as where a secret was pushed.

The deletes at the registries are those of clients: recorded, and repeated at a replica that was away. Beyond them every
node removes the content from its cache, and the store remembers that no restore brings the manifest back.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from registry_proxy.history.record import TagHistory
from registry_proxy.operations.contents import links_of, unless_absent
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.manifests import ManifestWriter
from registry_proxy.operations.pull import Pull
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.history import Move
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.store import Change, Store, StoreChanges, Table, read_since
from registry_proxy.protocol.descriptor import Descriptor, Manifest, derive_media_type
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, parse_digest
from registry_proxy.tasks import repeat

_KNOWN_MAX = 10_000
"""Limit of the purges on record; the oldest go."""

_REMOVED_AT_ONCE = 100
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Purged:
    """The outcome of a purge.

    Args:
        digest: of the manifest.
        blobs: those that are deleted from the repository.
        shared_blobs: those that other manifests of the repository name, and that stay.
        undeleted_blobs: those that the registries do not delete.
        children: the manifests that it names, which stay.
    """

    digest: Digest
    blobs: Sequence[Digest]
    shared_blobs: Sequence[Digest]
    undeleted_blobs: Sequence[Digest]
    children: Sequence[Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """Purges manifests.

    Args:
        store: remembers what was purged.
        record: the moves, and which manifests there were.
        pull: reads manifests.
        manage: deletes at the replicas.
        writer: knows the cache, and what repositories hold.
    """

    store: Store
    record: TagHistory
    pull: Pull
    manage: Manage
    writer: ManifestWriter

    async def purge(self, routed: RoutedRepository, digest: Digest, actor: Actor, reason: str) -> Purged:
        """Delete a manifest, and the blobs that nothing else in its repository names; a repetition goes on.

        Raises:
            RegistryError: MANIFEST_UNKNOWN where the repository never had it; else as a delete by a client.
            UpstreamUnavailableError, StoreUnavailableError: it is not done, or not all of it: repeat it.
        """
        manifest = await self._find(routed, digest)
        try:
            await self.manage.delete_manifest(routed, digest, actor, overrides_rules=True)
        except RegistryError as error:
            if error.status != 404 or not await self._was_held(routed, digest):
                raise
        links = None if manifest is None else links_of(manifest)
        blobs = [] if links is None else list(dict.fromkeys(blob.digest for blob in links.blobs))
        named = await self.writer.proofs.named(routed) if blobs else ()
        shared = [blob for blob in blobs if blob in named]
        alone = [blob for blob in blobs if blob not in named]
        await self._note(routed, digest, alone, {"by": actor.subject, "reason": reason})
        undeleted = [blob for blob in alone if not await self._delete_blob(routed, blob)]
        deleted = [blob for blob in alone if blob not in undeleted]
        children = [] if links is None else [child.digest for child in links.manifests]
        return Purged(digest, deleted, shared, undeleted, children)

    async def _find(self, routed: RoutedRepository, digest: Digest) -> Manifest | None:
        """Return the manifest, also one that was deleted, out of the cache."""
        answer = await unless_absent(self.pull.get_manifest(routed, digest))
        if answer is not None:
            return answer.manifest
        body = self.writer.cache.read_small(digest) if await self._was_held(routed, digest) else None
        media_type = None if body is None else derive_media_type(body)
        return None if body is None or media_type is None else Manifest(Descriptor(media_type, digest, len(body)), body)

    async def _was_held(self, routed: RoutedRepository, digest: Digest) -> bool:
        if await self.record.held(routed, digest):
            return True
        moves = map(Move.of, await self.store.list(Table.MOVES, f"{routed}|"))
        return any(str(digest) in {move.digest, move.previous} for move in moves)

    async def _delete_blob(self, routed: RoutedRepository, blob: Digest) -> bool:
        """Delete a blob from the repository; return False where the registries do not delete blobs."""
        try:
            await unless_absent(self.manage.delete_blob(routed, blob))
        except RegistryError as error:
            if error.code is not ErrorCode.UNSUPPORTED:
                raise
            return False
        return True

    async def _note(
        self, routed: RoutedRepository, digest: Digest, blobs: Sequence[Digest], fields: dict[str, str]
    ) -> None:
        value = {**fields, "at": time.time(), "blobs": list(map(str, blobs))}
        changes = [Change(Table.PURGED, f"{routed}|{digest}", value)]
        if await self.store.count(Table.PURGED) >= _KNOWN_MAX:
            records = sorted(await self.store.list(Table.PURGED), key=lambda record: record.value["at"])
            oldest = [each.key for each in records[:_REMOVED_AT_ONCE] if each.key != changes[0].key]
            changes += [Change(Table.PURGED, key, None) for key in oldest]
        await self.store.commit(changes)


class PurgedContent:
    """Removes what was purged through any node from the cache of this one.

    Args:
        store: names what was purged.
        changes: tells when something is.
        drop: removes a content from the cache, and returns whether that could be done.
    """

    def __init__(self, store: Store, changes: StoreChanges, drop: Callable[[Digest], bool]) -> None:
        self._store = store
        self._changes = changes
        self._drop = drop
        self._version: int | None = None
        self._seen = -1
        self._waiting: set[Digest] = set()

    async def run(self) -> None:
        """Go on until cancelled. A start removes all that is on record: at worst a content is fetched anew."""
        await repeat(self.follow, _LOOK_SECONDS, StoreUnavailableError, ConflictError, at_once=True)

    async def follow(self) -> None:
        """Remove what was purged since the last call. Raises StoreUnavailableError."""
        if (seen := self._changes.version(Table.PURGED)) != self._seen:
            found, _ = await read_since(self._store, Table.PURGED, self._version)
            for key, record in found.records.items():
                if record is not None:
                    texts = [key.rpartition("|")[2], *record.value["blobs"]]
                    self._waiting.update(map(parse_digest, texts))
            self._version, self._seen = found.version, seen
        self._waiting = {digest for digest in self._waiting if not self._drop(digest)}


def dropping(writer: ManifestWriter) -> Callable[[Digest], bool]:
    """Return what removes a content from the cache, unless a replica needs it of this node."""

    def drop(digest: Digest) -> bool:
        if digest in writer.spool.pinned(0.0):
            return False
        writer.cache.drop(digest)
        return True

    return drop
