"""The caller's own account, of the admin API: who it is, what it may do, its password."""

from collections.abc import Callable

from aiohttp import web
from pydantic import SecretStr

from registry_proxy.access.control import AccessControl
from registry_proxy.access.credentials import LoginRefusedError
from registry_proxy.access.faults import InvalidError
from registry_proxy.access.records import User
from registry_proxy.access.subject import SubjectKind
from registry_proxy.access.turns import Caller
from registry_proxy.admin.grants import GrantDocument
from registry_proxy.admission.auth import CALLER
from registry_proxy.api.models import USERS_BODY_MAX_BYTES, Body, Document
from registry_proxy.api.openapi import Audience, Endpoint
from registry_proxy.api.problems import Fault, ProblemError, invalid
from registry_proxy.api.requests import read_query
from registry_proxy.api.revisions import patched
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.users import UserInput


class PasswordBody(Body):
    """A user's current password, and the new one."""

    max_bytes = USERS_BODY_MAX_BYTES
    current: SecretStr
    new: SecretStr


class MeDocument(Document):
    """The caller. Administrators may do everything; other callers have the rights of their grants and everyone's."""

    subject: str
    admin: bool
    groups: list[str]
    grants: list[GrantDocument]


class MeResource:
    """The handlers about the caller.

    Args:
        directory: holds the users.
        control: logins and the current policy.
        client_address: returns the address a request comes from, also behind a trusted proxy.
    """

    def __init__(
        self, directory: Directory, control: AccessControl, client_address: Callable[[web.BaseRequest], str]
    ) -> None:
        self._directory = directory
        self._control = control
        self._client_address = client_address

    @Endpoint("GET /me", "Show your subject, groups and grants", audience=Audience.SELF)
    async def show_me(self, request: web.Request) -> MeDocument:
        """Answer the caller's subject, groups and grants."""
        read_query(request)
        subject, policy = request[CALLER].subject, await self._control.policy()
        return MeDocument(
            subject=subject,
            admin=policy.is_admin(subject),
            groups=sorted(group.partition(":")[2] for group in policy.groups_of(subject)),
            grants=[GrantDocument.of(grant) for grant in policy.grants_of(subject)],
        )

    @Endpoint("POST /me/password", "Change your own password", audience=Audience.SELF)
    async def change_password(self, request: web.Request, body: PasswordBody) -> None:
        """Replace the current password; the user's bearer and refresh tokens are revoked."""
        kind, _, name = request[CALLER].subject.partition(":")
        if kind != SubjectKind.USER:
            raise ProblemError(403, f"{request[CALLER].subject} has no password: only a user has one")
        current = body.current.get_secret_value()
        await self._check_current(request, name, current)
        caller = Caller(request[CALLER].subject, is_known=False)  # behind what administrators ask for

        async def write(user: User, expect: int) -> User:
            # Where it was changed since it was checked, the later one stands.
            if not await self._directory.users.has_password(name, current, caller):
                raise _not_current()
            given = UserInput(
                password=body.new.get_secret_value(),
                is_admin=user.is_admin,
                is_disabled=user.is_disabled,
                groups=user.groups,
            )
            return (await self._directory.users.put(name, given, expect=expect, caller=caller))[0]

        try:
            await patched(request, lambda: self._directory.users.get(name), write)
        except InvalidError as error:
            raise invalid([Fault("#/new", text) for _, text in error.faults]) from None

    async def _check_current(self, request: web.Request, name: str, password: str) -> None:
        """Judge the current password as a login does, failures counted alike. Raises ProblemError."""
        if (await self._directory.users.get(name)).is_ldap:
            raise ProblemError(409, f"LDAP keeps the password of {name}: change it there")
        try:
            login = await self._control.login(name, password, self._client_address(request))
        except LoginRefusedError:
            login = None
        if login is None or not login.is_own_password:
            raise _not_current()


def _not_current() -> ProblemError:
    return invalid([Fault("#/current", "this is not the current password")])
