"""Copying images from another registry into this proxy, over the protocol: what `registry-proxy import` does.

A tag is written last, after the blobs, children, signatures and other referrers of its image: an import that was
interrupted begins again, and passes over the tags that are there.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from registry_proxy.operations.contents import has, unless_absent
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.protocol.descriptor import Descriptor, Manifest, parse_manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.patterns import compile_repository_pattern, compile_text_pattern
from registry_proxy.protocol.reference import (
    RESERVED_TAG_PREFIX,
    Digest,
    Repository,
    Tag,
    fallback_tags,
    is_repository,
    kept_digest,
    parse_repository,
)
from registry_proxy.protocol.referrers import Referrer, index_of, merge_referrers, parse_referrers
from registry_proxy.replica.client import HttpReplicaClient
from registry_proxy.replica.connections import ReplicaAddress, ReplicaConnections, Timeouts
from registry_proxy.tasks import end, spawn
from registry_proxy.telemetry.metrics import PrometheusObserver

_T = TypeVar("_T")
_ATTEMPTS = 4
_PAUSE_SECONDS = 1.0
_OBSERVE_SECONDS = 0.2
_TIMEOUTS = Timeouts(connect=5.0, first_byte=60.0, stall=60.0, probe=10.0, commit=600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The images that are copied, and where to.

    Args:
        repositories: pattern of their repositories; one without ``*`` is a name, for registries that list none.
        tags: pattern of their tags.
        prefix: put before the name of each repository, such as ``old/``; "" to keep the names.
        at_once: how many images are copied at the same time.
    """

    repositories: str = "**"
    tags: str = "*"
    prefix: str = ""
    at_once: int = 4


@dataclass(slots=True)
class Outcome:
    """The result so far: images (tags) that were copied or there already, the bytes of blobs, and the failures.

    ``failed`` holds the reason by the name of an image, repository or registry. ``found`` is how many images there are.
    """

    found: int = 0
    copied: int = 0
    present: int = 0
    blob_bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """A registry and the login there: ``username`` None for nobody; ``ca_file`` as PEM, besides the system's trust."""

    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def address(self) -> ReplicaAddress:
        """Return it as clients of registries take it."""
        return ReplicaAddress("import", self.url, self.url, self.username, self.password, self.ca_file)


class ImportFailedError(Exception):
    """One of the two registries cannot be used; the message says which, and why."""


async def import_images(
    source: RegistryAccess, target: RegistryAccess, selection: Selection, observe: Callable[[Outcome], None]
) -> Outcome:
    """Copy images; what fails is in the outcome, and does not stop the rest.

    Args:
        source: the registry that has the images.
        target: this proxy's public listener.
        selection: which images.
        observe: receives the outcome so far, several times a second.

    Raises:
        ImportFailedError: see the class.
        OSError, ssl.SSLError: a ``ca_file`` cannot be used.
    """
    observer, connections = PrometheusObserver(), ReplicaConnections()
    try:
        clients = [
            HttpReplicaClient(access.address(), _TIMEOUTS, connections, observer, may_wrap=True)
            for access in (source, target)
        ]
        work = _Import(clients[0], clients[1], selection)
        watch = spawn(_watch(work.outcome, observe), "progress of an import")
        try:
            await _run(work)
        finally:
            await end(watch)
    except (RegistryError, UpstreamUnavailableError) as error:
        raise ImportFailedError(str(error)) from error
    finally:
        await connections.aclose()
    return work.outcome


async def _watch(outcome: Outcome, observe: Callable[[Outcome], None]) -> None:
    while True:
        observe(outcome)
        await asyncio.sleep(_OBSERVE_SECONDS)


@dataclass
class _Import:
    """One import: the two registries, and what its parts share.

    ``locks`` keeps two images from sending one blob at the same time; ``homes`` holds a repository of the target that
    has it by then, to mount it from.
    """

    source: HttpReplicaClient
    target: HttpReplicaClient
    selection: Selection
    outcome: Outcome = field(default_factory=Outcome)
    locks: dict[Digest, asyncio.Lock] = field(default_factory=dict)
    homes: dict[Digest, Repository] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.repositories_at_once = asyncio.Semaphore(self.selection.at_once)
        self.images_at_once = asyncio.Semaphore(self.selection.at_once)


async def _run(work: _Import) -> None:
    await _patiently(work.target.probe)
    repositories = await _repositories(work)
    async with asyncio.TaskGroup() as group:
        for repository in repositories:
            group.create_task(_guarded(work, repository, work.repositories_at_once, _Copy(work, repository).run))


async def _repositories(work: _Import) -> list[Repository]:
    pattern = work.selection.repositories
    if is_repository(pattern):
        return [pattern]
    names = await _patiently(work.source.list_repositories)
    matches = compile_repository_pattern(pattern).fullmatch
    return [name for name in names if matches(name)]


async def _guarded(work: _Import, name: str, turns: asyncio.Semaphore, part: Callable[[], Awaitable[None]]) -> None:
    """Do a part of the work in its turn, and note its failure."""
    async with turns:
        try:
            await part()
        except (RegistryError, UpstreamUnavailableError) as error:
            work.outcome.failed[name] = str(error)


