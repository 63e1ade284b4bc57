"""Directory: what administrators change, on a real SQLite store."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from registry_proxy.access.directory import Directory, LastAdminError, NotFoundError, RevisionConflictError, UserInput
from registry_proxy.access.faults import InvalidError
from registry_proxy.access.grant import GrantInput, GrantMode
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.scope import Action
from registry_proxy.store.open import open_store

SECRET = "password of ann"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        yield store


@pytest.fixture
async def directory(store: Store) -> AsyncIterator[Directory]:
    """A directory over it."""
    directory = Directory(store)
    yield directory
    await directory.aclose()


async def generation(store: Store, subject: str) -> int:
    """Return the generation of a subject."""
    record = await store.get(Table.SUBJECTS, subject)
    return 0 if record is None else record.value["generation"]


async def test_users_come_and_go(directory: Directory, store: Store) -> None:
    """A user is made, read, replaced and deleted; the password is stored as a hash only."""
    ann, created = await directory.put_user("ann", UserInput(password=SECRET, is_admin=True))
    assert created
    assert (ann.name, ann.is_admin, ann.is_disabled, ann.groups) == ("ann", True, False, ())
    assert await directory.get_user("ann") == ann
    assert await directory.list_users() == [ann]
    record = await store.get(Table.USERS, "ann")
    assert record is not None
    assert SECRET not in str(record)
    with pytest.raises(LastAdminError):
        await directory.put_user("ann", UserInput(is_admin=False))
    with pytest.raises(LastAdminError):
        await directory.put_user("ann", UserInput(is_admin=True, is_disabled=True))
    with pytest.raises(LastAdminError):
        await directory.delete_user("ann")
    await directory.put_user("root", UserInput(password=SECRET, is_admin=True))
    replaced, created = await directory.put_user("ann", UserInput(password="another password"))
    assert not created
    assert not replaced.is_admin
    assert replaced.password_hash != ann.password_hash
    assert replaced.revision > ann.revision
    await directory.delete_user("ann")
    with pytest.raises(NotFoundError):
        await directory.get_user("ann")
    with pytest.raises(NotFoundError):
        await directory.delete_user("ann")


async def test_without_a_password_a_user_keeps_its_own(directory: Directory, store: Store) -> None:
    """A PUT without password changes the rest and voids no token; a new user needs one."""
    before, _ = await directory.put_user("ann", UserInput(password=SECRET))
    after, _ = await directory.put_user("ann", UserInput(is_admin=True))
    assert (after.password_hash, after.is_admin) == (before.password_hash, True)
    assert await generation(store, "user:ann") == 0
    with pytest.raises(InvalidError, match="a new user needs one"):
        await directory.put_user("bob", UserInput())


async def test_what_voids_tokens(directory: Directory, store: Store) -> None:
    """A new password, disabling, deleting and revoking each raise the generation, which outlives the user."""
    steps = [
        (UserInput(password=SECRET), 0),
        (UserInput(password=SECRET), 1),
        (UserInput(is_disabled=True), 2),
        (UserInput(is_disabled=True), 2),
        (UserInput(), 2),
    ]
    for given, expected in steps:
        await directory.put_user("ann", given)
        assert await generation(store, "user:ann") == expected
    await directory.delete_user("ann")
    assert await generation(store, "user:ann") == 3
    await directory.put_user("ann", UserInput(password=SECRET))
    assert await generation(store, "user:ann") == 3
    assert (await directory.revoke("user:ann"))[0] == 4
    assert (await directory.revoke("anonymous"))[0] == 1


async def test_a_password_that_ldap_knows(directory: Directory, store: Store) -> None:
    """None is kept here meanwhile; each change of who knows it voids all tokens; without either a user is none."""
    made, _ = await directory.put_user("ann", UserInput(is_ldap=True))
    assert (made.is_ldap, made.password_hash) == (True, "")
    steps = [
        (UserInput(groups=["dev"]), True, 0),
        (UserInput(is_ldap=True), True, 0),
        (UserInput(password=SECRET), False, 1),
        (UserInput(is_ldap=False), False, 1),
        (UserInput(is_ldap=True), True, 2),
    ]
    for given, is_ldap, expected in steps:
        user, _ = await directory.put_user("ann", given)
        assert (user.is_ldap, user.password_hash == "") == (is_ldap, is_ldap)
        assert await generation(store, "user:ann") == expected
    for wrong in (UserInput(is_ldap=False), UserInput(is_ldap=True, password=SECRET)):
        with pytest.raises(InvalidError, match="password"):
            await directory.put_user("ann", wrong)
    assert (await directory.get_user("ann")).is_ldap


async def test_revocations_at_once_all_count(directory: Directory, store: Store) -> None:
    """Ten revocations at once are ten generations."""
    revoked = await asyncio.gather(*(directory.revoke("user:ann") for _ in range(10)))
    assert sorted(generation for generation, _ in revoked) == list(range(1, 11))
    assert await generation(store, "user:ann") == 10


@pytest.mark.parametrize("subject", ["", "ann", "group:dev", "user:a:b"])
async def test_what_cannot_be_revoked(directory: Directory, subject: str) -> None:
    """Only what has tokens."""
    with pytest.raises(InvalidError):
        await directory.revoke(subject)


async def test_all_faults_of_a_user_at_once(directory: Directory) -> None:
    """Every fault is named with its field; nothing is stored."""
    given = UserInput(password="short", groups=["ok", "not ok", "a:b"])
    with pytest.raises(InvalidError) as caught:
        await directory.put_user("robot$ci", given)
    assert [field for field, _ in caught.value.faults] == ["name", "password", "groups", "groups"]
    assert "short" not in str(caught.value).replace("shorter", "")
    assert await directory.list_users() == []
    with pytest.raises(InvalidError):
        await directory.put_user("ann", UserInput(password="x" * 1025))


async def test_groups_and_users_show_one_relation(directory: Directory) -> None:
    """A user's groups and a group's members always agree, whichever of them was written."""
    for name in ("ann", "bob"):
        await directory.put_user(name, UserInput(password=SECRET))
    await directory.put_group("dev", ["user:ann", "bob", "ann"])
    assert (await directory.get_group("dev")).members == ("ann", "bob")
    assert (await directory.get_user("ann")).groups == ("dev",)
    await directory.put_user("ann", UserInput(groups=["ops", "new", "ops"]))
    assert (await directory.get_group("dev")).members == ("bob",)
    assert (await directory.get_group("new")).members == ("ann",)
    assert (await directory.get_user("ann")).groups == ("new", "ops")
    await directory.put_group("ops", ["bob"])
    assert [(user.name, user.groups) for user in await directory.list_users()] == [
        ("ann", ("new",)),
        ("bob", ("dev", "ops")),
    ]
    await directory.delete_user("bob")
    assert [(group.name, group.members) for group in await directory.list_groups()] == [
        ("dev", ()),
        ("new", ("ann",)),
        ("ops", ()),
    ]
    await directory.delete_group("new")
    assert (await directory.get_user("ann")).groups == ()


async def test_a_group_is_replaced_never_added_to(directory: Directory) -> None:
    """Who is not named any more is out (as in CVE-2025-23208)."""
    for name in ("ann", "bob"):
        await directory.put_user(name, UserInput(password=SECRET))
    _, created = await directory.put_group("dev", ["ann"])
    assert created
    group, created = await directory.put_group("dev", ["bob"])
    assert not created
    assert group == await directory.get_group("dev")
    assert group.members == ("bob",)


async def test_a_group_takes_only_users_that_are_there(directory: Directory) -> None:
    """Every unknown member and every bad name is a fault."""
    with pytest.raises(InvalidError) as caught:
        await directory.put_group("dev", ["ghost", "a b"])
    assert len(caught.value.faults) == 2
    with pytest.raises(InvalidError):
        await directory.put_group("a b", [])
    with pytest.raises(NotFoundError):
        await directory.get_group("dev")
    with pytest.raises(NotFoundError):
        await directory.delete_group("dev")


async def test_revisions_guard_against_lost_updates(directory: Directory) -> None:
    """An expected revision that is not the present one changes nothing; a user's moves with its memberships."""
    ann, _ = await directory.put_user("ann", UserInput(password=SECRET), expect=0)
    with pytest.raises(RevisionConflictError):
        await directory.put_user("ann", UserInput(), expect=0)
    group, _ = await directory.put_group("dev", ["ann"])
    with pytest.raises(RevisionConflictError):  # it shows another group now
        await directory.put_user("ann", UserInput(), expect=ann.revision)
    ann = await directory.get_user("ann")
    await directory.put_group("dev", [])
    with pytest.raises(RevisionConflictError):
        await directory.delete_user("ann", expect=ann.revision)
    with pytest.raises(RevisionConflictError):
        await directory.delete_group("dev", expect=group.revision)
    await directory.delete_group("dev", expect=(await directory.get_group("dev")).revision)
    await directory.delete_user("ann", expect=(await directory.get_user("ann")).revision)


