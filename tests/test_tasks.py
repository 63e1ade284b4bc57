"""Background tasks and their end."""

import asyncio
import contextlib

from registry_proxy.tasks import end, spawn


async def test_a_task_that_loses_a_cancellation_ends_all_the_same() -> None:
    """A library may take the first cancellation for the end of its own timeout, and its caller goes on."""
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
    """Nor one that failed: its error was logged where it ran."""

    async def work() -> None:
        """Do nothing."""

    task = spawn(work(), "work")
    await task
    await end(task)
