"""The log of requests: a line each, at a twentieth of what a log record costs (benchmarks/README.md)."""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from registry_proxy.tasks import request_id

_PENDING_MAX = 20_000
_GATHER_SECONDS = 0.1
_ATOMIC_WRITE_BYTES = 4096
"""Several workers share the stream: a pipe keeps only writes up to this size whole (PIPE_BUF)."""


class AccessLog:
    """Takes the fields of each request and has a thread write them, some hundred at a time.

    Args:
        fd: where to; every write holds whole lines.
        worker: added to each line.
    """

    def __init__(self, fd: int, worker: str) -> None:
        self._fd = fd
        self._fixed = {"level": "INFO", "logger": "registry_proxy.access", "message": "request", "worker": worker}
        self._pending: deque[tuple[float, str, Mapping[str, Any]]] = deque()
        self._dropped = 0
        self._has_work = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="access log", daemon=True)

    def __call__(self, fields: Mapping[str, Any]) -> None:
        """Log a request that has ended; never waits: beyond a bound, and while nobody reads the log, lines are lost."""
        if len(self._pending) >= _PENDING_MAX:
            self._dropped += 1
            return
        self._pending.append((time.time(), request_id.get(), fields))
        if not self._has_work.is_set():
            self._has_work.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write for the length of a with block; what is pending when it is left is still written."""
        self._thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self._has_work.set()
            self._thread.join(timeout=2.0)  # a reader that has stopped must not keep the worker alive

    def _write_all(self) -> None:
        while not self._ending.is_set():
            self._has_work.wait()
            self._ending.wait(_GATHER_SECONDS)
            self._has_work.clear()
            self._write_pending()

    def _write_pending(self) -> None:
        batch = b""
        while self._pending:
            line = self._format(*self._pending.popleft())
            if len(batch) + len(line) > _ATOMIC_WRITE_BYTES:
                self._write(batch)
                batch = b""
            batch += line
        self._write(batch)

    def _format(self, at: float, identifier: str, fields: Mapping[str, Any]) -> bytes:
        line = {**self._fixed, **fields, "request_id": identifier, "time": datetime.fromtimestamp(at, UTC).isoformat()}
        if self._dropped:
            line["dropped_before"], self._dropped = self._dropped, 0
        return json.dumps(line).encode() + b"\n"

    def _write(self, lines: bytes) -> None:
        while lines:
            try:
                lines = lines[os.write(self._fd, lines) :]
            except OSError:
                return  # the reader is gone: there is nobody to tell