async def test_memberships_changed_at_once_are_all_kept(directory: Directory) -> None:
    """Many users that join one group at the same time are all in it."""
    names = [f"user{number}" for number in range(8)]
    await asyncio.gather(*(directory.put_user(name, UserInput(password=SECRET, groups=["dev"])) for name in names))
    assert (await directory.get_group("dev")).members == tuple(names)


async def test_grants_come_and_go(directory: Directory) -> None:
    """A grant gets an id and the defaults; it may name who does not exist yet."""
    grant = await directory.add_grant(GrantInput(subject="robot:ci", repository="team/**", actions=["push", "pull"]))
    assert (grant.tags, grant.mode, grant.expires_at) == ("*", GrantMode.ENFORCE, None)
    assert grant.actions == {Action.PULL, Action.PUSH}
    assert await directory.get_grant(grant.id) == grant
    other = await directory.add_grant(
        GrantInput(subject="anonymous", repository="a", actions=["delete"], tags="v*", mode="warn", expires_at=5.0)
    )
    assert {each.id for each in await directory.list_grants()} == {grant.id, other.id}
    with pytest.raises(RevisionConflictError):
        await directory.delete_grant(grant.id, expect=grant.revision + 1)
    await directory.delete_grant(grant.id, expect=grant.revision)
    for gone in (directory.get_grant(grant.id), directory.delete_grant(grant.id)):
        with pytest.raises(NotFoundError):
            await gone


