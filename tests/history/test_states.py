"""The states that a tag can go back to."""

import pytest

from registry_proxy.history.states import last_state, state_before
from registry_proxy.ports.history import Move, MoveKind


def moves(text: str, before: str | None = None) -> list[Move]:
    """Return moves, newest first, of a text: ``a`` is a push, ``<a`` a rollback, ``+a`` a restore, ``x`` a delete."""
    kinds = {"<": MoveKind.ROLLBACK, "+": MoveKind.RESTORE}
    found, previous = [], before
    for word in text.split():
        digest = None if word == "x" else word[-1]
        kind = MoveKind.DELETE if word == "x" else kinds.get(word[0], MoveKind.PUSH)
        found.append(Move(kind=kind, digest=digest, previous=previous))
        previous = digest
    return found[::-1]


@pytest.mark.parametrize(
    ("text", "current", "steps", "expected"),
    [
        ("a b c", "c", 1, "b"),
        ("a b c", "c", 2, "a"),
        ("a b c", "c", 3, None),
        ("a b c <b", "b", 1, "a"),  # it goes on, and not to and fro
        ("a b c <b d", "d", 1, "b"),  # never to what was rolled back
        ("a b a", "a", 1, "b"),
        ("a b a b c", "c", 2, "a"),  # distinct digests
        ("a b c <a", "a", 1, None),
        ("a b c <a d <a e", "e", 1, "a"),
        ("a b c <b c", "c", 1, "b"),  # pushed again on purpose
        ("a b x +b", "b", 1, "a"),
        ("a b x c", "c", 1, "b"),
        ("a b", "p", 1, "b"),  # moved past us
        ("a", "a", 1, None),
        ("", "a", 1, None),
    ],
)
def test_steps_count_distinct_digests_back(text: str, current: str, steps: int, expected: str | None) -> None:
    """A rollback undoes what came after the state that it led to; each further one goes further back."""
    assert state_before(moves(text), current, steps) == expected


def test_a_tag_from_before_the_history_is_a_state() -> None:
    """A tag that was made before there was a history can go back to that."""
    assert state_before(moves("b", before="a"), "b", 1) == "a"


@pytest.mark.parametrize(("text", "expected"), [("a b x", "b"), ("a b <a x", "a"), ("", None)])
def test_a_deleted_tag_was_its_last_state(text: str, expected: str | None) -> None:
    """A restore leads to what the tag was when it was deleted."""
    assert last_state(moves(text)) == expected
