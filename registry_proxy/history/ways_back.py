"""Rollback and restore: a tag becomes an earlier state of itself, by the same write as that of a push.

Each manifest of the image is written again, children first. So each replica judges anew whether it has all of it, and
receives the parts that this node has; a tombstone of a deleted manifest gives way to the write.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from registry_proxy.history.record import TagHistory
from registry_proxy.history.states import last_state, state_before
from registry_proxy.operations.contents import found_of, has, links_of, unless_absent
from registry_proxy.operations.manifests import ManifestWriter
from registry_proxy.operations.pull import Pull
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.history import Cause, Move, MoveKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.protocol.descriptor import Descriptor, Manifest, derive_media_type
from registry_proxy.protocol.reference import Digest, Tag, parse_digest
from registry_proxy.tasks import run_to_end

_MANIFESTS_MAX = 1000
_SHOWN_MAX = 100
"""Limit of the missing contents that are listed."""


class NoWayBackError(Exception):
    """A tag cannot become what was asked for; the text says why.

    Args:
        reason: for people.
        missing: the contents that are missing, each in words.
    """

    def __init__(self, reason: str, missing: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.missing = tuple(missing)


@dataclass(frozen=True, slots=True)
class WayBack:
    """A change of a tag to an earlier state.

    Args:
        routed: the repository.
        tag: the tag.
        digest: the state; None for one by ``steps``, or, of a deleted tag, for the last one.
        steps: how many distinct digests back.
        is_dry: whether it is only looked whether it can be done.
        may_move: whether the caller may move tags that exist.
    """

    routed: RoutedRepository
    tag: Tag
    digest: Digest | None
    steps: int = 1
    is_dry: bool = False
    may_move: bool = True


@dataclass(frozen=True, slots=True)
class MovedTag:
    """A tag that was moved, or would be: its digest, and the one before; None for a tag that was deleted."""

    digest: Digest
    previous: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaysBack:
    """Rolls tags back, and restores deleted ones.

    Args:
        record: the moves.
        pull: reads manifests.
        readers: by upstream; know whether the registries still have what a manifest names.
        writer: writes to the replicas.
        check_writable: refuses an upstream that is read-only, or has no quorum.
    """

    record: TagHistory
    pull: Pull
    readers: Mapping[str, RegistryReader]
    writer: ManifestWriter
    check_writable: Callable[[str], None]

    async def roll_back(self, way: WayBack, cause: Cause) -> MovedTag:
        """Make a tag what it was before. Once begun it goes on when the caller is cancelled.

        Raises:
            NoWayBackError: the tag has no such state, or a content of it is gone.
            RegistryError, UpstreamUnavailableError, StoreUnavailableError: as a push.
        """
        moves, current = await self._now(way)
        if current is None:
            raise NoWayBackError(f"the tag {way.tag} does not exist: a deleted tag is restored")
        wanted = way.digest or _parsed(state_before(moves, str(current), way.steps))
        if wanted is None:
            raise NoWayBackError(
                f"the history of {way.tag} does not go {way.steps} distinct digests back: name one by --to DIGEST"
            )
        if way.digest is not None and str(wanted) not in {str(current), *_known(moves)}:
            raise NoWayBackError(f"{wanted} is not in the history of {way.tag}")
        return await self._move(way, wanted, current, moves, cause)

    async def restore(self, way: WayBack, cause: Cause) -> MovedTag:
        """Make a deleted tag what it was. Errors as for a rollback."""
        moves, current = await self._now(way)
        if current is not None:
            raise NoWayBackError(f"the tag {way.tag} exists: roll it back instead")
        wanted = way.digest or _parsed(last_state(moves))
        if wanted is None or str(wanted) not in _known(moves):
            what = "it has no history" if wanted is None else f"{wanted} is not in its history"
            raise NoWayBackError(f"the tag {way.tag} cannot be restored: {what}")
        return await self._move(way, wanted, None, moves, cause)

    async def _now(self, way: WayBack) -> tuple[Sequence[Move], Digest | None]:
        """Return the moves of a tag, newest first, and what it is."""
        moves = await self.record.moves(way.routed, way.tag)
        try:
            found = await unless_absent(self.pull.head_manifest(way.routed, way.tag))
        except UpstreamUnavailableError:  # also where the tag moves faster than it can be asked for
            current = await self.record.current(way.routed, way.tag)
            if current is None:
                raise
            return moves, current
        return moves, None if found is None else found.descriptor.digest

    async def _move(
        self, way: WayBack, wanted: Digest, current: Digest | None, moves: Sequence[Move], cause: Cause
    ) -> MovedTag:
        manifests = await self._collect(way.routed, wanted, with_deleted=cause.kind is MoveKind.RESTORE)
        if purged := await self.record.purged(way.routed, [manifest.descriptor.digest for manifest in manifests]):
            raise NoWayBackError(f"{wanted} was purged", [f"manifest {digest}" for digest in purged])
        if not way.is_dry:
            self.check_writable(way.routed.upstream)
            await run_to_end(self._write(way, manifests, _at_registry(cause, moves)), f"{cause.kind} of a tag")
            moves = await self.record.moves(way.routed, way.tag)
            own = next((move for move in moves if move.request_id == cause.actor.request_id), None)
            # A state that it already was is one whose end is not in the history.
            current = current if own is None or own.previous == str(wanted) else _parsed(own.previous)
        return MovedTag(wanted, current)

    async def _write(self, way: WayBack, manifests: Sequence[Manifest], cause: Cause) -> None:
        *children, image = manifests
        for child in children:
            await self.writer.write(way.routed, None, child, links_of(child), may_move_tags=False)
        await self.writer.write(way.routed, way.tag, image, links_of(image), may_move_tags=way.may_move, cause=cause)

    # ------------------------------------------------------------ what is there

    async def _collect(self, routed: RoutedRepository, wanted: Digest, *, with_deleted: bool) -> Sequence[Manifest]:
        """Return the manifests of an image, those that name others behind them. Raises NoWayBackError.

        Only a restore brings back manifests that were deleted, as far as this node has them and this repository is on
        record to have held them.
        """
        found: dict[Digest, Manifest] = {}
        visited: set[Digest] = set()
        missing: list[str] = []
        blobs: dict[Digest, Descriptor] = {}
        waiting: list[tuple[Digest, Manifest | None]] = [(wanted, None)]
        while waiting:
            digest, manifest = waiting.pop()
            if manifest is not None:  # its children are here
                found[digest] = manifest
            elif digest not in visited:
                visited.add(digest)
                if len(visited) > _MANIFESTS_MAX:
                    raise NoWayBackError(f"{wanted} has more than {_MANIFESTS_MAX} manifests")
                manifest = await self._find(routed, digest)
                if manifest is None and with_deleted and (digest == wanted or await self.record.held(routed, digest)):
                    manifest = self._find_deleted(digest)
                if manifest is None:
                    missing.append(f"manifest {digest}")
                    continue
                links = links_of(manifest)
                blobs |= {blob.digest: blob for blob in links.blobs}
                waiting += [(digest, manifest), *((child.digest, None) for child in reversed(links.manifests))]
        missing += await found_of(lambda blob: self._missing_blob(routed, blob), blobs.values())
        if missing:
            more = [f"{len(missing) - _SHOWN_MAX} more"] if len(missing) > _SHOWN_MAX else []
            raise NoWayBackError(f"{wanted} is not whole any more", [*missing[:_SHOWN_MAX], *more])
        return list(found.values())

    async def _find(self, routed: RoutedRepository, digest: Digest) -> Manifest | None:
        answer = await unless_absent(self.pull.get_manifest(routed, digest))
        return None if answer is None else answer.manifest

    def _find_deleted(self, digest: Digest) -> Manifest | None:
        """Return a manifest out of the cache, which is shared by all repositories."""
        body = self.writer.cache.read_small(digest)
        media_type = None if body is None else derive_media_type(body)
        return None if body is None or media_type is None else Manifest(Descriptor(media_type, digest, len(body)), body)

    async def _missing_blob(self, routed: RoutedRepository, blob: Descriptor) -> str | None:
        is_there = await has(self.readers[routed.upstream].stat_blob(routed.repository, blob.digest))
        return None if is_there else f"blob {blob.digest}"


def _known(moves: Sequence[Move]) -> set[str]:
    """Return every state of a tag that is on record."""
    return {digest for move in moves for digest in (move.digest, move.previous) if digest is not None}


def _at_registry(cause: Cause, moves: Sequence[Move]) -> Cause:
    """Return a cause with the name of the registry by which the last client addressed it: receivers pull from there."""
    known = next((move.registry for move in moves if move.registry), "")
    scheme, _, host = known.partition("://")
    return replace(cause, actor=replace(cause.actor, scheme=scheme, host=host)) if known else cause


def _parsed(text: str | None) -> Digest | None:
    return None if text is None else parse_digest(text)
