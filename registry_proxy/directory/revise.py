"""The one way to change a record: read it, check the revision that the caller saw, commit, and repeat a lost race."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from registry_proxy.ports.store import Change, Record, Store, Table, retried, revision_of

_T = TypeVar("_T")
_V = TypeVar("_V")


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


class Records(Generic[_V]):
    """The records of a table as values; each resource is one.

    Args:
        store: holds them.
        table: of the records.
        kind: what one of them is, for messages.
        parse: returns the value of a record.
    """

    def __init__(self, store: Store, table: Table, kind: str, parse: Callable[[Record], _V]) -> None:
        self._store = store
        self._table = table
        self._kind = kind
        self._parse = parse

    async def list(self) -> Sequence[_V]:
        """Return the values of all records, by key."""
        return [self._parse(record) for record in await self._store.list(self._table)]

    async def get(self, key: str) -> _V:
        """Return the value of a record. Raises NotFoundError."""
        return self._parse(await self._present(key))

    async def _present(self, key: str) -> Record:
        record = await self._store.get(self._table, key)
        if record is None:
            raise NotFoundError(f"there is no {self._kind} {key}")
        return record

    async def _revise(
        self,
        key: str,
        make: Callable[[_V | None], Awaitable[Revised[_T]]],
        *,
        expect: int | None = None,
        must_exist: bool = False,
    ) -> tuple[_T, int]:
        """Change a record; return the result of ``make`` and the revision of the commit.

        Args:
            key: of the record.
            make: returns the change, given the present value, None where there is no record; called again when another
                change came first.
            expect: the revision that the caller saw; None for any.
            must_exist: whether there has to be a record.

        Raises:
            NotFoundError: see ``must_exist``.
            RevisionConflictError: the record has another revision than ``expect``.
            StoreUnavailableError: also when it goes on losing races.
        """

        async def attempt() -> tuple[_T, int]:
            record = await (self._present(key) if must_exist else self._store.get(self._table, key))
            revision = revision_of(record)
            check_revision(revision, expect)
            made = await make(None if record is None else self._parse(record))
            change = Change(self._table, key, made.stored, revision)
            return made.result, await self._store.commit([change, *made.beside])

        return await retried(attempt)


def check_revision(revision: int, expect: int | None) -> None:
    """Raise RevisionConflictError unless a revision is the expected one; None expects any."""
    if expect is not None and revision != expect:
        raise RevisionConflictError(f"it has revision {revision} now, not {expect}")
