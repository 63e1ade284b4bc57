"""The deliveries of a receiver, checked against the rule that no event is lost and all are in order."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from tests.chaos.history import Kind, Operation, Outcome, short

_SLACK_SECONDS = 0.1
"""The tolerance for clocks: those of a client and of a node are read one after the other."""

_LEARNING_SECONDS = 2.0
"""Time within which all nodes know a new subscription."""

_TYPES = {Kind.PUSH: "image.push", Kind.ATTACH: "manifest"}


@dataclass(frozen=True)
class Arrival:
    """One delivery that the receiver accepted; ``at`` is the time of the event, in seconds since the epoch."""

    id: str
    number: int
    type: str
    repository: str
    tag: str
    digest: str
    at: float
    detail: str = ""

    @classmethod
    def of(cls, line: str) -> Self:
        """Return the delivery of a line of the receiver's file."""
        event = json.loads(line)
        data = event["data"]
        return cls(
            event["id"],
            int(event["sequence"]),
            event["type"].removeprefix("registry-proxy."),
            data["repository"],
            data["tag"] or "",
            data["digest"] or "",
            datetime.fromisoformat(event["time"]).timestamp(),
            data.get("replica", ""),
        )

    def __str__(self) -> str:
        return f"{self.type} {self.number} of {self.repository}:{self.tag} {short(self.digest)} ({self.id}, {self.at})"


def read_arrivals(path: Path) -> list[Arrival]:
    """Return the accepted deliveries of a receiver, in order; a line cut by its death counts as not accepted."""
    text = path.read_text() if path.exists() else ""
    return [Arrival.of(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}}")]


@dataclass(frozen=True)
class Emptied:
    """A loss of the store, and the new subscription after it, in seconds since the epoch."""

    began: float
    ended: float


def event_faults(
    arrivals: Sequence[Arrival], operations: Iterable[Operation], epoch: float, emptied: Sequence[Emptied] = ()
) -> Iterator[str]:
    """Yield each broken promise about events.

    Args:
        arrivals: the accepted deliveries, in order.
        operations: of the clients.
        epoch: the zero of their times, in seconds since the epoch.
        emptied: the losses of the store: events are lost with it, and numbers begin again.
    """
    yield from _duplicates(arrivals, emptied)
    yield from _disorder(arrivals, emptied)
    yield from lost_events(arrivals, operations, epoch, emptied)
    yield from _replicas(arrivals, emptied)


def lost_events(
    arrivals: Sequence[Arrival], operations: Iterable[Operation], epoch: float, emptied: Sequence[Emptied] = ()
) -> Iterator[str]:
    """Yield the acknowledged pushes whose event is missing.

    A push that moves nothing has no event of its own: then the event of the push that set the tag counts.
    """
    since = max((each.ended + _LEARNING_SECONDS for each in emptied), default=0.0)
    moves: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for one in _first(arrivals):
        if one.type == "image.push":
            moves.setdefault((one.repository, one.tag), []).append((one.at, one.digest))
        elif one.type == "delete":
            for (repository, tag), values in moves.items():
                if repository == one.repository and (one.tag == tag or (not one.tag and values[-1][1] == one.digest)):
                    values.append((one.at, ""))
    manifests = {(one.repository, one.digest) for one in arrivals if one.type == "manifest"}
    for operation in operations:
        began, ended = epoch + operation.started_at, epoch + operation.ended_at
        if operation.kind not in _TYPES or operation.outcome is not Outcome.DONE or began < since:
            continue
        key = operation.repository, operation.tag
        if operation.kind is Kind.ATTACH:
            is_there = (operation.repository, operation.digest) in manifests
        else:
            is_there = _was(moves.get(key, []), operation.digest, began - _SLACK_SECONDS, ended + _SLACK_SECONDS)
        if not is_there:
            yield f"no event of {operation}"


def _was(moves: Sequence[tuple[float, str]], digest: str, began: float, ended: float) -> bool:
    """Tell whether a tag had a digest at some moment between two."""
    ends = [*(at for at, _ in moves[1:]), float("inf")][: len(moves)]
    return any(
        value == digest and at <= ended and until >= began for (at, value), until in zip(moves, ends, strict=True)
    )


def _first(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """Return each event once, at its first arrival."""
    first: dict[str, Arrival] = {}
    for one in arrivals:
        first.setdefault(one.id, one)
    return list(first.values())


def _age(one: Arrival, emptied: Sequence[Emptied]) -> int:
    """Return the number of losses of the store before an event."""
    return sum(each.began < one.at for each in emptied)


def _duplicates(arrivals: Sequence[Arrival], emptied: Sequence[Emptied]) -> Iterator[str]:
    numbered: dict[tuple[int, str, int], Arrival] = {}
    for one in arrivals:
        before = numbered.setdefault((_age(one, emptied), one.repository, one.number), one)
        if before != one:
            yield f"two events with one number: {before} and {one}"


def _disorder(arrivals: Sequence[Arrival], emptied: Sequence[Emptied]) -> Iterator[str]:
    last: dict[tuple[int, str], int] = {}
    for one in _first(arrivals):
        key = _age(one, emptied), one.repository
        expected = last.get(key, 0) + 1
        if one.number != expected:
            yield f"not in order, {expected} comes next: {one}"
        last[key] = one.number


def _replicas(arrivals: Sequence[Arrival], emptied: Sequence[Emptied]) -> Iterator[str]:
    """Yield the events of replicas that report no change."""
    state: dict[tuple[int, str], str] = {}
    for one in _first(arrivals):
        if one.type in {"replica_down", "replica_repaired"}:
            key = _age(one, emptied), one.detail
            if state.get(key, "replica_repaired") == one.type:
                yield f"no change: {one} of {one.detail}"
            state[key] = one.type
