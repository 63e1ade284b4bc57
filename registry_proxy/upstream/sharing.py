"""One fetch of a list at a time, for all who ask meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
FRESH_TIMES = 10


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[_T]):
    value: _T | None
    error: Exception | None
    version: Any
    began_at: float
    ended_at: float


class SharedFetch(Generic[_T]):
    """A value that is costly to fetch; where the caller that fetches it leaves, the next one begins anew.

    A value stands for ten times as long as it took to fetch, so that nobody can keep its source busy.

    Args:
        fresh_max_seconds: how long at most; 0 for no longer than the callers wait that it was fetched for.
        clock: monotonic, in seconds.
    """

    def __init__(self, fresh_max_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._fresh_max_seconds = fresh_max_seconds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last: _Outcome[_T] | None = None
        self.callers = 0

    async def get(self, version: Any, fetch: Callable[[], Awaitable[_T]]) -> _T:
        """Return what a fetch returns that began after this call, or a fresh value; raise what that fetch raised.

        Args:
            version: equal while the value cannot have changed, as far as is known.
            fetch: fetches the value.
        """
        called_at = self._clock()
        self.callers += 1
        try:
            async with self._lock:
                last = self._last
                if last is None or not self._stands(last, version, called_at):
                    last = self._last = await self._fetch(version, fetch)
        finally:
            self.callers -= 1
        if last.error is not None:
            raise last.error
        return last.value  # type: ignore[return-value]  # without an error the value is a _T

    def _stands(self, last: _Outcome[_T], version: Any, called_at: float) -> bool:
        if called_at <= last.began_at:
            return True
        took_seconds = last.ended_at - last.began_at
        fresh_seconds = min(FRESH_TIMES * took_seconds, self._fresh_max_seconds)
        return last.error is None and self._clock() < last.ended_at + fresh_seconds and last.version == version

    async def _fetch(self, version: Any, fetch: Callable[[], Awaitable[_T]]) -> _Outcome[_T]:
        began_at = self._clock()
        value, failure = None, None
        try:
            value = await fetch()
        except Exception as error:  # noqa: BLE001 - handed to the callers as it is
            failure = error
        return _Outcome(value, failure, version, began_at, self._clock())
