"""Grants, each under an id that it gets when it is made."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace

from registry_proxy.access.grant import Grant, GrantInput, grant_of, make_grant
from registry_proxy.directory.revise import Records, Revised
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.patterns import is_below


class Grants(Records[Grant]):
    """See ``Directory``."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, Table.GRANTS, "grant", grant_of)

    async def list(self, namespaces: Collection[str] | None = None) -> Sequence[Grant]:
        """Return all grants, or those for nothing but what lies in some namespaces, such as ``team/**``."""
        records = await self._store.list(Table.GRANTS)
        if namespaces is not None:
            records = [each for each in records if any(is_below(each.value["repository"], one) for one in namespaces)]
        return [grant_of(record) for record in records]

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

        async def make(_: Grant | None) -> Revised[None]:
            return Revised(grant.stored(), None)

        _, revision = await self._revise(grant_id, make, expect=expect, must_exist=True)
        return replace(grant, revision=revision)

    async def delete(self, grant_id: str, *, expect: int | None = None) -> None:
        """Delete a grant. Raises NotFoundError, RevisionConflictError."""

        async def make(_: Grant | None) -> Revised[None]:
            return Revised(None, None)

        await self._revise(grant_id, make, expect=expect, must_exist=True)
