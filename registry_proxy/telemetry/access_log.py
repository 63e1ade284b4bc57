"""The log of requests: a line each, at a twentieth of what a log record costs (benchmarks/README.md)."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import Any

from registry_proxy.files.atomic import write_all
from registry_proxy.files.writer_thread import WriterThread, whole_lines
from registry_proxy.tasks import request_id

_PENDING_MAX = 20_000
_Request = tuple[float, str, Mapping[str, Any]]


class AccessLog:
    """Takes the fields of each request and has a thread write them, some hundred at a time.

    Args:
        fd: where to; every write holds whole lines.
        worker: added to each line.
    """

    def __init__(self, fd: int, worker: str) -> None:
        self._fd = fd
        self._fixed = {"level": "INFO", "logger": "registry_proxy.access", "message": "request", "worker": worker}
        self._dropped = 0
        self._thread: WriterThread[_Request] = WriterThread("access log", self._write, _PENDING_MAX)

    def __call__(self, fields: Mapping[str, Any]) -> None:
        """Log a request that has ended; never waits: beyond a bound, and while nobody reads the log, lines are lost."""
        if not self._thread.put((time.time(), request_id.get(), fields)):
            self._dropped += 1

    def running(self) -> AbstractContextManager[None]:
        """Write for the length of a with block; what is pending when it is left is still written."""
        return self._thread.running()

    def _write(self) -> float:
        for lines in whole_lines(self._take_lines()):
            with suppress(OSError):  # the reader is gone: there is nobody to tell
                write_all(self._fd, lines)
        return 0.0

    def _take_lines(self) -> Iterator[bytes]:
        while self._thread.pending:
            at, identifier, fields = self._thread.pending.popleft()
            moment = datetime.fromtimestamp(at, UTC).isoformat()
            line = {**self._fixed, **fields, "request_id": identifier, "time": moment}
            if self._dropped:
                line["dropped_before"], self._dropped = self._dropped, 0
            yield json.dumps(line).encode() + b"\n"
