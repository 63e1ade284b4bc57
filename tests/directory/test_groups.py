"""Groups and their members, on a real SQLite store."""

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.directory.users import UserInput

SECRET = "password of ann"


async def test_groups_and_users_show_one_relation(directory: Directory) -> None:
    """A user's groups and a group's members always agree, whichever of them was written."""
    for name in ("ann", "bob"):
        await directory.users.put(name, UserInput(password=SECRET))
    await directory.groups.put("dev", ["user:ann", "bob", "ann"])
    assert (await directory.groups.get("dev")).members == ("ann", "bob")
    assert (await directory.users.get("ann")).groups == ("dev",)
    await directory.users.put("ann", UserInput(groups=["ops", "new", "ops"]))
    assert (await directory.groups.get("dev")).members == ("bob",)
    assert (await directory.groups.get("new")).members == ("ann",)
    assert (await directory.users.get("ann")).groups == ("new", "ops")
    await directory.groups.put("ops", ["bob"])
    assert [(user.name, user.groups) for user in await directory.users.list()] == [
        ("ann", ("new",)),
        ("bob", ("dev", "ops")),
    ]
    await directory.users.delete("bob")
    assert [(group.name, group.members) for group in await directory.groups.list()] == [
        ("dev", ()),
        ("new", ("ann",)),
        ("ops", ()),
    ]
    await directory.groups.delete("new")
    assert (await directory.users.get("ann")).groups == ()


async def test_a_group_is_replaced_never_added_to(directory: Directory) -> None:
    """A member that the new group does not name is removed (as in CVE-2025-23208)."""
    for name in ("ann", "bob"):
        await directory.users.put(name, UserInput(password=SECRET))
    _, created = await directory.groups.put("dev", ["ann"])
    assert created
    group, created = await directory.groups.put("dev", ["bob"])
    assert not created
    assert group == await directory.groups.get("dev")
    assert group.members == ("bob",)


async def test_a_group_takes_only_users_that_are_there(directory: Directory) -> None:
    """Every unknown member and every bad name is a fault."""
    with pytest.raises(InvalidError) as caught:
        await directory.groups.put("dev", ["ghost", "a b"])
    assert len(caught.value.faults) == 2
    with pytest.raises(InvalidError):
        await directory.groups.put("a b", [])
    with pytest.raises(NotFoundError):
        await directory.groups.get("dev")
    with pytest.raises(NotFoundError):
        await directory.groups.delete("dev")
