"""Changes of the admin API: users, groups, robots, secrets, grants, generations; each validated and in one commit.

A user's groups and a group's members are one relation. The group's record owns it; the record of each user concerned
is written along, so that its revision rises with every change of what it shows.
"""

import ipaddress
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from registry_proxy.access.credentials import PASSWORD_MAX_LENGTH, PASSWORD_MIN_LENGTH, Passwords
from registry_proxy.access.faults import InvalidError, actions_faults, time_faults
from registry_proxy.access.grant import Grant, GrantInput, grant_of, make_grant
from registry_proxy.access.policy_document import PolicyDifference, compare, sorted_grants
from registry_proxy.access.records import Group, Robot, User, group_of, robot_of, user_of
from registry_proxy.access.secrets import (
    Secret,
    SecretKind,
    is_refresh_id,
    make_secret_text,
    refresh_id_prefix,
    secret_of,
    table_of,
)
from registry_proxy.access.subject import (
    SubjectKind,
    group_subject,
    is_name,
    parse_subject,
    robot_subject,
    user_subject,
)
from registry_proxy.access.tokens import LEEWAY_SECONDS
from registry_proxy.access.turns import OPERATOR, Caller
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.store import Change, Record, Store, Table
from registry_proxy.protocol.patterns import (
    is_below,
)
from registry_proxy.protocol.scope import Action

FIRST_ADMIN = "admin"

_T = TypeVar("_T")
_ATTEMPTS = 20
_SECRETS_MAX = 100
_LABEL_MAX_LENGTH = 200
_SECRET_ACTIONS = frozenset({Action.PULL.value, Action.PUSH.value, Action.DELETE.value})  # as scopes name them
_TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
TOKEN_LIFETIME_MAX_SECONDS = 86_400
"""The longest that the configuration allows."""

_NAME_FAULT = (
    "expected a letter, digit or '_', then letters, digits and any of '._@+-', at most 128 characters, and not 'oidc'"
)


class NotFoundError(Exception):
    """There is no such user, group, robot, secret or grant."""


class LastAdminError(Exception):
    """Nobody would be left who may manage the proxy."""


class RevisionConflictError(Exception):
    """It has another revision than the caller expected (If-Match)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserInput:
    """The content of a PUT of a user; ``password`` None keeps the one it has, ``is_ldap`` None where it is known.

    A password makes LDAP forget about it.
    """

    password: str | None = field(default=None, repr=False)
    is_ldap: bool | None = None
    is_admin: bool = False
    is_disabled: bool = False
    groups: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretInput:
    """The content of a POST of a secret; ``actions`` None leaves its holder all its rights, times in Unix seconds."""

    label: str = ""
    expires_at: float | None = None
    actions: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The grants, secrets, and groups or members, that a user, group or robot had when it was deleted."""

    grants: Sequence[Grant] = ()
    secrets: Sequence[Secret] = ()
    groups: Sequence[str] = ()
    members: Sequence[str] = ()

    def changes(self) -> list[Change]:
        """Return the changes that delete the grants and secrets."""
        changes = [Change(Table.GRANTS, grant.id, None) for grant in self.grants]
        return changes + [Change(table_of(secret.id), secret.id, None) for secret in self.secrets]


