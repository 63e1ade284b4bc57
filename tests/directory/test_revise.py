"""Changes that race with others, on a real SQLite store."""

import asyncio

import pytest

from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import RevisionConflictError
from registry_proxy.directory.users import UserInput

SECRET = "password of ann"


async def test_revisions_guard_against_lost_updates(directory: Directory) -> None:
    """A write with an outdated revision changes nothing; a user's revision moves with its memberships."""
    ann, _ = await directory.users.put("ann", UserInput(password=SECRET), expect=0)
    with pytest.raises(RevisionConflictError):
        await directory.users.put("ann", UserInput(), expect=0)
    group, _ = await directory.groups.put("dev", ["ann"])
    with pytest.raises(RevisionConflictError):  # it shows another group now
        await directory.users.put("ann", UserInput(), expect=ann.revision)
    ann = await directory.users.get("ann")
    await directory.groups.put("dev", [])
    with pytest.raises(RevisionConflictError):
        await directory.users.delete("ann", expect=ann.revision)
    with pytest.raises(RevisionConflictError):
        await directory.groups.delete("dev", expect=group.revision)
    await directory.groups.delete("dev", expect=(await directory.groups.get("dev")).revision)
    await directory.users.delete("ann", expect=(await directory.users.get("ann")).revision)


async def test_memberships_changed_at_once_are_all_kept(directory: Directory) -> None:
    """Many users that join one group at the same time are all members."""
    names = [f"user{number}" for number in range(8)]
    await asyncio.gather(*(directory.users.put(name, UserInput(password=SECRET, groups=["dev"])) for name in names))
    assert (await directory.groups.get("dev")).members == tuple(names)
