"""One piece of work for all who ask for the same at the same time."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from registry_proxy.tasks import spawn

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Landed(Generic[_T]):
    value: _T | None
    error: Exception | None


class SingleFlight(Generic[_T]):
    """Runs work once per key; callers that come while it runs share its outcome.

    The work belongs to a task of its own: a caller that is cancelled, the first one too, hurts nobody else, and an
    error reaches every caller.
    """

    def __init__(self) -> None:
        self._flying: dict[Hashable, asyncio.Task[_Landed[_T]]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, _T]]) -> tuple[_T, bool]:
        """Return what the work returned, and whether this caller was the one that started it.

        Args:
            key: what is worked on.
            work: started when nobody works on ``key`` yet. Its errors are raised here.
        """
        task = self._flying.get(key)
        is_first = task is None
        if task is None:
            task = spawn(self._fly(key, work), name=f"flight {key}")
            self._flying[key] = task
        landed = await asyncio.shield(task)
        if landed.error is not None:
            raise landed.error
        return landed.value, is_first  # type: ignore[return-value]  # without an error the value is a _T

    async def _fly(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, _T]]) -> _Landed[_T]:
        # An error is an outcome here, not a defect of the task: it may well be that nobody waits for it any more.
        try:
            return _Landed(await work(), None)
        except Exception as error:  # noqa: BLE001 - handed to the callers as it is
            return _Landed(None, error)
        finally:
            del self._flying[key]
