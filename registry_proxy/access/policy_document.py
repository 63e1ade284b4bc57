"""A whole policy as one document, all groups and all grants, against the policy that is stored: what differs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from registry_proxy.access.grant import Grant
from registry_proxy.access.records import Group
from registry_proxy.ports.store import Change, Record, Table


@dataclass(frozen=True, slots=True)
class PolicyDifference:
    """The changes that a document makes in the stored policy; all empty where it is the stored one.

    ``groups_changed`` holds each group before and after. The grants that go have their stored ids.
    """

    groups_added: Sequence[Group] = ()
    groups_removed: Sequence[Group] = ()
    groups_changed: Sequence[tuple[Group, Group]] = ()
    grants_added: Sequence[Grant] = ()
    grants_removed: Sequence[Grant] = ()

    def __bool__(self) -> bool:
        return any(
            (self.groups_added, self.groups_removed, self.groups_changed, self.grants_added, self.grants_removed)
        )

    def changes(self, users: Mapping[str, Record]) -> list[Change]:
        """Return the writes that make it so, each with what it expects to find.

        Args:
            users: all users by name; those whose groups change are written along, as their record shows them.
        """
        changes = [Change(Table.GROUPS, group.name, group.stored(), 0) for group in self.groups_added]
        changes += [Change(Table.GROUPS, group.name, None, group.revision) for group in self.groups_removed]
        changes += [Change(Table.GROUPS, after.name, after.stored(), b.revision) for b, after in self.groups_changed]
        changes += [Change(Table.GRANTS, grant.id, grant.stored(), 0) for grant in self.grants_added]
        changes += [Change(Table.GRANTS, grant.id, None, grant.revision) for grant in self.grants_removed]
        moved = {member for group in (*self.groups_added, *self.groups_removed) for member in group.members}
        for before, after in self.groups_changed:
            moved |= {*before.members} ^ {*after.members}
        touched = [users[name] for name in sorted(moved) if name in users]
        return changes + [Change(Table.USERS, user.key, user.value, user.revision) for user in touched]


def sorted_grants(grants: Iterable[Grant]) -> list[Grant]:
    """Return each grant that says something else once, in an order that does not depend on ids."""
    chosen = {grant.content(): grant for grant in grants}
    return sorted(chosen.values(), key=Grant.sort_key)


def compare(
    groups: Iterable[Group], grants: Iterable[Grant], wanted_groups: Iterable[Group], wanted_grants: Iterable[Grant]
) -> PolicyDifference:
    """Return what differs between the stored policy and a wanted one.

    A stored grant that says what a wanted one says stays as it is, with its id.
    """
    grants, wanted_grants = list(grants), list(wanted_grants)
    before, after = {group.name: group for group in groups}, {group.name: group for group in wanted_groups}
    stored, wanted = {grant.content() for grant in grants}, {grant.content() for grant in wanted_grants}
    return PolicyDifference(
        groups_added=[group for name, group in sorted(after.items()) if name not in before],
        groups_removed=[group for name, group in sorted(before.items()) if name not in after],
        groups_changed=[
            (before[name], group)
            for name, group in sorted(after.items())
            if name in before and before[name].members != group.members
        ],
        grants_added=sorted_grants(grant for grant in wanted_grants if grant.content() not in stored),
        grants_removed=sorted(
            (grant for grant in grants if grant.content() not in wanted), key=lambda grant: (grant.sort_key(), grant.id)
        ),
    )
