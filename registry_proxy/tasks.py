"""Background tasks that the garbage collector cannot take away."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
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
