"""The files of the audit log: one process appends sealed lines, and removes what is too old or too much."""

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from registry_proxy.audit.chain import (
    FILE_ACTION,
    START_HASH,
    TRAFFIC_SUFFIX,
    ChainFile,
    Head,
    begins_at,
    file_name,
    find_end,
    list_chains,
    seal,
)
from registry_proxy.audit.trail import Taken, format_moment
from registry_proxy.files.atomic import sync_directory, write_all

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """Bounds of the log that a process keeps, and of one file: age and size."""

    file_bytes: int
    file_seconds: float
    total_bytes: int
    total_seconds: float


class ChainWriter:
    """The file sink: appends sealed lines, goes on after a crash, rotates, and removes what is too old or too much.

    Args:
        directory: of this node's audit log.
        node: names it.
        process: names the chain; no two processes at a time have the same.
        retention: its limits.
    """

    def __init__(self, directory: str, node: str, process: str, retention: Retention) -> None:
        self.directory = directory
        self.node = node
        self.process = process
        self._retention = retention
        self._fd: int | None = None
        self._size_bytes = 0
        self._opened_at = 0.0
        self._head = Head(0, START_HASH)
        self._is_synced = True
        self.synced: Head | None = None
        """The last line that is safe on the disk; read by the one who signs it."""

    def write(self, batch: Sequence[Taken]) -> None:
        """Append a batch. Raises OSError, and then the file is as it was."""
        fd = self._open(batch[0].at) if self._fd is None else self._fd
        is_old = time.time() - self._opened_at >= self._retention.file_seconds
        if self._size_bytes >= self._retention.file_bytes or is_old:
            fd = self._rotate(batch[0].at)
        lines, head = [], self._head
        for taken in batch:
            seq = head.seq + 1
            line, digest = seal(head.hash, seq, taken.time, taken.fields(self.node, self.process))
            lines.append(line)
            head = Head(seq, digest)
        self._append(fd, b"".join(lines), head)

    def flush(self) -> None:
        """Bring what was written to the disk; it can be signed then. Raises OSError."""
        if self._fd is not None and not self._is_synced:
            os.fsync(self._fd)
            self._is_synced = True
            self.synced = self._head

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, fd: int, data: bytes, head: Head) -> None:
        try:
            write_all(fd, data)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self._size_bytes)
            raise
        self._size_bytes += len(data)
        self._head = head
        self._is_synced = False

    def _open(self, at: float) -> int:
        """Go on where the last run of this process's chain ended: behind its last whole line."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        files = list_chains(self.directory).get(self.process, [])
        while files:
            head, size_bytes = find_end(files[-1].path)
            if head is not None:
                fd = os.open(files[-1].path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                torn_bytes = os.fstat(fd).st_size - size_bytes
                if torn_bytes:
                    os.ftruncate(fd, size_bytes)  # a crash in the middle of a line, which nobody had signed
                    _log.warning("audit: %d bytes of a line that was never finished are dropped", torn_bytes)
                self._fd, self._size_bytes, self._head = fd, size_bytes, head
                self._opened_at = _opened_at(files[-1])
                return fd
            os.unlink(files.pop().path)  # a crash before its first line was whole
        return self._begin_file(self._head.seq + 1, at)

    def _rotate(self, at: float) -> int:
        self.flush()
        self.close()
        chains = list_chains(self.directory)
        kept = self._kept(chains.get(self.process, []))
        dead = {process: files for process, files in chains.items() if self._is_dead(process, files)}
        begins = kept[0].first if kept else self._head.seq + 1
        fd = self._begin_file(begins, at, _removed(begins, kept, at, dead))
        self.flush()
        # Only now: the new file's first line, safe on the disk, says that they may be gone.
        gone = [file for file in chains.get(self.process, []) if file not in kept]
        for file in [*gone, *(file for files in dead.values() for file in files)]:
            os.unlink(file.path)
        return fd

    def _kept(self, files: Sequence[ChainFile]) -> list[ChainFile]:
        """Return the newest files that are neither too old nor, with one more, too much."""
        kept: list[ChainFile] = []
        total_bytes = self._retention.file_bytes
        for file in reversed(files):
            status = os.stat(file.path)
            total_bytes += status.st_size
            too_old = time.time() - status.st_mtime > self._retention.total_seconds
            if too_old or total_bytes > self._retention.total_bytes:
                break
            kept.insert(0, file)
        return kept

    def _is_dead(self, process: str, files: Sequence[ChainFile]) -> bool:
        """Tell whether a chain of this kind is of a process that ended longer ago than anything is kept."""
        if process == self.process or process.endswith(TRAFFIC_SUFFIX) != self.process.endswith(TRAFFIC_SUFFIX):
            return False
        return time.time() - os.stat(files[-1].path).st_mtime > self._retention.total_seconds

    def _begin_file(self, begins: int, at: float, removed: Mapping[str, Any] = MappingProxyType({})) -> int:
        first = self._head.seq + 1
        path = os.path.join(self.directory, file_name(self.process, first))
        fields = {
            "action": FILE_ACTION,
            "outcome": "ok",
            "begins": begins,
            "previous": self._head.hash,
            "node": self.node,
            "process": self.process,
        }
        if removed:
            fields["detail"] = dict(removed)
        # The time of what follows, so that times never go back in a chain.
        self._opened_at = at
        line, digest = seal(self._head.hash, first, format_moment(self._opened_at), fields)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._size_bytes = 0
            self._append(fd, line, Head(first, digest))
            sync_directory(self.directory)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        return fd


def _opened_at(file: ChainFile) -> float:
    """Return when a file was begun; what cannot be read makes it old."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(begins_at(file) or "").timestamp()
    return 0.0


def _removed(
    begins: int, kept: Sequence[ChainFile], at: float, dead: Mapping[str, Sequence[ChainFile]]
) -> Mapping[str, Any]:
    """Return what the first line of a file says of the lines that retention has removed; nothing where it has not."""
    removed: dict[str, Any] = {}
    if begins > 1:
        before = begins_at(kept[0]) if kept else format_moment(at)
        removed = {"removed_lines": begins - 1, "removed_before": before}
    if dead:
        removed["removed_processes"] = sorted(dead)
    return removed
