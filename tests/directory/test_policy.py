"""The policy as one document, on a real SQLite store."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import pytest

from registry_proxy.access.grant import GrantInput
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import RevisionConflictError
from registry_proxy.directory.users import UserInput
from registry_proxy.ports.store import Change, Store, Table

SECRET = "password of ann"


async def test_a_policy_is_whole_although_another_changes_what_it_replaces(
    directory: Directory, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group changed between the comparison and the commit is not overwritten unseen: it is compared again."""
    await directory.users.put("ann", UserInput(password=SECRET))
    await directory.groups.put("dev", [])
    commit = store.commit
    lost: list[bool] = []

    async def overtaken(changes: Sequence[Change], *, versions: Mapping[Table, int]) -> int:
        if not lost:
            lost.append(True)
            await commit([Change(Table.GROUPS, "dev", {"members": ["ann"]})])
        return await commit(changes, versions=versions)

    monkeypatch.setattr(store, "commit", overtaken)
    grant = GrantInput(subject="group:ops", repository="a", actions=("pull",))
    difference, revision = await directory.policy.replace({"ops": ["ann"]}, [grant])
    assert [group.members for group in difference.rights.groups_removed] == [("ann",)]
    groups, grants, now = await directory.policy.read()
    assert [(group.name, group.members) for group in groups] == [("ops", ("ann",))]
    assert ([each.repository for each in grants], now) == (["a"], revision)
    with pytest.raises(RevisionConflictError):
        await directory.policy.replace({}, [], expect=revision - 1)
    assert (await directory.policy.read())[2] == revision


async def test_a_policy_takes_the_place_of_what_is_added_meanwhile(
    directory: Directory, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grant or group that is added after the comparison is compared again, or refused by If-Match."""
    wanted = GrantInput(subject="user:ann", repository="wanted", actions=("pull",))
    late = GrantInput(subject="user:eve", repository="**", actions=("push",))
    commit = store.commit

    def add_grant() -> Awaitable[object]:
        return directory.grants.add(late)

    def add_group() -> Awaitable[object]:
        return directory.groups.put("late", [])

    for add in (add_grant, add_group):
        for expected in (True, False):
            await directory.policy.replace({}, [])
            before = await directory.policy.revision()

            async def overtaken(
                changes: Sequence[Change],
                *,
                versions: Mapping[Table, int],
                add: Callable[[], Awaitable[object]] = add,
            ) -> int:
                monkeypatch.setattr(store, "commit", commit)
                await add()
                return await commit(changes, versions=versions)

            monkeypatch.setattr(store, "commit", overtaken)
            if expected:
                with pytest.raises(RevisionConflictError):
                    await directory.policy.replace({}, [wanted], expect=before)
                assert "wanted" not in {grant.repository for grant in await directory.grants.list()}
            else:
                await directory.policy.replace({}, [wanted])
                assert [grant.repository for grant in await directory.grants.list()] == ["wanted"]
                assert await directory.groups.list() == []
