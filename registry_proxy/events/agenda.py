"""The times at which lanes are served: each by one task at a time, and only a few of one receiver at once."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import islice

from registry_proxy.events.delivery import Lane
from registry_proxy.tasks import end, spawn

_DUE_AT_ONCE = 500
"""Number of lanes that become due in one step: thousands do after a start, and requests must not wait for that."""


class Agenda:
    """Serves lanes when they are due.

    Args:
        serve: serves a lane; returns the time at which it wants to be served again, None for not before a new event.
        at_once: limit of the lanes of one subscription that are served at the same time.
        clock: seconds since the epoch.
    """

    def __init__(
        self, serve: Callable[[Lane], Awaitable[float | None]], at_once: int, clock: Callable[[], float]
    ) -> None:
        self._serve = serve
        self._at_once = at_once
        self._clock = clock
        self._times: dict[Lane, float] = {}
        self._calendar: list[tuple[float, str]] = []
        self._due: dict[str, dict[Lane, None]] = {}  # by subscription, first come first served
        self._serving: dict[Lane, asyncio.Task[None]] = {}
        self._renewed: set[Lane] = set()

    def serve_at(self, lane: Lane, at: float) -> None:
        """Serve a lane at a time, or before where it is due before."""
        if at < self._times.get(lane, float("inf")):
            self._times[lane] = at
            heapq.heappush(self._calendar, (at, str(lane)))

    def serve_all_of(self, subscription: str) -> None:
        """Serve all lanes of a subscription now that wait for a later time."""
        for lane in [each for each in self._times if each.subscription == subscription]:
            self.serve_at(lane, 0.0)

    def note_event(self, lane: Lane, *, is_waiting: bool) -> None:
        """Serve a lane that got an event, now or when its earlier events are tried again.

        Args:
            lane: the lane.
            is_waiting: whether the event waits for those before it.
        """
        if not is_waiting:
            self.serve_at(lane, 0.0)
        elif lane in self._serving:
            self._renewed.add(lane)
        elif lane not in self._times:
            self.serve_at(lane, 0.0)

    def start_due(self) -> None:
        """Start tasks for the lanes that are due."""
        now = self._clock()
        for _ in range(_DUE_AT_ONCE):
            if not self._calendar or self._calendar[0][0] > now:
                break
            at, text = heapq.heappop(self._calendar)
            lane = Lane.of(text)
            if self._times.get(lane) == at:  # else it was moved to an earlier time, and served
                del self._times[lane]
                self._due.setdefault(lane.subscription, {})[lane] = None
        serving = Counter(lane.subscription for lane in self._serving)
        for subscription, lanes in list(self._due.items()):
            free = (lane for lane in lanes if lane not in self._serving)
            for lane in list(islice(free, self._at_once - serving[subscription])):
                del lanes[lane]
                self._serving[lane] = spawn(self._serve_once(lane), f"deliveries of {lane}")
            if not lanes:
                del self._due[subscription]

    async def aclose(self) -> None:
        """End all tasks."""
        for task in list(self._serving.values()):
            await end(task)

    async def _serve_once(self, lane: Lane) -> None:
        again_at = None
        try:
            again_at = await self._serve(lane)
        finally:
            del self._serving[lane]
            if again_at is None and lane in self._renewed:
                again_at = 0.0
            self._renewed.discard(lane)
            if again_at is not None:
                self.serve_at(lane, again_at)
