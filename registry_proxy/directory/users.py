"""Users, their passwords, and the first administrator."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from registry_proxy.access.credentials import PASSWORD_MAX_LENGTH, PASSWORD_MIN_LENGTH, Passwords
from registry_proxy.access.faults import Faults, InvalidError
from registry_proxy.access.records import User, user_of
from registry_proxy.access.subject import NAME_FAULT, is_name, user_subject
from registry_proxy.access.turns import OPERATOR, Caller
from registry_proxy.directory.groups import Groups, groups_of, membership_changes
from registry_proxy.directory.removed import Removed, held_by
from registry_proxy.directory.revise import Records, Revised
from registry_proxy.directory.voiding import next_generation
from registry_proxy.ports.errors import ConflictError
from registry_proxy.ports.store import Change, Store, Table

FIRST_ADMIN = "admin"


class LastAdminError(Exception):
    """Nobody would be left who may manage the proxy."""


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


class Users(Records[User]):
    """See ``Directory``. ``passwords`` hashes and verifies passwords."""

    def __init__(self, store: Store, passwords: Passwords) -> None:
        super().__init__(store, Table.USERS, "user", user_of)
        self._passwords = passwords
        self._groups = Groups(store)

    async def list(self) -> Sequence[User]:
        """Return all users, by name."""
        groups = await self._groups.list()
        return [replace(user, groups=groups_of(user.name, groups)) for user in await super().list()]

    async def get(self, name: str) -> User:
        """Return a user. Raises NotFoundError."""
        return replace(await super().get(name), groups=groups_of(name, await self._groups.list()))

    async def put(
        self, name: str, given: UserInput, *, expect: int | None = None, caller: Caller = OPERATOR
    ) -> tuple[User, bool]:
        """Make or replace a user; return it, and whether it is new. Groups that are not there yet are made.

        A new password, LDAP in place of one, and disabling revoke all tokens of the user. ``caller`` is whose turn it
        takes to hash a password.

        Raises:
            InvalidError: with every fault of the input.
            RevisionConflictError: see the class.
            TooManyLoginsError: too many passwords are being hashed.
        """
        if faults := _faults(name, given):
            raise InvalidError(faults)
        password_hash = None if given.password is None else await self._passwords.hash(given.password, caller)

        async def make(before: User | None) -> Revised[tuple[User, bool]]:
            user = _merged(name, given, password_hash, before)
            changes = []
            if before is not None:
                if before.is_admin and (user.is_disabled or not user.is_admin):
                    await self._check_other_admin(name)
                is_new_password = password_hash is not None or user.is_ldap != before.is_ldap
                if is_new_password or (user.is_disabled and not before.is_disabled):
                    changes.append(await next_generation(self._store, user_subject(name)))
            changes += membership_changes(name, user.groups, await self._groups.list())
            return Revised(user.stored(), (user, before is None), changes)

        (user, is_new), revision = await self._revise(name, make, expect=expect)
        return replace(user, revision=revision), is_new

    async def delete(self, name: str, *, expect: int | None = None) -> Removed:
        """Delete a user, its memberships, secrets and grants, and revoke its tokens; return its belongings.

        Raises:
            NotFoundError, RevisionConflictError.
            LastAdminError: see the class.
        """
        subject = user_subject(name)

        async def make(user: User | None) -> Revised[Removed]:
            if user is not None and user.is_admin:
                await self._check_other_admin(name)
            groups = await self._groups.list()
            removed = replace(await held_by(self._store, subject), groups=groups_of(name, groups))
            generation = await next_generation(self._store, subject)
            return Revised(None, removed, [generation, *membership_changes(name, (), groups), *removed.changes()])

        removed, _ = await self._revise(name, make, expect=expect, must_exist=True)
        return removed

    async def ensure_first_admin(self, password: str | None) -> str | None:
        """Make the user ``admin`` when there is no administrator; once, however many nodes and workers ask.

        Args:
            password: for the new user; None to have one generated.

        Returns:
            The generated password when this call made the user with one; else None.

        Raises:
            InvalidError: the password is too short or too long.
        """
        users = await super().list()
        if any(user.is_admin for user in users):
            return None
        if password is not None and (faults := _password_faults(password)):
            raise InvalidError(faults)
        chosen = secrets.token_urlsafe(18) if password is None else password
        password_hash = await self._passwords.hash(chosen)
        present = next((user.revision for user in users if user.name == FIRST_ADMIN), 0)
        admin = User(FIRST_ADMIN, password_hash, is_admin=True)
        generation = await next_generation(self._store, user_subject(FIRST_ADMIN))
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

    async def _check_other_admin(self, name: str) -> None:
        """Keep the last administrator. Two that go at the same moment both leave: the next start makes a new one."""
        users = await super().list()
        if not any(user.is_admin and not user.is_disabled for user in users if user.name != name):
            raise LastAdminError(f"{name} is the last administrator: make another one first")


def _merged(name: str, given: UserInput, password_hash: str | None, before: User | None) -> User:
    """Return the user that a PUT makes of another one, or of none. Raises InvalidError where it has no password."""
    was_ldap = before is not None and before.is_ldap
    is_ldap = given.is_ldap if given.is_ldap is not None else was_ldap and password_hash is None
    kept_hash = "" if before is None or is_ldap else before.password_hash
    if not is_ldap and not (password_hash or kept_hash):
        raise InvalidError([("password", "a new user needs one, or ldap; so does one whose password LDAP knew")])
    return User(
        name,
        password_hash or kept_hash,
        is_admin=given.is_admin,
        is_disabled=given.is_disabled,
        groups=tuple(sorted(set(given.groups))),
        is_ldap=is_ldap,
    )


def _faults(name: str, given: UserInput) -> Faults:
    faults = [] if is_name(name) else [("name", NAME_FAULT)]
    if given.password is not None:
        faults += _password_faults(given.password)
        if given.is_ldap:
            faults.append(("password", "LDAP knows the password of this user: leave it out, or ldap"))
    return faults + [("groups", f"{group!r}: {NAME_FAULT}") for group in given.groups if not is_name(group)]


def _password_faults(password: str) -> Faults:
    if PASSWORD_MIN_LENGTH <= len(password) <= PASSWORD_MAX_LENGTH:
        return []
    return [("password", f"expected {PASSWORD_MIN_LENGTH} to {PASSWORD_MAX_LENGTH} characters")]
