"""The reliability of HEADs: its duration and its repositories."""

import pytest

from registry_proxy.protocol.reference import Repository
from registry_proxy.replica.heads import BELIEVED_SECONDS, DISBELIEVED_SECONDS, USELESS_SECONDS, Heads

ONE, OTHER = Repository("team/one"), Repository("team/other")


class Bench:
    """Heads whose clock a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.heads = Heads(lambda: self.now)


@pytest.fixture
def bench() -> Bench:
    """Give heads with a fresh clock."""
    return Bench()


def test_a_head_is_sent_and_its_absence_is_not_believed(bench: Bench) -> None:
    """In an unknown repository a HEAD is sent, and its 404 is not trusted."""
    assert bench.heads.are_useful(ONE)
    assert not bench.heads.are_believed(ONE)


def test_a_refused_head_is_not_sent_again_for_a_while(bench: Bench) -> None:
    """A refused HEAD is not repeated for ten minutes, in its repository only."""
    bench.heads.contradicted(ONE, was_absent=False)
    assert not bench.heads.are_useful(ONE)
    assert bench.heads.are_useful(OTHER)
    bench.now += USELESS_SECONDS
    assert bench.heads.are_useful(ONE)


def test_a_repository_that_takes_pushes_is_believed(bench: Bench) -> None:
    """A 404 there is trusted for a day from the last push, and in no other repository."""
    bench.heads.took_push(ONE)
    assert bench.heads.are_believed(ONE)
    assert not bench.heads.are_believed(OTHER)
    bench.now += BELIEVED_SECONDS
    assert not bench.heads.are_believed(ONE)


def test_one_false_absence_ends_the_belief_everywhere(bench: Bench) -> None:
    """After a false 404 none is trusted for an hour, also where pushes succeeded; HEADs are still sent."""
    bench.heads.took_push(ONE)
    bench.heads.contradicted(OTHER, was_absent=True)
    assert not bench.heads.are_believed(ONE)
    assert bench.heads.are_useful(OTHER)
    bench.now += DISBELIEVED_SECONDS
    assert bench.heads.are_believed(ONE)
