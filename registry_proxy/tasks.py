"""Background tasks that the garbage collector cannot take away, and what every task inherits."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

_T = TypeVar("_T")
_CHECK_SECONDS = 1.0
_log = logging.getLogger(__name__)
request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the client's request that is being answered: in the log, and sent upstream as X-Request-ID; "" outside of one."""

_running: set["asyncio.Task[Any]"] = set()
"""The loop itself keeps only weak references; this set is bookkeeping for it, not state of the program."""


def _finished(task: "asyncio.Task[Any]") -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background task %s failed", task.get_name(), exc_info=error)


def spawn(coroutine: Coroutine[Any, Any, _T], name: str) -> "asyncio.Task[_T]":
    """Start a named task that is kept alive until it ends; an exception of its own is logged.

    The coroutine handles the errors it expects: what reaches the log from here is a defect.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_finished)
    return task


class Wakeup:
    """Wakes all tasks that wait for the next of some events."""

    def __init__(self) -> None:
        self._next: asyncio.Event | None = None

    async def wait(self, timeout_seconds: float | None = None) -> None:
        """Return at the next ``notify``, or when the time is over."""
        if self._next is None:
            self._next = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._next.wait()

    def notify(self) -> None:
        """Wake who waits now."""
        if self._next is not None:
            self._next.set()
            self._next = None


async def repeat(
    act: Callable[[], Awaitable[object]], seconds: float, *ignored: type[Exception], at_once: bool = False
) -> None:
    """Do something again and again, each time after a pause, until cancelled.

    Args:
        act: what to do.
        seconds: of each pause.
        ignored: errors that end nothing: the next time comes all the same.
        at_once: whether there is no pause before the first time.
    """
    if not at_once:
        await asyncio.sleep(seconds)
    while True:
        with contextlib.suppress(*ignored):
            await act()
        await asyncio.sleep(seconds)


async def obeying_cancellation(awaitable: Awaitable[_T]) -> _T:
    """Await an awaitable of a library that may lose the cancellation of its task, and obey that all the same.

    ``asyncio.wait_for`` of Python 3.11 does so when what it waits for is done at the same moment.

    Raises:
        asyncio.CancelledError: the task was cancelled meanwhile, also where the awaitable swallowed that.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        outcome = await awaitable
    except Exception:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError from None
        raise
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    return outcome


async def end(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait for its end, of any kind.

    Again after a second: a cancellation that meets the end of a timeout inside a library may be taken for it.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1)


async def end_all(tasks: Collection["asyncio.Task[Any]"]) -> None:
    """Cancel some tasks, and wait for the end of all."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run a coroutine in the background for the length of a with block."""
    task = spawn(coroutine, name)
    try:
        yield
    finally:
        await end(task)


async def _outcome(coroutine: Coroutine[Any, Any, _T]) -> "_T | _Failure":
    try:
        return await coroutine
    except Exception as error:  # noqa: BLE001 - carried to the caller, who raises it
        return _Failure(error)


class _Failure:
    def __init__(self, error: Exception) -> None:
        self.error = error


async def run_while(check: Callable[[], None], coroutine: Coroutine[Any, Any, _T], name: str) -> _T:
    """Await a coroutine; every second ``check`` may raise what ends it then."""
    task = spawn(_outcome(coroutine), name)
    try:
        while not (await asyncio.wait([task], timeout=_CHECK_SECONDS))[0]:
            check()
        outcome = task.result()
    finally:
        await end(task)
    if isinstance(outcome, _Failure):
        raise outcome.error
    return outcome


async def run_to_end(coroutine: Coroutine[Any, Any, _T], name: str) -> _T:
    """Await a coroutine that runs to its end even when the caller is cancelled: for writes that must not stop halfway.

    Its error is the caller's; when the caller has gone, it is dropped, because nobody was promised anything.
    """
    outcome = await asyncio.shield(spawn(_outcome(coroutine), name))
    if isinstance(outcome, _Failure):
        raise outcome.error
    return outcome