class Directory:
    """The records of access, over the store.

    Every method raises StoreUnavailableError. ``expect`` is the revision the caller saw; None for any.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._passwords = Passwords()

    async def aclose(self) -> None:
        """End the threads that hash passwords."""
        self._passwords.close()

    # ------------------------------------------------------------ users

    async def list_users(self) -> list[User]:
        groups = await self.list_groups()
        return [user_of(record, _groups_of(record.key, groups)) for record in await self._store.list(Table.USERS)]

    async def get_user(self, name: str) -> User:
        """Return a user. Raises NotFoundError."""
        record = await self._store.get(Table.USERS, name)
        if record is None:
            raise NotFoundError(f"there is no user {name}")
        return user_of(record, _groups_of(name, await self.list_groups()))

    async def put_user(
        self, name: str, given: UserInput, *, expect: int | None = None, caller: Caller = OPERATOR
    ) -> tuple[User, bool]:
        """Make or replace a user; return it, and whether it is new. Groups that are not there yet are made.

        A new password, LDAP in place of one, and disabling void all tokens of the user. ``caller`` is whose turn it
        takes to hash a password.

        Raises:
            InvalidError: with every fault of the input.
            RevisionConflictError: see the class.
            TooManyLoginsError: too many passwords are being hashed.
        """
        faults = [] if is_name(name) else [("name", _NAME_FAULT)]
        if given.password is not None:
            faults += _password_faults(given.password)
            if given.is_ldap:
                faults.append(("password", "LDAP knows the password of this user: leave it out, or ldap"))
        faults += [("groups", f"{group!r}: {_NAME_FAULT}") for group in given.groups if not is_name(group)]
        if faults:
            raise InvalidError(faults)
        password_hash = None if given.password is None else await self._passwords.hash(given.password, caller)
        return await _retried(lambda: self._put_user(name, given, password_hash, expect))

    async def delete_user(self, name: str, *, expect: int | None = None) -> Removed:
        """Delete a user, its memberships, secrets and grants, and void its tokens; return what went.

        Raises:
            NotFoundError, RevisionConflictError.
        """
        return await _retried(lambda: self._delete_user(name, expect))

    async def ensure_first_admin(self, password: str | None) -> str | None:
        """Make the user ``admin`` when there is no administrator; once, however many nodes and workers ask.

        Args:
            password: for the new user; None to have one generated.

        Returns:
            The generated password when this call made the user with one; else None.

        Raises:
            InvalidError: the password is too short or too long.
        """
        records = await self._store.list(Table.USERS)
        if any(user_of(record).is_admin for record in records):
            return None
        if password is not None and (faults := _password_faults(password)):
            raise InvalidError(faults)
        chosen = secrets.token_urlsafe(18) if password is None else password
        password_hash = await self._passwords.hash(chosen)
        present = next((record.revision for record in records if record.key == FIRST_ADMIN), 0)
        admin = User(FIRST_ADMIN, password_hash, is_admin=True)
        generation, _ = await self._next_generation(user_subject(FIRST_ADMIN))
        try:
            await self._store.commit([Change(Table.USERS, FIRST_ADMIN, admin.stored(), present), generation])
        except ConflictError:
            return None  # another one made it
        return chosen if password is None else None

    async def has_password(self, name: str, password: str, caller: Caller = OPERATOR) -> bool:
        """Tell whether this is the password of a user; no for one that is not there, or that LDAP knows.

        Raises:
            TooManyLoginsError: too many passwords are being hashed.
        """
        record = await self._store.get(Table.USERS, name)
        stored = "" if record is None else user_of(record).password_hash
        return bool(stored) and await self._passwords.verify(password, stored, caller)

    # ------------------------------------------------------------ groups

    async def list_groups(self) -> list[Group]:
        return [group_of(record) for record in await self._store.list(Table.GROUPS)]

    async def get_group(self, name: str) -> Group:
        """Return a group. Raises NotFoundError."""
        record = await self._store.get(Table.GROUPS, name)
        if record is None:
            raise NotFoundError(f"there is no group {name}")
        return group_of(record)

    async def put_group(self, name: str, members: Sequence[str], *, expect: int | None = None) -> tuple[Group, bool]:
        """Make or replace a group; return it, and whether it is new.

        Args:
            name: of the group.
            members: users, as ``ann`` or ``user:ann``; these and no others are in it afterwards.
            expect: see the class.

        Raises:
            InvalidError: a name is not valid, or there is no such user.
            RevisionConflictError: see the class.
        """
        if not is_name(name):
            raise InvalidError([("name", _NAME_FAULT)])
        wanted = sorted({member.removeprefix("user:") for member in members})
        return await _retried(lambda: self._put_group(name, wanted, expect))

    async def delete_group(self, name: str, *, expect: int | None = None) -> Removed:
        """Delete a group and its grants; return what went. Raises NotFoundError, RevisionConflictError."""
        return await _retried(lambda: self._delete_group(name, expect))

    # ------------------------------------------------------------ robots

    async def list_robots(self) -> list[Robot]:
        return [robot_of(record) for record in await self._store.list(Table.ROBOTS)]

    async def get_robot(self, name: str) -> Robot:
        """Return a robot. Raises NotFoundError."""
        record = await self._store.get(Table.ROBOTS, name)
        if record is None:
            raise NotFoundError(f"there is no robot {name}")
        return robot_of(record)

    async def put_robot(
        self, name: str, expires_at: float | None, networks: Sequence[str], *, expect: int | None = None
    ) -> tuple[Robot, bool]:
        """Make or replace a robot; return it, and whether it is new. Its secrets stay.

        Args:
            name: without the ``robot$`` of its login.
            expires_at: Unix seconds; None for never.
            networks: addresses or networks its logins may come from; none for any.
            expect: see the class.

        Raises:
            InvalidError: with every fault of the input.
            RevisionConflictError: see the class.
        """
        faults = [] if is_name(name) else [("name", _NAME_FAULT)]
        faults += time_faults(expires_at)
        faults += [("networks", fault) for network in networks if (fault := _network_fault(network)) is not None]
        if faults:
            raise InvalidError(faults)
        robot = Robot(name, expires_at, tuple(networks))

        async def put() -> tuple[Robot, bool]:
            record = await self._store.get(Table.ROBOTS, name)
            current = 0 if record is None else record.revision
            _check_revision(current, expect)
            revision = await self._store.commit([Change(Table.ROBOTS, name, robot.stored(), current)])
            return replace(robot, revision=revision), record is None

        return await _retried(put)

    async def delete_robot(self, name: str, *, expect: int | None = None) -> Removed:
        """Delete a robot with its secrets and grants, and void its tokens; return what went.

        Raises:
            NotFoundError, RevisionConflictError.
        """

        async def delete() -> Removed:
            robot = await self.get_robot(name)
            _check_revision(robot.revision, expect)
            subject = robot_subject(name)
            generation, _ = await self._next_generation(subject)
            removed = await self._held_by(subject)
            changes = [Change(Table.ROBOTS, name, None, robot.revision), generation, *removed.changes()]
            await self._store.commit(changes)
            return removed

        return await _retried(delete)

    # ------------------------------------------------------------ secrets

    async def list_secrets(self, subject: str) -> list[Secret]:
        """Return the secrets of a user or robot, oldest first; also those that have expired."""
        records = await self._store.list(Table.SECRETS)
        found = [secret_of(record) for record in records if record.value["subject"] == subject]
        found += await self._list_refresh_tokens(subject)
        return sorted(found, key=lambda each: each.created_at)

    async def _list_refresh_tokens(self, subject: str) -> list[Secret]:
        """Return the refresh tokens of a subject, oldest first; not those of earlier versions."""
        records = await self._store.list(Table.REFRESH_TOKENS, refresh_id_prefix(subject))
        found = [each for each in map(secret_of, records) if each.subject == subject]
        return sorted(found, key=lambda each: each.created_at)

    async def add_secret(
        self, subject: str, kind: SecretKind, given: SecretInput, *, generation: int | None = None
    ) -> tuple[Secret, str]:
        """Make a secret of a user or robot that is there; return it and its text, which is never to be had again.

        Args:
            subject: whose it is.
            kind: its use.
            given: its content.
            generation: of the login that it is made for; None for that of the subject now.

        Raises:
            InvalidError: with every fault of the input, or there are too many.
            NotFoundError: there is no such subject.
        """
        faults = time_faults(given.expires_at)
        if not faults and given.expires_at is not None and given.expires_at <= time.time():
            faults.append(("expires_at", "expected a time to come: it would never have been good"))
        if len(given.label) > _LABEL_MAX_LENGTH or not given.label.isprintable():
            faults.append(("label", f"expected at most {_LABEL_MAX_LENGTH} printable characters"))
        if given.actions is not None:
            faults += actions_faults(given.actions, _SECRET_ACTIONS)
        if faults:
            raise InvalidError(faults)
        await self._check_holder(subject)
        if generation is None:
            record = await self._store.get(Table.SUBJECTS, subject)
            generation = 0 if record is None else int(record.value["generation"])
        secret_id, text, hashed = make_secret_text(kind, subject)
        secret = Secret(
            id=secret_id,
            subject=subject,
            kind=kind,
            hash=hashed,
            label=given.label,
            created_at=time.time(),
            expires_at=given.expires_at,
            actions=None if given.actions is None else frozenset(Action(action) for action in given.actions),
            generation=generation,
        )
        is_refresh = kind is SecretKind.REFRESH
        present = await (self._list_refresh_tokens(subject) if is_refresh else self.list_secrets(subject))
        present = [each for each in present if each.kind is kind]
        dead = [each for each in present if not each.is_valid(secret.created_at)]
        alive = [each for each in present if each not in dead]
        if len(alive) >= _SECRETS_MAX:
            if not is_refresh:
                raise InvalidError([("", f"{subject} has {_SECRETS_MAX} secrets: remove some first")])
            dead += alive[: len(alive) - _SECRETS_MAX + 1]  # nobody logs out: the oldest was most likely forgotten
        changes = [Change(table_of(secret_id), secret_id, secret.stored(), expect=0), *Removed(secrets=dead).changes()]
        revision = await self._store.commit(changes)
        return replace(secret, revision=revision), text

    async def delete_secret(self, subject: str, secret_id: str) -> None:
        """Delete a secret, which voids the tokens that were given for it. Raises NotFoundError."""
        record = await self._store.get(table_of(secret_id), secret_id)
        if record is None or secret_of(record).subject != subject:
            raise NotFoundError(f"{subject} has no secret {secret_id}")
        changes = [Change(table_of(secret_id), secret_id, None)]
        if is_refresh_id(secret_id):  # in no snapshot of the policy, so its absence tells nobody
            changes += await self._revocation(secret_id)
        await self._store.commit(changes)

    async def remove_expired_refresh_tokens(self) -> None:
        """Delete the refresh tokens that nobody can use any more, whoever's they are."""
        now = time.time()
        tokens = [
            secret_of(record)
            for table in (Table.SECRETS, Table.REFRESH_TOKENS)
            for record in await self._store.list(table)
        ]
        expired = [each for each in tokens if each.kind is SecretKind.REFRESH and not each.is_valid(now)]
        await self._store.commit(Removed(secrets=expired).changes())

    # ------------------------------------------------------------ grants

    async def list_grants(self, namespaces: Collection[str] | None = None) -> list[Grant]:
        """Return all grants, or those for nothing but what lies in some namespaces, such as ``team/**``."""
        records = await self._store.list(Table.GRANTS)
        if namespaces is not None:
            records = [each for each in records if any(is_below(each.value["repository"], one) for one in namespaces)]
        return list(map(grant_of, records))

    async def get_grant(self, grant_id: str) -> Grant:
        """Return a grant. Raises NotFoundError."""
        record = await self._store.get(Table.GRANTS, grant_id)
        if record is None:
            raise NotFoundError(f"there is no grant {grant_id}")
        return grant_of(record)

    async def add_grant(self, given: GrantInput) -> Grant:
        """Make a grant under a new id. The subject need not exist yet. Raises InvalidError with every fault."""
        grant = make_grant(given, secrets.token_hex(8))
        revision = await self._store.commit([Change(Table.GRANTS, grant.id, grant.stored(), expect=0)])
        return replace(grant, revision=revision)

    async def change_grant(self, grant_id: str, given: GrantInput, *, expect: int | None = None) -> Grant:
        """Put another grant under an id that is there.

        Raises:
            InvalidError: with every fault of the input.
            NotFoundError, RevisionConflictError.
        """
        grant = make_grant(given, grant_id)

        async def change() -> Grant:
            current = await self.get_grant(grant_id)
            _check_revision(current.revision, expect)
            revision = await self._store.commit([Change(Table.GRANTS, grant_id, grant.stored(), current.revision)])
            return replace(grant, revision=revision)

        return await _retried(change)

    async def delete_grant(self, grant_id: str, *, expect: int | None = None) -> None:
        """Delete a grant. Raises NotFoundError, RevisionConflictError."""

        async def delete() -> None:
            grant = await self.get_grant(grant_id)
            _check_revision(grant.revision, expect)
            await self._store.commit([Change(Table.GRANTS, grant_id, None, expect=grant.revision)])

        await _retried(delete)

    # ------------------------------------------------------------ the policy as one document

    async def read_policy(self) -> tuple[list[Group], list[Grant], int]:
        """Return all groups, each different grant once, and a revision that rises with every change of any of them."""
        revision = await self.policy_revision()
        return await self.list_groups(), sorted_grants(await self.list_grants()), revision

    async def policy_revision(self) -> int:
        """Return the revision that rises with every change of any group or grant."""
        return max((await self._policy_versions()).values())

    async def _policy_versions(self) -> Mapping[Table, int]:
        versions = await self._store.versions()
        return {table: versions.get(table, 0) for table in (Table.GROUPS, Table.GRANTS)}

    async def compare_policy(
        self, groups: Mapping[str, Sequence[str]], grants: Sequence[GrantInput]
    ) -> PolicyDifference:
        """Return what ``replace_policy`` would do.

        Args:
            groups: the members of each group, users as ``ann`` or ``user:ann``.
            grants: as given; those that say the same count once.

        Raises:
            InvalidError: with every fault of the input, each as ``grants/0/subject``; there is no such user.
        """
        return (await self._compare_policy(groups, grants))[0]

    async def replace_policy(
        self, groups: Mapping[str, Sequence[str]], grants: Sequence[GrantInput], *, expect: int | None = None
    ) -> tuple[PolicyDifference, int]:
        """Put a policy in the place of the stored one, whole and in one commit; return what changed, and the revision.

        What is not named is no more: groups that are not there are removed, and so are grants. Users, robots and their
        secrets stay.

        Raises:
            InvalidError: as ``compare_policy``.
            RevisionConflictError: see the class.
        """

        async def attempt() -> tuple[PolicyDifference, int]:
            versions = await self._policy_versions()
            revision = max(versions.values())
            _check_revision(revision, expect)
            difference, users = await self._compare_policy(groups, grants)
            if difference:
                # What somebody adds in between is in no difference: it would stay, though the policy does not name it.
                revision = await self._store.commit(difference.changes(users), versions=versions)
            return difference, revision

        return await _retried(attempt)

    async def _compare_policy(
        self, groups: Mapping[str, Sequence[str]], grants: Sequence[GrantInput]
    ) -> tuple[PolicyDifference, Mapping[str, Record]]:
        users = {user.key: user for user in await self._store.list(Table.USERS)}
        faults: list[tuple[str, str]] = []
        wanted_groups = []
        for name, given in groups.items():
            if not is_name(name):
                faults.append(("groups", f"{name[:100]!r}: {_NAME_FAULT}"))
                continue
            members = [member.removeprefix("user:") for member in given]
            unknown = [(index, member) for index, member in enumerate(members) if member not in users]
            faults += [(f"groups/{name}/{index}", f"there is no user {member!r}") for index, member in unknown]
            wanted_groups.append(Group(name, tuple(sorted(set(members)))))
        wanted_grants = []
        for index, each in enumerate(grants):
            try:
                wanted_grants.append(make_grant(each, secrets.token_hex(8)))
            except InvalidError as error:
                faults += [(f"grants/{index}/{field}", text) for field, text in error.faults]
        if faults:
            raise InvalidError(faults)
        return compare(await self.list_groups(), await self.list_grants(), wanted_groups, wanted_grants), users

    # ------------------------------------------------------------ revocations

    async def revoke(self, subject: str, *, also_secrets: bool = False) -> tuple[int, Removed]:
        """Void the bearer and refresh tokens of a subject; return its new generation, and the secrets deleted.

        Args:
            subject: a user, a robot, a subject of ID tokens, or ``anonymous``.
            also_secrets: delete its personal tokens and robot secrets too. Its password stays.

        Raises:
            InvalidError: it is no subject that has tokens.
        """
        try:
            parsed = parse_subject(subject)
        except ValueError as error:
            raise InvalidError([("subject", str(error))]) from error
        if str(parsed).startswith("group:"):
            raise InvalidError([("subject", "a group has no tokens: revoke those of its members")])

        async def bump() -> tuple[int, Removed]:
            change, generation = await self._next_generation(subject)
            removed = Removed(secrets=await self.list_secrets(subject) if also_secrets else ())
            await self._store.commit([change, *removed.changes()])
            return generation, removed

        return await _retried(bump)

    async def revoke_token(self, token_id: str) -> None:
        """Void one token, by its ``jti``; those long expired are forgotten with it.

        Raises:
            InvalidError: no token of ours has such an id.
        """
        if _TOKEN_ID.fullmatch(token_id) is None:
            raise InvalidError([("token_id", "expected the jti of a token")])
        await self._store.commit(await self._revocation(token_id))

    async def _revocation(self, token_id: str) -> list[Change]:
        """Return the changes that void what bears an id, and forget ids of which everything has expired."""
        now = time.time()
        records = await self._store.list(Table.REVOKED_TOKENS)
        forgotten = [Change(Table.REVOKED_TOKENS, r.key, None) for r in records if r.value["expires_at"] <= now]
        until = {"expires_at": now + TOKEN_LIFETIME_MAX_SECONDS + LEEWAY_SECONDS}
        return [Change(Table.REVOKED_TOKENS, token_id, until), *forgotten]

    # ------------------------------------------------------------ one attempt each

    async def _put_user(
        self, name: str, given: UserInput, password_hash: str | None, expect: int | None
    ) -> tuple[User, bool]:
        record = await self._store.get(Table.USERS, name)
        _check_revision(0 if record is None else record.revision, expect)
        before = None if record is None else user_of(record)
        was_ldap = before is not None and before.is_ldap
        is_ldap = given.is_ldap if given.is_ldap is not None else was_ldap and password_hash is None
        kept_hash = "" if before is None or is_ldap else before.password_hash
        if not is_ldap and not (password_hash or kept_hash):
            raise InvalidError([("password", "a new user needs one, or ldap; so does one whose password LDAP knew")])
        user = User(
            name,
            password_hash or kept_hash,
            is_admin=given.is_admin,
            is_disabled=given.is_disabled,
            groups=tuple(sorted(set(given.groups))),
            is_ldap=is_ldap,
        )
        if before is not None and before.is_admin and (user.is_disabled or not user.is_admin):
            await self._check_other_admin(name)
        changes = [Change(Table.USERS, name, user.stored(), 0 if record is None else record.revision)]
        is_new_password = password_hash is not None or is_ldap != was_ldap
        if before is not None and (is_new_password or (user.is_disabled and not before.is_disabled)):
            changes.append((await self._next_generation(user_subject(name)))[0])
        changes += _membership_changes(name, user.groups, await self.list_groups())
        revision = await self._store.commit(changes)
        return replace(user, revision=revision), before is None

    async def _delete_user(self, name: str, expect: int | None) -> Removed:
        record = await self._store.get(Table.USERS, name)
        if record is None:
            raise NotFoundError(f"there is no user {name}")
        _check_revision(record.revision, expect)
        if user_of(record).is_admin:
            await self._check_other_admin(name)
        generation, _ = await self._next_generation(user_subject(name))
        groups = await self.list_groups()
        removed = replace(await self._held_by(user_subject(name)), groups=_groups_of(name, groups))
        changes = [
            Change(Table.USERS, name, None, record.revision),
            generation,
            *_membership_changes(name, (), groups),
            *removed.changes(),
        ]
        await self._store.commit(changes)
        return removed

    async def _put_group(self, name: str, members: Sequence[str], expect: int | None) -> tuple[Group, bool]:
        record = await self._store.get(Table.GROUPS, name)
        _check_revision(0 if record is None else record.revision, expect)
        before = () if record is None else group_of(record).members
        users = {user.key: user for user in await self._store.list(Table.USERS)}
        unknown = [member for member in members if member not in users]
        if unknown:
            raise InvalidError([("members", f"there is no user {member!r}") for member in unknown])
        group = Group(name, tuple(members))
        changes = [Change(Table.GROUPS, name, group.stored(), 0 if record is None else record.revision)]
        changes += _touch(users[member] for member in {*before} ^ {*members} if member in users)
        revision = await self._store.commit(changes)
        return replace(group, revision=revision), record is None

    async def _delete_group(self, name: str, expect: int | None) -> Removed:
        group = await self.get_group(name)
        _check_revision(group.revision, expect)
        users = [user for user in await self._store.list(Table.USERS) if user.key in group.members]
        removed = replace(await self._held_by(group_subject(name)), members=group.members)
        changes = [Change(Table.GROUPS, name, None, group.revision), *_touch(users), *removed.changes()]
        await self._store.commit(changes)
        return removed

    async def _held_by(self, subject: str) -> Removed:
        """Return what a subject holds; a later subject of its name must not inherit it."""
        grants = [grant for grant in await self.list_grants() if grant.subject == subject]
        return Removed(grants=tuple(grants), secrets=tuple(await self.list_secrets(subject)))

    async def _check_holder(self, subject: str) -> None:
        parsed = parse_subject(subject)
        if parsed.kind is SubjectKind.ROBOT:
            await self.get_robot(parsed.name)
        elif parsed.kind is SubjectKind.OIDC:
            raise InvalidError([("", f"{subject} has no secrets: it logs in with its ID token")])
        else:
            await self.get_user(parsed.name)

    async def _check_other_admin(self, name: str) -> None:
        """Keep the last administrator. Two that go at the same moment both leave: the next start makes a new one."""
        users = [user_of(record) for record in await self._store.list(Table.USERS)]
        if not any(user.is_admin and not user.is_disabled for user in users if user.name != name):
            raise LastAdminError(f"{name} is the last administrator: make another one first")

    async def _next_generation(self, subject: str) -> tuple[Change, int]:
        record = await self._store.get(Table.SUBJECTS, subject)
        generation = 1 if record is None else int(record.value["generation"]) + 1
        revision = 0 if record is None else record.revision
        return Change(Table.SUBJECTS, subject, {"generation": generation}, revision), generation


