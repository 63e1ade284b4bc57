"""FairTurns: the order of the callers, and the loss of a place in a full queue."""

import asyncio

import pytest

from registry_proxy.access.turns import Caller, FairTurns, QueueFullError
from registry_proxy.tasks import spawn


class Line:
    """Callers at one turn; ``served`` holds their names in the order of their turns."""

    def __init__(self, at_once: int, waiting_max: int) -> None:
        self.turns = FairTurns(at_once, waiting_max)
        self.served: list[str] = []

    async def come(self, *names: str, is_known: bool = False) -> list["asyncio.Task[None]"]:
        """Let callers come; the first letter of a name is its owner."""
        tasks = [spawn(self._wait(name, is_known=is_known), name) for name in names]
        await asyncio.sleep(0)
        return tasks

    async def _wait(self, name: str, *, is_known: bool) -> None:
        await self.turns.begin(Caller(name[0], is_known))
        self.served.append(name)

    async def serve(self, count: int) -> list[str]:
        """End turns; return the names that received one since the last call."""
        del self.served[:]
        for _ in range(count):
            self.turns.end()
            await asyncio.sleep(0)
        return self.served


async def test_owners_are_served_in_rotation() -> None:
    """An owner with one attempt is next but one, whatever the other's queue; attempts of one owner keep their order."""
    line = Line(2, 100)
    await line.come("a1", "a2", "a3", "a4", "a5")
    assert line.served == ["a1", "a2"]
    await line.come("b1", "c1")
    assert await line.serve(5) == ["a3", "b1", "c1", "a4", "a5"]


async def test_known_callers_come_first() -> None:
    """Known callers pass all unknown ones, and are served in rotation among themselves."""
    line = Line(1, 100)
    await line.come("a1", "a2")
    await line.come("b1", "b2", "c1", is_known=True)
    assert await line.serve(4) == ["b1", "c1", "b2", "a2"]


async def test_a_full_queue_gives_place_to_an_owner_with_fewer() -> None:
    """The owner with the most places loses its newest one; with one place each, the next owner is refused."""
    line = Line(1, 3)
    _, _, kept, lost = await line.come("a1", "a2", "a3", "a4")
    (other,) = await line.come("b1")
    with pytest.raises(QueueFullError):
        await lost
    assert not kept.done()
    assert not other.done()
    (third,) = await line.come("c1")
    with pytest.raises(QueueFullError):
        await kept
    for name in ("a5", "b2", "d1"):
        (late,) = await line.come(name)
        with pytest.raises(QueueFullError):
            await late
    assert await line.serve(3) == ["a2", "b1", "c1"]
    await third


async def test_an_unknown_caller_gives_place_to_a_known_one() -> None:
    """An unknown caller gives way even where each owner has one place; known callers compete as the others do."""
    line = Line(1, 2)
    _, first, second = await line.come("a1", "b1", "c1")
    await line.come("d1", "d2", is_known=True)
    for lost in (first, second):
        with pytest.raises(QueueFullError):
            await lost
    (late,) = await line.come("d3", is_known=True)
    with pytest.raises(QueueFullError):
        await late
    (unknown,) = await line.come("e1")
    with pytest.raises(QueueFullError):
        await unknown
    assert await line.serve(2) == ["d1", "d2"]


async def test_a_caller_that_leaves_takes_no_turn_along() -> None:
    """A caller that leaves the queue, or leaves at the moment of its turn, makes room for the next."""
    line = Line(1, 2)
    _, leaver, _ = await line.come("a1", "b1", "c1")
    leaver.cancel()
    await asyncio.sleep(0)
    await line.come("d1")
    line.turns.end()
    await asyncio.sleep(0)
    assert line.served == ["a1", "c1"]
    (last,) = await line.come("e1")
    line.turns.end()  # the turn of d1
    await asyncio.sleep(0)
    line.turns.end()  # the turn of e1, which leaves
    last.cancel()
    await asyncio.sleep(0)
    await line.come("f1")
    assert line.served == ["a1", "c1", "d1", "f1"]


async def test_a_turn_ends_with_its_block() -> None:
    """The turn ends with its block, also after an error."""
    turns = FairTurns(1, 0)

    async def work(*, fails: bool) -> None:
        async with turns.turn(Caller("a", is_known=False)):
            with pytest.raises(QueueFullError):
                await turns.begin(Caller("b", is_known=True))
            if fails:
                raise KeyError

    for _ in range(2):
        await work(fails=False)
        with pytest.raises(KeyError):
            await work(fails=True)


async def test_a_full_queue_gives_place_to_an_owner_of_another_site() -> None:
    """Where each owner has one place, the site with the most owners loses its newest one, until another has as many."""
    turns = FairTurns(1, 3)
    await turns.begin(Caller("2001:db8::/64", is_known=False))
    near = [spawn(turns.begin(Caller(f"2001:db8:0:{n}::/64", is_known=False)), "near") for n in range(1, 4)]
    await asyncio.sleep(0)
    far = [spawn(turns.begin(Caller(f"2001:db8:{n}::/64", is_known=False)), "far") for n in range(1, 4)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await near[2]
    with pytest.raises(QueueFullError):
        await near[1]
    with pytest.raises(QueueFullError):
        await far[2]
    for task in (near[0], far[0], far[1]):
        turns.end()
        await task
