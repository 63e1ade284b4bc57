"""Whether the replicas of an upstream keep repositories apart. Some answer for a digest in any: zot with its dedupe.

A digest that a replica holds is asked for in a repository that does not exist: an answer there is the proof. Where we
may push, the digest is that of a content of our own, so that nothing is asked about those of clients.
"""

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Protocol

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.metrics import Observer, RepositoriesMixed
from registry_proxy.ports.names import ContentKind
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, OCI_INDEX, Descriptor, Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import RESERVED_PREFIX, Digest, Repository, Tag, digest_of

PROBE = Repository(f"{RESERVED_PREFIX}probe")
"""The repository with the contents of our own."""

NOWHERE = Repository(f"{RESERVED_PREFIX}nowhere")
"""A repository that nobody pushes to. zot makes it when it is asked for a blob there."""

_BLOB = b"registry-proxy asks in which repositories a registry answers for this blob\n"
_INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
_OWN = {
    ContentKind.BLOB: Descriptor(BLOB_MEDIA_TYPE, digest_of(_BLOB), len(_BLOB)),
    ContentKind.MANIFEST: Descriptor(OCI_INDEX, digest_of(_INDEX), len(_INDEX)),
}

_SAMPLES_MAX = 3

_log = logging.getLogger(__name__)


class Asked(Protocol):
    """A replica, as far as it is used here."""

    @property
    def name(self) -> str: ...
    async def answers(self, kind: ContentKind, repository: Repository, digest: Digest) -> bool:
        """Tell whether it answers a HEAD with the content; raise UpstreamUnavailableError where it does not answer."""

    async def push_blob(
        self, repository: Repository, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]
    ) -> None: ...
    async def put_manifest(self, repository: Repository, tag_or_digest: Tag | Digest, manifest: Manifest) -> None: ...


class Remembered(Protocol):
    """The memory that this node has of answers."""

    def contents_of(self, upstream: str, kind: ContentKind) -> Iterator[tuple[Repository, Digest]]:
        """Give contents of a kind that repositories of an upstream hold."""

    def forget_answers(self, upstream: str, kind: ContentKind) -> None:
        """Forget what replicas said that repositories hold; what was pushed through us stays. Takes long."""


