"""When a question that a replica is slow to answer is put to another one as well: pure, the clock is the caller's."""

from collections import deque

SAMPLES_MIN = 20
"""How many answers of a replica tell what is usual."""

_SAMPLES_MAX = 200
_USUAL_SHARE = 0.95
_UNKNOWN_SECONDS = 0.5
_LEAST_SECONDS, _MOST_SECONDS = 0.05, 1.0
"""Below the first a busy machine is taken for a slow replica; above the second a person notices."""

_LOAD_SHARE = 0.1
_BURST = 10.0


class Hedging:
    """The usual time of an upstream's replicas to answer, and the questions that may be asked twice.

    A question is asked again once it takes longer than 95 % of the answers of the quickest replica. At most a tenth of
    all questions are, besides a burst of ten: where everybody is slow, asking twice makes it worse.
    """

    def __init__(self) -> None:
        self._durations: dict[str, deque[float]] = {}
        self._allowance = _BURST

    def answered(self, replica: str, duration_seconds: float) -> None:
        """Note how long an answer took."""
        self._durations.setdefault(replica, deque(maxlen=_SAMPLES_MAX)).append(duration_seconds)

    def begin(self) -> float:
        """Count a question; return after how many seconds it may be put to another replica as well."""
        self._allowance = min(_BURST, self._allowance + _LOAD_SHARE)
        usual = [_usual(times) for times in self._durations.values() if len(times) >= SAMPLES_MIN]
        return min(max(min(usual, default=_UNKNOWN_SECONDS), _LEAST_SECONDS), _MOST_SECONDS)

    def take(self) -> bool:
        """Return whether a question may be asked twice now, and count it."""
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True


def _usual(durations: deque[float]) -> float:
    return sorted(durations)[int(len(durations) * _USUAL_SHARE)]
