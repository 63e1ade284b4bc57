"""Users of the admin API."""

from collections.abc import Sequence
from typing import Annotated

from aiohttp import web
from pydantic import Field

from registry_proxy.access.control import AccessControl
from registry_proxy.access.records import User
from registry_proxy.admin.subjects import delete_subject, read_put
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import Body, Document, Page, Patch, patch_of
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.requests import PAGE, name_of, note_difference, read_page
from registry_proxy.api.revisions import patched
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.users import UserInput

_Groups = Annotated[list[str], Field(max_length=1000)]


class UserBody(Body):
    """PUT of a user; without ``password`` the user keeps their current one, or LDAP has it."""

    password: str | None = None
    ldap: bool | None = None
    admin: bool = False
    disabled: bool = False
    groups: _Groups = []

    def content(self) -> UserInput:
        """Return the user that the body describes."""
        return UserInput(
            password=self.password,
            is_ldap=self.ldap,
            is_admin=self.admin,
            is_disabled=self.disabled,
            groups=tuple(self.groups),
        )


UserPatch = patch_of(UserBody, "PATCH of a user.")


class UserDocument(Document):
    """A user, without their password. With ``ldap`` only LDAP knows it."""

    name: str
    admin: Annotated[bool, Field(validation_alias="is_admin")]
    disabled: Annotated[bool, Field(validation_alias="is_disabled")]
    ldap: Annotated[bool, Field(validation_alias="is_ldap")]
    groups: list[str]


class UserResource:
    """The handlers of users."""

    def __init__(self, directory: Directory, control: AccessControl) -> None:
        self._directory = directory
        self._control = control

    @Endpoint("GET /users", "List users", Page[UserDocument], query=PAGE)
    async def list_users(self, request: web.Request) -> web.Response:
        page = read_page(request)
        return page.answer({user.name: user for user in await self._directory.users.list()}, UserDocument.of)

    @Endpoint("GET /users/{name}", "Show a user", is_revised=True)
    async def get_user(self, request: web.Request) -> Answer[UserDocument]:
        user = await self._directory.users.get(name_of(request, "user"))
        return Answer(UserDocument.of(user), revision=user.revision)

    @Endpoint("PUT /users/{name}", "Create or replace a user", statuses=(200, 201), is_revised=True)
    async def put_user(self, request: web.Request, body: UserBody) -> Answer[UserDocument]:
        put = await read_put(request, self._directory.users.get)
        note_difference(request, "groups", put.current.groups if put.current else (), body.groups)
        doubts = await self._doubts_of_groups(body.groups)
        user, is_new = await self._directory.users.put(put.name, body.content(), expect=put.expect)
        doubts += self._doubts_of_user(user)
        return Answer(UserDocument.of(user), status=201 if is_new else 200, revision=user.revision, warnings=doubts)

    @Endpoint("PATCH /users/{name}", "Change fields of a user", body=UserPatch, is_revised=True)
    async def patch_user(self, request: web.Request, patch: Patch) -> Answer[UserDocument]:
        name = name_of(request, "user")
        doubts: list[str] = []

        async def write(user: User, expect: int) -> User:
            current = {"admin": user.is_admin, "disabled": user.is_disabled, "groups": list(user.groups)}
            body = UserBody(**patch.over(current))
            note_difference(request, "groups", user.groups, body.groups)
            doubts[:] = await self._doubts_of_groups(body.groups)
            return (await self._directory.users.put(name, body.content(), expect=expect))[0]

        user = await patched(request, lambda: self._directory.users.get(name), write)
        warnings = [*doubts, *self._doubts_of_user(user)]
        return Answer(UserDocument.of(user), revision=user.revision, warnings=warnings)

    @Endpoint("DELETE /users/{name}", "Remove a user, its grants and its tokens", is_revised=True)
    async def delete_user(self, request: web.Request) -> None:
        await delete_subject(request, "user", self._directory.users)

    async def _doubts_of_groups(self, groups: Sequence[str]) -> list[str]:
        """Return a warning for each group that naming it creates: this alone shows a misspelt name."""
        known = {group.name for group in await self._directory.groups.list()} if groups else set()
        return [f"there was no group {name}: it is made" for name in dict.fromkeys(groups) if name not in known]

    def _doubts_of_user(self, user: User) -> list[str]:
        if not user.is_ldap or self._control.knows_ldap:
            return []
        return [
            f"nobody can log in as {user.name}: LDAP knows the password, and auth.ldap is not configured on this node"
        ]
