"""Deletes at the replicas: a tombstone first, so that a replica that is down does not bring back what was deleted."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

from registry_proxy.operations.contents import has
from registry_proxy.ports.content import Holdings
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.history import Cause
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.outbox import Actor, EventType, Outbox
from registry_proxy.ports.replicas import RegistryReader, ReplicaClient, ReplicaSet
from registry_proxy.ports.rules import ImageRules
from registry_proxy.ports.store import Change, Record, Store, StoreChanges, Table, read_since, retried
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Tag, parse_digest
from registry_proxy.replication.fanout import Outcome, check_writable, fan_out, lanes_of, require_quorum
from registry_proxy.replication.intents import Intent, change_of, parse_key, record_of
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.manifests import configured_names, manifest_record_key, tag_lease, write_lease
from registry_proxy.replication.moves import announced_delete, entered_delete
from registry_proxy.replication.tag_records import deleted_value, tag_record_key
from registry_proxy.tasks import repeat

_KEPT_SECONDS = 7 * 86_400.0
"""How long a deletion stays on record: a node that was off for longer asks the replicas anew for all that it knew."""

_LOOK_SECONDS = 0.5
_LIST_AGAIN_SECONDS = 3600.0
"""How often all deletions are read, to remove old ones; there may be very many. Else what is new is read."""

_REMOVED_AT_ONCE = 1000

_TAGS = "tags"
"""The field in the record of a manifest's deletion with the tags that were found on it at the registries."""


async def forget_deleted(store: Store, key: IntentKey, missing: Sequence[str], *, has_tombstone: bool = True) -> None:
    """Remove the records of what was deleted; to be called under the lease of its writers.

    Nothing happens when the tombstone is there no more: the lease ended meanwhile, and a newer write came between.

    With a manifest go the records of the tags that were on it, and each leaves a tombstone: a replica that missed such
    a tag may hold an older one, and one that missed the delete still has the tag, also when the same manifest is pushed
    again under another.

    Args:
        store: where the records are.
        key: of the deleted manifest, tag or blob.
        missing: the replicas that missed the delete.
        has_tombstone: False over shared storage, where the journal holds none.

    Raises:
        StoreUnavailableError: the records may be there still.
    """
    if key.kind is not IntentKind.BLOB:
        await retried(lambda: _try_forget(store, key, missing, has_tombstone=has_tombstone))


async def _try_forget(store: Store, key: IntentKey, missing: Sequence[str], *, has_tombstone: bool) -> None:
    changes: list[Change] = []
    if has_tombstone:
        tombstone = await store.get(Table.INTENTS, str(key))
        if tombstone is None or Intent.from_value(tombstone.value).digest is not None:
            return
        changes.append(Change(Table.INTENTS, tombstone.key, tombstone.value, expect=tombstone.revision))
    if key.kind is IntentKind.TAG:
        # Noted once more: a reader that asked a replica meanwhile remembers the tag with the earlier revision.
        record, deletion = await store.get_all([record_of(key), (Table.DELETIONS, str(key))])
        changes += [Change(*record_of(key), None), *_forgotten_tag(key, record, deletion, deletion)]
    else:
        changes += await _changes_that_forget(store, key.routed, parse_digest(key.name), missing)
    await store.commit(changes)


def _deletion(
    key: IntentKey, cause: Cause | None, previous: Digest | None = None, *, tags: Sequence[Tag] = ()
) -> Change:
    """Return the change that notes a deletion; ``previous`` is what a tag was, ``tags`` are those on a manifest."""
    on_it = {_TAGS: list(tags)} if tags else {}
    return Change(
        Table.DELETIONS, str(key), {**deleted_value(time.time()), **announced_delete(cause, previous), **on_it}
    )


def _forgotten_tag(
    key: IntentKey, record: Record | None, earlier: Record | None, deletion: Record | None
) -> Sequence[Change]:
    """Return the changes that note the deletion of a tag and enter it in the history.

    Args:
        key: of the tag.
        record: of the tag.
        earlier: of its deletion.
        deletion: that of the tag, or of the manifest that it was on; it has the cause.
    """
    moves, moved = entered_delete(key, time.time(), record, deletion)
    return [Change(Table.DELETIONS, str(key), {**deleted_value(time.time(), record, earlier), **moved}), *moves]


async def _changes_that_forget(
    store: Store, routed: RoutedRepository, digest: Digest, missing: Sequence[str]
) -> list[Change]:
    changes = [Change(Table.MANIFESTS, manifest_record_key(routed, digest), None)]
    deletion = await store.get(Table.DELETIONS, str(IntentKey(routed, IntentKind.MANIFEST, str(digest))))
    missing_at: dict[str, tuple[set[str], int]] = {}  # key of a tag's intent -> replicas, revision
    for record in await store.list(Table.TAGS, f"{routed}|"):
        if record.value["digest"] == str(digest):
            changes.append(Change(Table.TAGS, record.key, None, expect=record.revision))
            tag = IntentKey(routed, IntentKind.TAG, record.key.removeprefix(f"{routed}|"))
            changes += _forgotten_tag(tag, record, None, deletion)
            missing_at[str(tag)] = (set(missing), 0)
    for tag, record, earlier in await _unrecorded(store, routed, digest, deletion):
        changes += _forgotten_tag(tag, record, earlier, deletion)
        missing_at[str(tag)] = (set(missing), 0)
    for record in await store.list(Table.INTENTS, f"{routed}|{IntentKind.TAG}|"):
        intent = Intent.from_value(record.value)
        if intent.digest == digest or record.key in missing_at:
            replicas, _ = missing_at.get(record.key, (set(), 0))
            missing_at[record.key] = (replicas | {*intent.missing, *intent.refused}, record.revision)
    changes += [
        change_of(parse_key(key), Intent(None, "", tuple(sorted(replicas))), expect=revision)
        for key, (replicas, revision) in missing_at.items()
        if replicas or revision
    ]
    return changes


