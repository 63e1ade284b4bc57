"""The agenda: a lane is served by one task at a time, a receiver by a few."""

import asyncio
from contextlib import aclosing

from registry_proxy.events.agenda import Agenda
from registry_proxy.events.delivery import Lane
from tests.support.waiting import until

LANES = [Lane("ci", f"team/app{number}") for number in range(5)]


class Bell:
    """Serves lanes: each serving waits for its release, and then asks for the next one at a scripted time."""

    def __init__(self) -> None:
        self.begun: list[Lane] = []
        self.free = asyncio.Event()
        self.again_at: float | None = None

    async def serve(self, lane: Lane) -> float | None:
        """Serve a lane."""
        self.begun.append(lane)
        await self.free.wait()
        return self.again_at


async def test_few_lanes_of_a_receiver_are_served_at_once() -> None:
    """A receiver has a limit of simultaneous lanes; another receiver does not wait for it."""
    bell = Bell()
    async with aclosing(Agenda(bell.serve, 2, lambda: 10.0)) as agenda:
        for lane in [*LANES, Lane("other", "team/app")]:
            agenda.serve_at(lane, 0.0)
        agenda.start_due()
        await until(lambda: len(bell.begun) == 3)
        assert {lane.subscription for lane in bell.begun} == {"ci", "other"}
        bell.free.set()

        def all_are_served() -> bool:
            agenda.start_due()
            return len(bell.begun) == 6

        await until(all_are_served)
    assert sorted(map(str, bell.begun)) == sorted(map(str, [*LANES, Lane("other", "team/app")]))


async def test_a_lane_is_served_at_its_time() -> None:
    """A lane that is due later is not served; an earlier time replaces a later one, and not the reverse."""
    bell, now = Bell(), [10.0]
    bell.free.set()
    async with aclosing(Agenda(bell.serve, 2, lambda: now[0])) as agenda:
        agenda.serve_at(LANES[0], 20.0)
        agenda.serve_at(LANES[1], 20.0)
        agenda.serve_at(LANES[0], 15.0)
        agenda.serve_at(LANES[0], 30.0)
        agenda.start_due()
        now[0] = 16.0
        agenda.start_due()
        await until(lambda: bell.begun == [LANES[0]])
        now[0] = 40.0
        agenda.start_due()
        await until(lambda: len(bell.begun) == 2)
        agenda.start_due()
    assert bell.begun == [LANES[0], LANES[1]]


async def test_an_event_that_comes_while_its_lane_is_served_is_not_forgotten() -> None:
    """A lane that gets an event while it is served is served again; one that waits for a retry keeps its time."""
    bell = Bell()
    async with aclosing(Agenda(bell.serve, 2, lambda: 10.0)) as agenda:
        agenda.serve_at(LANES[0], 0.0)
        agenda.start_due()
        await until(lambda: len(bell.begun) == 1)
        agenda.note_event(LANES[0], is_waiting=True)
        bell.free.set()

        def is_served_again() -> bool:
            agenda.start_due()
            return len(bell.begun) == 2

        await until(is_served_again)
        bell.again_at = 99.0
        agenda.serve_at(LANES[1], 0.0)
        bell.free.clear()
        agenda.start_due()
        await until(lambda: len(bell.begun) == 3)
        agenda.note_event(LANES[1], is_waiting=True)
        bell.free.set()
        await asyncio.sleep(0)
        for _ in range(5):
            agenda.start_due()
            await asyncio.sleep(0)
    assert len(bell.begun) == 3


async def test_thousands_of_lanes_become_due_in_steps() -> None:
    """No step takes all lanes: the worker answers requests in between. None is left out."""
    bell = Bell()
    bell.free.set()
    async with aclosing(Agenda(bell.serve, 10_000, lambda: 100.0)) as agenda:
        for number in range(2000):
            agenda.serve_at(Lane("ci", f"team/app{number}"), 0.0)
        agenda.start_due()
        await until(lambda: len(bell.begun) == 500)
        for _ in range(3):
            agenda.start_due()
        await until(lambda: len(set(bell.begun)) == 2000)
