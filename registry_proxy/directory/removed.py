"""The belongings of a subject, which are removed with it: a later subject of its name must not inherit them."""

from collections.abc import Sequence
from dataclasses import dataclass

from registry_proxy.access.grant import Grant
from registry_proxy.access.secrets import Secret
from registry_proxy.directory.grants import Grants
from registry_proxy.directory.secrets import Secrets, deletions
from registry_proxy.ports.store import Change, Store, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The grants, secrets, and groups or members, that a user, group or robot had when it was deleted."""

    grants: Sequence[Grant] = ()
    secrets: Sequence[Secret] = ()
    groups: Sequence[str] = ()
    members: Sequence[str] = ()

    def changes(self) -> list[Change]:
        """Return the changes that delete the grants and secrets."""
        return [Change(Table.GRANTS, grant.id, None) for grant in self.grants] + deletions(self.secrets)


async def held_by(store: Store, subject: str) -> Removed:
    """Return the grants and secrets of a subject."""
    grants = [grant for grant in await Grants(store).list() if grant.subject == subject]
    return Removed(grants=tuple(grants), secrets=tuple(await Secrets(store).list(subject)))
