"""Comparison of the fallback tags of referrers at all replicas: what proves an absence later (replication/absence)."""

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
from registry_proxy.ports.store import Change, Store, Table, revision_of
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Tag, is_fallback_tag
from registry_proxy.repair.verify import Verifier
from registry_proxy.replication.fanout import are_all_up
from registry_proxy.replication.intents import record_of
from registry_proxy.replication.journal import Journal

_LOOK_SECONDS = 1.0
_PAUSE_WHILE_DOUBTFUL_SECONDS = 60.0
_AGAIN_SECONDS = 86_400.0

_log = logging.getLogger(__name__)


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
                if now < paused_until or not are_all_up(self._replica_set):
                    continue
                if now < due_at and await self._are_all_on_record():
                    continue
                if await self.compare():
                    due_at = now + _AGAIN_SECONDS
                    continue
            except (RegistryError, UpstreamUnavailableError) as error:
                self._tell(f"their lists cannot be read: {error}")
            except StoreUnavailableError:
                continue  # or another node is at it
            paused_until = now + _PAUSE_WHILE_DOUBTFUL_SECONDS

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
            marks = await self._journal.current.marks()
            compared = [one for one in self._replica_set.replicas if not marks.is_newcomer(upstream, one.name)]
            doubtful = await self._doubtful(compared)
            for doubt in list(doubtful.values())[:1]:
                self._tell(doubt)
            names = sorted({client.name for client in compared} - doubtful.keys())
            change = Change(Table.COMPARED, upstream, {"names": names}, expect=revision_of(before))
            with contextlib.suppress(ConflictError):
                await self._store.commit([change], versions={Table.META: version})
                _log.info("upstream %s: the fallback tags of its replicas were compared", upstream)
                return len(names) == len(self._replica_set.replicas)
        return False

    async def _doubtful(self, compared: Collection[ReplicaClient]) -> dict[str, str]:
        """Return the replicas with a fallback tag that another one and the record miss, each with such a tag."""
        doubtful: dict[str, str] = {}
        for repository in sorted(await self._verifier.repositories()):
            routed = RoutedRepository(self._replica_set.upstream, repository)
            held = {client.name: await self._fallback_tags(client, routed) for client in compared}
            everywhere = set.intersection(*held.values()) if held else set()
            for name, tags in held.items():
                for tag in sorted(tags - everywhere):
                    if name not in doubtful and not await self._is_explained(routed, tag):
                        doubtful[name] = (
                            f"{name} holds {routed}:{tag}, which another one does not hold, and no push through us made"
                        )
        return doubtful

    @staticmethod
    async def _fallback_tags(client: ReplicaClient, routed: RoutedRepository) -> set[Tag]:
        tags = await unless_absent(client.list_tags(routed.repository))
        return set(filter(is_fallback_tag, tags or ()))

    async def _is_explained(self, routed: RoutedRepository, tag: Tag) -> bool:
        key = IntentKey(routed, IntentKind.TAG, tag)  # also one that was deleted, of which a replica does not know yet
        return await self._journal.find(key) is not None or await self._store.get(*record_of(key)) is not None

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
