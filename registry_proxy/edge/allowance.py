"""Acts that leave a record behind, and how many of them each subject may do."""

import math
import time
from collections.abc import Callable
from typing import Final

from cachetools import LRUCache

from registry_proxy.protocol.errors import ErrorCode, RegistryError

DELETIONS_AT_ONCE: Final = 50_000
DELETIONS_SECONDS: Final = 7 * 86_400.0
"""A deletion stays on record for so long (``replication.deletions``): at most twice as many are of one subject."""

_SUBJECTS_MAX: Final = 10_000


class Allowance:
    """Lets each subject do so many acts at once, and as many again in the course of some time.

    Args:
        at_once: number of acts.
        refilled_seconds: time in which a spent allowance is whole again.
        clock: monotonic, in seconds.
    """

    def __init__(self, at_once: int, refilled_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._seconds_each = refilled_seconds / at_once
        self._clock = clock
        self._whole_at: LRUCache[str, float] = LRUCache(_SUBJECTS_MAX)

    def take(self, subject: str) -> None:
        """Count an act of a subject. Raises RegistryError: TOOMANYREQUESTS."""
        now = self._clock()
        whole_at = max(now, self._whole_at.get(subject, now)) + self._seconds_each
        late_seconds = whole_at - now - self._at_once * self._seconds_each
        if late_seconds > 0:
            message = f"{subject} has deleted too much in the last days: go on more slowly"
            headers = {"Retry-After": str(math.ceil(late_seconds))}
            raise RegistryError(ErrorCode.TOOMANYREQUESTS, message, headers=headers)
        self._whole_at[subject] = whole_at
