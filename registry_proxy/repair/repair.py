"""Repair: a replica that missed writes is made equal to the newest intent of each key (docs/decisions/, 08 and 19).

The journal is all the state there is: the repairing node may die at any byte, and another one goes on.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from registry_proxy.operations.contents import has, unless_absent
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.metrics import KeyRepair, Observer, RepairOutcome
from registry_proxy.ports.names import ContentKind
from registry_proxy.ports.repair import Failure, RepairStatus
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet, StorageKind
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.ports.uploads import Spool
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Tag, parse_digest
from registry_proxy.repair.copies import Copies
from registry_proxy.repair.exceptions import Exceptions
from registry_proxy.repair.kept import KeptCopies
from registry_proxy.repair.verify import Verifier
from registry_proxy.replication.deletions import forget_deleted
from registry_proxy.replication.intents import Intent, parse_key, record_of
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.manifests import tag_lease, write_lease
from registry_proxy.replication.moves import taken_back_move
from registry_proxy.replication.pauses import is_paused, repair_lease
from registry_proxy.replication.refusals import FinalRefusalError
from registry_proxy.replication.tag_records import holds_deleted, taken_back
from registry_proxy.tasks import Wakeup, end_all, repeat, spawn

_LOOK_SECONDS = 1.0
_PAUSE_AFTER_FAILURE_SECONDS = 5.0
_PAUSE_BEFORE_NEXT_COMPARISON_SECONDS = 60.0
_PAUSES_OF_A_COMPARISON = 5
_BLOBS_AT_ONCE = 4
"""A registry far away is mostly waited for. Blobs depend on nothing; what refers to them goes one by one, in order."""

_ORDER = {  # blobs before what refers to them, tags last; deletes then, and what a manifest leaves behind after it
    (IntentKind.BLOB, False): 0,
    (IntentKind.MANIFEST, False): 1,
    (IntentKind.TAG, False): 2,
    (IntentKind.MANIFEST, True): 3,
    (IntentKind.TAG, True): 4,
    (IntentKind.BLOB, True): 5,
}

_log = logging.getLogger(__name__)


class Repairer:
    """Repairs the replicas of one upstream, each as soon as it is up and misses something.

    One process repairs a replica at a time, over all nodes. A key is repaired under the lease of its writers.

    Args:
        replica_set: the replicas.
        store: leases, and the records of manifests and tags.
        journal: what each replica misses.
        copies: sends contents.
        verifier: compares a newcomer with the others.
        pins: releases what every replica has.
        observer: receives the outcome of each key.
    """

    def __init__(
        self,
        *,
        replica_set: ReplicaSet,
        store: Store,
        journal: Journal,
        copies: Copies,
        verifier: Verifier,
        pins: Spool,
        observer: Observer,
    ) -> None:
        self._replica_set = replica_set
        self._store = store
        self._journal = journal
        self.exceptions = Exceptions(store)
        """The contents that cannot be everywhere, to be shown and dismissed."""

        self._copies = copies
        self._verifier = verifier
        self._pins = pins
        self._observer = observer
        self._status = {client.name: RepairStatus() for client in replica_set.replicas}
        self._woken = Wakeup()
        self._kept = KeptCopies(
            replica_set=replica_set, journal=journal, pins=pins, observer=observer, lease=self._lease
        )
        self._lost: frozenset[IntentKey] = frozenset()

    def status(self, replica: str) -> RepairStatus:
        """Return how the repair of a replica goes."""
        return self._status[replica]

    def warnings(self) -> Sequence[str]:
        """Return, in words, what is no longer kept here for a replica that misses it."""
        return self._kept.warnings()

    async def retry(self) -> None:
        """Try what replicas refused once more, and what failed at once. Raises StoreUnavailableError."""
        await self.exceptions.retry(f"{self._replica_set.upstream}/")
        self._woken.notify()  # not only after the pause that follows a failure

    async def run(self) -> None:
        """Go on until cancelled."""
        if self._replica_set.read_only or self._replica_set.storage is StorageKind.SHARED:
            return  # what we do not write, or what cannot diverge
        tasks = [spawn(self._tend(client), f"repair of {client.name}") for client in self._replica_set.replicas]
        tasks.append(spawn(self._kept.run(), "care of pins"))
        watch = repeat(self._look_at_lost, _LOOK_SECONDS, StoreUnavailableError, at_once=True)
        tasks.append(spawn(watch, "watch of lost contents"))
        try:
            await asyncio.gather(*tasks)
        finally:
            await end_all(tasks)

    async def _tend(self, client: ReplicaClient) -> None:
        pause = 0.0
        while True:
            await self._woken.wait(pause)
            began = time.monotonic()
            try:
                is_well = await self.repair(client)
                is_new = (await self._journal.current.marks()).is_newcomer(self._replica_set.upstream, client.name)
            except StoreUnavailableError:
                is_well, is_new = True, False  # the journal cannot be read now, or another node is at it
            took = time.monotonic() - began
            pause = _LOOK_SECONDS if is_well else _PAUSE_AFTER_FAILURE_SECONDS
            if is_new and not is_well:  # a comparison costs the registries as much as it takes time
                pause = min(max(pause, _PAUSES_OF_A_COMPARISON * took), _PAUSE_BEFORE_NEXT_COMPARISON_SECONDS)

    async def repair(self, client: ReplicaClient) -> bool:
        """Repair one replica once; return False when something could not be.

        Raises:
            StoreUnavailableError: the store is away, or another process repairs it.
        """
        upstream = self._replica_set.upstream
        marks = await self._journal.current.marks()
        if not marks.pending(client.name, upstream) or not self._replica_set.is_writable(client.name):
            return True
        status = self._status[client.name]
        async with repair_lease(self._store, upstream, client.name):
            if await is_paused(self._store, upstream, client.name):
                return True  # since a moment ago; the pause waits for this lease
            marks = await self._journal.current.marks(of_all_nodes=True)  # another process may have taken it in
            is_newcomer = marks.is_newcomer(upstream, client.name)
            if not is_newcomer and not await self._open_keys(client.name):
                return True
            status.is_running, status.started_at = True, time.time()
            status.done = status.failed = 0
            status.error = ""
            try:
                await (self._take_in(client, status) if is_newcomer else self._repair_all(client, status))
            finally:
                status.is_running = False
        await self._kept.look()
        outcome = f"{status.done} keys repaired, {status.failed} failed"
        _log.info("replica %s/%s: %s", upstream, client.name, f"{outcome}: {status.error}" if status.error else outcome)
        return not status.error

    async def _repair_all(self, client: ReplicaClient, status: RepairStatus) -> None:
        keys = await self._open_keys(client.name)
        blobs = list(itertools.takewhile(lambda key: key.kind is IntentKind.BLOB, keys))
        try:
            async with asyncio.TaskGroup() as group:
                shared = iter(blobs)
                for _ in range(_BLOBS_AT_ONCE):
                    group.create_task(self._repair_keys(client, shared, status))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        await self._repair_keys(client, iter(keys[len(blobs) :]), status)

    async def _repair_keys(self, client: ReplicaClient, keys: Iterator[IntentKey], status: RepairStatus) -> None:
        while self._replica_set.is_writable(client.name) and (key := next(keys, None)) is not None:
            await self._repair_key(client, key, status)

    async def _take_in(self, client: ReplicaClient, status: RepairStatus) -> None:
        """Bring to a new replica what the others have; it becomes one of them when it differs in nothing any more."""
        upstream = self._replica_set.upstream
        _log.info("replica %s/%s is new: it is compared with the others", upstream, client.name)
        await self._find_deleted(client)
        before, after = self._verifier.new(), self._verifier.new()
        await self._verifier.compare(before, repair=True, only_at=client.name)
        await self._repair_all(client, status)
        for key in await self._open_keys(client.name):
            after.fail(Failure(str(key), key.routed, client.name, status.error, is_held=True))
        if not before.error and not after.doubt_about(client.name):
            await self._verifier.compare(after)
        status.error = before.error or after.error or after.doubt_about(client.name)
        if not status.error and after.differing:
            status.failed += 1
            status.error = (
                f"it differs from the others in {after.differing} contents that it alone has, or that nobody can "
                f"decide about: see `registry-proxy replica verify {upstream}`"
            )
        if not status.error:
            if after.failed:
                _log.warning(
                    "replica %s/%s joins the roster, though %d contents fail, such as %s: see `replica verify %s`",
                    *(upstream, client.name, after.failed, after.failures[0].key, upstream),
                )
            await self._journal.roster.admit(upstream, client.name)

    async def _find_deleted(self, client: ReplicaClient) -> None:
        """Note what a new replica holds that was deleted through us while it was not one of them."""
        for record in await self._store.list(Table.DELETIONS, f"{self._replica_set.upstream}/"):
            key = parse_key(record.key)
            with contextlib.suppress(RegistryError, UpstreamUnavailableError):  # the comparison asks again
                if await holds_deleted(self._store, client, key):
                    await self._journal.miss(key, None, "", client.name)

    async def _open_keys(self, replica: str) -> list[IntentKey]:
        now = time.time()
        found = []
        for record in await self._store.list(Table.INTENTS, f"{self._replica_set.upstream}/"):
            key, intent = parse_key(record.key), Intent.from_value(record.value)
            if replica in intent.missing and not intent.is_under_way(now):
                found.append((_ORDER[key.kind, intent.digest is None], record.revision, key))
        return [key for _, _, key in sorted(found, key=lambda each: each[:2])]

    async def _repair_key(self, client: ReplicaClient, key: IntentKey, status: RepairStatus) -> None:
        try:
            async with self._lease(key):
                intent = await self._journal.find(key)
                if intent is None or client.name not in intent.missing or intent.is_under_way(time.time()):
                    return  # somebody else was here, or is
                try:
                    outcome = await self._make_equal(client, key, intent)
                except FinalRefusalError as refusal:
                    await self.exceptions.refuse(key, intent.digest, client.name, refusal.reason)
                    outcome = "refused"
                await self._confirm(client, key, intent, outcome)
        except (RegistryError, UpstreamUnavailableError, OSError) as error:
            status.failed += 1
            status.error = f"{key}: {error}"
            outcome = "failed"
            _log.warning("replica %s/%s is not repaired: %s", self._replica_set.upstream, client.name, status.error)
        else:
            status.done += 1
        self._observer.observe(KeyRepair(self._replica_set.upstream, client.name, outcome))

    @contextlib.asynccontextmanager
    async def _lease(self, key: IntentKey) -> AsyncIterator[None]:
        """Exclude the writers of the key. Raises StoreUnavailableError."""
        lease: AbstractAsyncContextManager[None]
        if key.kind is not IntentKind.TAG:
            lease = write_lease(self._store, key.routed, parse_digest(key.name))
        elif (intent := await self._journal.find(key)) is not None and intent.digest is not None:
            lease = write_lease(self._store, key.routed, intent.digest, Tag(key.name))
        else:
            lease = tag_lease(self._store, key.routed, Tag(key.name))
        async with lease:
            yield

    async def _make_equal(self, client: ReplicaClient, key: IntentKey, intent: Intent) -> RepairOutcome:
        """Write the key's intended state to the replica; return the outcome for the metrics."""
        if intent.digest is None:
            await self._delete(client, key)
            await forget_deleted(self._store, key, intent.missing)  # the deleting node may have died before it did
            return "deleted"
        try:
            await self._copy(client, key, intent.digest)
        except FinalRefusalError:
            raise
        except (RegistryError, UpstreamUnavailableError):
            kind = ContentKind.BLOB if key.kind is IntentKind.BLOB else ContentKind.MANIFEST
            if not await self._copies.is_lost(key.routed, kind, intent.digest):
                raise
            if key.kind is IntentKind.BLOB or await self._was_acknowledged(intent):
                await self.exceptions.lose(key, intent.digest, intent.media_type, await self._outdated(key, intent))
                return "lost"
            await self._give_up(key, intent)
            return "given_up"
        return "copied"

    async def _copy(self, client: ReplicaClient, key: IntentKey, digest: Digest) -> None:
        if key.kind is not IntentKind.BLOB:
            tag = Tag(key.name) if key.kind is IntentKind.TAG else None
            await self._copies.copy_manifest(client, key.routed, digest, tag)
        elif not await has(client.stat_blob(key.routed.repository, digest)):
            await self._copies.copy_blob(client, key.routed, digest)

    async def _delete(self, client: ReplicaClient, key: IntentKey) -> None:
        repository = key.routed.repository
        if key.kind is IntentKind.BLOB:
            await client.delete_blob(repository, parse_digest(key.name))
        elif key.kind is IntentKind.MANIFEST:
            await client.delete_manifest(repository, parse_digest(key.name))
        else:
            await client.delete_tag(repository, Tag(key.name))

    async def _confirm(self, client: ReplicaClient, key: IntentKey, intent: Intent, outcome: str) -> None:
        is_closed = outcome == "refused"
        if outcome in {"copied", "deleted"}:
            is_closed = await self._journal.confirm(key, intent.digest, client.name)
            if not is_closed:  # the lease may have ended while this process stood still
                await self._journal.note_late(key, intent.digest, [client.name])
        if is_closed and key.kind is not IntentKind.TAG:
            self._kept.closed(parse_digest(key.name))

    # ------------------------------------------------------------ what no replica has

    async def _was_acknowledged(self, intent: Intent) -> bool:
        """Tell whether some replica once confirmed a write; else the node that began it died before one had it."""
        marks, upstream = await self._journal.current.marks(), self._replica_set.upstream
        on_roster = [c.name for c in self._replica_set.replicas if not marks.is_newcomer(upstream, c.name)]
        return not intent.writing_until and any(
            name not in intent.missing or name in intent.doubted for name in on_roster
        )

    async def _outdated(self, key: IntentKey, intent: Intent) -> Mapping[str, str]:
        """Return the replicas that have an older state of a tag whose manifest is lost: it must not be served."""
        if key.kind is not IntentKind.TAG:
            return {}
        clients = [client for client in self._replica_set.replicas if client.name in intent.missing]
        tag = Tag(key.name)
        holding = [c.name for c in clients if await has(c.resolve_tag(key.routed.repository, tag))]
        return dict.fromkeys(holding, f"it has an older state of the tag, and {intent.digest} is lost")

    async def _look_at_lost(self) -> None:
        """Send contents that this node has pinned and others recorded as lost; retry what was refused without them."""
        upstream, marks = self._replica_set.upstream, await self._journal.current.marks()
        lost = {key for key in marks.lost_keys if key.routed.upstream == upstream}
        pinned = set(self._pins.pinned(0)) if lost - self._lost else set()
        for key in sorted(lost - self._lost, key=str):
            if key.kind is not IntentKind.TAG and parse_digest(key.name) in pinned and not await self._restore(key):
                lost.discard(key)  # to be looked at again
        for routed in {key.routed for key in self._lost - lost}:
            await self.exceptions.retry(f"{routed}|")
        self._lost = frozenset(lost)

    async def _restore(self, key: IntentKey) -> bool:
        """Send the replicas what this node has of a lost key; return False when none of them took it."""
        async with self._lease(key):
            digest, failed = parse_digest(key.name), []
            for client in self._replica_set.replicas:
                try:
                    if not self._replica_set.is_writable(client.name):
                        raise UpstreamUnavailableError(f"{client.name} cannot be written to")  # noqa: TRY301 - as if tried
                    await self._copy(client, key, digest)
                except (RegistryError, UpstreamUnavailableError, OSError):
                    failed.append(client.name)
            if len(failed) == len(self._replica_set.replicas):
                return False
            await self.exceptions.recover(key, digest, failed)
        names = [client.name for client in self._replica_set.replicas]
        lost = (await self._journal.current.marks()).lost_keys
        for tag in [other for other in lost if other.routed == key.routed]:
            if tag.kind is IntentKind.TAG:
                await self.exceptions.recover(tag, digest, names)
        return True

    # ------------------------------------------------------------ a push that left nothing

    async def _give_up(self, key: IntentKey, intent: Intent) -> None:
        """Take back a write that left nothing; a tag is again what the replicas say that were not behind in it."""
        assert intent.digest is not None  # noqa: S101 - a delete needs no source
        _log.warning("%s: its push never reached a replica, and is withdrawn", key)
        before: Intent | None = None
        moves: Sequence[Change] = ()
        if key.kind is IntentKind.MANIFEST:
            forgotten = Change(*record_of(key), None)
        else:
            truth = await self._agreed_tag(key, [c for c in self._replica_set.replicas if c.name not in intent.behind])
            tagged = await self._store.get(*record_of(key))
            forgotten = taken_back(key, None if truth is None else truth.digest, tagged)
            moves = taken_back_move(key, tagged)
            if intent.behind:
                digest, media_type = (None, "") if truth is None else (truth.digest, truth.media_type)
                before = Intent(digest, media_type, intent.behind)
        record = await self._store.get(Table.INTENTS, str(key))
        if record is not None:
            restored = None if before is None else before.to_value()
            with contextlib.suppress(ConflictError):  # a newer write has taken it over
                withdrawn = Change(Table.INTENTS, str(key), restored, expect=record.revision)
                await self._store.commit([withdrawn, forgotten, *moves])

    async def _agreed_tag(self, key: IntentKey, clients: Sequence[ReplicaClient]) -> Descriptor | None:
        for client in clients:
            found = await unless_absent(client.resolve_tag(key.routed.repository, Tag(key.name)))
            if found is not None:
                return found
        return None
