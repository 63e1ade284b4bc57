"""Faults of what an administrator gives: all of them at once, each with the field that it is in."""

from collections.abc import Collection, Sequence

_SHOWN_MAX = 10

Faults = list[tuple[str, str]]
"""Each as (field, expectation)."""


class InvalidError(Exception):
    """The input is not valid; ``faults`` holds every fault as (field, what was expected)."""

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {fault}" for name, fault in faults))
        self.faults = tuple(faults)


def faults_of(**fields: str | None) -> Faults:
    """Return the fields that have a fault, each with it; None for those that have none."""
    return [(field, fault) for field, fault in fields.items() if fault is not None]


def time_faults(expires_at: float | None) -> Faults:
    """Return the fault of an ``expires_at`` that is no moment in Unix seconds."""
    return [] if expires_at is None or 0 < expires_at < 2**53 else [("expires_at", "expected a time")]


def actions_faults(actions: Sequence[str], known: Collection[str]) -> Faults:
    """Return the fault of a list of actions that is empty, or names others than the known ones."""
    expected = f"expected at least one of {', '.join(sorted(known))}"
    unknown = [repr(action[:100]) for action in dict.fromkeys(actions) if action not in known]
    if unknown:
        return [("actions", f"{expected}, not {', '.join(unknown[:_SHOWN_MAX])}")]
    return [] if actions else [("actions", expected)]
