"""All objects of a kind, each under its name, as a part of one document, against those that are stored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from registry_proxy.access.faults import Faults, InvalidError
from registry_proxy.access.subject import NAME_FAULT, is_name
from registry_proxy.ports.store import Change, Table


class Named(Protocol):
    """A stored object with a name."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> int: ...
    def stored(self) -> dict[str, Any]: ...


_N = TypeVar("_N", bound=Named)
_I = TypeVar("_I")


@dataclass(frozen=True, slots=True)
class SetDifference(Generic[_N]):
    """The changes that a document makes in the stored objects of a table; ``changed`` holds each before and after."""

    table: Table
    added: Sequence[_N] = ()
    removed: Sequence[_N] = ()
    changed: Sequence[tuple[_N, _N]] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.changed))

    def changes(self) -> list[Change]:
        """Return the writes that make it so, each with the revision that it expects."""
        changes = [Change(self.table, each.name, each.stored(), 0) for each in self.added]
        changes += [Change(self.table, each.name, None, each.revision) for each in self.removed]
        return changes + [Change(self.table, after.name, after.stored(), b.revision) for b, after in self.changed]


def check_inputs(inputs: Mapping[str, _I], kind: str, most: int, faults_of: Callable[[_I], Faults]) -> None:
    """Raise InvalidError with every fault of a set, each as ``subscriptions/ci/url``."""
    faults = [(kind, f"expected at most {most}")] if len(inputs) > most else []
    for name, given in inputs.items():
        found = faults_of(given) if is_name(name) else [("", f"{name[:100]!r}: {NAME_FAULT}")]
        faults += [(f"{kind}/{name}/{field}".rstrip("/"), text) for field, text in found]
    if faults:
        raise InvalidError(faults)


def compare_named(
    table: Table, stored: Sequence[_N], wanted: Mapping[str, _N], changed_fields: Callable[[_N, _N], Sequence[str]]
) -> SetDifference[_N]:
    """Return the differences between the stored objects and a whole set of wanted ones."""
    before = {each.name: each for each in stored}
    return SetDifference(
        table,
        added=[each for name, each in sorted(wanted.items()) if name not in before],
        removed=[each for name, each in sorted(before.items()) if name not in wanted],
        changed=[
            (before[name], each)
            for name, each in sorted(wanted.items())
            if name in before and changed_fields(before[name], each)
        ],
    )
