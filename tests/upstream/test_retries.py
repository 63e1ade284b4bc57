"""Retries of failed questions, on a clock of the test."""

from registry_proxy.ports.errors import AbsenceUnknownError, UpstreamUnavailableError
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Repository
from registry_proxy.upstream.retries import FAILURE_SECONDS, PAUSES_SECONDS, RETRIES_BURST, Retries

TEAM, EVE = (RoutedRepository("main", Repository(name)) for name in ("team/app", "eve/app"))
ERROR = AbsenceUnknownError("nobody knows")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_tries_become_rare() -> None:
    """Each failure in a row counts longer, up to a bound, and is reported unchanged."""
    clock = Clock()
    retries = Retries(clock)
    for pause in (*PAUSES_SECONDS, PAUSES_SECONDS[-1]):
        assert retries.standing(EVE, "k", 0) is None
        retries.failed(EVE, "k", ERROR, 0)
        clock.now += max(pause - 0.01, 0)
        standing = retries.standing(EVE, "k", 0)
        assert (standing is not None) == (pause > 0)
        assert standing is None or (type(standing), str(standing)) == (AbsenceUnknownError, "nobody knows")
        clock.now += 0.02


def test_a_failure_is_one_of_its_repository_and_of_its_time() -> None:
    """Another repository, a change of a replica, an answer, or a minute ends it."""
    clock = Clock()
    retries = Retries(clock)

    def fail() -> None:
        for _ in PAUSES_SECONDS:
            retries.failed(EVE, "k", UpstreamUnavailableError("no"), 7)
        assert retries.standing(EVE, "k", 7)

    fail()
    assert retries.standing(TEAM, "k", 7) is None
    assert retries.standing(EVE, "k", 8) is None
    retries.answered(EVE, "k")
    assert retries.standing(EVE, "k", 7) is None
    fail()
    clock.now += FAILURE_SECONDS
    retries.failed(EVE, "k", ERROR, 7)
    assert retries.standing(EVE, "k", 7) is None, "it counts as the first"


def test_each_repository_has_its_budget() -> None:
    """Retries of failed keys are counted per repository, and come back with time; other keys are free."""
    clock = Clock()
    retries = Retries(clock)
    for key in "kl":
        retries.failed(EVE, key, ERROR, 0)
        retries.failed(TEAM, key, ERROR, 0)
    assert [retries.take(EVE, "kl"[n % 2]) for n in range(RETRIES_BURST + 1)] == [True] * RETRIES_BURST + [False]
    assert retries.take(EVE, "never failed")
    assert retries.take(TEAM, "k")
    clock.now += 1
    assert retries.take(EVE, "k")