async def _retried(attempt: Callable[[], Awaitable[_T]]) -> _T:
    """Repeat what lost a race: each attempt reads anew, and checks again what its caller expected."""
    for _ in range(_ATTEMPTS):
        try:
            return await attempt()
        except ConflictError:
            continue
    raise StoreUnavailableError("too many others change the same records at the same time")


def _check_revision(revision: int, expect: int | None) -> None:
    if expect is not None and revision != expect:
        raise RevisionConflictError(f"it has revision {revision} now, not {expect}")


def _groups_of(name: str, groups: Iterable[Group]) -> tuple[str, ...]:
    return tuple(group.name for group in groups if name in group.members)


def _membership_changes(name: str, wanted: Sequence[str], groups: Iterable[Group]) -> list[Change]:
    """Return the changes that make a user a member of exactly these groups."""
    changes = []
    present = set()
    for group in groups:
        present.add(group.name)
        if (group.name in wanted) != (name in group.members):
            members = {*group.members, name} if group.name in wanted else {*group.members} - {name}
            changed = Group(group.name, tuple(sorted(members)))
            changes.append(Change(Table.GROUPS, group.name, changed.stored(), group.revision))
    new = [Group(group, (name,)) for group in wanted if group not in present]
    return changes + [Change(Table.GROUPS, group.name, group.stored(), expect=0) for group in new]


def _touch(users: Iterable[Record]) -> list[Change]:
    return [Change(Table.USERS, user.key, user.value, user.revision) for user in users]


def _password_faults(password: str) -> list[tuple[str, str]]:
    if PASSWORD_MIN_LENGTH <= len(password) <= PASSWORD_MAX_LENGTH:
        return []
    return [("password", f"expected {PASSWORD_MIN_LENGTH} to {PASSWORD_MAX_LENGTH} characters")]


def _network_fault(text: str) -> str | None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return f"{text[:100]!r}: expected an address or network without host bits, such as 10.0.0.0/8"
    return None
