"""Copies that this node keeps for replicas which miss a content: pinned as long as one does; a loss is reported."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.journal import IntentKey
from registry_proxy.ports.metrics import LostCopies, Observer
from registry_proxy.ports.replicas import ReplicaSet
from registry_proxy.ports.uploads import Spool
from registry_proxy.protocol.reference import Digest, parse_digest
from registry_proxy.replication.journal import Journal
from registry_proxy.tasks import repeat

_PAUSE_SECONDS = 60.0
_SETTLED_SECONDS = 600.0
"""A pin this old belongs to a push whose intents are stored by now, if it needed any."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LostCopy:
    """A content whose copy on this node is gone: the replicas that hold it, and those that miss it."""

    holders: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class KeptCopies:
    """The pins of this node, as far as they are for replicas of one upstream.

    A pin whose content is not here, and which the journal says that a replica misses, is a copy that was lost.

    Args:
        replica_set: the replicas.
        journal: what each replica misses.
        pins: of the node.
        observer: receives the number of lost copies.
        lease: excludes the writers of a key; raises StoreUnavailableError.
    """

    replica_set: ReplicaSet
    journal: Journal
    pins: Spool
    observer: Observer
    lease: Callable[[IntentKey], AbstractAsyncContextManager[None]]
    _closed: set[Digest] = field(default_factory=set)
    _lost: Mapping[Digest, LostCopy] = field(default_factory=dict)

    def closed(self, digest: Digest) -> None:
        """Note that the last replica that missed a content in some repository has it now."""
        self._closed.add(digest)

    def warnings(self) -> Sequence[str]:
        """Return, in words, what is no longer kept here for a replica that misses it."""
        return [_summary(self.replica_set.upstream, self._lost.values())] if self._lost else []

    async def run(self) -> None:
        """Look after the pins until cancelled, also where other nodes do all repairs."""
        await repeat(self.look, _PAUSE_SECONDS, StoreUnavailableError, at_once=True)

    async def look(self) -> None:
        """Unpin what nobody misses any more, pin what lost its pin, and tell which copies are gone.

        Raises:
            StoreUnavailableError: what replicas miss cannot be known.
        """
        await self._release()
        pinned, lost = set(self.pins.pinned(0)), dict[Digest, LostCopy]()
        for key, intent in await self.journal.missed_contents(self.replica_set.upstream):
            digest = parse_digest(key.name)
            if self.pins.holds(digest):
                if digest not in pinned:  # as after the loss of the directory beside the cache
                    self.pins.pin(digest)
            elif digest in pinned and await self._is_lost(key):
                without = {*intent.missing, *intent.refused}
                holders = [each.name for each in self.replica_set.replicas if each.name not in without]
                lost[digest] = LostCopy(tuple(holders), intent.missing)
        self._tell(lost)

    async def _is_lost(self, key: IntentKey) -> bool:
        """Tell whether a copy is gone, and not about to come: who pushes holds the lease until it is there."""
        try:
            async with self.lease(key):
                return await self.journal.find(key) is not None and not self.pins.holds(parse_digest(key.name))
        except StoreUnavailableError:
            return False  # somebody writes it: it is looked at again

    def _tell(self, lost: Mapping[Digest, LostCopy]) -> None:
        upstream = self.replica_set.upstream
        self.observer.observe(LostCopies(upstream, len(lost)))
        new = [lost[digest] for digest in lost.keys() - self._lost.keys()]
        self._lost = lost
        if new:
            _log.error("%s", _summary(upstream, new))

    async def _release(self) -> None:
        """Unpin what nobody misses any more: what we brought to the last replica that did, or some other node."""
        marks = await self.journal.current.marks()
        if await self.journal.current.is_doubtful():  # an empty store says of nobody that it misses something
            return
        closed, self._closed = self._closed, set()
        for digest in {*closed, *self.pins.pinned(_SETTLED_SECONDS)}:
            if not marks.is_missed(digest):
                self.pins.unpin(digest)


def _summary(upstream: str, lost: Collection[LostCopy]) -> str:
    """Return a sentence for people: how many copies are gone, where their contents are now, and what comes next."""
    places = Counter(", ".join(copy.holders) or "no replica" for copy in lost)
    missing = ", ".join(sorted({name for copy in lost for name in copy.missing}))
    where = "; ".join(f"{count} are only on {place}" for place, count in sorted(places.items()))
    what = f"{len(lost)} contents of upstream {upstream} that the cache kept for replica {missing} are gone from it"
    return f"{what}: {where}. Repair copies them from there as soon as both are up"
