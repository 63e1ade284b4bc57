"""Folding of equal lines of the log: a fault of one kind must not drown all others."""

import copy
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FOLD_SECONDS = 10.0
"""Time in which equal warnings are counted and not written."""

LINES_OF_A_KIND_MAX = 100
"""Number of warnings written in that time that differ only in their arguments."""

_KINDS_MAX = 2000


@dataclass(slots=True)
class _Kind:
    since: float
    latest: logging.LogRecord
    written: int = 0
    folded: int = 0


class Folding(logging.Filter):
    """Passes a warning or error unless an equal one passed lately, or too many that differ in arguments alone.

    The number of records left out follows in the field ``folded`` of one more line like the last of them: with the
    next record once the time is over, or at ``flush``.

    Args:
        write: receives those lines.
        clock: monotonic, in seconds.
    """

    def __init__(self, write: Callable[[logging.LogRecord], None], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: OrderedDict[tuple[str, int, str], _Kind] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        with self._lock:
            self._tell(self._clock() - FOLD_SECONDS)
            if record.levelno < logging.WARNING:
                return True
            equal = (record.name, record.levelno, record.getMessage())
            kind = (record.name, record.levelno, str(record.msg))
            is_new = equal not in self._kinds
            if is_new and record.args and not self._passes(kind, record, LINES_OF_A_KIND_MAX):
                return False
            return self._passes(equal, record, 1)

    def flush(self) -> None:
        """Write the pending summaries."""
        with self._lock:
            self._tell(self._clock())

    def _passes(self, key: tuple[str, int, str], record: logging.LogRecord, limit: int) -> bool:
        kind = self._kinds.get(key)
        if kind is None:
            while len(self._kinds) >= _KINDS_MAX:
                self._tell_one()
            kind = self._kinds[key] = _Kind(self._clock(), record)
        if kind.written < limit:
            kind.written += 1
            return True
        kind.folded += 1
        kind.latest = copy.copy(record)
        kind.latest.msg, kind.latest.args = record.getMessage(), None
        return False

    def _tell(self, until: float) -> None:
        while self._kinds and next(iter(self._kinds.values())).since <= until:
            self._tell_one()

    def _tell_one(self) -> None:
        _, kind = self._kinds.popitem(last=False)
        if kind.folded:
            kind.latest.folded = kind.folded
            kind.latest.exc_info = kind.latest.exc_text = None
            self._write(kind.latest)
