"""Background tasks and their end."""

import asyncio
import contextlib

import pytest

from registry_proxy.tasks import Wakeup, end, obeying_cancellation, repeat, spawn


async def test_a_task_that_loses_a_cancellation_ends_all_the_same() -> None:
    """A library may mistake the first cancellation for its own timeout, and its caller goes on."""
    cancelled = 0

    async def work() -> None:
        nonlocal cancelled
        while cancelled < 2:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            cancelled += 1

    task = spawn(work(), "work")
    await asyncio.sleep(0)
    await end(task)
    assert (cancelled, task.done()) == (2, True)


async def test_a_task_that_has_ended_is_no_error() -> None:
    """A failed task is no error either: its error was logged where it ran."""

    async def work() -> None:
        """Do nothing."""

    task = spawn(work(), "work")
    await task
    await end(task)


async def test_a_repeated_task_goes_on_after_expected_errors() -> None:
    """A named error ends nothing, any other ends the task; the first call comes after a pause, or immediately."""
    errors = [KeyError(), ValueError("second")]

    async def fail() -> None:
        raise errors.pop(0)

    with pytest.raises(ValueError, match="second"):
        await repeat(fail, 0, KeyError)
    pauses = spawn(repeat(fail, 60), "pauses first")
    await asyncio.sleep(0)
    assert not pauses.done()
    await end(pauses)
    with pytest.raises(IndexError):
        await repeat(fail, 60, at_once=True)


async def test_a_lost_cancellation_is_obeyed_when_the_answer_is_there() -> None:
    """The result of a library that swallowed a cancellation is dropped, and the task is cancelled."""

    async def swallow() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "answer"

    task = spawn(obeying_cancellation(swallow()), "work")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_cancellation_of_before_does_not_count() -> None:
    """A task that was cancelled cleans up with the same library, and gets its answers."""

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return await obeying_cancellation(asyncio.sleep(0, "answer"))
        return ""

    task = spawn(work(), "work")
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "answer"


async def test_a_wakeup_wakes_all_who_wait_and_nobody_later() -> None:
    """Each waiting task goes on, also after one of them was cancelled; a later one waits for the next notification."""
    wakeup = Wakeup()
    waiting = [spawn(wakeup.wait(), f"waiter {number}") for number in range(3)]
    await asyncio.sleep(0)
    await end(waiting[0])
    wakeup.notify()
    await asyncio.gather(*waiting[1:])
    later = spawn(wakeup.wait(), "later")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not later.done()
    wakeup.notify()
    await later
    await wakeup.wait(0.001)  # nobody notifies: the time is over
