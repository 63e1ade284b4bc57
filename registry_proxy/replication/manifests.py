"""Manifests and tags to the replicas: intent first, then all replicas at once, then what came of it."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass

from registry_proxy.operations.contents import find_cached_manifest
from registry_proxy.operations.refused_pushes import content_unknown
from registry_proxy.ports.content import BlobCache, Holdings
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.history import Cause, Move
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.manifests import WrittenManifest
from registry_proxy.ports.names import ContentKind, RoutedRepository, parse_routed
from registry_proxy.ports.outbox import EventType, Outbox
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet, StorageKind
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.descriptor import Descriptor, Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import KEEPER_PREFIX, RESERVED_TAG_PREFIX, Digest, Tag
from registry_proxy.replication.fanout import Outcome, fan_out, lanes_of, require_quorum
from registry_proxy.replication.journal import Journal, OpenWrite
from registry_proxy.replication.moves import unnumbered
from registry_proxy.replication.refusals import FinalRefusalError, may_lack_content
from registry_proxy.replication.tag_records import tag_record_key
from registry_proxy.replication.transfer import PartAbsentError, Transfer
from registry_proxy.replication.uploads import UploadReplication

_log = logging.getLogger(__name__)


def manifest_record_key(routed: RoutedRepository, digest: Digest) -> str:
    """Return the key of a manifest in the table MANIFESTS."""
    return f"{routed}|{digest}"


def manifest_record(routed: RoutedRepository, descriptor: Descriptor, *, expect: int | None = None) -> Change:
    """Return the change that puts a manifest on record as pushed."""
    value = {"media_type": descriptor.media_type, "size_bytes": descriptor.size_bytes}
    return Change(Table.MANIFESTS, manifest_record_key(routed, descriptor.digest), value, expect)


async def recorded_repositories(store: Store, prefix: str = "") -> set[RoutedRepository]:
    """Return the repositories with a manifest or tag on record.

    Args:
        store: where they are.
        prefix: of the keys; ``main/`` for one upstream.
    """
    found: set[RoutedRepository] = set()
    for table in (Table.MANIFESTS, Table.TAGS):
        found.update(map(parse_routed, await store.heads(table, prefix)))
    return found


async def count_recorded_tags(store: Store, routed: RoutedRepository) -> int:
    """Return how many tags of a repository are on record, without our own."""
    ours = await store.count(Table.TAGS, f"{routed}|{RESERVED_TAG_PREFIX}")
    return await store.count(Table.TAGS, f"{routed}|") - ours


@asynccontextmanager
async def write_lease(
    store: Store, routed: RoutedRepository, digest: Digest, tag: Tag | None = None
) -> AsyncIterator[None]:
    """Hold the lease on a digest and then that on a tag: always in this order, so that no two writers wait in a ring.

    Raises:
        StoreUnavailableError: not obtained.
    """
    async with store.lease(f"{routed}@{digest}"), nullcontext() if tag is None else tag_lease(store, routed, tag):
        yield


def tag_lease(store: Store, routed: RoutedRepository, tag: Tag) -> AbstractAsyncContextManager[None]:
    """Hold the lease on a tag alone: of writers that touch no manifest of it. Raises StoreUnavailableError."""
    return store.lease(f"{routed}:{tag}")


def configured_names(replica_set: ReplicaSet) -> Sequence[str]:
    """Return the replicas that an intent names: none over shared storage, which cannot diverge."""
    if replica_set.storage is StorageKind.SHARED:
        return ()
    return [client.name for client in replica_set.replicas]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestReplication:
    """Manifests to all replicas of an upstream: what ``operations.manifests`` asks of them.

    Args:
        replica_sets: the replicas by upstream.
        store: leases, and the records of manifests and tags.
        journal: the intents.
        cache: the source of contents that a replica misses.
        holdings: what of the cache a repository holds, and so may be sent to its replicas.
        uploads: sends the blobs.
        outbox: makes the events.
    """

    replica_sets: Mapping[str, ReplicaSet]
    store: Store
    journal: Journal
    cache: BlobCache
    holdings: Holdings
    uploads: UploadReplication
    outbox: Outbox

    def lease(self, routed: RoutedRepository, digest: Digest, tag: Tag | None) -> AbstractAsyncContextManager[None]:
        """Serialise the writes of a digest and of a tag over all workers and nodes."""
        return write_lease(self.store, routed, digest, tag)

    def referrers_lease(self, routed: RoutedRepository, tag: Tag) -> AbstractAsyncContextManager[None]:
        """Serialise those who read an index of referrers, and write it with another entry, over all nodes."""
        return self.store.lease(f"{routed}:{tag} as a list")

    async def put(
        self,
        routed: RoutedRepository,
        tag: Tag | None,
        manifest: Manifest,
        cause: Cause | None,
        *,
        refuse_move: RegistryError | None,
    ) -> WrittenManifest:
        """Write a manifest, and its tag when given, under the lease.

        A write that every replica refused is taken back; one that lost its quorum midway stays on record, because a
        replica may have it: it is rolled forward.

        Raises:
            RegistryError: what the replicas answered; UNAVAILABLE; ``refuse_move`` where the tag is another digest.
        """
        replica_set = self.replica_sets[routed.upstream]
        if tag is not None and tag.startswith(KEEPER_PREFIX):
            await self._check_recorded(routed, manifest.descriptor.digest)
        if tag is not None and refuse_move is not None:
            await self._check_new(replica_set, routed, tag, manifest.descriptor.digest, refuse_move)
        write = await self._begin(replica_set, routed, tag, manifest.descriptor, cause)
        transfers: list[Transfer] = []

        async def put_at(client: ReplicaClient) -> None:
            transfers.append(transfer := Transfer(replica_set, client, routed, self._send_part))
            await self._transfer(transfer, tag or manifest.descriptor.digest, manifest)

        lanes = lanes_of(replica_set, str(manifest.descriptor.digest), paused=write.paused)
        outcome = await fan_out(replica_set, lanes, put_at)
        for digest in {digest for transfer in transfers for digest in transfer.missed}:
            # The client's retry asks again and uploads it, where our memory would answer that it is there.
            self.holdings.forget(routed, ContentKind.BLOB, digest)
            self.holdings.forget(routed, ContentKind.MANIFEST, digest)
        revision = await self._finish(write, outcome)
        missing = require_quorum(replica_set, outcome)
        if not missing and write.was_open:
            await self.uploads.release(manifest.descriptor.digest)
        return WrittenManifest(revision, missing)

    async def _finish(self, write: OpenWrite, outcome: Outcome) -> int:
        if outcome.is_refused:
            await self.journal.withdraw(write)
            return write.revision
        for replica, reason in outcome.refused.items():
            keys = ", ".join(map(str, write.intents))
            _log.warning("replica %s cannot have %s: %s", replica, keys, reason)
        return await self.journal.conclude(write, outcome.confirmed, outcome.refused)

    async def _begin(
        self,
        replica_set: ReplicaSet,
        routed: RoutedRepository,
        tag: Tag | None,
        descriptor: Descriptor,
        cause: Cause | None,
    ) -> OpenWrite:
        digest, content = descriptor.digest, (descriptor.digest, descriptor.media_type)
        contents = {IntentKey(routed, IntentKind.MANIFEST, str(digest)): content}
        changes = [manifest_record(routed, descriptor)]
        if tag is not None:
            contents[IntentKey(routed, IntentKind.TAG, tag)] = content
            changes.append(Change(Table.TAGS, tag_record_key(routed, tag), {"digest": str(digest)}))
            if cause is not None:
                size_bytes = descriptor.size_bytes + cause.content_bytes if cause.content_bytes else 0
                changes.append(unnumbered(routed, tag, Move.by(cause, str(digest), size_bytes=size_bytes)))
        if cause is not None and (event := await self._event(routed, tag, descriptor, cause)) is not None:
            changes.append(event)
        return await self.journal.begin(contents, configured_names(replica_set), changes)

    async def _event(
        self, routed: RoutedRepository, tag: Tag | None, descriptor: Descriptor, cause: Cause
    ) -> Change | None:
        return await self.outbox.entry(
            EventType.MANIFEST if tag is None else EventType(cause.kind.value),
            routed,
            cause.actor,
            tag=tag or "",
            digest=str(descriptor.digest),
            media_type=descriptor.media_type,
            size_bytes=descriptor.size_bytes,
            detail={"reason": cause.reason} if cause.reason else {},
        )

    async def _check_recorded(self, routed: RoutedRepository, digest: Digest) -> None:
        """Refuse to keep a manifest that was deleted: under its lease, so that no keeper brings it back."""
        if await self.store.get(Table.MANIFESTS, manifest_record_key(routed, digest)) is None:
            raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, "only manifests on record are kept", detail=str(digest))

    async def _check_new(
        self, replica_set: ReplicaSet, routed: RoutedRepository, tag: Tag, digest: Digest, refusal: RegistryError
    ) -> None:
        """Refuse to move a tag: one that is on record, or at a replica, with another digest than this one."""
        record = await self.store.get(Table.TAGS, tag_record_key(routed, tag))
        if record is not None:
            if record.value["digest"] != str(digest):
                raise refusal
            intent = await self.journal.find(IntentKey(routed, IntentKind.TAG, tag))
            if intent is not None and intent.digest == digest:
                return  # left behind by an earlier try of the same push
        if await self._is_tag_of_another(replica_set, routed, tag, digest):
            raise refusal

    async def _is_tag_of_another(
        self, replica_set: ReplicaSet, routed: RoutedRepository, tag: Tag, digest: Digest
    ) -> bool:
        """Tell whether a replica has the tag with another digest: pushed past us.

        Replicas that cannot be asked are no answer.
        """
        marks, answers, failure = await self.journal.current.marks(), 0, UpstreamUnavailableError("no replica is up")
        for client in replica_set.replicas:
            if not replica_set.is_writable(client.name) or marks.misses_tag(client.name, routed, tag):
                continue
            try:
                found = await client.resolve_tag(routed.repository, tag)
            except RegistryError as error:
                if error.status != 404:
                    raise
                answers += 1
            except UpstreamUnavailableError as error:
                failure = error
            else:
                if found.digest != digest and not marks.has_tombstone(client.name, routed, found.digest):
                    return True
                answers += 1
        if not answers:
            raise failure
        return False

    async def _transfer(self, transfer: Transfer, tag_or_digest: Tag | Digest, manifest: Manifest) -> None:
        """Put a manifest at one replica, with the missing parts that this node has."""
        try:
            await transfer.put(tag_or_digest, manifest)
        except RegistryError as error:
            if not transfer.missed:
                raise
            if may_lack_content(error) and error.code is not ErrorCode.MANIFEST_BLOB_UNKNOWN:
                raise content_unknown(transfer.missed) from error
            if isinstance(error, FinalRefusalError):
                raise error.refusal from error
            raise

    async def _send_part(self, transfer: Transfer, kind: ContentKind, digest: Digest) -> None:
        """Send a part from our cache, if the repository is known to hold it.

        Else a manifest that names a digest would be enough to get any content of the cache into one's own repository.
        """
        client, routed = transfer.client, transfer.routed
        if (await self.journal.current.marks()).refuses(client.name, routed, digest):
            raise PartAbsentError("it refuses that, too")
        is_sent = False
        if kind is ContentKind.BLOB:
            is_held = self.holdings.find(routed, kind, digest) is not None
            is_sent = is_held and await self.uploads.heal_blob(client, routed, digest)
        elif (manifest := find_cached_manifest(self.holdings, self.cache, routed, digest)) is not None:
            await transfer.put(digest, manifest)
            if await self.journal.confirm(IntentKey(routed, IntentKind.MANIFEST, str(digest)), digest, client.name):
                await self.uploads.release(digest)
            is_sent = True
        if not is_sent:
            raise PartAbsentError("this node does not have it", may_come=True)
