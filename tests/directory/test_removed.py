"""The records that are removed with a subject, on a real SQLite store."""

from registry_proxy.access.grant import GrantInput
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.users import UserInput

SECRET = "password of ann"


async def test_nobody_inherits_the_grants_of_a_name(directory: Directory) -> None:
    """The removal of a user or group removes its grants, and no others: a later one of that name has none."""
    await directory.users.put("ann", UserInput(password=SECRET, groups=["dev"]))
    for subject in ("user:ann", "group:dev", "user:dev", "group:ann"):
        await directory.grants.add(GrantInput(subject=subject, repository="a", actions=["pull"]))
    await directory.users.delete("ann")
    await directory.groups.delete("dev")
    assert {grant.subject for grant in await directory.grants.list()} == {"user:dev", "group:ann"}
