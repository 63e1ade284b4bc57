"""Groups of users.

A user's groups and a group's members are one relation. The group's record owns it; the record of each user concerned
is written along, so that its revision rises with every change of what it shows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from registry_proxy.access.faults import InvalidError
from registry_proxy.access.records import Group, group_of
from registry_proxy.access.subject import NAME_FAULT, group_subject, is_name
from registry_proxy.directory.removed import Removed, held_by
from registry_proxy.directory.revise import Records, Revised
from registry_proxy.ports.store import Change, Record, Store, Table


class Groups(Records[Group]):
    """See ``Directory``."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, Table.GROUPS, "group", group_of)

    async def put(self, name: str, members: Sequence[str], *, expect: int | None = None) -> tuple[Group, bool]:
        """Make or replace a group; return it, and whether it is new.

        Args:
            name: of the group.
            members: users, as ``ann`` or ``user:ann``; these and no others are in it afterwards.
            expect: see ``Directory``.

        Raises:
            InvalidError: a name is not valid, or there is no such user.
            RevisionConflictError: see the class.
        """
        if not is_name(name):
            raise InvalidError([("name", NAME_FAULT)])
        group = Group(name, tuple(sorted({member.removeprefix("user:") for member in members})))

        async def make(current: Group | None) -> Revised[bool]:
            before = () if current is None else current.members
            users = {user.key: user for user in await self._store.list(Table.USERS)}
            unknown = [member for member in group.members if member not in users]
            if unknown:
                raise InvalidError([("members", f"there is no user {member!r}") for member in unknown])
            moved = {*before} ^ {*group.members}
            return Revised(group.stored(), current is None, _touch(users[each] for each in moved if each in users))

        is_new, revision = await self._revise(name, make, expect=expect)
        return replace(group, revision=revision), is_new

    async def delete(self, name: str, *, expect: int | None = None) -> Removed:
        """Delete a group and its grants; return its belongings. Raises NotFoundError, RevisionConflictError."""

        async def make(group: Group | None) -> Revised[Removed]:
            members = () if group is None else group.members
            users = [user for user in await self._store.list(Table.USERS) if user.key in members]
            removed = replace(await held_by(self._store, group_subject(name)), members=members)
            return Revised(None, removed, [*_touch(users), *removed.changes()])

        removed, _ = await self._revise(name, make, expect=expect, must_exist=True)
        return removed


def groups_of(user: str, groups: Iterable[Group]) -> tuple[str, ...]:
    """Return the names of those of the groups that a user is in."""
    return tuple(group.name for group in groups if user in group.members)


def membership_changes(user: str, wanted: Sequence[str], groups: Iterable[Group]) -> Sequence[Change]:
    """Return the changes that make a user a member of exactly these groups; those that are not there are made."""
    changes = []
    present = set()
    for group in groups:
        present.add(group.name)
        if (group.name in wanted) != (user in group.members):
            members = {*group.members, user} if group.name in wanted else {*group.members} - {user}
            changed = Group(group.name, tuple(sorted(members)))
            changes.append(Change(Table.GROUPS, group.name, changed.stored(), group.revision))
    new = [Group(group, (user,)) for group in wanted if group not in present]
    return changes + [Change(Table.GROUPS, group.name, group.stored(), expect=0) for group in new]


def _touch(users: Iterable[Record]) -> Sequence[Change]:
    return [Change(Table.USERS, user.key, user.value, user.revision) for user in users]
