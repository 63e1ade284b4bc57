"""The state table of a replica, on a clock of the test's own."""

import pytest

from registry_proxy.ports.errors import UpstreamLimitError, UpstreamUnavailableError
from registry_proxy.ports.metrics import UpstreamOutcome
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.replica.failure import AccessRefusedError, BadUpstreamError, ReplicaFailedError
from registry_proxy.upstream.health import ANSWERS_SECONDS, ReplicaHealth


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def healthy(clock: Clock | None = None) -> ReplicaHealth:
    """Return the health of a replica after a successful probe."""
    health = ReplicaHealth("a", clock or Clock())
    assert health.probe_succeeded(0.001)
    return health


def test_it_is_down_until_the_first_probe() -> None:
    """A replica that was never probed gets no requests."""
    health = ReplicaHealth("a", Clock())
    assert (health.state, health.is_up, health.explain()) == (ReplicaState.DOWN, False, "not probed yet")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ReplicaFailedError("a: gone", "connect"), ReplicaState.DOWN),
        (ReplicaFailedError("a: 500", "5xx"), ReplicaState.DOWN),
        (AccessRefusedError("a", "wrong password"), ReplicaState.CREDENTIALS_REFUSED),
        (BadUpstreamError("a", "HTML"), ReplicaState.NOT_A_REGISTRY),
    ],
)
def test_a_probe_decides_the_state(error: Exception, state: ReplicaState) -> None:
    """A failed probe gives the reason, a good one brings the replica back immediately."""
    health = healthy()
    assert health.probe_failed(error)
    assert (health.state, health.is_up) == (state, False)
    assert health.reason
    assert not health.reason.startswith("a: "), "the name is reported beside it"
    assert health.probe_succeeded(0.5)
    assert (health.is_up, health.explain(), health.latency_seconds) == (True, "", 0.5)


def test_a_refused_connection_takes_it_down_at_once() -> None:
    """One refusal is enough, and only a probe brings the replica back."""
    for error in (ReplicaFailedError("a: gone", "connect"), OSError("gone")):
        health = healthy()
        assert health.request_failed(error)
        health.request_succeeded()
        assert health.state is ReplicaState.DOWN


@pytest.mark.parametrize("outcome", ["timeout", "stall"])
def test_silence_is_for_a_probe_to_judge(outcome: UpstreamOutcome) -> None:
    """A silent replica is asked last and probed, also about contents, and only the probe takes it down."""
    clock = Clock()
    health = healthy(clock)
    clock.now += ANSWERS_SECONDS
    assert health.request_failed(ReplicaFailedError("a: no answer in time", outcome))
    assert (health.is_up, health.is_suspect, health.is_silent) == (True, True, True)
    assert health.probe_failed(ReplicaFailedError("a: no answer in time", "timeout"))
    assert (health.is_up, health.is_silent) == (False, True)
    assert health.probe_succeeded(0.1)
    assert (health.is_up, health.is_suspect, health.is_silent) == (True, False, False)


def test_a_write_that_is_not_confirmed_in_time_is_a_silence() -> None:
    """A failure that a writer reports without an outcome asks for a probe, and takes nothing down."""
    health = healthy()
    assert health.request_failed(UpstreamUnavailableError("did not confirm in time"))
    assert (health.is_up, health.is_silent) == (True, True)


@pytest.mark.parametrize("outcome", ["timeout", "stall"])
def test_a_hang_while_others_are_answered_is_of_one_object(outcome: UpstreamOutcome) -> None:
    """A missed deadline beside answers to others asks for a probe and changes no state."""
    clock = Clock()
    health = healthy(clock)
    for _ in range(10):
        clock.now += ANSWERS_SECONDS
        health.request_succeeded()
        assert health.request_failed(ReplicaFailedError("a: no answer in time", outcome))
        assert health.is_up
        assert not health.is_suspect


@pytest.mark.parametrize(
    "error",
    [
        RegistryError(ErrorCode.BLOB_UNKNOWN, "absent"),
        RegistryError(ErrorCode.MANIFEST_INVALID, "wrong"),
        AccessRefusedError("a", "403 for one repository"),
        AccessRefusedError("a", "it refuses the configured user name and password", 401),
        ReplicaFailedError("a: 500", "5xx"),
        BadUpstreamError("a", "odd"),
        ReplicaFailedError("a: lied", "mismatch"),
        ReplicaFailedError("a: cut", "cut"),
    ],
)
def test_a_failure_with_one_content_does_not_take_it_down(error: Exception) -> None:
    """4xx, 5xx, one refused repository, a lie and a cut body leave the replica up, however often."""
    health = healthy()
    for _ in range(10):
        health.request_failed(error)
    assert health.is_up


def test_suspicion_is_worth_a_probe() -> None:
    """A cut body, a refusal or an odd answer asks for a probe, a 404 does not."""
    health = healthy()
    assert health.request_failed(AccessRefusedError("a", "wrong password"))
    assert health.request_failed(ReplicaFailedError("a: cut", "cut"))
    assert health.request_failed(BadUpstreamError("a", "odd"))
    assert not health.request_failed(RegistryError(ErrorCode.BLOB_UNKNOWN, "absent"))
    assert not health.request_failed(ReplicaFailedError("a: lied", "mismatch"))


def test_429_is_shown_as_long_as_it_asked_us_to_wait() -> None:
    """It stays up, and is shown as rate limited, for as long as it asked us to wait."""
    clock = Clock()
    health = healthy(clock)
    assert not health.request_failed(UpstreamLimitError("a: 429", "too many", 5))
    clock.now += 2
    assert (health.is_up, health.explain()) == (True, "it asked us to wait, 3 s more (429)")
    clock.now += 3
    assert health.explain() == ""


def test_the_time_of_the_last_change_is_kept() -> None:
    """The same state again is no change."""
    clock = Clock()
    health = healthy(clock)
    clock.now += 10
    assert not health.probe_succeeded(0.1)
    assert health.changed_at == 1000
    health.probe_failed(ReplicaFailedError("a: gone", "connect"))
    assert health.changed_at == 1010
