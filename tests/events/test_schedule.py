"""The times of retries."""

from itertools import pairwise

from registry_proxy.events.schedule import RETRIES_SOON, wait_seconds


def test_the_first_retries_follow_within_ten_seconds_of_each_other() -> None:
    """A receiver that restarts gets its events soon."""
    assert all(0 < wait_seconds(attempts, None) <= 10 for attempts in range(1, RETRIES_SOON + 1))


def test_later_retries_back_off_to_a_day() -> None:
    """Each wait is longer than the one before, up to a day."""
    waits = [wait_seconds(attempts, None) for attempts in range(RETRIES_SOON + 1, 60)]
    assert all(later > earlier or later > 70_000 for earlier, later in pairwise(waits))
    assert max(waits) <= 86_400


def test_a_receiver_says_when_it_wants_to_be_asked() -> None:
    """Retry-After makes a wait longer, never shorter, and at most a day."""
    assert wait_seconds(1, 300.0) == 300.0
    assert wait_seconds(15, 1.0) > 1.0
    assert wait_seconds(1, 10.0**9) == 86_400
