"""Tags whose record is at odds with what a replica answers: the others are asked, and the replica is found out."""

import asyncio
import time
from collections.abc import Mapping

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet
from registry_proxy.ports.store import Store
from registry_proxy.ports.tags import TagFinding
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Tag
from registry_proxy.repair.inspection import Inspection
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.tag_records import read_record

_RACES_MAX = 3


class TagFindings:
    """Finds out what a tag is where an answer is older than its record, or no replica that counts answers.

    Args:
        replica_sets: the replicas by upstream.
        store: the records of tags.
        journal: what each replica misses.
        inspection: receives a replica that went back in time.
    """

    def __init__(
        self, *, replica_sets: Mapping[str, ReplicaSet], store: Store, journal: Journal, inspection: Inspection
    ) -> None:
        self._replica_sets = replica_sets
        self._store = store
        self._journal = journal
        self._inspection = inspection

    async def find(self, routed: RoutedRepository, tag: Tag) -> TagFinding | None:
        """Ask every replica that is up; return None where the tag is being written, so that any answer may be right.

        A replica that was not compared yet is believed in what is on record, and in nothing else.

        Raises:
            StoreUnavailableError: the record cannot be read.
        """
        replica_set = self._replica_sets[routed.upstream]
        key = IntentKey(routed, IntentKind.TAG, tag)
        for _ in range(_RACES_MAX):
            marks, intent, record = (
                await self._journal.current.marks(),
                await self._journal.find(key),
                await read_record(self._store, key),
            )
            now = time.time()
            if intent is not None and intent.is_under_way(now):
                return None
            clients = [
                client
                for client in replica_set.replicas
                if replica_set.is_writable(client.name)
                and (intent is None or not intent.may_be_missed(client.name, now))
            ]
            answers = await asyncio.gather(*(_ask(client, routed, tag) for client in clients))
            if (await read_record(self._store, key)).revision != record.revision:
                continue
            said = {client.name: found for client, found in zip(clients, answers, strict=True) if found is not None}
            older = {name: found for name, found in said.items() if record.is_past(found.digest)}
            for client in clients:
                if client.name in older and not marks.is_newcomer(routed.upstream, client.name):
                    await self._inspection.found_older(replica_set, client)
            believed = [
                found
                for name, found in said.items()
                if found.digest == record.digest or (name not in older and not marks.is_newcomer(routed.upstream, name))
            ]
            believed.sort(key=lambda found: found.digest != record.digest)
            return TagFinding(next(iter(believed), None), next(iter(older.values()), None), record.digest)
        return None


async def _ask(client: ReplicaClient, routed: RoutedRepository, tag: Tag) -> Descriptor | None:
    try:
        return await client.resolve_tag(routed.repository, tag)
    except (RegistryError, UpstreamUnavailableError):
        return None