class _Copy:
    """The copy of one repository."""

    def __init__(self, work: _Import, repository: Repository) -> None:
        self._work = work
        self._from, self._to = work.source, work.target
        self._source = repository
        self._target = Repository(work.selection.prefix + repository)
        self._tags: frozenset[Tag] = frozenset()
        self._done: set[Digest] = set()

    async def run(self) -> None:
        """Copy the selected tags, each with all that belongs to it."""
        work = self._work
        parse_repository(self._target)
        tags = await _patiently(lambda: self._from.list_tags(self._source))
        self._tags = frozenset(tags)
        matches = compile_text_pattern(work.selection.tags).fullmatch
        chosen = [tag for tag in tags if matches(tag)]
        work.outcome.found += len(chosen)
        async with asyncio.TaskGroup() as group:
            for tag in chosen:
                part = functools.partial(self._copy_tag, tag)
                group.create_task(_guarded(work, f"{self._source}:{tag}", work.images_at_once, part))

    async def _copy_tag(self, tag: Tag) -> None:
        outcome = self._work.outcome
        if (kept := kept_digest(tag)) is not None:  # at a registry that stood behind a proxy as this one
            await self._copy_manifest(kept)
            outcome.copied += 1
            return
        digest = (await _patiently(lambda: self._from.resolve_tag(self._source, tag))).digest
        if tag.startswith(RESERVED_TAG_PREFIX):  # likewise; the tag is of that proxy, and the manifest is copied alone
            await self._copy_manifest(digest)
            outcome.copied += 1
            return
        there = await unless_absent(_patiently(lambda: self._to.resolve_tag(self._target, tag)))
        if there is not None and there.digest == digest:
            outcome.present += 1
            return
        await self._put_tag(tag, digest)
        outcome.copied += 1

    async def _put_tag(self, tag: Tag, digest: Digest) -> None:
        """Copy the manifest, and all that belongs to it, before the tag that names it."""
        manifest = await self._copy_manifest(digest)
        await _patiently(lambda: self._to.put_manifest(self._target, tag, manifest))

    async def _copy_manifest(self, digest: Digest) -> Manifest:
        """Copy a manifest, by digest, behind what it refers to; what refers to it follows."""
        manifest = await _patiently(lambda: self._from.fetch_manifest(self._source, digest))
        if digest in self._done:
            return manifest
        links = parse_manifest(manifest.body, manifest.descriptor.media_type)
        for blob in [*links.blobs, *await self._held(links.foreign)]:
            await self._copy_blob(blob)
        for child in links.manifests:
            await self._copy_manifest(child.digest)
        await _patiently(lambda: self._to.put_manifest(self._target, digest, manifest))
        self._done.add(digest)
        await self._copy_referrers(digest)
        return manifest

    async def _held(self, foreign: Iterable[Descriptor]) -> list[Descriptor]:
        """Return those of some non-distributable layers that the source has nevertheless."""

        async def is_held(layer: Descriptor) -> bool:
            return await has(_patiently(lambda: self._from.stat_blob(self._source, layer.digest)))

        return [layer for layer in foreign if await is_held(layer)]

    async def _copy_blob(self, blob: Descriptor) -> None:
        work = self._work
        async with work.locks.setdefault(blob.digest, asyncio.Lock()):
            if await unless_absent(_patiently(lambda: self._to.stat_blob(self._target, blob.digest))) is None:
                home = work.homes.get(blob.digest)
                if home is None or not await self._to.mount_blob(self._target, blob.digest, home):
                    await _patiently(lambda: self._send_blob(blob))
                    work.outcome.blob_bytes += blob.size_bytes
            work.homes[blob.digest] = self._target

    async def _send_blob(self, blob: Descriptor) -> None:
        async with self._from.open_blob(self._source, blob.digest) as stream:
            await self._to.push_blob(self._target, blob, stream.__aiter__)

    async def _copy_referrers(self, digest: Digest) -> None:
        """Copy signatures, attestations and other artifacts of a manifest, in each of the ways registries keep them."""
        tags = fallback_tags(digest)
        for tag in tags:
            if tag in self._tags:
                descriptor = await _patiently(functools.partial(self._from.resolve_tag, self._source, tag))
                await self._put_tag(tag, descriptor.digest)
        referrers = await _patiently(lambda: self._from.fetch_referrers(self._source, digest))
        for referrer in referrers or ():
            await self._copy_manifest(referrer.digest)
        if referrers and await _patiently(lambda: self._to.fetch_referrers(self._target, digest)) is None:
            await self._merge_fallback(tags[0], referrers)

    async def _merge_fallback(self, tag: Tag, referrers: list[Referrer]) -> None:
        """List referrers under the tag that is read where there is no referrers API (spec, "Referrers Tag Schema")."""
        there = await unless_absent(_patiently(lambda: self._to.resolve_tag(self._target, tag)))
        known: list[Referrer] = []
        if there is not None:
            body = (await self._to.fetch_manifest(self._target, there.digest)).body
            known = parse_referrers(body, skips_malformed=True)
        index = index_of(merge_referrers(known, referrers))
        await _patiently(lambda: self._to.put_manifest(self._target, tag, index))


async def _patiently(work: Callable[[], Awaitable[_T]]) -> _T:
    """Do something that a registry may refuse for the moment, a few times if need be."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return await work()
        except UpstreamUnavailableError as error:
            wait = getattr(error, "retry_after_seconds", None)
            await asyncio.sleep(_PAUSE_SECONDS * attempt if wait is None else wait)
    return await work()
