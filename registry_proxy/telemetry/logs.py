"""Logs: one JSON object a line on stderr, written by a thread so that a slow reader of them stalls no request."""

import logging
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

from registry_proxy.tasks import request_id
from registry_proxy.telemetry.folding import Folding

_QUEUE_MAX = 10_000


class _RecordQueue(QueueHandler):
    """Hands records to the writing thread as they are; adds the request they belong to."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The message is put together here, for its arguments may change; the rest, traceback too, by the thread.
        record.msg, record.args = record.getMessage(), None
        identifier = request_id.get()
        if identifier:
            record.request_id = identifier
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            # Whoever reads stderr has stopped: losing lines is better than losing memory or time.
            return


class _RecordWriter(QueueListener):
    """The writing thread; the command to end reaches it even when the queue is full."""

    def __init__(self, records: "queue.Queue[logging.LogRecord | None]", writer: logging.Handler) -> None:
        super().__init__(records, writer)
        self._records = records

    def enqueue_sentinel(self) -> None:
        self._records.put(None)


@contextmanager
def json_logging(stream: TextIO | None = None, worker: str | None = None) -> Iterator[None]:
    """Log as JSON for the length of a with block; what is queued is written when it is left.

    Args:
        stream: where to; stderr when None.
        worker: added to each line, tells the workers of a node apart.
    """
    writer = logging.StreamHandler(sys.stderr if stream is None else stream)
    fields = {} if worker is None else {"worker": worker}
    writer.setFormatter(
        JsonFormatter(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger"},
            static_fields=fields,
            timestamp="time",
        )
    )
    records: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUE_MAX)
    handler = _RecordQueue(records)
    folding = Folding(lambda record: handler.enqueue(handler.prepare(record)))
    handler.addFilter(folding)
    listener = _RecordWriter(records, writer)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        folding.flush()
        listener.stop()
