"""State of a replica: a pure table of the findings of probes and requests; no I/O, the clock is given."""

from collections.abc import Callable

from registry_proxy.ports.errors import UpstreamLimitError, UpstreamUnavailableError
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.replica.failure import AccessRefusedError, BadUpstreamError, ReplicaFailedError

ANSWERS_SECONDS = 1.0
"""Time since its last answer from which on a replica that does not answer is asked last, until a probe was answered."""

_SILENCES = frozenset({"timeout", "stall"})
_SUSPICIOUS_OUTCOMES = frozenset({"cut", "5xx", *_SILENCES})


class ReplicaHealth:
    """The state of one replica. Only a connection that is refused, and a probe, can change it.

    Args:
        name: of the replica; ``reason`` stands beside it, and does not begin with it.
        clock: monotonic, in seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self.state = ReplicaState.DOWN
        self.reason = "not probed yet"
        self.changed_at = clock()
        self.latency_seconds: float | None = None
        self.is_silent = False
        """Whether a request had no answer, and a probe has to tell whether contents have any."""

        self.is_suspect = False
        """Whether nothing at all had an answer lately: it is asked last until a probe was answered, or not."""

        self._answered_at = float("-inf")
        self._limited_until = float("-inf")

    @property
    def is_up(self) -> bool:
        """Whether the last probe found a registry that takes our credentials, and no request contradicted it."""
        return self.state is ReplicaState.UP

    def explain(self) -> str:
        """Return what there is to say of its state: why it is not up, or how long it asked us to wait (429)."""
        left = self._limited_until - self._clock()
        return self.reason or (f"it asked us to wait, {left:.0f} s more (429)" if left > 0 else "")

    def probe_succeeded(self, latency_seconds: float) -> bool:
        """Take note; return True when the state changed."""
        self.latency_seconds = latency_seconds
        self._answered_at = self._clock()
        self.is_silent = self.is_suspect = False
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
        self._answered_at = self._clock()
        self.is_suspect = False

    def request_failed(self, error: Exception) -> bool:
        """Take note; return True when it is worth probing at once."""
        if not self.is_up:
            return False
        if isinstance(error, UpstreamLimitError):
            self._limited_until = self._clock() + error.retry_after_seconds
            return False
        if isinstance(error, ReplicaFailedError):
            return self._replica_failed(error)
        if isinstance(error, OSError):
            return self._become(ReplicaState.DOWN, str(error))
        if isinstance(error, UpstreamUnavailableError):
            self.is_silent = True
            return True
        # Refused access to one repository, or an odd answer: a probe tells whether there is more to it.
        return isinstance(error, AccessRefusedError | BadUpstreamError)

    def _replica_failed(self, error: ReplicaFailedError) -> bool:
        """One object that it fails with, or sits on, is no reason to take everything else from everybody."""
        if error.is_elsewhere:
            return True
        if error.outcome == "connect":
            return self._become(ReplicaState.DOWN, str(error))
        if error.outcome in _SILENCES:
            self.is_silent = True
            self.is_suspect = self.is_suspect or self._clock() >= self._answered_at + ANSWERS_SECONDS
        return error.outcome in _SUSPICIOUS_OUTCOMES

    def _become(self, state: ReplicaState, reason: str) -> bool:
        self.reason = reason.removeprefix(f"{self._name}: ")
        if state is self.state:
            return False
        self.state = state
        self.changed_at = self._clock()
        return True
