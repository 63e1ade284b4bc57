"""Inspection of a replica with every probe: whether it is still what it was, before it counts as up.

Two things tell. The *sentinel* is a small manifest of our own under a reserved name, another one at each replica: it is
missing where the storage was wiped, and stands elsewhere where registries were swapped. The *witnesses* are late writes
that the replica has confirmed: it does not know them where its storage was put back from an older copy.
"""

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from registry_proxy.operations.contents import unless_absent
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey
from registry_proxy.ports.names import ReturnReason
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.ports.tags import TagRecord
from registry_proxy.protocol.descriptor import OCI_INDEX, Descriptor, Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import RESERVED_PREFIX, Digest, Repository, Tag, digest_of, parse_digest
from registry_proxy.replication.intents import Intent, change_of, parse_key
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.roster import roster_key, sentinel_key
from registry_proxy.replication.tag_records import held_at, read_record
from registry_proxy.tasks import repeat

SENTINELS = Repository(f"{RESERVED_PREFIX}sentinel")
_LOOK_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Inspection:
    """Inspects the replicas of the upstreams whose replicas can differ.

    Args:
        store: knows the sentinels, the witnesses, and what is on record.
        journal: knows what each replica misses; a replica that is not what it was is taken from its roster.
        recorded: the upstreams of which every write is on record: elsewhere the witnesses prove nothing.
    """

    def __init__(self, *, store: Store, journal: Journal, recorded: Collection[str]) -> None:
        self._store = store
        self._journal = journal
        self._recorded = recorded
        self._refused: set[tuple[str, str]] = set()

    async def inspect(self, replica_set: ReplicaSet, client: ReplicaClient, *, is_returning: bool) -> bool:
        """Take a replica from the roster that is not what it was; return whether it could be looked at.

        A replica that cannot be asked now proves nothing, and hides nothing else.

        Args:
            replica_set: of the replica.
            client: the replica.
            is_returning: it was not looked at since it came back: all witnesses are heard, else the newest.
        """
        with contextlib.suppress(StoreUnavailableError, UpstreamUnavailableError, RegistryError):
            marks = await self._journal.current.marks()
            if not marks.is_newcomer(replica_set.upstream, client.name):
                why = await self._judge(replica_set, client, is_returning=is_returning)
                if why is not None:
                    await self._journal.roster.doubt(replica_set.upstream, client.name, why)
            return True
        return False

    async def found_older(self, replica_set: ReplicaSet, client: ReplicaClient) -> None:
        """Take a replica from the roster that has an older state of a tag than it had confirmed.

        Where its registry was exchanged with that of another replica, both are known again instead.

        Raises:
            StoreUnavailableError: it may be on the roster still.
        """
        why: ReturnReason | None = ReturnReason.OLDER
        with contextlib.suppress(UpstreamUnavailableError, RegistryError):
            sentinels = await self._sentinels(replica_set)
            owner = _owner(await _find_sentinel(replica_set.upstream, client), sentinels)
            if client.name in sentinels and owner is not None and owner != client.name:
                why = await self._judge_exchange(replica_set, client, owner, sentinels)
        if why is not None:
            await self._journal.roster.doubt(replica_set.upstream, client.name, why)

    async def _judge(
        self, replica_set: ReplicaSet, client: ReplicaClient, *, is_returning: bool
    ) -> ReturnReason | None:
        """Return in which way a replica on the roster is not what it was; None where it is, or nothing proves it."""
        sentinels = await self._sentinels(replica_set)
        known, found = sentinels.get(client.name), None
        try:
            found = await _find_sentinel(replica_set.upstream, client)
        except RegistryError:  # we may not read there: the witnesses are left
            known = None
        if known is not None and found is not None and found != known:
            owner = _owner(found, sentinels)
            return (
                ReturnReason.OTHER
                if owner is None
                else await self._judge_exchange(replica_set, client, owner, sentinels)
            )
        is_gone = known is not None and found is None
        if await self._is_older(replica_set, client, hears_all=is_returning or is_gone):
            return ReturnReason.EMPTY if is_gone and await self._is_empty(client) else ReturnReason.OLDER
        if is_gone and await self._is_empty(client) and await self._is_anything_recorded(replica_set.upstream):
            return ReturnReason.EMPTY
        if is_gone:  # only the sentinel was deleted: another one is left
            await self._store.commit([Change(Table.META, sentinel_key(replica_set.upstream, client.name), None)])
        return None

    # ------------------------------------------------------------ sentinels

    async def _sentinels(self, replica_set: ReplicaSet) -> Mapping[str, Digest]:
        names = [client.name for client in replica_set.replicas]
        records = await self._store.get_all([(Table.META, sentinel_key(replica_set.upstream, name)) for name in names])
        return {
            name: parse_digest(record.value["digest"])
            for name, record in zip(names, records, strict=True)
            if record is not None
        }

    async def keep_sentinels(self, replica_set: ReplicaSet) -> None:
        """Leave a sentinel at each replica on the roster that has none, once it can be written to; until cancelled."""
        await repeat(partial(self.leave_sentinels, replica_set), _LOOK_SECONDS, at_once=True)

    async def leave_sentinels(self, replica_set: ReplicaSet, *, renew: bool = False) -> None:
        """Leave a sentinel at each replica on the roster that has none and can be written to now.

        With ``renew`` each gets a new one: an older copy of its storage is recognised by that, without any record of
        what was written since.
        """
        for client in replica_set.replicas:
            with contextlib.suppress(StoreUnavailableError, UpstreamUnavailableError, RegistryError):
                await self._leave_sentinel(replica_set, client, renew=renew)

    async def _leave_sentinel(self, replica_set: ReplicaSet, client: ReplicaClient, *, renew: bool) -> None:
        upstream, name = replica_set.upstream, client.name
        if not replica_set.is_writable(name) or (await self._journal.current.marks()).is_newcomer(upstream, name):
            return
        key = sentinel_key(upstream, name)
        if not renew and await self._store.get(Table.META, key) is not None:
            return
        async with self._store.lease(f"sentinel of {upstream}/{name}"):
            if renew:  # first: a probe that comes between finds nothing to compare with
                await self._store.commit([Change(Table.META, key, None)])
            elif await self._store.get(Table.META, key) is not None:
                return
            digest = None if renew else await _find_sentinel(upstream, client)
            if digest is None or digest in (await self._sentinels(replica_set)).values():
                digest = await self._push_sentinel(upstream, client)
            if digest is not None:
                with contextlib.suppress(ConflictError):
                    await self._store.commit([Change(Table.META, key, {"digest": str(digest)}, expect=0)])

    async def _push_sentinel(self, upstream: str, client: ReplicaClient) -> Digest | None:
        replica = f"{upstream}/{client.name}"
        annotations = {"registry-proxy.replica": replica, "registry-proxy.id": secrets.token_hex(16)}
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": annotations}
        body = json.dumps(document).encode()
        descriptor = Descriptor(OCI_INDEX, digest_of(body), len(body))
        try:
            await client.put_manifest(SENTINELS, sentinel_tag(upstream), Manifest(descriptor, body))
        except RegistryError as error:
            if (upstream, client.name) not in self._refused:
                self._refused.add((upstream, client.name))
                _log.warning(
                    "replica %s accepts no manifest in %s, which would reveal a swapped or wiped storage at once: %s",
                    replica,
                    SENTINELS,
                    error,
                )
            return None
        return descriptor.digest

    # ------------------------------------------------------------ witnesses

    async def _is_older(self, replica_set: ReplicaSet, client: ReplicaClient, *, hears_all: bool) -> bool:
        """Tell whether a replica answers as if a write had never come that it has confirmed."""
        if replica_set.upstream not in self._recorded:
            return False
        witnesses = sorted(
            await self._store.list(Table.WITNESSES, f"{replica_set.upstream}/"), key=lambda record: record.revision
        )
        for record in reversed(witnesses if hears_all else witnesses[-1:]):
            with contextlib.suppress(RegistryError, UpstreamUnavailableError):  # for this one it does not answer
                if await self._contradicts(replica_set, client, parse_key(record.value["key"])):
                    return True
        return False

    async def _contradicts(self, replica_set: ReplicaSet, client: ReplicaClient, key: IntentKey) -> bool:
        known = await self._confirmed(client.name, key)
        if known is None:
            return False
        said = await held_at(client, key)
        if said is None:
            is_odd = known.digest is not None and await self._is_elsewhere(replica_set, client, key, known.digest)
        else:
            is_odd = known.is_past(said)
        # Where a write began or ended meanwhile, the answer may be of before it.
        return is_odd and await self._confirmed(client.name, key) == known

    async def _confirmed(self, replica: str, key: IntentKey) -> TagRecord | None:
        """Return what a replica has confirmed of a tag, or of a deleted manifest; None where it may be otherwise."""
        intent = await self._journal.find(key)
        if intent is not None and (intent.is_lost or intent.may_be_missed(replica, time.time())):
            return None
        record = await read_record(self._store, key)
        return record if record.revision else None

    async def _is_elsewhere(
        self, replica_set: ReplicaSet, client: ReplicaClient, key: IntentKey, digest: Digest
    ) -> bool:
        """Tell whether another replica has a content that this one misses, or none can be asked that may have it."""
        heard = False
        for other in replica_set.replicas:
            if other is not client and replica_set.is_writable(other.name):
                with contextlib.suppress(RegistryError, UpstreamUnavailableError):
                    if await held_at(other, key) == digest:
                        return True
                    heard = True
        return not heard

    @staticmethod
    async def _is_empty(client: ReplicaClient) -> bool:
        try:
            return not await client.list_repositories()
        except RegistryError:  # it has no list
            return False

    async def _is_anything_recorded(self, upstream: str) -> bool:
        return bool(await self._store.count(Table.MANIFESTS, f"{upstream}/"))

    # ------------------------------------------------------------ registries that were exchanged

    async def _judge_exchange(
        self, replica_set: ReplicaSet, client: ReplicaClient, owner: str, sentinels: Mapping[str, Digest]
    ) -> ReturnReason | None:
        """Follow two registries that were exchanged: what one misses it goes on to miss, under whichever name.

        Returns None where that is done, by this process or by another one. While the other one cannot be asked it is
        not certain, nor is it ever where both addresses lead to one registry.
        """
        upstream, name = replica_set.upstream, client.name
        other = next(each for each in replica_set.replicas if each.name == owner)
        try:
            is_exchanged = await _find_sentinel(upstream, other) == sentinels[name]
        except (RegistryError, UpstreamUnavailableError):
            is_exchanged = False
        if is_exchanged:
            try:
                await self._exchange(upstream, name, owner, sentinels)
            except ConflictError:  # by a write, or by another process that came first
                if await self._sentinels(replica_set) != sentinels:
                    return None
            else:
                _log.warning("upstream %s: the registries of replicas %s and %s were exchanged", upstream, name, owner)
                return None
        return ReturnReason.EXCHANGED

    async def _exchange(self, upstream: str, one: str, two: str, sentinels: Mapping[str, Digest]) -> None:
        """Put on record under which names two replicas go on.

        Raises:
            ConflictError: nothing has changed, for something was written, or the sentinels are others by now.
        """
        names = {one: two, two: one}
        found = await self._store.get_all([(Table.META, sentinel_key(upstream, name)) for name in names])
        changes = []
        for (name, other), record in zip(names.items(), found, strict=True):
            if record is None or record.value["digest"] != str(sentinels[name]):
                raise ConflictError(f"the sentinel of {upstream}/{name} is another one by now")
            changes.append(Change(Table.META, record.key, {"digest": str(sentinels[other])}, record.revision))
        for record in await self._store.list(Table.INTENTS, f"{upstream}/"):
            intent = _missed_by_both(Intent.from_value(record.value), names)
            changes.append(change_of(parse_key(record.key), intent, expect=record.revision))
        roster = await self._store.get(Table.META, roster_key(upstream))
        if roster is not None:
            value = {
                **roster.value,
                "names": [names.get(name, name) for name in roster.value["names"]],
                "reasons": {names.get(name, name): why for name, why in roster.value.get("reasons", {}).items()},
            }
            changes.append(Change(Table.META, roster.key, value, roster.revision))
        await self._store.commit([*changes, Change(Table.COMPARED, upstream, None)])


def sentinel_tag(upstream: str) -> Tag:
    """Return the tag of an upstream's sentinels: one registry may be a replica of several upstreams."""
    return Tag(upstream[:128])


async def _find_sentinel(upstream: str, client: ReplicaClient) -> Digest | None:
    found = await unless_absent(client.resolve_tag(SENTINELS, sentinel_tag(upstream)))
    return None if found is None else found.digest


def _owner(sentinel: Digest | None, sentinels: Mapping[str, Digest]) -> str | None:
    """Return the replica that a sentinel was left at."""
    return next((name for name, digest in sentinels.items() if digest == sentinel), None)


def _missed_by_both(intent: Intent, names: Mapping[str, str]) -> Intent:
    """Return an intent that both of two replicas miss where one of them does."""

    def of_both(found: Collection[str]) -> tuple[str, ...]:
        return tuple(sorted({*found, *(names[name] for name in found if name in names)}))

    if intent.is_lost:
        return replace(intent, refused={names.get(name, name): why for name, why in intent.refused.items()})
    refused = {name: why for name, why in intent.refused.items() if name not in names}
    missing = of_both([*intent.missing, *(name for name in intent.refused if name in names)])
    return replace(intent, missing=missing, behind=of_both(intent.behind), refused=refused)
