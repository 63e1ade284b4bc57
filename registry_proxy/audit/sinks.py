"""Further destinations of audit events: standard output, syslog, and the questions that policies were asked."""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import INFO, LogRecord
from logging.handlers import SysLogHandler
from urllib.parse import urlsplit

from registry_proxy.audit.trail import Taken
from registry_proxy.files.atomic import write_all
from registry_proxy.files.writer_thread import whole_lines

_DECISIONS_FILE_BYTES = 8 * 1024 * 1024


def _as_json(taken: Taken, node: str, process: str) -> str:
    return json.dumps({"time": taken.time, **taken.fields(node, process)}, separators=(",", ":"))


class StreamSink:
    """Writes lines to a stream that other processes write to as well, such as standard output."""

    def __init__(self, fd: int, node: str, process: str) -> None:
        self._fd = fd
        self._node = node
        self._process = process

    def write(self, batch: Sequence[Taken]) -> None:
        """Write a batch, some whole lines at a time."""
        lines = (_as_json(taken, self._node, self._process).encode() + b"\n" for taken in batch)
        for piece in whole_lines(lines):
            write_all(self._fd, piece)

    def flush(self) -> None:
        """Do nothing: what is written is written."""

    def close(self) -> None:
        """Do nothing: the stream is not ours."""


class _Handler(SysLogHandler):
    append_nul = False

    def handleError(self, record: LogRecord) -> None:  # noqa: ARG002, N802 - the library's name
        raise  # noqa: PLE0704 - the library calls this where it has caught one


class SyslogSink:
    """Sends events to a syslog daemon, facility authpriv (RFC 3164; over TCP a line each, RFC 6587 section 3.4.2).

    Args:
        url: ``unix:///dev/log``, ``udp://host:514`` or ``tcp://host:514``.
        node: in each line.
        process: in each line.
    """

    def __init__(self, url: str, node: str, process: str) -> None:
        parts = urlsplit(url)
        self._is_stream = parts.scheme == "tcp"
        self._address = parts.path if parts.scheme == "unix" else (parts.hostname or "", parts.port or 514)
        self._node = node
        self._process = process
        self._handler: _Handler | None = None

    def write(self, batch: Sequence[Taken]) -> None:
        """Send a batch; of one that fails some may be sent twice."""
        try:
            if self._handler is None:
                kind = socket.SOCK_STREAM if self._is_stream else socket.SOCK_DGRAM
                socktype = None if isinstance(self._address, str) else kind
                self._handler = _Handler(self._address, SysLogHandler.LOG_AUTHPRIV, socktype)
                self._handler.ident = f"registry-proxy[{os.getpid()}]: "
            for taken in batch:
                text = _as_json(taken, self._node, self._process) + ("\n" if self._is_stream else "")
                self._handler.emit(LogRecord("audit", INFO, "", 0, text, None, None))
        except OSError:
            self.close()
            raise

    def flush(self) -> None:
        """Do nothing: what is sent is sent."""

    def close(self) -> None:
        """Close the connection."""
        if self._handler is not None:
            self._handler.close()
            self._handler = None


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """A question that was decided, how often, and when first and last (RFC 3339)."""

    subject: str
    repository: str
    action: str
    tag: str | None
    count: int
    first_at: str
    last_at: str


def _decision_files(directory: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    # The older half of each process comes first.
    names = [name for name in names if name.startswith("decisions-") and name.endswith((".jsonl", ".jsonl.1"))]
    for name in sorted(names, key=lambda name: not name.endswith(".1")):
        yield os.path.join(directory, name)


class DecisionSink:
    """Keeps the questions that were decided: no evidence, only what a proposed policy is tried on.

    Two files of bounded size for each process; the older one is dropped when the newer is full.
    """

    def __init__(self, directory: str, process: str) -> None:
        self._directory = directory
        self._path = os.path.join(directory, f"decisions-{process}.jsonl")

    def write(self, batch: Sequence[Taken]) -> None:
        """Append a batch."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        lines = [
            json.dumps(
                [t.time, t.event.subject, t.event.repository, t.event.action, t.event.tag, t.event.detail["count"]]
            )
            for t in batch
            if "count" in t.event.detail and t.event.subject
        ]
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            data = "".join(f"{line}\n" for line in lines).encode()
            write_all(fd, data)
            size_bytes = os.fstat(fd).st_size
        finally:
            os.close(fd)
        if size_bytes > _DECISIONS_FILE_BYTES:
            os.replace(self._path, f"{self._path}.1")

    def flush(self) -> None:
        """Do nothing: nobody relies on them being on the disk."""

    def close(self) -> None:
        """Do nothing: the file is open only while it is written."""


def read_decisions(directory: str, limit: int) -> list[RecordedDecision]:
    """Return the different questions that were decided last, on all processes of the node, newest first.

    Args:
        directory: of the node's audit log.
        limit: how many at most.

    Raises:
        OSError: they cannot be read.
    """
    found: dict[tuple[str, str, str, str], RecordedDecision] = {}
    for path in _decision_files(directory):
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    at, subject, repository, action, tag, count = json.loads(line)
                    key = (str(subject), str(repository), str(action), str(tag))
                    count, first, last = int(count), str(at), str(at)
                except (ValueError, TypeError):
                    continue  # a crash in the middle of a line
                if (known := found.get(key)) is not None:
                    count, first, last = known.count + count, min(known.first_at, first), max(known.last_at, last)
                found[key] = RecordedDecision(*key[:3], key[3] or None, count, first, last)
    return sorted(found.values(), key=lambda decision: decision.last_at, reverse=True)[:limit]
