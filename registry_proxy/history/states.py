"""The states that a tag can go back to, by its moves: pure."""

from collections.abc import Sequence

from registry_proxy.ports.history import Move, MoveKind

_WAYS_BACK = frozenset({MoveKind.ROLLBACK, MoveKind.RESTORE})


def states_of(moves: Sequence[Move]) -> Sequence[str]:
    """Return the states of a tag that led to the present one, oldest first; a digest may be there several times.

    A rollback takes back all that came after the state that it leads to. So the next one goes on from there, and never
    forward to a state that was rolled back.

    Args:
        moves: of the tag, newest first.
    """
    states: list[str] = []
    if moves and (before := moves[-1].previous) is not None:
        states.append(before)
    for move in reversed(moves):
        if move.digest is None:
            continue
        if move.kind in _WAYS_BACK and move.digest in states:
            while states[-1] != move.digest:
                states.pop()
        elif not states or states[-1] != move.digest:
            states.append(move.digest)
    return states


def state_before(moves: Sequence[Move], current: str, steps: int) -> str | None:
    """Return the state that lies a number of distinct digests before the current one; None where there are too few.

    Args:
        moves: of the tag, newest first.
        current: the digest of the tag now, which may have been moved past us.
        steps: from 1.
    """
    before = [digest for digest in dict.fromkeys(reversed(states_of(moves))) if digest != current]
    return before[steps - 1] if steps <= len(before) else None


def last_state(moves: Sequence[Move]) -> str | None:
    """Return the newest state of a tag that was deleted; None where nothing is on record."""
    states = states_of(moves)
    return states[-1] if states else None