async def test_all_faults_of_a_grant_at_once(directory: Directory) -> None:
    """Every field is judged; nothing is stored."""
    given = GrantInput(
        subject="ann", repository="Team/**", actions=["fly"], tags="a b", mode="maybe", expires_at=float("nan")
    )
    with pytest.raises(InvalidError) as caught:
        await directory.add_grant(given)
    names = ["subject", "repository", "tags", "actions", "mode", "expires_at"]
    assert [field for field, _ in caught.value.faults] == names
    with pytest.raises(InvalidError):
        await directory.add_grant(GrantInput(subject="user:a", repository="a", actions=[]))
    assert await directory.list_grants() == []


async def test_nobody_inherits_the_grants_of_a_name(directory: Directory) -> None:
    """Deleting a user or a group ends its grants, and no others: a later one of that name starts with none."""
    await directory.put_user("ann", UserInput(password=SECRET, groups=["dev"]))
    for subject in ("user:ann", "group:dev", "user:dev", "group:ann"):
        await directory.add_grant(GrantInput(subject=subject, repository="a", actions=["pull"]))
    await directory.delete_user("ann")
    await directory.delete_group("dev")
    assert {grant.subject for grant in await directory.list_grants()} == {"user:dev", "group:ann"}


async def test_the_first_admin_is_made_once(directory: Directory, store: Store) -> None:
    """Of many nodes and workers that ask at once one gets the password; afterwards nobody does."""
    others = [Directory(store) for _ in range(4)]
    answers = await asyncio.gather(*(each.ensure_first_admin(None) for each in [directory, *others]))
    made = [answer for answer in answers if answer is not None]
    assert len(made) == 1
    assert len(made[0]) >= 20
    admin = await directory.get_user("admin")
    assert admin.is_admin
    assert await directory._passwords.verify(made[0], admin.password_hash)
    assert await directory.ensure_first_admin("ignored afterwards") is None
    assert await directory.get_user("admin") == admin
    for each in others:
        await each.aclose()


