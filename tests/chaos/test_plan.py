"""The plan of the chaos test."""

from itertools import islice

from tests.chaos.plan import Fault, Harm, Step, faults, steps

TARGETS = ("replica-1", "node-1", "redis")


def plan(seed: int) -> tuple[list[Step], list[Fault]]:
    """Return the beginning of a plan."""
    return list(islice(steps(seed, 1, 0.1), 80)), list(islice(faults(seed, TARGETS, tuple(Harm)), 20))


def test_the_same_seed_is_the_same_plan() -> None:
    """Operations, pushed bytes and faults follow from the seed; another seed gives another plan."""
    assert plan(7) == plan(7)
    assert plan(7)[0] != plan(8)[0]
    assert plan(7)[1] != plan(8)[1]


def test_only_the_kinds_that_can_be_had_are_planned() -> None:
    """Where no disk can freeze, or no front gives up a hung node, the plan has other faults in their place."""
    kinds = {fault.harm for fault in islice(faults(7, TARGETS, {Harm.EMPTY, Harm.BREAK}), 200)}
    assert kinds == {Harm.KILL, Harm.STOP, Harm.RESTART, Harm.EMPTY, Harm.BREAK}
