"""What replicas did with content lately, and what follows for the next question: pure, the clock is given."""

from collections import OrderedDict
from collections.abc import Callable

DOUBT_SECONDS = 60.0
"""How long a replica that cut a content is asked last for it, and one that lied is asked last for anything."""

LIE_SECONDS = 600.0
"""How long a replica is not asked at all for a content that it falsified."""

SLOW_SECONDS = 10.0
"""How long a replica that another one overtook is asked last for anything."""

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
        self._asked_last: dict[str, float] = {}

    def cut(self, replica: str, key: str) -> None:
        """Note that it broke off, or that what it sent was a part of what turned out wrong."""
        _note(self._cuts, (replica, key), self._clock() + DOUBT_SECONDS)

    def lied(self, replica: str, key: str) -> None:
        """Note that what it sent, all of it, is not what was asked for."""
        now = self._clock()
        _note(self._lies, (replica, key), now + LIE_SECONDS)
        self._ask_last(replica, now + DOUBT_SECONDS)

    def slow(self, replica: str) -> None:
        """Note that it had not answered when another one, asked later, had."""
        self._ask_last(replica, self._clock() + SLOW_SECONDS)

    def is_doubted(self, replica: str, key: str) -> bool:
        """Tell whether to ask it last."""
        now = self._clock()
        return self._cuts.get((replica, key), now) > now or self._asked_last.get(replica, now) > now

    def has_lied(self, replica: str, key: str) -> bool:
        """Tell whether not to ask it."""
        now = self._clock()
        return self._lies.get((replica, key), now) > now

    def _ask_last(self, replica: str, until: float) -> None:
        self._asked_last[replica] = max(until, self._asked_last.get(replica, until))


def _note(entries: OrderedDict[tuple[str, str], float], key: tuple[str, str], until: float) -> None:
    entries[key] = until
    entries.move_to_end(key)
    while len(entries) > _ENTRIES_MAX:
        entries.popitem(last=False)