async def test_the_first_admin_with_a_given_password(directory: Directory, store: Store) -> None:
    """A given password is used and not repeated; a bad one is refused; another administrator is enough."""
    with pytest.raises(InvalidError):
        await directory.ensure_first_admin("short")
    await directory.put_user("root", UserInput(password=SECRET, is_admin=True))
    assert await directory.ensure_first_admin("given password") is None
    root = await store.get(Table.USERS, "root")
    assert root is not None
    await store.commit([Change(Table.USERS, "root", {**root.value, "admin": False})])
    await directory.put_user("admin", UserInput(password=SECRET))
    assert await directory.ensure_first_admin("given password") is None
    admin = await directory.get_user("admin")
    assert admin.is_admin
    assert await directory._passwords.verify("given password", admin.password_hash)


async def test_a_policy_is_whole_although_another_changes_what_it_replaces(
    directory: Directory, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who changes a group between the comparison and the commit is not overwritten unseen: it is compared anew."""
    await directory.put_user("ann", UserInput(password=SECRET))
    await directory.put_group("dev", [])
    commit = store.commit
    lost: list[bool] = []

    async def overtaken(changes: Sequence[Change], *, versions: Mapping[Table, int]) -> int:
        if not lost:
            lost.append(True)
            await commit([Change(Table.GROUPS, "dev", {"members": ["ann"]})])
        return await commit(changes, versions=versions)

    monkeypatch.setattr(store, "commit", overtaken)
    grant = GrantInput(subject="group:ops", repository="a", actions=("pull",))
    difference, revision = await directory.replace_policy({"ops": ["ann"]}, [grant])
    assert [group.members for group in difference.groups_removed] == [("ann",)]
    groups, grants, now = await directory.read_policy()
    assert [(group.name, group.members) for group in groups] == [("ops", ("ann",))]
    assert ([each.repository for each in grants], now) == (["a"], revision)
    with pytest.raises(RevisionConflictError):
        await directory.replace_policy({}, [], expect=revision - 1)
    assert (await directory.read_policy())[2] == revision


async def test_a_policy_takes_the_place_of_what_is_added_meanwhile(
    directory: Directory, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grant, or a group, that comes after the comparison was in none: it is compared anew, or refused by If-Match."""
    wanted = GrantInput(subject="user:ann", repository="wanted", actions=("pull",))
    late = GrantInput(subject="user:eve", repository="**", actions=("push",))
    commit = store.commit

    def add_grant() -> Awaitable[object]:
        return directory.add_grant(late)

    def add_group() -> Awaitable[object]:
        return directory.put_group("late", [])

    for add in (add_grant, add_group):
        for expected in (True, False):
            await directory.replace_policy({}, [])
            before = await directory.policy_revision()

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
                    await directory.replace_policy({}, [wanted], expect=before)
                assert "wanted" not in {grant.repository for grant in await directory.list_grants()}
            else:
                await directory.replace_policy({}, [wanted])
                assert [grant.repository for grant in await directory.list_grants()] == ["wanted"]
                assert await directory.list_groups() == []
