"""The audit log of one process: events are accepted at once, and threads bring them to the file and the other sinks.

No request waits for a disk or a peer but a change by the admin API, which waits for a moment: what a sink does not take
waits in a bounded queue, and beyond that is dropped, counted, and said in the log itself.
"""

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, Protocol

from registry_proxy.audit.folding import Folding
from registry_proxy.files.writer_thread import WriterThread
from registry_proxy.ports.events import AskedRight, AuditEvent, AuditKind
from registry_proxy.ports.metrics import AuditLoss, Observer, SinkName
from registry_proxy.protocol.times import format_rfc3339
from registry_proxy.tasks import request_id

QUEUE_MAX = 20_000
_SYNC_SECONDS = 4.0
_RETRY_SECONDS = 1.0
_WRITTEN_SECONDS = 1.0  # a disk that hangs holds no administrator up for longer
_ASKED_MAX = 20_000
_TEXT_MAX_LENGTH = 255  # that of a repository's name
_DETAIL_MAX_BYTES = 8192  # a datagram of syslog has a bound, and one that is too long would be tried for ever
_ENTRIES_MAX = (100, 30, 10, 3, 1)  # of a list: as many as there is room for
_NAMES_MIN = 8  # of an object: no body has more fields
_TEXTS = ("action", "subject", "address", "repository", "tag", "digest", "rule")
_log = logging.getLogger(__name__)


class Taken(NamedTuple):
    """An event with its circumstances; ``at`` is in Unix seconds."""

    at: float
    request_id: str
    event: AuditEvent

    def fields(self, node: str, process: str) -> dict[str, Any]:
        """Return it as a line has it, without its time; what is empty is left out."""
        event = self.event
        named = {name: getattr(event, name) for name in _TEXTS}
        named |= {"request_id": self.request_id, "detail": dict(event.detail)}
        said = {name: value for name, value in named.items() if value}
        return {"action": event.action, "outcome": event.outcome, **said, "node": node, "process": process}

    @property
    def time(self) -> str:
        """The time of the event, in RFC 3339; texts sort as the times do."""
        return format_moment(self.at)


def format_moment(at: float) -> str:
    """Return Unix seconds as the log has them: UTC, always with microseconds."""
    return format_rfc3339(at, "microseconds")


def _shortened(event: AuditEvent) -> AuditEvent:
    """Return an event of bounded size, shortened field by field: what a caller puts into one hides no other."""
    texts: dict[str, Any] = {
        name: _cut(text) for name in _TEXTS if len(text := getattr(event, name)) > _TEXT_MAX_LENGTH
    }
    if not texts and not event.detail:
        return event
    detail: Mapping[str, Any] = event.detail
    for entries_max in _ENTRIES_MAX:
        detail = _short(event.detail, entries_max)
        if len(json.dumps(detail)) <= _DETAIL_MAX_BYTES:
            break
    return replace(event, **texts, detail=detail)


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_MAX_LENGTH else text[: _TEXT_MAX_LENGTH - 1] + "…"


def _short(value: Any, entries_max: int) -> Any:
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, Mapping):
        first = islice(value.items(), max(_NAMES_MIN, entries_max))
        entries = [(_cut(str(name)), _short(inner, entries_max)) for name, inner in first]
        return dict(entries) | ({"…": f"and {more} more"} if (more := len(value) - len(entries)) else {})
    if isinstance(value, list | tuple):
        # What is named twice is named once: no repetition takes the room of the rest.
        is_of_texts = all(isinstance(inner, str) for inner in value)
        different = list(dict.fromkeys(value)) if is_of_texts else value
        more = len(different) - entries_max
        return [_short(inner, entries_max) for inner in different[:entries_max]] + (
            [f"and {more} more"] if more > 0 else []
        )
    return value


class Sink(Protocol):
    """A destination of events; its methods are called in one thread, and may take as long as they like."""

    def write(self, batch: Sequence[Taken]) -> None:
        """Take all or none. Raises OSError; then it is called again, later."""

    def flush(self) -> None:
        """Do what can wait: some seconds have passed, or it is the end. Raises OSError."""

    def close(self) -> None:
        """Release what it holds."""


