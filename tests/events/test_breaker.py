"""Breakers: a receiver fails as a whole only where many tries in several lanes say so."""

from itertools import cycle

from registry_proxy.events.breaker import FAILURES, LANES, Breakers
from registry_proxy.events.delivery import Lane
from registry_proxy.events.sender import ReceiverAnswer

OK, FAILED, REFUSED = ReceiverAnswer(200, ""), ReceiverAnswer(None, "no answer"), ReceiverAnswer(400, "not for me")
PATIENCE_SECONDS = 10.0
LANES_OF_ONE = [Lane("ci", f"team/app{number}") for number in range(LANES)]


class Clock:
    """A clock that is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def failing(clock: Clock, lanes: list[Lane], answer: ReceiverAnswer = FAILED) -> Breakers:
    """Return breakers after as many failures as open one."""
    breakers = Breakers(clock)
    for _, lane in zip(range(FAILURES), cycle(lanes), strict=False):
        breakers.note(lane, answer)
    return breakers


def test_a_receiver_that_fails_in_several_lanes_is_tried_by_one() -> None:
    """The tries of all lanes together follow the schedule of one; other receivers are not concerned."""
    clock = Clock()
    breakers = failing(clock, LANES_OF_ONE)
    for _ in range(10):
        assert all(breakers.rest_until(lane) is not None for lane in LANES_OF_ONE)
        probe_at = breakers.next_probe_at(LANES_OF_ONE[0])
        assert probe_at is not None
        assert clock.now < probe_at <= clock.now + PATIENCE_SECONDS
        clock.now = probe_at
        assert [breakers.rest_until(lane) is None for lane in LANES_OF_ONE].count(True) == 1
        assert not breakers.note(LANES_OF_ONE[0], FAILED)
    assert breakers.rest_until(Lane("other", "team/app")) is None


def test_a_success_lets_all_lanes_go_on() -> None:
    """The first one says so; failures are counted anew."""
    breakers = failing(Clock(), LANES_OF_ONE)
    assert breakers.note(LANES_OF_ONE[0], OK)
    assert not breakers.note(LANES_OF_ONE[0], OK)
    assert not breakers.note(LANES_OF_ONE[0], FAILED)
    assert all(breakers.rest_until(lane) is None for lane in LANES_OF_ONE)


def test_few_lanes_and_refusals_open_no_breaker() -> None:
    """Each delivery then keeps its own schedule: the receiver is there, or little can be spared."""
    for breakers in (failing(Clock(), LANES_OF_ONE[:-1]), failing(Clock(), LANES_OF_ONE, REFUSED)):
        assert all(breakers.rest_until(lane) is None for lane in LANES_OF_ONE)
        assert breakers.next_probe_at(LANES_OF_ONE[0]) is None
