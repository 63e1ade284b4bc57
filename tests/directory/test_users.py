"""Users: the changes of administrators, on a real SQLite store."""

import asyncio

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.directory.users import LastAdminError, UserInput
from registry_proxy.ports.store import Change, Store, Table
from tests.directory.conftest import generation

SECRET = "password of ann"


async def test_users_come_and_go(directory: Directory, store: Store) -> None:
    """A user is made, read, replaced and deleted; the password is stored only as a hash."""
    ann, created = await directory.users.put("ann", UserInput(password=SECRET, is_admin=True))
    assert created
    assert (ann.name, ann.is_admin, ann.is_disabled, ann.groups) == ("ann", True, False, ())
    assert await directory.users.get("ann") == ann
    assert await directory.users.list() == [ann]
    record = await store.get(Table.USERS, "ann")
    assert record is not None
    assert SECRET not in str(record)
    with pytest.raises(LastAdminError):
        await directory.users.put("ann", UserInput(is_admin=False))
    with pytest.raises(LastAdminError):
        await directory.users.put("ann", UserInput(is_admin=True, is_disabled=True))
    with pytest.raises(LastAdminError):
        await directory.users.delete("ann")
    await directory.users.put("root", UserInput(password=SECRET, is_admin=True))
    replaced, created = await directory.users.put("ann", UserInput(password="another password"))
    assert not created
    assert not replaced.is_admin
    assert replaced.password_hash != ann.password_hash
    assert replaced.revision > ann.revision
    await directory.users.delete("ann")
    with pytest.raises(NotFoundError):
        await directory.users.get("ann")
    with pytest.raises(NotFoundError):
        await directory.users.delete("ann")


async def test_without_a_password_a_user_keeps_its_own(directory: Directory, store: Store) -> None:
    """A PUT without password changes the rest and revokes no token; a new user needs one."""
    before, _ = await directory.users.put("ann", UserInput(password=SECRET))
    after, _ = await directory.users.put("ann", UserInput(is_admin=True))
    assert (after.password_hash, after.is_admin) == (before.password_hash, True)
    assert await generation(store, "user:ann") == 0
    with pytest.raises(InvalidError, match="a new user needs one"):
        await directory.users.put("bob", UserInput())


async def test_changes_that_revoke_tokens(directory: Directory, store: Store) -> None:
    """A new password, disabling, deletion and revocation each raise the generation, which outlives the user."""
    steps = [
        (UserInput(password=SECRET), 0),
        (UserInput(password=SECRET), 1),
        (UserInput(is_disabled=True), 2),
        (UserInput(is_disabled=True), 2),
        (UserInput(), 2),
    ]
    for given, expected in steps:
        await directory.users.put("ann", given)
        assert await generation(store, "user:ann") == expected
    await directory.users.delete("ann")
    assert await generation(store, "user:ann") == 3
    await directory.users.put("ann", UserInput(password=SECRET))
    assert await generation(store, "user:ann") == 3
    assert (await directory.revocations.revoke("user:ann"))[0] == 4
    assert (await directory.revocations.revoke("anonymous"))[0] == 1


async def test_a_password_that_ldap_knows(directory: Directory, store: Store) -> None:
    """No password is stored for an LDAP user; each switch revokes all tokens; a user needs one of the two."""
    made, _ = await directory.users.put("ann", UserInput(is_ldap=True))
    assert (made.is_ldap, made.password_hash) == (True, "")
    steps = [
        (UserInput(groups=["dev"]), True, 0),
        (UserInput(is_ldap=True), True, 0),
        (UserInput(password=SECRET), False, 1),
        (UserInput(is_ldap=False), False, 1),
        (UserInput(is_ldap=True), True, 2),
    ]
    for given, is_ldap, expected in steps:
        user, _ = await directory.users.put("ann", given)
        assert (user.is_ldap, user.password_hash == "") == (is_ldap, is_ldap)
        assert await generation(store, "user:ann") == expected
    for wrong in (UserInput(is_ldap=False), UserInput(is_ldap=True, password=SECRET)):
        with pytest.raises(InvalidError, match="password"):
            await directory.users.put("ann", wrong)
    assert (await directory.users.get("ann")).is_ldap


async def test_all_faults_of_a_user_at_once(directory: Directory) -> None:
    """Every fault is named with its field; nothing is stored."""
    given = UserInput(password="short", groups=["ok", "not ok", "a:b"])
    with pytest.raises(InvalidError) as caught:
        await directory.users.put("robot$ci", given)
    assert [field for field, _ in caught.value.faults] == ["name", "password", "groups", "groups"]
    assert "short" not in str(caught.value).replace("shorter", "")
    assert await directory.users.list() == []
    with pytest.raises(InvalidError):
        await directory.users.put("ann", UserInput(password="x" * 1025))


async def test_the_first_admin_is_made_once(directory: Directory, store: Store) -> None:
    """Of many nodes and workers that ask at once one gets the password; later ones get none."""
    others = [Directory(store) for _ in range(4)]
    answers = await asyncio.gather(*(each.users.ensure_first_admin(None) for each in [directory, *others]))
    made = [answer for answer in answers if answer is not None]
    assert len(made) == 1
    assert len(made[0]) >= 20
    admin = await directory.users.get("admin")
    assert admin.is_admin
    assert await directory._passwords.verify(made[0], admin.password_hash)
    assert await directory.users.ensure_first_admin("ignored afterwards") is None
    assert await directory.users.get("admin") == admin
    for each in others:
        await each.aclose()


async def test_the_first_admin_with_a_given_password(directory: Directory, store: Store) -> None:
    """A given password is used and not repeated; a bad one is refused; another administrator is enough."""
    with pytest.raises(InvalidError):
        await directory.users.ensure_first_admin("short")
    await directory.users.put("root", UserInput(password=SECRET, is_admin=True))
    assert await directory.users.ensure_first_admin("given password") is None
    root = await store.get(Table.USERS, "root")
    assert root is not None
    await store.commit([Change(Table.USERS, "root", {**root.value, "admin": False})])
    await directory.users.put("admin", UserInput(password=SECRET))
    assert await directory.users.ensure_first_admin("given password") is None
    admin = await directory.users.get("admin")
    assert admin.is_admin
    assert await directory._passwords.verify("given password", admin.password_hash)
