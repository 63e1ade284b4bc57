"""The one way to change a record: read it, check the revision that the caller saw, commit, and repeat a lost race."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.store import Change, Record, Store, Table

_T = TypeVar("_T")
_ATTEMPTS = 20


class NotFoundError(Exception):
    """There is no such user, group, robot, secret or grant."""


class RevisionConflictError(Exception):
    """It has another revision than the caller expected (If-Match)."""


@dataclass(frozen=True, slots=True)
class Revised(Generic[_T]):
    """The new content of a record, None to delete it; the result for the caller; further changes of the same commit."""

    stored: Mapping[str, Any] | None
    result: _T
    beside: Sequence[Change] = ()


async def get(store: Store, table: Table, key: str, missing: str) -> Record:
    """Return a record. Raises NotFoundError with the text ``missing``."""
    record = await store.get(table, key)
    if record is None:
        raise NotFoundError(missing)
    return record


async def revise(
    store: Store,
    table: Table,
    key: str,
    make: Callable[[Record | None], Awaitable[Revised[_T]]],
    *,
    expect: int | None = None,
    missing: str = "",
) -> tuple[_T, int]:
    """Change a record; return the result of ``make`` and the revision of the commit.

    Args:
        store: holds the record.
        table: of the record.
        key: of the record.
        make: returns the change, given the record as it is now; called again when another change came first.
        expect: the revision that the caller saw; None for any.
        missing: the text of the NotFoundError where there is no record; "" where there need be none.

    Raises:
        NotFoundError: see ``missing``.
        RevisionConflictError: the record has another revision than ``expect``.
        StoreUnavailableError: also when it goes on losing races.
    """

    async def attempt() -> tuple[_T, int]:
        record = await get(store, table, key, missing) if missing else await store.get(table, key)
        revision = 0 if record is None else record.revision
        check_revision(revision, expect)
        made = await make(record)
        return made.result, await store.commit([Change(table, key, made.stored, revision), *made.beside])

    return await retried(attempt)


async def retried(attempt: Callable[[], Awaitable[_T]]) -> _T:
    """Repeat an attempt that lost a race: each one reads anew, and checks again what its caller expected."""
    for _ in range(_ATTEMPTS):
        try:
            return await attempt()
        except ConflictError:
            continue
    raise StoreUnavailableError("too many others change the same records at the same time")


def check_revision(revision: int, expect: int | None) -> None:
    """Raise RevisionConflictError unless a revision is the expected one; None expects any."""
    if expect is not None and revision != expect:
        raise RevisionConflictError(f"it has revision {revision} now, not {expect}")
