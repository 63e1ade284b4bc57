"""Turns of owners of namespaces at changes: each one has every worker read its policy or subscriptions anew."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiohttp import web

from registry_proxy.access.control import AccessControl
from registry_proxy.access.turns import Caller, FairTurns, QueueFullError
from registry_proxy.admission.auth import CALLER, NAMESPACES
from registry_proxy.api.problems import ProblemError
from registry_proxy.api.requests import JUDGE_ANEW
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.tasks import spawn

_WAITING_MAX: Final = 16
_REST_PART: Final = 3
"""Between two changes passes at least so many times the time that the new policy took."""

_REST_MIN_SECONDS: Final = 0.05


class OwnersTurns:
    """Lets owners change things one at a time, in rotation, and no faster than policies are compiled beside all else.

    Administrators need no turn.

    Args:
        control: compiles the policy.
        clock: monotonic, in seconds.
    """

    def __init__(self, control: AccessControl, clock: Callable[[], float] = time.monotonic) -> None:
        self._control = control
        self._clock = clock
        self._turns = FairTurns(1, _WAITING_MAX)
        self._ending: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def turn(self, request: web.Request) -> AsyncIterator[None]:
        """Hold a turn for the length of a with block; the caller is judged again where it was waited for.

        Raises:
            ProblemError: 429 where too many wait, for the newest of the owner with most; what the caller may not do.
        """
        if NAMESPACES not in request:
            yield
            return
        try:
            await self._turns.begin(Caller(request[CALLER].subject, is_known=False))
        except QueueFullError:
            detail = "too many changes wait: send one after the other, or ask an administrator for many at once"
            raise ProblemError(429, detail, headers={"Retry-After": "5"}) from None
        try:
            if (judge_anew := request.get(JUDGE_ANEW)) is not None:
                await judge_anew()
            yield
        finally:
            self._ending = spawn(self._end(), "turn of an owner")

    async def _end(self) -> None:
        """Give the turn back once the policy is the new one, and others had their time."""
        began_at = self._clock()
        try:
            with suppress(StoreUnavailableError):
                await self._control.policy()
            await asyncio.sleep(max(_REST_MIN_SECONDS, _REST_PART * (self._clock() - began_at)))
        finally:
            self._turns.end()
