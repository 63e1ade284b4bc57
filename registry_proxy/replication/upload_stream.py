"""The senders of one request of an upload: each follows the spool to its own replica."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from registry_proxy.ports.content import BlobCache
from registry_proxy.ports.errors import CacheUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet, StorageKind
from registry_proxy.ports.uploads import SpoolFile, SpoolReader, UploadSession
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Repository
from registry_proxy.replication.fanout import GRACE_SECONDS, Lane, lanes_of, quorum_of, settle
from registry_proxy.tasks import end_all, spawn

_PIECE_BYTES = 1024 * 1024
_CANCEL_SECONDS = 5.0

_log = logging.getLogger(__name__)


async def follow(reader: SpoolReader, offset: int) -> AsyncIterator[bytes]:
    """Give the bytes of an upload from ``offset`` on as they come in, until the request that writes them ends."""
    while piece := await reader.read(offset):
        offset += len(piece)
        yield piece


async def read_range(fd: int, size_bytes: int) -> AsyncIterator[bytes]:
    """Give the first bytes of a file, each piece read in a thread; its position plays no part, so senders may share it.

    Args:
        fd: of the file.
        size_bytes: how many.

    Raises:
        OSError: the file is shorter, or cannot be read.
    """
    offset = 0
    while offset < size_bytes:
        piece = await asyncio.to_thread(os.pread, fd, min(size_bytes - offset, _PIECE_BYTES), offset)
        if not piece:
            raise OSError(f"a file ends {size_bytes - offset} bytes early")
        offset += len(piece)
        yield piece


async def send_cached(
    cache: BlobCache,
    client: ReplicaClient,
    repository: Repository,
    digest: Digest,
    read: Callable[[int, int], AsyncIterator[bytes]] = read_range,
) -> int | None:
    """Send a blob from the cache to a replica; return its size in bytes, None where the cache does not have it.

    The caller knows that ``repository``, or where it is mounted from, holds the blob.
    """
    reader = cache.open_committed(digest)
    if reader is None:
        return None
    with contextlib.closing(reader):
        fd, size_bytes = reader.fd, reader.size_bytes
        await client.push_blob(
            repository, Descriptor(BLOB_MEDIA_TYPE, digest, size_bytes), lambda: read(fd, size_bytes)
        )
    return size_bytes


class ReplicaStream:
    """The senders of one request of an upload: each follows the spool to its own replica, at its own speed.

    A sender that fails takes its replica out of the session; the client does not notice, and the commit sends the
    whole blob to that replica in a session of its own.
    """

    def __init__(
        self,
        replica_set: ReplicaSet,
        repository: Repository,
        file: SpoolFile,
        session: UploadSession,
        size_bytes: int | None,
    ) -> None:
        self._replica_set = replica_set
        self._repository = repository
        self._file = file
        self._session = session
        self._end = None if size_bytes is None else session.offset + size_bytes
        self._locations = dict(session.locations)
        self._next: dict[str, str] = {}
        self._tasks = [
            spawn(self._send(lane, file.open_reader(self._start_of(lane))), f"upload to {lane[0].name}")
            for lane in _lanes_with(
                replica_set, file, session, lanes_of(replica_set, session.session_id, session.locations)
            )
            if session.offset == 0 or replica_set.storage is StorageKind.SHARED or lane[0].name in session.locations
        ]

    def _start_of(self, lane: Lane) -> int:
        """Return the offset where the first of a lane continues: never before the bytes that this node misses."""
        location = session_at(self._replica_set, lane[0].name, self._session.locations)
        return self._file.start_offset if location is None else self._session.offset

    async def _send(self, lane: Lane, reader: SpoolReader) -> bool:
        with contextlib.closing(reader):
            for client in lane:
                try:
                    await self._send_to(client, reader, takes_over=client is lane[0])
                except UpstreamUnavailableError as error:
                    self._replica_set.report_failure(client.name, error)
                    _log.warning("replica %s left an upload: %s", client.name, error)
                except (RegistryError, CacheUnavailableError) as error:
                    _log.warning("replica %s left an upload: %s", client.name, error)
                else:
                    return True
        return False

    async def _send_to(self, client: ReplicaClient, reader: SpoolReader, *, takes_over: bool) -> None:
        """Send to one replica; ``takes_over``: whether nobody has written to the session in this request."""
        location = self._session.locations.get(client.name)
        if takes_over:
            location = session_at(self._replica_set, client.name, self._session.locations)
        offset = 0 if location is None else self._session.offset
        if not await self._file.wait_beyond(offset):
            if location is not None:
                self._next[client.name] = location
            return
        if location is None:
            location = self._locations[client.name] = await client.start_upload(self._repository)
        size_bytes = None if self._end is None else self._end - offset
        self._next[client.name] = await client.append_upload(location, follow(reader, offset), size_bytes)

    async def finish(self) -> Mapping[str, str]:
        """Wait for the senders, the slow ones 10 s past the quorum; return the next location at each that kept up."""
        await settle(self._tasks, quorum_of(self._replica_set), GRACE_SECONDS)
        return self._next

    async def abort(self) -> None:
        """End the senders and, as far as they answer, the sessions at the replicas."""
        await end_all(self._tasks)
        await cancel_sessions(self._replica_set, {**self._locations, **self._next})


def session_at(replica_set: ReplicaSet, replica: str, locations: Mapping[str, str]) -> str | None:
    """Return where an upload goes on at a replica, None where it has to be begun.

    Over shared storage any replica goes on with the session of another one, if they have the same ``http.secret``.
    """
    if replica in locations or replica_set.storage is StorageKind.INDEPENDENT:
        return locations.get(replica)
    return next(iter(locations.values()), None)


def _lanes_with(
    replica_set: ReplicaSet, file: SpoolFile, session: UploadSession, lanes: Sequence[Lane]
) -> Sequence[Lane]:
    """Leave out the replicas that miss the same bytes as the file: nobody can send them."""
    if not file.start_offset:
        return lanes
    if replica_set.storage is StorageKind.SHARED:
        return [lane[:1] for lane in lanes]
    able = [[client for client in lane if client.name in session.locations] for lane in lanes]
    return [lane for lane in able if lane]


async def cancel_sessions(replica_set: ReplicaSet, locations: Mapping[str, str]) -> None:
    """Tell the replicas that an upload is over. A replica that does not hear it purges the session by itself."""

    async def cancel(client: ReplicaClient) -> None:
        with contextlib.suppress(RegistryError, UpstreamUnavailableError, TimeoutError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                await client.cancel_upload(locations[client.name])

    clients = [client for client in replica_set.replicas if client.name in locations]
    await asyncio.gather(*(cancel(client) for client in clients if replica_set.is_writable(client.name)))
