"""The audit log on disk: JSON lines, each sealed with a hash over itself and the one before it.

A file is named after the process that writes it and the number of its first line. The first line has the
state of the chain: the hash that it continues, and the first line that retention has left. A changed, removed or moved
line breaks a hash or a number; the last head that was signed into the store shows a cut end.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

FILE_ACTION = "audit.file"
GAP_ACTION = "audit.gap"
START_HASH = "0" * 64
TRAFFIC_SUFFIX = "traffic"
"""Ends the name of the chain that a process keeps its clients' requests and refusals in; acts have one without it."""

_FILE_NAME = re.compile(r"([A-Za-z0-9]{1,40})-([0-9]{12})\.jsonl")
_LINE = re.compile(rb'\{"seq":([0-9]{1,15}),"time":"([^"]{1,40})",')
_SEAL = b',"hash":"'
_SEALED = re.compile(rb'([0-9a-f]{64})"\}')


class Head(NamedTuple):
    """The last line of a chain: its number and hash."""

    seq: int
    hash: str


class ChainFile(NamedTuple):
    """A file of a chain, and the number of its first line."""

    path: str
    process: str
    first: int


@dataclass(frozen=True, slots=True)
class SignedHead:
    """The signed head of a chain in the store, and its time (Unix seconds)."""

    head: Head
    signed_at: float


@dataclass(frozen=True, slots=True)
class ChainFault:
    """A place where the log is not what was written: file and line as they are now, and what is wrong there."""

    file: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class AcceptedFault:
    """A fault that an administrator knows of: who accepted it, when (Unix seconds), and why."""

    fault: ChainFault
    by: str
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Findings in one process's chain.

    ``unsigned`` counts the lines after the last signature; retention has removed the lines before ``first``, all of
    them older than ``begins_at`` (RFC 3339, None where nothing can be read). ``faults`` has no accepted ones.
    """

    process: str
    first: int
    last: int
    signed_at: float | None
    unsigned: int
    faults: Sequence[ChainFault]
    begins_at: str | None = None
    accepted: Sequence[AcceptedFault] = ()


def file_name(process: str, first: int) -> str:
    """Return the name of the file of a process whose first line has this number."""
    return f"{process}-{first:012d}.jsonl"


def list_chains(directory: str) -> dict[str, list[ChainFile]]:
    """Return the files of each process, oldest first. Raises OSError."""
    chains: dict[str, list[ChainFile]] = {}
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return {}
    for name in names:
        match, path = _FILE_NAME.fullmatch(name), os.path.join(directory, name)
        if match is not None and stat.S_ISREG(os.lstat(path).st_mode):
            chains.setdefault(match[1], []).append(ChainFile(path, match[1], int(match[2])))
    return chains


def seal(previous: str, seq: int, time: str, fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return a line with its line end, and its hash.

    Args:
        previous: the hash of the line before it.
        seq: its number, one more than that of the line before it.
        time: RFC 3339, UTC.
        fields: what it says.
    """
    body = json.dumps({"seq": seq, "time": time, **fields}, separators=(",", ":"))[:-1].encode()
    digest = _hash(previous, body)
    return b'%s%s%s"}\n' % (body, _SEAL, digest.encode()), digest


def _hash(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + body).hexdigest()


class _Line(NamedTuple):
    seq: int
    hash: str
    body: bytes


def _parse(line: bytes) -> _Line | None:
    body, _, seal_text = line.rstrip(b"\n").rpartition(_SEAL)
    start, sealed = _LINE.match(body), _SEALED.fullmatch(seal_text)
    return None if start is None or sealed is None else _Line(int(start[1]), sealed[1].decode(), body)


def time_of(line: bytes) -> str | None:
    """Return the time a line was written, without reading the rest of it; None for what is no line."""
    match = _LINE.match(line)
    return None if match is None else match[2].decode()


def find_end(path: str) -> tuple[Head | None, int]:
    """Return the last whole line of a file, and how many bytes there are up to its end; what follows is torn.

    Raises:
        OSError: it cannot be read.
    """
    head, size_bytes, position = None, 0, 0
    with open(path, "rb") as file:
        for line in file:
            position += len(line)
            if line.endswith(b"\n"):
                size_bytes = position
                parsed = _parse(line)
                head = head if parsed is None else Head(parsed.seq, parsed.hash)
    return head, size_bytes


