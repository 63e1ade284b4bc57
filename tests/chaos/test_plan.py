"""The plan of the chaos test."""

from itertools import islice

from tests.chaos.plan import Fault, Step, faults, steps

TARGETS = ("replica-1", "node-1", "redis")


def plan(seed: int) -> tuple[list[Step], list[Fault]]:
    """Return the beginning of a plan."""
    return list(islice(steps(seed, 1, 0.1), 80)), list(islice(faults(seed, TARGETS, harms_data=True), 20))


def test_the_same_seed_is_the_same_plan() -> None:
    """Operations, the bytes that are pushed and faults follow from the seed; another seed is another plan."""
    assert plan(7) == plan(7)
    assert plan(7)[0] != plan(8)[0]
    assert plan(7)[1] != plan(8)[1]
