"""Fallback tags of referrers during an outage: when "absent" is the truth though a replica cannot be asked.

Clients that sign or attach GET a tag that normally does not exist (spec, "Referrers Tag Schema"). Every tag that was
pushed or deleted through us is on record. So a replica whose lists were once compared with the record and with the
other replicas holds no such tag that both lack, unless somebody pushed past us (docs/decisions/42).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection

from registry_proxy.operations.contents import unless_absent
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet
from registry_proxy.ports.store import Change, Store, StoreChanges, Table
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Tag, is_fallback_tag
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.tag_records import tag_record_key
from registry_proxy.replication.verify import Verifier

_LOOK_SECONDS = 1.0
_PAUSE_WHILE_DOUBTFUL_SECONDS = 60.0
_AGAIN_SECONDS = 86_400.0

_log = logging.getLogger(__name__)


class AbsenceProof:
    """Answers by the record whether replicas that cannot be asked may hold a fallback tag.

    Args:
        store: the record.
        changes: notices that the store is not the one it was.
        journal: the writes that are not at all replicas.
    """

    def __init__(self, store: Store, changes: StoreChanges, journal: Journal) -> None:
        self._store = store
        self._changes = changes
        self._journal = journal

    async def __call__(self, routed: RoutedRepository, tag: Tag, silent: Collection[str]) -> bool:
        """Tell whether the silent replicas cannot hold a fallback tag that a replica said to be absent just now."""
        if not is_fallback_tag(tag):
            return False
        try:
            await self._changes.check()
            record = await self._store.get(Table.COMPARED, routed.upstream)
            is_compared = record is not None and set(silent) <= set(record.value["names"])
            return is_compared and not await is_recorded(self._store, self._journal, routed, tag)
        except StoreUnavailableError:
            return False


async def is_recorded(store: Store, journal: Journal, routed: RoutedRepository, tag: Tag) -> bool:
    """Tell whether a push through us made the tag, or may have. Raises StoreUnavailableError."""
    intent = await journal.find(IntentKey(routed, IntentKind.TAG, tag))
    if intent is not None and intent.digest is not None:
        return True
    return await store.get(Table.TAGS, tag_record_key(routed, tag)) is not None


class FallbackTagComparison:
    """Compares the fallback tags of one upstream's replicas, as soon as all are up, and puts on record what it found.

    The replicas that hold nothing unexplained are named in the store (table COMPARED): for all nodes, and after a
    restart. The record goes when the replicas of the upstream change, and when the store was lost or restored.

    Args:
        replica_set: the replicas; with stores of their own, written through us alone.
        store: the record.
        journal: the writes that are not at all replicas.
        verifier: knows the repositories.
    """

    def __init__(self, *, replica_set: ReplicaSet, store: Store, journal: Journal, verifier: Verifier) -> None:
        self._replica_set = replica_set
        self._store = store
        self._journal = journal
        self._verifier = verifier
        self._doubt = ""

    async def run(self) -> None:
        """Compare once all replicas are up, and again after a day, or when the record has gone; until cancelled."""
        due_at = paused_until = 0.0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            try:
                if now < paused_until or not self._are_all_up():
                    continue
                if now < due_at and await self._are_all_on_record():
                    continue
                if await self.compare():
                    due_at = now + _AGAIN_SECONDS
                    continue
            except (RegistryError, UpstreamUnavailableError) as error:
                self._tell(f"their lists cannot be had: {error}")
            except StoreUnavailableError:
                continue  # or another node is at it
            paused_until = now + _PAUSE_WHILE_DOUBTFUL_SECONDS

    def _are_all_up(self) -> bool:
        return all(self._replica_set.is_writable(client.name) for client in self._replica_set.replicas)

    async def _are_all_on_record(self) -> bool:
        record = await self._store.get(Table.COMPARED, self._replica_set.upstream)
        return record is not None and len(record.value["names"]) == len(self._replica_set.replicas)

    async def compare(self) -> bool:
        """Compare the lists of all replicas, which are up; return whether all of them are on record now.

        Raises:
            RegistryError, UpstreamUnavailableError: a replica does not give its lists.
            StoreUnavailableError: it does not answer, or another process compares.
        """
        upstream = self._replica_set.upstream
        async with self._store.lease(f"compare fallback tags of {upstream}"):
            before = await self._store.get(Table.COMPARED, upstream)
            version = (await self._store.versions()).get(Table.META, 0)  # of the roster: see Roster.note
            marks = await self._journal.snapshot()
            members = [one for one in self._replica_set.replicas if not marks.is_newcomer(upstream, one.name)]
            doubtful = await self._doubtful(members)
            for doubt in list(doubtful.values())[:1]:
                self._tell(doubt)
            names = sorted({client.name for client in members} - doubtful.keys())
            change = Change(Table.COMPARED, upstream, {"names": names}, expect=0 if before is None else before.revision)
            with contextlib.suppress(ConflictError):
                await self._store.commit([change], versions={Table.META: version})
                _log.info("upstream %s: the fallback tags of its replicas were compared", upstream)
                return len(names) == len(self._replica_set.replicas)
        return False

    async def _doubtful(self, members: Collection[ReplicaClient]) -> dict[str, str]:
        """Return the replicas with a fallback tag that another one and the record lack, each with such a tag."""
        doubtful: dict[str, str] = {}
        for repository in sorted(await self._verifier.repositories()):
            routed = RoutedRepository(self._replica_set.upstream, repository)
            held = {client.name: await self._fallback_tags(client, routed) for client in members}
            everywhere = set.intersection(*held.values()) if held else set()
            for name, tags in held.items():
                for tag in sorted(tags - everywhere):
                    if name not in doubtful and not await self._is_explained(routed, tag):
                        doubtful[name] = (
                            f"{name} holds {routed}:{tag}, which another lacks, and no push through us made"
                        )
        return doubtful

    @staticmethod
    async def _fallback_tags(client: ReplicaClient, routed: RoutedRepository) -> set[Tag]:
        tags = await unless_absent(client.list_tags(routed.repository))
        return set(filter(is_fallback_tag, tags or ()))

    async def _is_explained(self, routed: RoutedRepository, tag: Tag) -> bool:
        if await self._journal.find(IntentKey(routed, IntentKind.TAG, tag)) is not None:
            return True  # also one that was deleted, of which a replica does not know yet
        return await is_recorded(self._store, self._journal, routed, tag)

    def _tell(self, doubt: str) -> None:
        if doubt != self._doubt:
            self._doubt = doubt
            upstream = self._replica_set.upstream
            _log.warning(
                "upstream %s: while a replica is down, signing and attaching get 503, because the fallback tags of its "
                "replicas differ: %s. `registry-proxy replica repair %s` makes them equal",
                upstream,
                doubt,
                upstream,
            )


async def forget_comparison(store: Store, upstream: str) -> None:
    """Remove what is on record of an upstream that others push to as well. Raises StoreUnavailableError."""
    if await store.get(Table.COMPARED, upstream) is not None:
        await store.commit([Change(Table.COMPARED, upstream, None)])
