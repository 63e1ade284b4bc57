"""Looking things up in the audit log of a node: all processes, in the order of time."""

import heapq
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from registry_proxy.audit.chain import ChainFile, list_chains, time_of


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """The conditions of a search; ``fields`` are compared as they are, an action also by its beginning (``users``).

    Times are as the log has them (RFC 3339, UTC, microseconds): ``since`` and later, before ``until``; only what comes
    behind ``after``, the place of a line.
    """

    since: str = ""
    until: str = ""
    after: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    def matches(self, line: Mapping[str, Any]) -> bool:
        """Tell whether a line is looked for."""
        return all(_is(line, name, wanted) for name, wanted in self.fields.items())


def _is(line: Mapping[str, Any], name: str, wanted: str) -> bool:
    value = str(line.get(name, ""))
    return value == wanted or (name == "action" and value.startswith(f"{wanted}."))


def place_of(line: Mapping[str, Any]) -> str:
    """Return what sorts lines, and says where to go on."""
    return f"{line['time']}/{line['process']}/{line['seq']:012d}"


def search(directory: str, query: AuditQuery, limit: int) -> list[dict[str, Any]]:
    """Return the first lines that match, oldest first. Raises OSError."""
    chains = list_chains(directory).values()
    merged = heapq.merge(*(_matching(files, query) for files in chains), key=place_of)
    return list(islice(merged, limit))


def search_last(directory: str, query: AuditQuery, limit: int) -> list[dict[str, Any]]:
    """Return the last lines that match, oldest first. Raises OSError."""
    found: list[dict[str, Any]] = []
    for files in list_chains(directory).values():
        of_process: deque[dict[str, Any]] = deque()
        for file in reversed(files):
            part = deque(_matching([file], query), maxlen=limit)
            of_process.extendleft(reversed(part))
            if len(of_process) >= limit:
                break
        found += of_process
    found.sort(key=place_of)
    return found[-limit:]


def _matching(files: Sequence[ChainFile], query: AuditQuery) -> Iterator[dict[str, Any]]:
    begin = max(query.since, query.after.partition("/")[0])
    # What each value looks like in a line: most lines need not be parsed.
    hints = [json.dumps(value).strip('"').encode() for name, value in query.fields.items() if name != "action"]
    for file in files:
        if begin and os.path.getmtime(file.path) + 1 < datetime.fromisoformat(begin).timestamp():
            continue
        with open(file.path, "rb") as lines:
            yield from _matching_lines(lines, begin, hints, query)


def _matching_lines(
    lines: Iterable[bytes], begin: str, hints: Sequence[bytes], query: AuditQuery
) -> Iterator[dict[str, Any]]:
    for text in lines:
        time = time_of(text)
        if time is None or time < begin or (query.until and time >= query.until):
            continue
        if not text.endswith(b"\n") or not all(hint in text for hint in hints):
            continue
        try:
            line: dict[str, Any] = json.loads(text)
            if query.matches(line) and place_of(line) > query.after:
                yield line
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # no line of ours: verifying tells
