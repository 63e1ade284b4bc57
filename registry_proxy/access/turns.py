"""Turns at work that only a few may do at once, shared fairly: by owner of an address, known callers first."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from registry_proxy.protocol.addresses import site_of


class QueueFullError(Exception):
    """No place is left in the queue, or a caller with a better claim got this one."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of the address an attempt comes from; ``is_known``: the same user logged in from there before."""

    owner: str
    is_known: bool


OPERATOR = Caller("", is_known=True)
"""The caller of work that an administrator asked for."""


class FairTurns:
    """Gives turns to at most ``at_once`` callers; the others wait in a queue of bounded length.

    Owners are served in rotation: an owner with one attempt does not wait behind the hundred attempts of another.
    Known callers come before all others. In a full queue the owner with the most places gives one up to an owner with
    fewer, where all have as many the site with the most owners does, and unknown callers give theirs up to known ones.

    Args:
        at_once: turns given at the same time.
        waiting_max: places in the queue.
    """

    def __init__(self, at_once: int, waiting_max: int) -> None:
        self._free = at_once
        self._waiting_max = waiting_max
        self._known, self._unknown = _Line(), _Line()

    @asynccontextmanager
    async def turn(self, caller: Caller) -> AsyncIterator[None]:
        """Hold a turn for the length of a with block. Raises QueueFullError."""
        await self.begin(caller)
        try:
            yield
        finally:
            self.end()

    async def begin(self, caller: Caller) -> None:
        """Wait for a turn, which ``end`` gives back. Raises QueueFullError."""
        if self._free:
            self._free -= 1
            return
        line = self._known if caller.is_known else self._unknown
        if len(self._known) + len(self._unknown) >= self._waiting_max:
            self._make_room(caller.owner, line)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.add(caller.owner, place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                line.remove(caller.owner, place)
            elif place.exception() is None:
                self.end()  # the turn came in the same moment
            raise

    def end(self) -> None:
        """Give a turn back: to the next caller that waits, if there is one."""
        place = self._known.take() or self._unknown.take()
        if place is None:
            self._free += 1
        else:
            place.set_result(None)

    def _make_room(self, owner: str, line: "_Line") -> None:
        if line is self._known and len(self._unknown):
            place = self._unknown.take_from_longest(0)
        else:
            place = line.take_from_longest(line.count(owner) + 1) or line.take_from_widest(owner)
        if place is None:
            raise QueueFullError
        place.set_exception(QueueFullError())


class _Line:
    """Places in the order of arrival, with a queue for each owner."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def count(self, owner: str) -> int:
        return len(self._queues.get(owner, ()))

    def add(self, owner: str, place: "asyncio.Future[None]") -> None:
        self._queues.setdefault(owner, deque()).append(place)
        self._length += 1

    def remove(self, owner: str, place: "asyncio.Future[None]") -> None:
        """Remove a place that its caller left; ``take`` may have passed it over already."""
        with suppress(KeyError, ValueError):
            self._queues[owner].remove(place)
            self._shortened(owner)

    def take(self) -> "asyncio.Future[None] | None":
        """Take the oldest place of the next owner; None where nobody waits."""
        while self._queues:
            owner, queue = next(iter(self._queues.items()))
            place = queue.popleft()
            self._queues.move_to_end(owner)
            self._shortened(owner)
            if not place.done():  # else its caller is leaving
                return place
        return None

    def take_from_longest(self, longer_than: int) -> "asyncio.Future[None] | None":
        """Take the newest place of the owner who has most of them; None where that is no more than ``longer_than``."""
        owner = max(self._queues, key=self.count, default=None)
        while owner is not None and self.count(owner) > longer_than:
            place = self._take_newest(owner)
            if not place.done():
                return place
        return None

    def take_from_widest(self, owner: str) -> "asyncio.Future[None] | None":
        """Take the newest place of the site that has most, where the site of ``owner`` has fewer; else None."""
        places: Counter[str] = Counter()
        for each, queue in self._queues.items():
            places[site_of(each)] += len(queue)
        site = max(places, key=places.__getitem__, default="")
        if places[site] <= places[site_of(owner)] + 1:
            return None
        for each in [each for each in reversed(self._queues) if site_of(each) == site]:
            place = self._take_newest(each)
            if not place.done():
                return place
        return None

    def _take_newest(self, owner: str) -> "asyncio.Future[None]":
        place = self._queues[owner].pop()
        self._shortened(owner)
        return place

    def _shortened(self, owner: str) -> None:
        self._length -= 1
        if not self._queues[owner]:
            del self._queues[owner]
