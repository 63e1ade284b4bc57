"""Patience with replicas: a question that none of them could answer is put again, within bounds."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from registry_proxy.ports.errors import AbsenceUnknownError, UpstreamLimitError, UpstreamUnavailableError
from registry_proxy.upstream.question import Question
from registry_proxy.upstream.replicas import UpstreamReplicas

_T = TypeVar("_T")
_RETRY_PAUSE_SECONDS = 0.5
"""How soon a patient reader looks again when no replica changed its state: marks are cleared without a word."""


class Patience:
    """Repeats attempts that no replica could answer.

    Args:
        replicas: of the upstream.
        seconds: how long to wait for a replica to come back before giving up; 0 for not at all.
    """

    def __init__(self, replicas: UpstreamReplicas, seconds: float) -> None:
        self._replicas = replicas
        self._seconds = seconds

    async def repeat(self, question: Question, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Return what an attempt returns; raise the error of the last one when the time is over.

        Where it was the key that replicas failed with, tries become rare, also those of other requests.
        """
        deadline = time.monotonic() + self._seconds
        retries, (routed, key) = self._replicas.retries, (question.routed, question.key)
        problem = retries.standing(routed, key, self._replicas.changes)
        may_try = problem is None
        while True:
            changes = self._replicas.changes
            if may_try or problem is None:
                try:
                    answer = await attempt()
                except UpstreamLimitError:
                    raise
                except UpstreamUnavailableError as error:
                    problem = error
                    self._note_failure(question, error, changes)
                else:
                    retries.answered(routed, key)
                    return answer
            remaining = deadline - time.monotonic()
            if isinstance(problem, AbsenceUnknownError):
                # Most likely it is absent. Waiting is for a replica that restarts, not for one long dead.
                remaining = min(remaining, self._seconds - self._seconds_since_change())
            if remaining <= 0:
                raise problem
            await self._replicas.wait_for_change(min(remaining, _RETRY_PAUSE_SECONDS), changes)
            is_standing = retries.standing(routed, key, self._replicas.changes) is not None
            may_try = not is_standing and retries.take(routed, key)

    def _note_failure(self, question: Question, error: UpstreamUnavailableError, changes: int) -> None:
        """Remember a failure that is one of the key: a replica that is down says nothing about it."""
        if any(self._replicas.doubts.has_failed(name, question.key) for name in self._replicas.health()):
            self._replicas.retries.failed(question.routed, question.key, error, changes)

    def _seconds_since_change(self) -> float:
        return time.monotonic() - max(health.changed_at for health in self._replicas.health().values())
