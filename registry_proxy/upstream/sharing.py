"""One fetch of a list at a time, for all who ask meanwhile, and long lists for seconds."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from registry_proxy.protocol.endpoints import PAGE_SIZE_MAX

_T = TypeVar("_T")
_N = TypeVar("_N", bound=str)
FRESH_TIMES = 10
FRESH_MAX_SECONDS = 10.0
"""Time for which a list stands at most, if it is not known to have changed."""

KEPT_MAX_BYTES: Final = 32 * 1024 * 1024
_NAME_BYTES: Final = 64
"""What a name takes in memory beside its characters: its object and its place in a list."""


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

    async def get(
        self, version: Any, fetch: Callable[[], Awaitable[_T]], is_same: Callable[[Any, _T], bool] | None = None
    ) -> _T:
        """Return what a fetch returns that began after this call, or a fresh value; raise what that fetch raised.

        Args:
            version: of what the fetch would return.
            fetch: fetches the value.
            is_same: tells of an earlier version and its value whether it stands; None for equal versions alone.
        """
        called_at = self._clock()
        self.callers += 1
        try:
            async with self._lock:
                last = self._last
                if last is None or not self._stands(last, called_at, version, is_same):
                    last = self._last = await self._fetch(version, fetch)
        finally:
            self.callers -= 1
        if last.error is not None:
            raise last.error
        return last.value  # type: ignore[return-value]  # without an error the value is a _T

    @property
    def fresh(self) -> _T | None:
        """The value of the last fetch; None where that failed, or the value is not fresh any more."""
        last = self._last
        return None if last is None or self.fresh_seconds <= 0 else last.value

    @property
    def fresh_seconds(self) -> float:
        """Time for which the value of the last fetch may stand from now on."""
        return 0.0 if self._last is None else self._fresh_until(self._last) - self._clock()

    def _fresh_until(self, last: _Outcome[_T]) -> float:
        took_seconds = last.ended_at - last.began_at
        return last.ended_at + min(FRESH_TIMES * took_seconds, self._fresh_max_seconds)

    def _stands(
        self, last: _Outcome[_T], called_at: float, version: Any, is_same: Callable[[Any, _T], bool] | None
    ) -> bool:
        if called_at <= last.began_at:
            return True
        if last.error is not None or self._clock() >= self._fresh_until(last):
            return False
        return last.version == version if is_same is None else is_same(last.version, last.value)  # type: ignore[arg-type]  # without an error the value is a _T

    async def _fetch(self, version: Any, fetch: Callable[[], Awaitable[_T]]) -> _Outcome[_T]:
        began_at = self._clock()
        value, failure = None, None
        try:
            value = await fetch()
        except Exception as error:  # noqa: BLE001 - handed to the callers as it is
            failure = error
        return _Outcome(value, failure, version, began_at, self._clock())


@dataclass(frozen=True, slots=True)
class _Kept:
    """A list that is kept: its last fetch, how much memory it takes, and the timer that drops it."""

    shared: SharedFetch[Sequence[str]]
    names: Sequence[str]
    size_bytes: int
    timer: asyncio.TimerHandle


class SharedLists:
    """Lists by what they are of. One that a client gets as several pages is kept as long as a ``SharedFetch`` stands.

    Args:
        max_bytes: of all that are kept, together; the least recently used leave first.
    """

    def __init__(self, max_bytes: int = KEPT_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._running: dict[Hashable, SharedFetch[Any]] = {}
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[_T]]) -> _T:
        """Return a value whose fetch began after this call, for any caller; nothing is kept of it."""
        shared: SharedFetch[_T] = self._running.setdefault(key, SharedFetch(0))
        try:
            return await shared.get(None, fetch)
        finally:
            self._end(key, shared)

    async def get_names(
        self,
        key: Hashable,
        version: Any,
        fetch: Callable[[], Awaitable[Sequence[_N]]],
        is_same: Callable[[Any, Sequence[_N]], bool],
    ) -> Sequence[_N]:
        """Return a list of names; see ``SharedFetch.get``."""
        kept = self._kept.get(key)
        shared: SharedFetch[Any] = (
            self._running.setdefault(key, SharedFetch(FRESH_MAX_SECONDS)) if kept is None else kept.shared
        )
        try:
            names: Sequence[_N] = await shared.get(version, fetch, is_same)
            return names
        finally:
            if self._end(key, shared):
                self._keep(key, shared)

    def _end(self, key: Hashable, shared: SharedFetch[Any]) -> bool:
        """Forget a list that nobody waits for; return whether nobody does."""
        if not shared.callers and self._running.get(key) is shared:
            del self._running[key]
        return not shared.callers

    def _keep(self, key: Hashable, shared: SharedFetch[Sequence[str]]) -> None:
        kept, names = self._drop(key), shared.fresh
        if names is None or not PAGE_SIZE_MAX < len(names) <= self._max_bytes // _NAME_BYTES:
            return
        size_bytes = (
            kept.size_bytes
            if kept is not None and kept.names is names
            else sum(map(len, names)) + _NAME_BYTES * len(names)
        )
        timer = asyncio.get_running_loop().call_later(shared.fresh_seconds, self._drop, key)
        self._kept[key] = _Kept(shared, names, size_bytes, timer)
        while sum(each.size_bytes for each in self._kept.values()) > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> _Kept | None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.timer.cancel()
        return kept
