"""Grants as administrators make them, on a real SQLite store."""

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.access.grant import GrantInput, GrantMode
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import NotFoundError, RevisionConflictError
from registry_proxy.protocol.scope import Action


async def test_grants_come_and_go(directory: Directory) -> None:
    """A grant gets an id and the defaults; its subject may not exist yet."""
    grant = await directory.grants.add(GrantInput(subject="robot:ci", repository="team/**", actions=["push", "pull"]))
    assert (grant.tags, grant.mode, grant.expires_at) == ("*", GrantMode.ENFORCE, None)
    assert grant.actions == {Action.PULL, Action.PUSH}
    assert await directory.grants.get(grant.id) == grant
    other = await directory.grants.add(
        GrantInput(subject="anonymous", repository="a", actions=["delete"], tags="v*", mode="warn", expires_at=5.0)
    )
    assert {each.id for each in await directory.grants.list()} == {grant.id, other.id}
    with pytest.raises(RevisionConflictError):
        await directory.grants.delete(grant.id, expect=grant.revision + 1)
    await directory.grants.delete(grant.id, expect=grant.revision)
    for gone in (directory.grants.get(grant.id), directory.grants.delete(grant.id)):
        with pytest.raises(NotFoundError):
            await gone


async def test_all_faults_of_a_grant_at_once(directory: Directory) -> None:
    """Every field is checked; nothing is stored."""
    given = GrantInput(
        subject="ann", repository="Team/**", actions=["fly"], tags="a b", mode="maybe", expires_at=float("nan")
    )
    with pytest.raises(InvalidError) as caught:
        await directory.grants.add(given)
    names = ["subject", "repository", "tags", "actions", "mode", "expires_at"]
    assert [field for field, _ in caught.value.faults] == names
    with pytest.raises(InvalidError):
        await directory.grants.add(GrantInput(subject="user:a", repository="a", actions=[]))
    assert await directory.grants.list() == []
