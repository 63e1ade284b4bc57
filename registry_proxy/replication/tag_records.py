"""The records of tags: what each was last made through us, and in short what it was before.

Only the order of the last few digests is kept here, in the record that every write of a tag replaces anyway, so that a
reader can tell an older state from a push past us at the cost of that one record.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from registry_proxy.operations.contents import ask, has, unless_absent
from registry_proxy.ports.history import Move, MoveKind
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import ReplicaClient
from registry_proxy.ports.store import Change, Record, Store, Table
from registry_proxy.ports.tags import TagRecord
from registry_proxy.protocol.reference import Digest, Tag, parse_digest
from registry_proxy.replication.intents import record_of
from registry_proxy.replication.moves import last_moved, numbered, unnumbered

_EARLIER_MAX = 16


def tag_record_key(routed: RoutedRepository, tag: Tag) -> str:
    """Return the key of a tag in the table TAGS."""
    return f"{routed}|{tag}"


async def read_record(store: Store, key: IntentKey) -> TagRecord:
    """Return the record of a tag, or of its deletion, or as one that of the deletion of a manifest.

    Of anything else it is empty: without a tag a manifest that was pushed may be collected by a registry, so that what
    is on record of it proves nothing.

    Raises:
        StoreUnavailableError: it cannot be known.
    """
    current, deleted = await store.get_all([record_of(key), (Table.DELETIONS, str(key))])
    if key.kind is IntentKind.TAG and (record := current or deleted) is not None:
        digest = None if current is None else parse_digest(current.value["digest"])
        return TagRecord(record.revision, digest, tuple(map(parse_digest, _earlier(record))))
    if key.kind is IntentKind.MANIFEST and current is None and deleted is not None:
        return TagRecord(deleted.revision, None, (parse_digest(key.name),))
    return TagRecord()


async def held_at(client: ReplicaClient, key: IntentKey) -> Digest | None:
    """Return what a tag is at a replica, or the digest of a manifest or blob that it holds; None for absent.

    Raises:
        RegistryError, UpstreamUnavailableError: it cannot be asked.
    """
    repository = key.routed.repository
    if key.kind is IntentKind.TAG:
        found = await unless_absent(client.resolve_tag(repository, Tag(key.name)))
        return None if found is None else found.digest
    digest = parse_digest(key.name)
    return digest if await has(ask(client, repository, ContentKind(key.kind), digest)) else None


async def holds_deleted(store: Store, client: ReplicaClient, key: IntentKey) -> bool:
    """Tell whether a replica has a tag or manifest as it was before it was deleted through us.

    Raises:
        RegistryError, UpstreamUnavailableError: it cannot be asked.
        StoreUnavailableError: it cannot be known.
    """
    record = await read_record(store, key)
    if record.digest is not None or not record.earlier:
        return False
    held = await held_at(client, key)
    return held is not None and record.is_past(held)


def moved(change: Change, before: Record | None, deleted: Record | None) -> Change:
    """Return a change of a tag's record, or of its deletion, with what the tag was before.

    Args:
        change: of a record of TAGS or DELETIONS; others are returned as they are.
        before: the record that it replaces.
        deleted: the record of the tag's deletion, where it replaces none.
    """
    if change.value is None or change.table not in {Table.TAGS, Table.DELETIONS}:
        return change
    digest = change.value.get("digest")
    known = _digests(before) or _digests(deleted)
    earlier = [one for one in known if one != digest][:_EARLIER_MAX]
    kept = {**last_moved(before, deleted), **({"earlier": earlier} if earlier else {})}
    return replace(change, value={**kept, **change.value}) if kept else change


def deleted_value(deleted_at: float, *records: Record | None) -> Mapping[str, Any]:
    """Return the value of a deletion: when, in seconds since the epoch, and what the tag was by its records."""
    earlier = list(dict.fromkeys(digest for record in records for digest in _digests(record)))[:_EARLIER_MAX]
    return {"deleted_at": deleted_at, **({"earlier": earlier} if earlier else {}), **last_moved(*records)}


def _digests(record: Record | None) -> Sequence[str]:
    """Return what a tag was by a record, the newest first."""
    if record is None:
        return ()
    digest = record.value.get("digest")
    return [*([digest] if digest else []), *_earlier(record)]


def _earlier(record: Record) -> Sequence[str]:
    found: Sequence[str] = record.value.get("earlier", ())
    return found


def taken_back(key: IntentKey, digest: Digest | None, record: Record | None) -> Change:
    """Return the change by which a tag is what it was before a push that left nothing; None for not on record."""
    if digest is None:
        return Change(*record_of(key), None)
    earlier = [one for one in ([] if record is None else _earlier(record)) if one != str(digest)]
    value = {"digest": str(digest), "earlier": earlier} if earlier else {"digest": str(digest)}
    return Change(*record_of(key), {**value, **last_moved(record)})


async def choose(store: Store, key: IntentKey, digest: Digest) -> None:
    """Put on record what a tag is, where another digest is on record; under the lease of its writers.

    Raises:
        StoreUnavailableError: it may not be on record.
    """
    record = await store.get(*record_of(key))
    if record is not None and record.value["digest"] != str(digest):
        chosen = moved(Change(*record_of(key), {"digest": str(digest)}, record.revision), record, None)
        seen = Move(kind=MoveKind.SEEN, digest=str(digest), reason="chosen where replicas differed")
        changes, _ = numbered([chosen, unnumbered(key.routed, Tag(key.name), seen)], [record, None], time.time())
        await store.commit(changes)
