"""The judge of events finds each kind of broken promise, and none where there is none."""

import json
from dataclasses import replace
from pathlib import Path

from tests.chaos.events import Arrival, Emptied, event_faults, read_arrivals
from tests.chaos.history import Kind, Operation, Outcome

EPOCH = 1_700_000_000.0
A, B = ("sha256:" + letter * 64 for letter in "ab")


def arrival(number: int, digest: str, at: float, kind: str = "image.push", tag: str = "1") -> Arrival:
    """Return an event of the tag."""
    return Arrival(f"id-{number}-{at}", number, kind, "team/app", tag, digest, EPOCH + at)


def push(begin: float, end: float, digest: str, outcome: Outcome = Outcome.DONE) -> Operation:
    """Return a push of the tag."""
    return Operation(Kind.PUSH, "p", "team/app", begin, "1", digest, end, outcome)


def faults(arrivals: list[Arrival], *operations: Operation, emptied: tuple[Emptied, ...] = ()) -> list[str]:
    """Return the first words of each fault."""
    return [" ".join(one.split()[:3]) for one in event_faults(arrivals, operations, EPOCH, emptied)]


def test_events_in_order_are_no_fault() -> None:
    """Duplicates with their ids, failed pushes, and a push that moved nothing are no faults."""
    first = arrival(1, A, 1.5)  # comes again late, from a node that stood still meanwhile
    arrivals = [first, first, arrival(2, B, 3.5), first, arrival(3, B, 7.5, "delete", "")]
    operations = [push(1, 2, A), push(3, 4, B), push(5, 6, B), push(8, 9, A, Outcome.BROKEN)]
    assert faults(arrivals, *operations) == []


def test_a_lost_event_is_found() -> None:
    """The tag never had the acknowledged digest, or not at that time."""
    assert faults([], push(1, 2, A)) == ["no event of"]
    assert faults([arrival(1, A, 1.5), arrival(2, B, 3.5)], push(1, 2, A), push(5, 6, A)) == ["no event of"]
    deleted = [arrival(1, A, 1.5), arrival(2, A, 3.5, "delete", "")]
    assert faults(deleted, push(5, 6, A)) == ["no event of"]
    attached = Operation(Kind.ATTACH, "p", "team/app", 1, "", A, 2, Outcome.DONE)
    assert faults([arrival(1, A, 1.5)], attached) == ["no event of"]
    assert faults([arrival(1, A, 1.5, "manifest", "")], attached) == []


def test_other_ids_and_another_order_are_found() -> None:
    """A number belongs to one event, and the numbers of a repository follow each other."""
    first, second = arrival(1, A, 1.5), arrival(2, B, 3.5)
    assert faults([first, replace(first, id="other")])[0] == "two events with"
    assert faults([second, first]) == ["not in order,"] * 2
    assert faults([first, arrival(3, B, 3.5)]) == ["not in order,"]


def test_an_emptied_store_loses_events_and_begins_again() -> None:
    """Earlier pushes are excused; later ones are not."""
    emptied = (Emptied(EPOCH + 3, EPOCH + 4),)
    assert faults([arrival(1, A, 1.5), arrival(1, B, 9.5)], push(2, 3, B), push(9, 10, B), emptied=emptied) == []
    assert faults([arrival(1, A, 1.5)], push(9, 10, B), emptied=emptied) == ["no event of"]


def test_a_replica_that_is_down_twice_is_found() -> None:
    """Down and repaired must alternate."""
    down, repaired = (
        replace(arrival(n, "", n, f"replica_{t}", ""), detail="a") for n, t in ((1, "down"), (2, "repaired"))
    )
    assert faults([down, repaired]) == []
    assert faults([down, replace(down, id="other", number=2)]) == ["no change: replica_down"]
    assert faults([replace(repaired, number=1)]) == ["no change: replica_repaired"]


def test_a_line_that_the_receiver_was_killed_over_did_not_arrive(tmp_path: Path) -> None:
    """The receiver has not answered: the event arrives once more."""
    data = {"repository": "team/app", "tag": "1", "digest": A}
    event = {
        "id": "x",
        "sequence": "1",
        "type": "registry-proxy.image.push",
        "time": "2023-11-14T22:13:20Z",
        "data": data,
    }
    line = json.dumps(event)
    path = tmp_path / "events"
    assert read_arrivals(path) == []
    path.write_text(f"\n{line}\n\n{line[:20]}\n{line}\n\n{line[:30]}")
    assert [one.id for one in read_arrivals(path)] == ["x", "x"]
