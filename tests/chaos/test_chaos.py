"""Registries, nodes and Redis are killed, stopped and restarted under traffic: no acknowledged write is lost.

A failed run prints its seed, and the story of each broken promise; ``CHAOS_SEED=… make test`` or ``make soak`` runs the
same plan of operations and faults again.

``CHAOS_SECONDS=…`` changes its length, ``CHAOS_OUT=FILE`` keeps its output.
"""

import os
import random
from pathlib import Path

import pytest

from tests.chaos.cluster import Front, cluster
from tests.chaos.run import Run
from tests.support.copied import Copies

_SHORT_SECONDS = 24.0
LENGTHS = [
    pytest.param(_SHORT_SECONDS, Front.TURNS, marks=pytest.mark.timeout(300), id="24 seconds"),
    *(
        pytest.param(600.0, front, marks=[pytest.mark.soak, pytest.mark.timeout(1200)], id=f"ten minutes, {front}")
        for front in Front
    ),
]


def judge(root: Path, front: Front, copies: Copies, *, seconds: float, heals: bool, is_long: bool = False) -> Run:
    """Run the plan, then check everything once more; return the run, which has printed its report.

    A long run that heals has all kinds of faults.
    """
    seconds = float(os.environ.get("CHAOS_SECONDS") or seconds)
    with cluster(root, front, copies, may_freeze=is_long) as servers:
        seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 32))
        # A node of two workers takes twice as long to start, and would hardly ever be up.
        lull = 3.0 if front is Front.SHIPPED else 1.0
        further = servers.further_harms if is_long else ()
        run = Run(servers, seed, seconds, heals=heals, lull=lull, further=further)
        run.execute()
        run.pull_everything()
        run.list_referrers()
        if run.repairs:
            run.failures += [*run.differences(), *run.fallback_differences(), *run.verify()]
        run.failures += run.event_faults()
        report = run.report()
        print(report)
        if out := os.environ.get("CHAOS_OUT"):
            Path(out).write_text(report)
    return run


@pytest.mark.parametrize(("seconds", "front"), LENGTHS)
def test_faults_that_heal_one_by_one_are_not_noticed(
    tmp_path: Path, copies: Copies, seconds: float, front: Front
) -> None:
    """No pull of an acknowledged image fails, nothing is lost, old or wrong, and few pushes fail while they can work.

    Docker sends a manifest once: a push at a node that is killed at that moment fails, as with any registry.
    """
    is_long = seconds > _SHORT_SECONDS
    run = judge(tmp_path, front, copies, seconds=seconds, heals=True, is_long=is_long)
    assert run.history.violations() == []
    assert run.failures == []
    # A replica with damaged data is compared with the other one before it is well again.
    assert len(run.history.windows) >= run.seconds // (60 if is_long else 20)
    pushes, unexcused = run.pushes_and_unexcused()
    # One in a hundred; in a short run those that one fault hits: each client's push, at a node that is stopped.
    assert unexcused <= max(run.clients, pushes // 100)


@pytest.mark.parametrize(("seconds", "front"), LENGTHS)
def test_faults_one_over_the_other_make_no_lie(tmp_path: Path, copies: Copies, seconds: float, front: Front) -> None:
    """An unknown answer is a 503, never a 404, an older tag or wrong bytes; everything is there afterwards."""
    run = judge(tmp_path, front, copies, seconds=seconds / 2, heals=False)
    assert run.history.violations() == []
    assert run.failures == []