class Separation:
    """Implements ``ports.replicas.Separation`` for the replicas of one upstream.

    Args:
        upstream: its name.
        replicas: the names of all of them.
        is_known_mixed: the configuration says that they mix repositories: nothing is asked.
        may_push: whether they take contents of our own.
        remembered: loses what replicas said when one of them turns out to answer for any repository.
        observer: receives what is found out.
        clients: returns those that are up.
        is_writable: tells of each whether it may be written to now.
    """

    def __init__(
        self,
        upstream: str,
        replicas: Sequence[str],
        *,
        is_known_mixed: bool,
        may_push: bool,
        remembered: Remembered,
        observer: Observer,
        clients: Callable[[], Iterable[Asked]],
        is_writable: Callable[[str], bool],
    ) -> None:
        self._upstream = upstream
        self._replicas = replicas
        self._is_known_mixed = is_known_mixed
        self._may_push = may_push
        self._mixed = set(ContentKind) if is_known_mixed else set[ContentKind]()
        self._remembered = remembered
        self._observer = observer
        self._is_apart: dict[tuple[str, ContentKind], bool] = {}
        self._unverified: set[tuple[str, ContentKind]] = set()
        self._latest: dict[tuple[str, ContentKind], tuple[Repository, Digest]] = {}
        self._clients = clients
        self._is_writable = is_writable
        self._lock = asyncio.Lock()

    # ------------------------------------------------------------ ports.replicas.Separation

    def is_mixed(self, kind: ContentKind) -> bool:
        return kind in self._mixed

    def is_apart(self, kind: ContentKind) -> bool:
        return kind not in self._mixed and all(self._is_apart.get((name, kind)) for name in self._replicas)

    def is_settled(self, kind: ContentKind) -> bool:
        return not any(kind is unverified for _, unverified in self._unverified)

    async def verify(self, kind: ContentKind) -> None:
        for key in [key for key in self._unverified if key[1] is kind]:
            try:
                await self._find_out_now(self._client(key[0]), kind)
            except UpstreamUnavailableError:
                self._unverified.discard(key)  # what the replica answers from now on is checked anew
                raise
        for client in self._clients():  # they share the fate of this one
            if (client.name, kind) not in self._is_apart:
                with contextlib.suppress(UpstreamUnavailableError):
                    await self._find_out_now(client, kind)

    async def can_believe(self, replica: str, kind: ContentKind) -> bool:
        if not self._is_known_mixed and (replica, kind) not in self._is_apart:
            with contextlib.suppress(UpstreamUnavailableError):
                await self._find_out_now(self._client(replica), kind)
        return not self._is_known_mixed and self._is_apart.get((replica, kind), False)

    async def _find_out_now(self, client: Asked, kind: ContentKind) -> None:
        latest = self._latest.get((client.name, kind))
        digest = await self._own(client, kind, may_push=True) if self._may_push else None
        if digest is None and latest is not None:
            digest = latest[1]
        if digest is not None:
            await self._find_out(client, kind, digest)

    def _client(self, name: str) -> Asked:
        for client in self._clients():
            if client.name == name:
                return client
        raise UpstreamUnavailableError(f"{name}: it went down before its answer could be checked")

    # ------------------------------------------------------------ for the replicas

    def answered(self, replica: str, kind: ContentKind, repository: Repository, digest: Digest) -> None:
        """Note that a replica has answered for a digest in a repository."""
        key = (replica, kind)
        self._latest[key] = (repository, digest)
        if key not in self._is_apart:
            self._unverified.add(key)

    def keeps_apart(self, replica: str) -> bool | None:
        """Tell what is known of a replica: False once it answered for a repository that does not hold the content."""
        known = [self._is_apart.get((replica, kind)) for kind in ContentKind]
        if self._is_known_mixed or False in known:
            return False
        return self._is_apart.get((replica, ContentKind.BLOB))

    async def look(self) -> None:
        """Ask every replica that is up again. One that was found to mix repositories is taken to do so for ever."""
        if self._is_known_mixed:
            return
        remembered = [] if self._may_push else await asyncio.to_thread(self._samples)
        await asyncio.gather(*(self._look_at_all(client, remembered) for client in self._clients()))

    async def _look_at_all(self, client: Asked, remembered: Sequence[tuple[Repository, Digest]]) -> None:
        try:
            await self._look_at(client, ContentKind.BLOB, remembered)
            await self._look_at(client, ContentKind.MANIFEST, [])
        except UpstreamUnavailableError as error:
            _log.info("unknown whether %s keeps repositories apart: %s", client.name, error)

    def _samples(self) -> list[tuple[Repository, Digest]]:
        return list(itertools.islice(self._remembered.contents_of(self._upstream, ContentKind.BLOB), _SAMPLES_MAX))

    async def _look_at(self, client: Asked, kind: ContentKind, remembered: Sequence[tuple[Repository, Digest]]) -> None:
        if self._may_push:  # nothing is pushed, nor asked about what clients have, before an answer has to be believed
            own = await self._own(client, kind, may_push=(client.name, kind) in self._is_apart)
            if own is not None:
                await self._find_out(client, kind, own)
            return
        latest = self._latest.get((client.name, kind))
        for repository, digest in remembered if latest is None else [latest]:
            if await client.answers(kind, repository, digest):  # what it has lost tells nothing
                await self._find_out(client, kind, digest)
                return

    async def _own(self, client: Asked, kind: ContentKind, *, may_push: bool) -> Digest | None:
        """Return the digest of our own content, pushed where it may be; None where the replica does not hold it."""
        own = _OWN[kind]
        if await client.answers(kind, PROBE, own.digest):
            return own.digest
        if not may_push or not self._is_writable(client.name):
            return None
        try:
            if kind is ContentKind.BLOB:
                await client.push_blob(PROBE, own, _own_blob)
            else:
                await client.put_manifest(PROBE, own.digest, Manifest(own, _INDEX))
        except (RegistryError, UpstreamUnavailableError) as error:
            _log.info("%s does not take a %s of our own: %s", client.name, kind, error)
            return None
        return own.digest

    async def _find_out(self, client: Asked, kind: ContentKind, digest: Digest) -> None:
        async with self._lock:
            if self._is_apart.get((client.name, kind)) is not False:
                is_apart = not await client.answers(kind, NOWHERE, digest)
                if not is_apart:
                    await self._mix(client.name, kind)
                self._is_apart[client.name, kind] = is_apart
                self._observer.observe(
                    RepositoriesMixed(self._upstream, client.name, self.keeps_apart(client.name) is False)
                )
            self._unverified.discard((client.name, kind))

    async def _mix(self, replica: str, kind: ContentKind) -> None:
        if kind not in self._mixed:
            self._mixed.add(kind)
            _log.warning(
                "replica %s/%s answers for a %s in repositories that do not hold it: from now on a repository of this "
                "upstream holds what was pushed to it through this proxy and what its manifests name",
                self._upstream,
                replica,
                kind,
            )
            await asyncio.to_thread(self._remembered.forget_answers, self._upstream, kind)


async def _own_blob() -> AsyncIterator[bytes]:
    yield _BLOB
