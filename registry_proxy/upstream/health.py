"""How a replica is doing: a pure table of what probes and requests said; no I/O, the clock is given."""

from collections.abc import Callable

from registry_proxy.ports import ReplicaState, UpstreamUnavailableError
from registry_proxy.upstream.failure import AccessRefusedError, BadUpstreamError, ReplicaFailedError

FAILURES_TO_GO_DOWN = 3
"""How many 5xx in a row make a replica count as down; a time-out or no connection does so at once."""

_FATAL_OUTCOMES = frozenset({"connect", "timeout", "stall"})


class ReplicaHealth:
    """The state of one replica. Requests can only make it worse; only a probe makes it up again.

    Args:
        name: of the replica; ``reason`` is told beside it, and does not begin with it.
        clock: monotonic, in seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self.state = ReplicaState.DOWN
        self.reason = "not probed yet"
        self.changed_at = clock()
        self.latency_seconds: float | None = None
        self._failures_in_a_row = 0
        self._backs_off_until = float("-inf")

    @property
    def is_up(self) -> bool:
        """Whether the last probe found a registry that takes our credentials, and no request contradicted it."""
        return self.state is ReplicaState.UP

    @property
    def is_askable(self) -> bool:
        """Whether a request to it makes sense now: it is up and has not asked us to wait (429)."""
        return self.is_up and self._clock() >= self._backs_off_until

    def probe_succeeded(self, latency_seconds: float) -> bool:
        """Take note; return True when the state changed."""
        self.latency_seconds = latency_seconds
        self._failures_in_a_row = 0
        return self._become(ReplicaState.UP, "")

    def probe_failed(self, error: Exception) -> bool:
        """Take note; return True when the state changed."""
        self.latency_seconds = None
        if isinstance(error, AccessRefusedError):
            return self._become(ReplicaState.CREDENTIALS_REFUSED, error.reason)
        if isinstance(error, BadUpstreamError):
            return self._become(ReplicaState.NOT_A_REGISTRY, error.reason)
        return self._become(ReplicaState.DOWN, str(error))

    def request_succeeded(self) -> None:
        """Take note of any answer that is not 5xx: a 404 is a good answer."""
        self._failures_in_a_row = 0

    def request_failed(self, error: Exception) -> bool:
        """Take note; return True when it is worth probing at once."""
        if not self.is_up:
            return False
        if isinstance(error, AccessRefusedError) and error.is_login:
            return self._become(ReplicaState.CREDENTIALS_REFUSED, error.reason)
        if isinstance(error, ReplicaFailedError):
            return self._replica_failed(error)
        if isinstance(error, UpstreamUnavailableError | OSError):
            return self._become(ReplicaState.DOWN, str(error))
        # Refused access to one repository, or an odd answer: a probe tells whether there is more to it.
        return isinstance(error, AccessRefusedError | BadUpstreamError)

    def _replica_failed(self, error: ReplicaFailedError) -> bool:
        if error.retry_after_seconds is not None:
            self._backs_off_until = self._clock() + error.retry_after_seconds
            return False
        if error.outcome in _FATAL_OUTCOMES:
            return self._become(ReplicaState.DOWN, str(error))
        if error.outcome == "5xx":
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= FAILURES_TO_GO_DOWN:
                return self._become(ReplicaState.DOWN, str(error))
            return False
        return error.outcome == "cut"

    def _become(self, state: ReplicaState, reason: str) -> bool:
        self.reason = reason.removeprefix(f"{self._name}: ")
        if state is self.state:
            return False
        self.state = state
        self.changed_at = self._clock()
        return True