def begins_at(file: ChainFile) -> str | None:
    """Return the time of the first line of a file; None for what is no line. Raises OSError."""
    with open(file.path, "rb") as lines:
        return time_of(lines.readline())


def _begin(line: bytes) -> tuple[int, str] | None:
    """Return from which line the chain is kept, and the hash that a file goes on from, as its first line says."""
    try:
        fields = json.loads(line)
        return int(fields["begins"]), str(fields["previous"])
    except (ValueError, KeyError, TypeError):
        return None


def has_line(files: Sequence[ChainFile], head: Head) -> bool:
    """Tell whether a chain has the line that was signed, or has let it go by retention. Raises OSError."""
    if not files:
        return False
    if head.seq < files[0].first:
        return True
    for file in reversed(files):
        if file.first <= head.seq:
            with open(file.path, "rb") as lines:
                parsed = (_parse(line) for line in lines)
                return any(line is not None and (line.seq, line.hash) == head for line in parsed)
    return False


class _Verification:
    """The state of going through one chain."""

    def __init__(self) -> None:
        self.faults: list[ChainFault] = []
        self.expected: int | None = None
        self.previous: str | None = None
        self.begins: int | None = None
        self.begins_at: str | None = None

    def file(self, file: ChainFile, signed: Head | None, *, is_last: bool) -> None:
        name = os.path.basename(file.path)
        with open(file.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n") and is_last:
                    return  # being written at this moment, or torn by a crash and never signed
                self.begins_at = self.begins_at or time_of(line)
                parsed = _parse(line)
                if parsed is None:
                    self.faults.append(ChainFault(name, number, "this is no line of the audit log"))
                    self.previous = None
                    continue
                for text in self.line(parsed, line, is_first=number == 1):
                    self.faults.append(ChainFault(name, number, text))
                if signed is not None and parsed.seq == signed.seq and parsed.hash != signed.hash:
                    self.faults.append(ChainFault(name, number, f"line {parsed.seq} is not the one that was signed"))

    def line(self, line: _Line, text: bytes, *, is_first: bool) -> Iterator[str]:
        expected = line.seq if self.expected is None else self.expected
        if line.seq < expected:
            yield f"line {line.seq} stands in the wrong place, or twice"
            return
        if line.seq > expected:
            missing = f"lines {expected} to {line.seq - 1} are" if line.seq - expected > 1 else f"line {expected} is"
            yield f"{missing} missing before line {line.seq}"
            self.previous = None
        if is_first and (begin := _begin(text)) is not None:
            self.begins, goes_on_from = begin
            if self.previous is not None and self.previous != goes_on_from:
                yield f"the file does not go on from line {line.seq - 1}"
            self.previous = goes_on_from
        if self.previous is not None and _hash(self.previous, line.body) != line.hash:
            yield f"line {line.seq} was changed, or line {line.seq - 1} was replaced"
        if b'"action":"%s"' % GAP_ACTION.encode() in line.body:
            yield f"line {line.seq} tells that signed lines were missing when the service started"
        self.expected, self.previous = line.seq + 1, line.hash


def verify_chain(files: Sequence[ChainFile], signed: SignedHead | None) -> ChainReport:
    """Compare every line of one process's files with its hash, and the chain with its last signature.

    A file that appears or grows meanwhile is fine; so is one that retention removes.

    Args:
        files: oldest first, at least one.
        signed: the last head in the store; None where nothing was signed yet.

    Raises:
        OSError: a file cannot be read.
    """
    state = _Verification()
    for file in files:
        state.file(file, None if signed is None else signed.head, is_last=file is files[-1])
    first, last = files[0].first, (state.expected or files[0].first) - 1
    if state.begins is not None and state.begins < first:
        text = f"lines {state.begins} to {first - 1} are missing: a file was removed, not by retention"
        state.faults.insert(0, ChainFault(os.path.basename(files[0].path), 1, text))
    name = os.path.basename(files[-1].path)
    if signed is not None and signed.head.seq > last:
        text = f"the end is cut: lines {last + 1} to {signed.head.seq} were signed, and are missing"
        state.faults.append(ChainFault(name, 0, text))
    unsigned = last - first + 1 if signed is None else max(0, last - signed.head.seq)
    signed_at = None if signed is None else signed.signed_at
    return ChainReport(
        files[0].process, first, last, signed_at, unsigned, tuple(state.faults), begins_at=state.begins_at
    )
