"""Blobs to the replicas: senders that follow the spool, the commit at each, mounts."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from registry_proxy.operations.contents import ask, is_committed
from registry_proxy.ports.content import BlobCache
from registry_proxy.ports.errors import CacheUnavailableError, FillFailedError, UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet, StorageKind
from registry_proxy.ports.uploads import Spool, SpoolFile, UploadSession
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import RegistryError, unavailable
from registry_proxy.protocol.reference import Digest, Repository
from registry_proxy.replication.fanout import (
    Lane,
    Outcome,
    check_writable,
    fan_out,
    lanes_of,
    quorum_of,
    require_quorum,
)
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.refusals import judging_blob
from registry_proxy.replication.upload_stream import ReplicaStream, cancel_sessions, follow, send_cached, session_at
from registry_proxy.tasks import repeat

_SWEEP_SECONDS = 60.0
"""Time between two looks for uploads that nobody goes on with."""

_log = logging.getLogger(__name__)


class UploadReplication:
    """Blobs to all replicas of an upstream: what ``operations.push`` asks of them.

    Args:
        replica_sets: the replicas by upstream.
        journal: where it is recorded which replica misses a blob.
        cache: the source of contents that a replica misses.
        pins: keeps contents that a replica misses from eviction.
    """

    def __init__(
        self, *, replica_sets: Mapping[str, ReplicaSet], journal: Journal, cache: BlobCache, pins: Spool
    ) -> None:
        self._replica_sets = replica_sets
        self._journal = journal
        self._cache = cache
        self._pins = pins

    def check_writable(self, upstream: str) -> None:
        """Refuse what is known to fail: 403 for a read-only upstream, 503 without a quorum."""
        check_writable(self._replica_sets[upstream])

    def follow(
        self, routed: RoutedRepository, file: SpoolFile, session: UploadSession, size_bytes: int | None
    ) -> ReplicaStream:
        """Start the senders of a request that appends to ``file``; ``size_bytes`` of its body, when known."""
        return ReplicaStream(self._replica_sets[routed.upstream], routed.repository, file, session, size_bytes)

    async def hold_upload(self, routed: RoutedRepository, session: UploadSession) -> bool:
        """Ask the replicas of an upload whether one of them can go on with it; one that does not answer cannot."""
        replica_set = self._replica_sets[routed.upstream]
        for client in replica_set.replicas:
            location = session_at(replica_set, client.name, session.locations)
            if location is not None and replica_set.is_writable(client.name):
                with contextlib.suppress(RegistryError, UpstreamUnavailableError):
                    if await client.holds_upload(location, session.offset):
                        return True
        return False

    async def cancel(self, routed: RoutedRepository, locations: Mapping[str, str]) -> None:
        """End an upload at the replicas, as far as they answer."""
        await cancel_sessions(self._replica_sets[routed.upstream], locations)

    def note(self, routed: RoutedRepository, locations: Mapping[str, str]) -> bytes:
        """Return what an upload needs to be cancelled by ``cancel_abandoned``."""
        return json.dumps([routed.upstream, dict(locations)]).encode()

    async def run(self) -> None:
        """Look after the uploads that nobody goes on with, until cancelled."""
        await repeat(self.cancel_abandoned, _SWEEP_SECONDS)

    async def cancel_abandoned(self) -> None:
        """Remove the uploads that nobody went on with, and end them at the replicas, as far as these answer."""
        try:
            await asyncio.to_thread(self._pins.sweep)
            gone = await asyncio.to_thread(self._pins.take_gone)
        except OSError as error:
            _log.warning("abandoned uploads cannot be looked for: %s", error)
            return
        for note in gone:
            with contextlib.suppress(ValueError, KeyError):  # cut by a full disk, or of an upstream that is gone
                upstream, locations = json.loads(note)
                await cancel_sessions(self._replica_sets[upstream], locations)

    async def commit(
        self, routed: RoutedRepository, descriptor: Descriptor, file: SpoolFile, locations: Mapping[str, str]
    ) -> Sequence[str]:
        """Commit an upload whose digest is right; return the configured replicas that miss the blob.

        A replica without a live session, or whose session is lost, gets the whole blob in a new one.

        Raises:
            RegistryError: UNAVAILABLE without a quorum, or what all replicas answered.
        """

        async def commit_at(client: ReplicaClient) -> None:
            location = session_at(replica_set, client.name, locations)
            if location is not None:
                try:
                    await client.commit_upload(location, descriptor.digest)
                except (RegistryError, UpstreamUnavailableError) as error:
                    _log.warning("replica %s lost an upload, sending the blob anew: %s", client.name, error)
                else:
                    return
            await client.push_blob(routed.repository, descriptor, lambda: follow(file.open_reader(0), 0))

        replica_set = self._replica_sets[routed.upstream]
        lanes = lanes_of(replica_set, str(descriptor.digest), locations)
        return require_quorum(replica_set, await fan_out(replica_set, lanes, commit_at))

    async def commit_sessions(
        self, routed: RoutedRepository, descriptor: Descriptor, locations: Mapping[str, str]
    ) -> Sequence[str]:
        """Commit an upload that no node has whole; return the configured replicas that miss the blob.

        The replicas compare the digest. When one of them misses the blob, it is fetched from one that took it, sent to
        who can take it now, and kept in the cache, pinned: the copy of this node counts as always.

        Raises:
            RegistryError: UNAVAILABLE without a quorum, or what all replicas answered.
            CacheUnavailableError: the cache cannot keep what a replica misses.
        """
        digest, replica_set = descriptor.digest, self._replica_sets[routed.upstream]
        lanes = lanes_of(replica_set, str(digest), locations)
        able = [[client for client in lane if session_at(replica_set, client.name, locations)] for lane in lanes]

        async def commit_at(client: ReplicaClient) -> None:
            try:
                await client.commit_upload(session_at(replica_set, client.name, locations) or "", digest)
            except RegistryError as error:
                # A node died over this very request, which was repeated at another one: the session ended well.
                # Only the repository's own blob says so: any other of this digest was not uploaded by this caller.
                is_lost = error.status == 404 and await replica_set.separation.can_believe(
                    client.name, ContentKind.BLOB
                )
                held = await _stat([client], routed.repository, digest) if is_lost else None
                if held is None or held.size_bytes != descriptor.size_bytes:
                    raise

        outcome = await fan_out(replica_set, [lane for lane in able if lane], commit_at)
        holders = [client for client in replica_set.replicas if client.name in outcome.confirmed]
        everybody = 1 if replica_set.storage is StorageKind.SHARED else len(replica_set.replicas)
        if not holders or len(holders) >= everybody:
            return require_quorum(replica_set, outcome)
        self._pins.pin(digest)
        try:
            await self._fetch_back(holders[0], routed.repository, descriptor)
            outcome = await self._copy_to_others(routed, descriptor, lanes, outcome)
            missing = require_quorum(replica_set, outcome)
        except BaseException:
            await self.release(digest)
            raise
        if not missing:
            await self.release(digest)
        return missing

    async def _fetch_back(self, client: ReplicaClient, repository: Repository, descriptor: Descriptor) -> None:
        """Have a blob that a replica took in the cache. Raises CacheUnavailableError, or UNAVAILABLE (503)."""
        try:
            reader, _ = await self._cache.open_or_fill(
                descriptor.digest, lambda offset: client.open_blob(repository, descriptor.digest, offset)
            )
            try:
                while not reader.verified:
                    await reader.wait_beyond(reader.available_bytes)
            finally:
                reader.close()
        except (UpstreamUnavailableError, FillFailedError) as error:
            raise unavailable(
                "a replica took the blob and could not give it to the others; try again", detail={"reason": str(error)}
            ) from error

    async def record_missing(self, routed: RoutedRepository, digest: Digest, missing: Sequence[str]) -> None:
        """Make the journal say who misses a blob that is being acknowledged; unpin our copy when nobody does."""
        if await self._journal.record_blob(routed, digest, missing) and not missing:
            await self.release(digest)

    async def is_everywhere(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        """Ask every replica that can be written to whether it holds a content; return False when one of them does not.

        A replica that is on record as missing it will get it, and a newcomer everything; one that does not answer, or
        refuses the question, is for the push itself to deal with.
        """
        replica_set = self._replica_sets[routed.upstream]
        if replica_set.read_only:
            return True
        excused = await self._excused(routed, kind, digest)
        clients = [lane[0] for lane in lanes_of(replica_set, str(digest)) if lane[0].name not in excused]
        return all(await asyncio.gather(*(self._has(replica_set, client, routed, kind, digest) for client in clients)))

    async def _excused(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> Collection[str]:
        marks = await self._journal.current.marks()
        names = {
            c.name for c in self._replica_sets[routed.upstream].replicas if marks.is_newcomer(routed.upstream, c.name)
        }
        if marks.is_missed(digest):
            intent = await self._journal.find(IntentKey(routed, IntentKind(kind), str(digest)))
            names |= set() if intent is None or intent.digest is None else set(intent.missing)
        return names

    @staticmethod
    async def _has(
        replica_set: ReplicaSet, client: ReplicaClient, routed: RoutedRepository, kind: ContentKind, digest: Digest
    ) -> bool:
        try:
            await ask(client, routed.repository, kind, digest)
        except RegistryError as error:
            return error.status != 404
        except UpstreamUnavailableError as error:
            replica_set.report_failure(client.name, error)
        return True

    async def release(self, digest: Digest) -> None:
        """Unpin our copy of a content, unless a replica still misses it in some repository."""
        marks = self._journal.current
        if not (await marks.marks()).is_missed(digest) and not await marks.is_doubtful():
            self._pins.unpin(digest)

    async def mount(
        self, routed: RoutedRepository, source: Repository, digest: Digest, held: Descriptor | None
    ) -> tuple[Descriptor, Sequence[str]] | None:
        """Mount a blob from another repository of the upstream; None when no quorum holds it afterwards.

        A replica without the source gets the bytes from our cache, but only where it is certain that the source
        holds them: else a digest would be all it takes to read any blob of the cache.

        Args:
            routed: the repository that gets it.
            source: the repository it comes from.
            digest: of the blob.
            held: its descriptor, when we know that the source holds it.
        """
        replica_set = self._replica_sets[routed.upstream]
        mounted: list[ReplicaClient] = []

        async def mount_at(client: ReplicaClient) -> None:
            if await client.mount_blob(routed.repository, digest, source):
                mounted.append(client)

        lanes = lanes_of(replica_set, str(digest))
        outcome = await fan_out(replica_set, lanes, mount_at)
        if held is None and mounted:
            held = await _stat(mounted, routed.repository, digest)
        if held is None:
            return None
        outcome = replace(outcome, confirmed=frozenset(client.name for client in mounted))
        outcome = await self._copy_to_others(routed, held, lanes, outcome)
        if len(outcome.confirmed) < quorum_of(replica_set):
            return None
        if require_quorum(replica_set, outcome) and not is_committed(self._cache, digest):
            # The copy of this node counts as well. Without it the client uploads the blob, and so makes one.
            with contextlib.suppress(RegistryError, CacheUnavailableError):
                await self._fetch_back(mounted[0], routed.repository, held)
                outcome = await self._copy_to_others(routed, held, lanes, outcome)
        return held, require_quorum(replica_set, outcome)

    async def _copy_to_others(
        self, routed: RoutedRepository, descriptor: Descriptor, lanes: Sequence[Lane], outcome: Outcome
    ) -> Outcome:
        """Send a blob from our cache to who has not confirmed that he holds it; return what it comes to then."""
        confirmed = set(outcome.confirmed)

        async def copy(client: ReplicaClient) -> None:
            if await send_cached(self._cache, client, routed.repository, descriptor.digest) is not None:
                confirmed.add(client.name)

        behind = [lane for lane in lanes if not any(client.name in confirmed for client in lane)]
        copied = await fan_out(self._replica_sets[routed.upstream], behind, copy)
        return Outcome(frozenset(confirmed), {**outcome.failures, **copied.failures})

    async def heal_blob(self, client: ReplicaClient, routed: RoutedRepository, digest: Digest) -> bool:
        """Send a blob that the repository holds to a replica that misses it; False when we do not have it.

        Raises:
            FinalRefusalError: the replica will never take it.
        """
        with judging_blob(digest):
            if await send_cached(self._cache, client, routed.repository, digest) is None:
                return False
        if await self._journal.confirm(IntentKey(routed, IntentKind.BLOB, str(digest)), digest, client.name):
            await self.release(digest)
        return True


async def _stat(clients: Sequence[ReplicaClient], repository: Repository, digest: Digest) -> Descriptor | None:
    for client in clients:
        with contextlib.suppress(RegistryError, UpstreamUnavailableError):
            return await client.stat_blob(repository, digest)
    return None
