"""When a question that replicas failed with is put to them again: pure, the clock is given."""

from collections.abc import Callable
from dataclasses import dataclass

from cachetools import FIFOCache, TTLCache

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import RoutedRepository

_REMEMBERED = 1000
PAUSES_SECONDS = (0.0, 0.5, 1.0, 2.0)
"""Least time until a key is asked for again, after its first, second ... failure in a row."""

FAILURE_SECONDS = 60.0
"""Time after which a failure is forgotten."""

RETRIES_BURST = 20
RETRIES_PER_SECOND = 4.0
"""Budget of each repository for further tries of its keys."""


@dataclass(slots=True)
class _Failure:
    error: UpstreamUnavailableError
    changes: int
    at: float
    times: int


@dataclass(slots=True)
class _Budget:
    left: float
    at: float


class Retries:
    """Failures of keys of repositories, and further tries that each repository has left; the oldest are forgotten.

    A failure stands only while no replica changes its state: then the next try may end otherwise.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: TTLCache[tuple[RoutedRepository, str], _Failure] = TTLCache(_REMEMBERED, FAILURE_SECONDS, clock)
        self._budgets: FIFOCache[RoutedRepository, _Budget] = FIFOCache(_REMEMBERED)

    def failed(self, routed: RoutedRepository, key: str, error: UpstreamUnavailableError, changes: int) -> None:
        """Note that replicas failed with a key; ``changes`` is how often one had changed its state before."""
        known = self._failures.get((routed, key))
        times = 1 if known is None else known.times + 1
        self._failures[routed, key] = _Failure(error, changes, self._clock(), times)

    def answered(self, routed: RoutedRepository, key: str) -> None:
        """Note that a replica answered for a key."""
        self._failures.pop((routed, key), None)

    def standing(self, routed: RoutedRepository, key: str, changes: int) -> UpstreamUnavailableError | None:
        """Return the failure that answers in place of the replicas now; None to ask them."""
        known = self._failures.get((routed, key))
        if known is None or known.changes != changes:
            return None
        pause = PAUSES_SECONDS[min(known.times, len(PAUSES_SECONDS)) - 1]
        return type(known.error)(str(known.error)) if self._clock() < known.at + pause else None

    def take(self, routed: RoutedRepository, key: str) -> bool:
        """Return whether a request may try a key once more; count it where the key has failed."""
        if (routed, key) not in self._failures:
            return True
        now = self._clock()
        budget = self._budgets.get(routed) or _Budget(RETRIES_BURST, now)
        left = min(RETRIES_BURST, budget.left + (now - budget.at) * RETRIES_PER_SECOND)
        is_enough = left >= 1
        self._budgets[routed] = _Budget(left - is_enough, now)
        return is_enough
