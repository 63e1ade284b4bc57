"""What replicas did with content lately, and what follows for the next question: pure, the clock is given."""

from collections import OrderedDict
from collections.abc import Callable

DOUBT_SECONDS = 60.0
"""How long a replica that cut a content is asked last for it, and one that lied is asked last for anything."""

LIE_SECONDS = 600.0
"""How long a replica is not asked at all for a content that it falsified."""

_ENTRIES_MAX = 1000


class Doubts:
    """Cuts, stalls and lies of the replicas of one upstream, within a bound: the oldest are forgotten first.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._cuts: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lies: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._last_lie: dict[str, float] = {}

    def cut(self, replica: str, key: str) -> None:
        """Note that it broke off, or that what it sent was a part of what turned out wrong."""
        _note(self._cuts, (replica, key), self._clock() + DOUBT_SECONDS)

    def lied(self, replica: str, key: str) -> None:
        """Note that what it sent, all of it, is not what was asked for."""
        now = self._clock()
        _note(self._lies, (replica, key), now + LIE_SECONDS)
        self._last_lie[replica] = now + DOUBT_SECONDS

    def is_doubted(self, replica: str, key: str) -> bool:
        """Tell whether to ask it last."""
        now = self._clock()
        return self._cuts.get((replica, key), now) > now or self._last_lie.get(replica, now) > now

    def has_lied(self, replica: str, key: str) -> bool:
        """Tell whether not to ask it."""
        now = self._clock()
        return self._lies.get((replica, key), now) > now


def _note(entries: OrderedDict[tuple[str, str], float], key: tuple[str, str], until: float) -> None:
    entries[key] = until
    entries.move_to_end(key)
    while len(entries) > _ENTRIES_MAX:
        entries.popitem(last=False)