async def _unrecorded(
    store: Store, routed: RoutedRepository, digest: Digest, deletion: Record | None
) -> Sequence[tuple[IntentKey, Record, Record | None]]:
    """Return the tags on a deleted manifest that are on no record, with one as it would be, and their deletions."""
    tags = () if deletion is None else deletion.value.get(_TAGS, ())
    if not tags:
        return ()
    keys = [IntentKey(routed, IntentKind.TAG, tag) for tag in tags]
    records = await store.get_all([record_of(key) for key in keys])
    deletions = await store.get_all([(Table.DELETIONS, str(key)) for key in keys])
    return [
        (key, Record(tag_record_key(routed, Tag(key.name)), {"digest": str(digest)}, 0), earlier)
        for key, record, earlier in zip(keys, records, deletions, strict=True)
        if record is None
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionReplication:
    """Deletes at all replicas of an upstream: what ``operations.manage`` asks of them.

    Args:
        replica_sets: the replicas by upstream.
        readers: by upstream; know whether something exists that is not on record.
        store: leases, and the records of manifests and tags.
        journal: the tombstones.
        outbox: makes the events.
        rules: judge what clients delete.
    """

    replica_sets: Mapping[str, ReplicaSet]
    readers: Mapping[str, RegistryReader]
    store: Store
    journal: Journal
    outbox: Outbox
    rules: ImageRules

    def check_writable(self, upstream: str) -> None:
        """Refuse what is known to fail: 403 for a read-only upstream, 503 without a quorum."""
        check_writable(self.replica_sets[upstream])

    async def check_rules(
        self, routed: RoutedRepository, tag_or_digest: Tag | Digest, actor: Actor | None
    ) -> Sequence[Tag]:
        """Refuse the deletion of tags that a rule protects. Raises DENIED (403)."""
        return await self.rules.check_delete(routed, tag_or_digest, actor)

    def lease(self, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> AbstractAsyncContextManager[None]:
        """Serialise with the pushes of a digest, or of a tag."""
        if isinstance(tag_or_digest, Digest):
            return write_lease(self.store, routed, tag_or_digest)
        return tag_lease(self.store, routed, tag_or_digest)

    async def holds(self, routed: RoutedRepository, digest: Digest) -> bool:
        """Tell whether a manifest is on record, or at the first replica that answers: no reason to wait for another."""
        if await self.store.get(Table.MANIFESTS, manifest_record_key(routed, digest)) is not None:
            return True
        replica_set = self.replica_sets[routed.upstream]
        for client in replica_set.replicas:
            if replica_set.is_writable(client.name):
                with suppress(RegistryError, UpstreamUnavailableError):
                    return await has(client.fetch_manifest(routed.repository, digest))
        return False

    async def delete_manifest(
        self, routed: RoutedRepository, digest: Digest, actor: Actor | None, *, is_known: bool, tags: Sequence[Tag] = ()
    ) -> None:
        """Delete a manifest, and every tag on it, under the lease of its digest.

        Raises:
            RegistryError: MANIFEST_UNKNOWN, UNSUPPORTED (then nothing is changed), UNAVAILABLE.
        """
        if not is_known and await self.store.get(Table.MANIFESTS, manifest_record_key(routed, digest)) is None:
            await self.readers[routed.upstream].fetch_manifest(routed.repository, digest)
        key = IntentKey(routed, IntentKind.MANIFEST, str(digest))
        await self._delete(
            key,
            lambda client: client.delete_manifest(routed.repository, digest),
            _deletion(key, _cause(actor), tags=tags),
            await self._announce(actor, routed, digest=str(digest)),
        )

    async def delete_tag(self, routed: RoutedRepository, tag: Tag, actor: Actor | None) -> Digest:
        """Delete a tag alone, under its lease; return what it was. Errors as for a manifest."""
        record = await self.store.get(Table.TAGS, tag_record_key(routed, tag))
        if record is not None:
            digest = parse_digest(record.value["digest"])
        else:
            digest = (await self.readers[routed.upstream].resolve_tag(routed.repository, tag)).digest
        await self._delete(
            IntentKey(routed, IntentKind.TAG, tag),
            lambda client: client.delete_tag(routed.repository, tag),
            _deletion(IntentKey(routed, IntentKind.TAG, tag), _cause(actor), digest),
            await self._announce(actor, routed, tag=tag, digest=str(digest)),
        )
        return digest

    async def delete_blob(self, routed: RoutedRepository, digest: Digest, *, is_known: bool) -> None:
        """Delete a blob from a repository; errors as for a manifest, BLOB_UNKNOWN for MANIFEST_UNKNOWN."""
        if not is_known:
            await self.readers[routed.upstream].stat_blob(routed.repository, digest)
        await self._delete(
            IntentKey(routed, IntentKind.BLOB, str(digest)),
            lambda client: client.delete_blob(routed.repository, digest),
            _deletion(IntentKey(routed, IntentKind.BLOB, str(digest)), None),
        )

    async def _announce(self, actor: Actor | None, routed: RoutedRepository, **fields: str) -> Sequence[Change]:
        event = None if actor is None else await self.outbox.entry(EventType.DELETE, routed, actor, **fields)
        return [] if event is None else [event]

    async def _delete(
        self,
        key: IntentKey,
        operation: Callable[[ReplicaClient], Awaitable[None]],
        deletion: Change,
        events: Sequence[Change] = (),
    ) -> None:
        """Delete at a quorum; from the first replica that did it on, it is rolled forward."""
        replica_set = self.replica_sets[key.routed.upstream]
        write = await self.journal.begin({key: (None, "")}, configured_names(replica_set), [deletion, *events])
        outcome = await fan_out(replica_set, lanes_of(replica_set, key.name, paused=write.paused), operation)
        if unsupported := _unsupported(outcome):
            await self.journal.withdraw(write)
            raise unsupported
        if outcome.is_refused:
            await self.journal.withdraw(write)
        else:
            missing = [name for name in configured_names(replica_set) if name not in outcome.confirmed]
            # Before the intents go: every node that finds them does so, too.
            await forget_deleted(self.store, key, missing, has_tombstone=bool(write.intents))
            await self.journal.conclude(write, outcome.confirmed)
        require_quorum(replica_set, outcome)


def _cause(actor: Actor | None) -> Cause | None:
    return None if actor is None else Cause(actor)


def _unsupported(outcome: Outcome) -> RegistryError | None:
    """Return the 405 of a delete that no replica did and some cannot do."""
    if outcome.confirmed:
        return None
    return next(
        (
            error
            for error in outcome.failures.values()
            if isinstance(error, RegistryError) and error.code is ErrorCode.UNSUPPORTED
        ),
        None,
    )


class DeletionsElsewhere:
    """Forgets on this node what was deleted through another one: what repositories hold is known by each for itself.

    Args:
        store: shared by the nodes.
        changes: knows when another node may have deleted something.
        holdings: of this node.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        changes: StoreChanges,
        holdings: Holdings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._changes = changes
        self._holdings = holdings
        self._clock = clock
        self._version = -1
        self._read_up_to: int | None = None
        self._listed_at = 0.0
        self._done = 0
        self._losses = changes.losses()

    async def run(self) -> None:
        """Go on until cancelled. Forgetting once too often costs a question, so a start begins with all on record."""
        await repeat(self.follow, _LOOK_SECONDS, StoreUnavailableError, ConflictError, at_once=True)

    async def follow(self) -> None:
        """Forget what was deleted since the last call. Raises StoreUnavailableError."""
        losses, version = self._changes.losses(), self._changes.version(Table.DELETIONS)
        if losses != self._losses:  # the store came back without deletions that this node may not have heard of
            self._holdings.doubt_all()
            self._losses, self._done, self._read_up_to = losses, 0, None
        if version == self._version:
            return
        records, is_whole = await self._read()
        for record in records:
            if record.revision > self._done:
                self._forget(parse_key(record.key))
        self._version = version
        self._done = max((self._done, *(record.revision for record in records)))
        if is_whole:
            await self._remove_old(records)

    async def _read(self) -> tuple[Sequence[Record], bool]:
        """Return what was deleted since the last call, or now and then all that is on record, and which of both."""
        now = self._clock()
        is_enough = 0 <= now - self._listed_at < _LIST_AGAIN_SECONDS
        found, is_whole = await read_since(self._store, Table.DELETIONS, self._read_up_to if is_enough else None)
        self._read_up_to = found.version
        if is_whole:
            self._listed_at = now
        return [record for record in found.records.values() if record is not None], is_whole

    async def _remove_old(self, records: Sequence[Record]) -> None:
        oldest = self._clock() - _KEPT_SECONDS
        expired = [
            Change(Table.DELETIONS, record.key, None, expect=record.revision)
            for record in records
            if record.value["deleted_at"] < oldest
        ]
        for first in range(0, len(expired), _REMOVED_AT_ONCE):
            await self._store.commit(expired[first : first + _REMOVED_AT_ONCE])

    def _forget(self, key: IntentKey) -> None:
        if key.kind is IntentKind.TAG:
            self._holdings.end_tag(key.routed, Tag(key.name))
            return
        digest = parse_digest(key.name)
        self._holdings.end(key.routed, ContentKind(key.kind), digest)
        if key.kind is IntentKind.MANIFEST:
            self._holdings.forget_tags_of(key.routed, digest)