class SinkThread:
    """Hands events to a sink in a thread.

    Args:
        name: of the sink, for metrics and the log.
        sink: takes them.
        observer: receives an event for each one that is lost because the sink takes nothing.
    """

    def __init__(self, name: SinkName, sink: Sink, observer: Observer) -> None:
        self._name = name
        self._sink = sink
        self._observer = observer
        self._lost = self._lost_told = 0  # each is written by one thread only
        self._put_count = self._written_count = 0
        self._has_written = threading.Condition()
        self._synced_at = time.monotonic()
        self._thread: WriterThread[Taken] = WriterThread(f"audit {name}", self._work, QUEUE_MAX, _SYNC_SECONDS)

    def put(self, taken: Taken) -> None:
        """Queue an event; never waits."""
        if self._thread.put(taken):
            self._put_count += 1
        else:
            self._lost += 1
            self._observer.observe(AuditLoss(self._name, 1))

    async def written(self, timeout_seconds: float) -> None:
        """Wait until the sink has all that was put so far, or for as long."""
        count = self._put_count
        self._thread.hurry()

        def wait() -> None:
            with self._has_written:
                self._has_written.wait_for(lambda: self._written_count >= count, timeout_seconds)

        await asyncio.to_thread(wait)

    def waiting_seconds(self) -> float:
        """Return how long the oldest event has waited."""
        try:
            return time.time() - self._thread.pending[0].at
        except IndexError:
            return 0.0

    def running(self) -> AbstractContextManager[None]:
        """Write for the length of a with block; what is pending when it is left is written if the sink takes it."""
        return self._thread.running()

    def _work(self) -> float:
        pause_seconds = 0.0
        try:
            self._write()
            if self._thread.is_last or time.monotonic() - self._synced_at >= _SYNC_SECONDS:
                self._sink.flush()
                self._synced_at = time.monotonic()
        except OSError as error:
            _log.error("audit: %s accepts nothing, %d events wait: %s", self._name, len(self._thread.pending), error)
            pause_seconds = _RETRY_SECONDS
        if self._thread.is_last:
            self._sink.close()
        return pause_seconds

    def _write(self) -> None:
        pending = self._thread.pending
        while pending:
            batch = [pending[i] for i in range(min(len(pending), 500))]
            lost = self._lost - self._lost_told
            if lost:
                event = AuditEvent("audit.dropped", "failed", detail={"count": lost, "sink": self._name})
                batch.append(Taken(batch[-1].at, "", event))
            self._sink.write(batch)
            self._lost_told += lost
            written_count = len(batch) - bool(lost)
            for _ in range(written_count):
                pending.popleft()
            with self._has_written:
                self._written_count += written_count
                self._has_written.notify_all()


class AuditTrail:
    """An ``AuditLog`` over sinks.

    Args:
        acts: keeps changes and logins.
        traffic: keeps all other events.
        decisions: receives the questions that were decided, from time to time.
        copies: receive each event that is kept.
        records_pulls: whether pulls that are allowed are events.
    """

    def __init__(
        self,
        *,
        acts: SinkThread,
        traffic: SinkThread,
        decisions: SinkThread,
        copies: Sequence[SinkThread] = (),
        records_pulls: bool,
    ) -> None:
        self._acts = acts
        self._traffic = traffic
        self._copies = tuple(copies)
        self._folding = Folding()
        self._decisions = decisions
        self._records_pulls = records_pulls
        self._asked: dict[AskedRight, list[int]] = {}  # the count, where one look-up finds it

    @property
    def records_pulls(self) -> bool:
        """Whether it records each allowed pull."""
        return self._records_pulls

    def record(self, event: AuditEvent) -> None:
        """Take an event of the request that is being answered, whole or as one of many; see ``Folding``."""
        event = _shortened(event)
        if self._folding.takes_whole(event):
            self._put(Taken(time.time(), request_id.get(), event))

    def _put(self, taken: Taken) -> None:
        for sink in (self._traffic if taken.event.kind is AuditKind.TRAFFIC else self._acts, *self._copies):
            sink.put(taken)

    async def written(self) -> None:
        """Wait until the acts recorded so far are in their file: the end of this process then loses none of them."""
        await self._acts.written(_WRITTEN_SECONDS)

    def asked(self, right: AskedRight) -> None:
        """Count a question that was decided; beyond a bound of different ones, others wait for the next interval."""
        counted = self._asked.get(right)
        if counted is not None:
            counted[0] += 1
        elif len(self._asked) < _ASKED_MAX:
            self._asked[right] = [1]

    def flush_folded(self, *, all_of_them: bool = False) -> None:
        """Write the line of each fold whose minute is over, or of each that there is."""
        for event in self._folding.lines(all_of_them=all_of_them):
            self._put(Taken(time.time(), "", event))

    def flush_asked(self) -> None:
        """Hand the questions of this interval on."""
        asked, self._asked = self._asked, {}
        for (subject, repository, action, tag), (count,) in asked.items():
            detail: Mapping[str, Any] = {"count": count}
            event = AuditEvent(str(action), "", subject=subject, repository=repository, tag=tag or "", detail=detail)
            self._decisions.put(Taken(time.time(), "", event))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write for the length of a with block."""
        with contextlib.ExitStack() as stack:
            for sink in (self._acts, self._traffic, *self._copies, self._decisions):
                stack.enter_context(sink.running())
            try:
                yield
            finally:
                self.flush_folded(all_of_them=True)
                self.flush_asked()
