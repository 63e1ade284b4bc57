"""Recent behaviour of replicas with contents, and its consequence for the next question: pure, the clock is given."""

from collections.abc import Callable

from cachetools import FIFOCache, TTLCache

from registry_proxy.ports.errors import UpstreamLimitError
from registry_proxy.ports.names import RoutedRepository

_REMEMBERED = 1000
DOUBT_SECONDS = 60.0
"""How long a replica that cut a content is asked last for it, and one that lied is asked last for anything."""

LIE_SECONDS = 600.0
"""How long a replica is not asked at all for a content that it falsified."""

SLOW_SECONDS = 10.0
"""How long a replica that another one overtook is asked last for anything."""

WAIT_MAX_SECONDS = 60.0
"""Longest time that a replica which asked us to wait is left alone."""


class Doubts:
    """Cuts, stalls, lies and limits of the replicas of one upstream, within a bound: the oldest are forgotten first.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._cuts: TTLCache[tuple[str, str], None] = TTLCache(_REMEMBERED, DOUBT_SECONDS, clock)
        self._lies: TTLCache[tuple[str, str], None] = TTLCache(_REMEMBERED, LIE_SECONDS, clock)
        self._limits: FIFOCache[tuple[str, RoutedRepository], tuple[float, UpstreamLimitError]] = FIFOCache(_REMEMBERED)
        self._asked_last: dict[str, float] = {}

    def cut(self, replica: str, key: str) -> None:
        """Note that it failed with it or broke off, or that what it sent was a part of what turned out wrong."""
        self._cuts[replica, key] = None

    def lied(self, replica: str, key: str) -> None:
        """Note that what it sent, all of it, is not what was asked for."""
        self._lies[replica, key] = None
        self._ask_last(replica, self._clock() + DOUBT_SECONDS)

    def slow(self, replica: str) -> None:
        """Note that it had not answered when another one, asked later, had."""
        self._ask_last(replica, self._clock() + SLOW_SECONDS)

    def is_doubted(self, replica: str, key: str) -> bool:
        """Tell whether to ask it last."""
        now = self._clock()
        return self.has_failed(replica, key) or self._asked_last.get(replica, now) > now

    def has_failed(self, replica: str, key: str) -> bool:
        """Tell whether it failed with it or broke off a short while ago."""
        return (replica, key) in self._cuts

    def has_lied(self, replica: str, key: str) -> bool:
        """Tell whether not to ask it."""
        return (replica, key) in self._lies

    def limited(self, replica: str, routed: RoutedRepository, error: UpstreamLimitError) -> None:
        """Note that it asked us to wait when asked for something of a repository.

        It is asked last for others, which may have limits of their own.
        """
        now = self._clock()
        self._limits[replica, routed] = now, error
        self._ask_last(replica, now + min(error.retry_after_seconds, WAIT_MAX_SECONDS))

    def limit(self, replica: str, routed: RoutedRepository) -> UpstreamLimitError | None:
        """Return why not to ask it for anything of a repository now, with the time that is left; None to ask."""
        now = self._clock()
        noted_at, error = self._limits.get((replica, routed)) or (now, None)
        if error is None or now >= noted_at + min(error.retry_after_seconds, WAIT_MAX_SECONDS):
            return None
        return UpstreamLimitError(str(error), error.words, noted_at + error.retry_after_seconds - now)

    def _ask_last(self, replica: str, until: float) -> None:
        self._asked_last[replica] = max(until, self._asked_last.get(replica, until))
