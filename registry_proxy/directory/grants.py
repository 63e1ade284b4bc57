"""Grants, each under an id that it gets when it is made."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace

from registry_proxy.access.grant import Grant, GrantInput, grant_of, make_grant
from registry_proxy.directory.revise import Revised, get, revise
from registry_proxy.ports.store import Change, Record, Store, Table
from registry_proxy.protocol.patterns import is_below


class Grants:
    """See ``Directory``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, namespaces: Collection[str] | None = None) -> Sequence[Grant]:
        """Return all grants, or those for nothing but what lies in some namespaces, such as ``team/**``."""
        records = await self._store.list(Table.GRANTS)
        if namespaces is not None:
            records = [each for each in records if any(is_below(each.value["repository"], one) for one in namespaces)]
        return [grant_of(record) for record in records]

    async def get(self, grant_id: str) -> Grant:
        """Return a grant. Raises NotFoundError."""
        return grant_of(await get(self._store, Table.GRANTS, grant_id, _missing(grant_id)))

    async def add(self, given: GrantInput) -> Grant:
        """Make a grant under a new id. The subject need not exist yet. Raises InvalidError with every fault."""
        grant = make_grant(given, secrets.token_hex(8))
        revision = await self._store.commit([Change(Table.GRANTS, grant.id, grant.stored(), expect=0)])
        return replace(grant, revision=revision)

    async def change(self, grant_id: str, given: GrantInput, *, expect: int | None = None) -> Grant:
        """Put another grant under an id that is there.

        Raises:
            InvalidError: with every fault of the input.
            NotFoundError, RevisionConflictError.
        """
        grant = make_grant(given, grant_id)

        async def make(_: Record | None) -> Revised[Grant]:
            return Revised(grant.stored(), grant)

        _, revision = await revise(self._store, Table.GRANTS, grant_id, make, expect=expect, missing=_missing(grant_id))
        return replace(grant, revision=revision)

    async def delete(self, grant_id: str, *, expect: int | None = None) -> None:
        """Delete a grant. Raises NotFoundError, RevisionConflictError."""

        async def make(_: Record | None) -> Revised[None]:
            return Revised(None, None)

        await revise(self._store, Table.GRANTS, grant_id, make, expect=expect, missing=_missing(grant_id))


def _missing(grant_id: str) -> str:
    return f"there is no grant {grant_id}"
