"""Users, groups, grants, explain and revocations of the admin API."""

import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from aiohttp import web

from registry_proxy.access.credentials import TooManyLoginsError
from registry_proxy.access.directory import (
    Directory,
    LastAdminError,
    NotFoundError,
    Removed,
    RevisionConflictError,
    UserInput,
)
from registry_proxy.access.faults import InvalidError
from registry_proxy.access.grant import Grant, make_grant
from registry_proxy.access.grants import Policy
from registry_proxy.access.records import Group, User
from registry_proxy.access.secrets import SecretState
from registry_proxy.access.subject import ANONYMOUS, is_name, parse_subject
from registry_proxy.admin.auth import CALLER, NAMESPACES, Control, too_many_logins
from registry_proxy.admin.bodies import (
    ExplainBody,
    GrantBody,
    GrantPatch,
    GroupBody,
    GroupPatch,
    RevocationBody,
    UserBody,
    UserPatch,
)
from registry_proxy.admin.documents import (
    DecisionDocument,
    GrantDocument,
    GroupDocument,
    Page,
    RevocationDocument,
    SubjectRevocationDocument,
    TokenRevocationDocument,
    UserDocument,
)
from registry_proxy.admin.openapi import PAGE, Endpoint
from registry_proxy.admin.problems import Fault, Handler, ProblemError, invalid, pointer_to
from registry_proxy.admin.requests import (
    ASKED_FOR,
    changed_meanwhile,
    expected_revision,
    format_etag,
    name_of,
    note_difference,
    patched,
    read_body,
    read_page,
    read_query,
    warned,
)
from registry_proxy.protocol.patterns import SUBJECT, compile_repository_pattern, is_below
from registry_proxy.protocol.reference import is_repository, is_tag
from registry_proxy.protocol.scope import Action

_T = TypeVar("_T")
_CHANGING = frozenset({Action.PUSH, Action.CREATE, Action.DELETE})
_OWNERS_GRANTS_MAX = 1000
"""Grants in the namespaces of an owner, whoever gave them, beyond which an owner gives no more: every request there is
compared with them, and every worker reads all grants anew after a change."""


def _user_document(user: User) -> dict[str, Any]:
    return UserDocument(
        name=user.name, admin=user.is_admin, disabled=user.is_disabled, ldap=user.is_ldap, groups=list(user.groups)
    ).as_json()


def _group_document(group: Group) -> dict[str, Any]:
    return GroupDocument(name=group.name, members=list(group.members)).as_json()


def note_removed(request: web.Request, removed: Removed) -> None:
    """Have the audit log record what a DELETE took along."""
    parts = {
        "grants_removed": [GrantDocument.of(grant).as_json() for grant in removed.grants],
        "secret_ids_removed": [secret.id for secret in removed.secrets],
        "groups": list(removed.groups),
        "members": list(removed.members),
    }
    request[ASKED_FOR] = {name: part for name, part in parts.items() if part}


def _user_input(body: UserBody) -> UserInput:
    return UserInput(
        password=body.password,
        is_ldap=body.ldap,
        is_admin=body.admin,
        is_disabled=body.disabled,
        groups=tuple(body.groups),
    )


def _answer(
    document: dict[str, Any], revision: int, status: int = 200, *, warnings: Sequence[str] = ()
) -> web.Response:
    return web.json_response(document, status=status, headers={"ETag": format_etag(revision), **warned(warnings)})


async def or_none(lookup: Awaitable[_T]) -> _T | None:
    """Return what is looked up in the directory; None when it is not there."""
    try:
        return await lookup
    except NotFoundError:
        return None


@web.middleware
async def answer_directory_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Say the errors of the directory in HTTP."""
    try:
        return await handler(request)
    except NotFoundError as error:
        raise ProblemError(404, str(error)) from None
    except InvalidError as error:
        # A name stands in the path, not in the body.
        faults = [
            Fault("", f"{field}: {text}") if field == "name" else Fault(pointer_to([field]), text)
            for field, text in error.faults
        ]
        raise invalid(faults) from None
    except LastAdminError as error:
        raise ProblemError(409, str(error)) from None
    except RevisionConflictError:
        raise changed_meanwhile() from None
    except TooManyLoginsError as error:
        raise too_many_logins(error) from None


class AccessResources:
    """The handlers over the directory and the policy."""

    def __init__(self, directory: Directory, control: Control) -> None:
        self._directory = directory
        self._control = control

    def routes(self) -> list[Endpoint]:
        """Return the routes, below /admin/v1."""
        return [
            Endpoint("GET", "/users", self.list_users, "List users", {200: Page[UserDocument]}, query=PAGE),
            Endpoint("GET", "/users/{name}", self.get_user, "Show a user", {200: UserDocument}, tagged=True),
            Endpoint(
                "PUT",
                "/users/{name}",
                self.put_user,
                "Make or replace a user",
                {200: UserDocument, 201: UserDocument},
                body=UserBody,
                conditional=True,
                tagged=True,
            ),
            Endpoint(
                "PATCH",
                "/users/{name}",
                self.patch_user,
                "Change some of a user",
                {200: UserDocument},
                body=UserPatch,
                conditional=True,
                tagged=True,
            ),
            Endpoint(
                "DELETE",
                "/users/{name}",
                self.delete_user,
                "Remove a user, its grants and its tokens",
                {204: None},
                conditional=True,
            ),
            Endpoint("GET", "/groups", self.list_groups, "List groups", {200: Page[GroupDocument]}, query=PAGE),
            Endpoint("GET", "/groups/{name}", self.get_group, "Show a group", {200: GroupDocument}, tagged=True),
            Endpoint(
                "PUT",
                "/groups/{name}",
                self.put_group,
                "Make or replace a group",
                {200: GroupDocument, 201: GroupDocument},
                body=GroupBody,
                conditional=True,
                tagged=True,
            ),
            Endpoint(
                "PATCH",
                "/groups/{name}",
                self.patch_group,
                "Change some of a group",
                {200: GroupDocument},
                body=GroupPatch,
                conditional=True,
                tagged=True,
            ),
            Endpoint(
                "DELETE",
                "/groups/{name}",
                self.delete_group,
                "Remove a group and its grants",
                {204: None},
                conditional=True,
            ),
            Endpoint(
                "GET",
                "/grants",
                self.list_grants,
                "List grants",
                {200: Page[GrantDocument]},
                query=(*PAGE, "subject", "repository"),
            ),
            Endpoint(
                "POST", "/grants", self.add_grant, "Give a right", {201: GrantDocument}, body=GrantBody, tagged=True
            ),
            Endpoint("GET", "/grants/{name}", self.get_grant, "Show a grant", {200: GrantDocument}, tagged=True),
            Endpoint(
                "PATCH",
                "/grants/{name}",
                self.patch_grant,
                "Change some of a grant",
                {200: GrantDocument},
                body=GrantPatch,
                conditional=True,
                tagged=True,
            ),
            Endpoint("DELETE", "/grants/{name}", self.delete_grant, "Take a right away", {204: None}, conditional=True),
            Endpoint(
                "POST",
                "/explain",
                self.explain,
                "Tell whether something is allowed, and why",
                {200: DecisionDocument},
                body=ExplainBody,
            ),
            Endpoint(
                "POST",
                "/revocations",
                self.revoke,
                "Revoke one token, or all of a subject",
                {201: RevocationDocument},
                body=RevocationBody,
            ),
        ]

    # ------------------------------------------------------------ users

    async def list_users(self, request: web.Request) -> web.Response:
        page = read_page(read_query(request, PAGE))
        users = await self._directory.list_users()
        return web.json_response(page.cut({user.name: user for user in users}, _user_document))

    async def get_user(self, request: web.Request) -> web.Response:
        user = await self._directory.get_user(name_of(request, "user"))
        return _answer(_user_document(user), user.revision)

    async def put_user(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = await read_body(request, UserBody)
        current = await or_none(self._directory.get_user(name)) if is_name(name) else None
        expect = expected_revision(request, current.revision if current else None)
        note_difference(request, "groups", current.groups if current else (), body.groups)
        doubts = await self._doubts_of_groups(body.groups)
        user, is_new = await self._directory.put_user(name, _user_input(body), expect=expect)
        doubts += self._doubts_of_user(user)
        return _answer(_user_document(user), user.revision, 201 if is_new else 200, warnings=doubts)

    async def patch_user(self, request: web.Request) -> web.Response:
        name = name_of(request, "user")
        patch = await read_body(request, UserPatch)

        doubts: list[str] = []

        async def write(user: User, expect: int) -> User:
            current = {"admin": user.is_admin, "disabled": user.is_disabled, "groups": list(user.groups)}
            body = UserBody(**patch.over(current))
            note_difference(request, "groups", user.groups, body.groups)
            doubts[:] = await self._doubts_of_groups(body.groups)
            return (await self._directory.put_user(name, _user_input(body), expect=expect))[0]

        user = await patched(request, lambda: self._directory.get_user(name), write)
        return _answer(_user_document(user), user.revision, warnings=[*doubts, *self._doubts_of_user(user)])

    async def _doubts_of_groups(self, groups: Sequence[str]) -> list[str]:
        """Return which of the groups are made by naming them: a misspelt name is noticed by that alone."""
        known = {group.name for group in await self._directory.list_groups()} if groups else set()
        return [f"there was no group {name}: it is made" for name in dict.fromkeys(groups) if name not in known]

    def _doubts_of_user(self, user: User) -> list[str]:
        if not user.is_ldap or self._control.knows_ldap:
            return []
        return [
            f"nobody can log in as {user.name}: LDAP knows the password, and auth.ldap is not configured on this node"
        ]

    async def delete_user(self, request: web.Request) -> web.Response:
        name = name_of(request, "user")
        current = await self._directory.get_user(name)
        removed = await self._directory.delete_user(name, expect=expected_revision(request, current.revision))
        note_removed(request, removed)
        return web.Response(status=204)

    # ------------------------------------------------------------ groups

    async def list_groups(self, request: web.Request) -> web.Response:
        page = read_page(read_query(request, PAGE))
        groups = await self._directory.list_groups()
        return web.json_response(page.cut({group.name: group for group in groups}, _group_document))

    async def get_group(self, request: web.Request) -> web.Response:
        group = await self._directory.get_group(name_of(request, "group"))
        return _answer(_group_document(group), group.revision)

    async def put_group(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = await read_body(request, GroupBody)
        current = await or_none(self._directory.get_group(name)) if is_name(name) else None
        expect = expected_revision(request, current.revision if current else None)
        note_difference(request, "members", current.members if current else (), body.members)
        group, is_new = await self._directory.put_group(name, body.members, expect=expect)
        return _answer(_group_document(group), group.revision, 201 if is_new else 200)

    async def patch_group(self, request: web.Request) -> web.Response:
        name = name_of(request, "group")
        patch = await read_body(request, GroupPatch)

        async def write(group: Group, expect: int) -> Group:
            body = GroupBody(**patch.over({"members": list(group.members)}))
            note_difference(request, "members", group.members, body.members)
            return (await self._directory.put_group(name, body.members, expect=expect))[0]

        group = await patched(request, lambda: self._directory.get_group(name), write)
        return _answer(_group_document(group), group.revision)

    async def delete_group(self, request: web.Request) -> web.Response:
        name = name_of(request, "group")
        current = await self._directory.get_group(name)
        removed = await self._directory.delete_group(name, expect=expected_revision(request, current.revision))
        note_removed(request, removed)
        return web.Response(status=204)

    # ------------------------------------------------------------ grants

    async def list_grants(self, request: web.Request) -> web.Response:
        query = read_query(request, (*PAGE, "subject", "repository"))
        page = read_page(query)
        subject, repository = query.get("subject"), query.get("repository")
        if subject is not None and (fault := _subject_fault(subject)) is not None:
            raise ProblemError(400, f"subject: {fault}")
        grants = {
            grant.id: grant
            for grant in await self._directory.list_grants(request.get(NAMESPACES))
            if (subject is None or grant.subject == subject) and (repository is None or _covers(grant, repository))
        }
        return web.json_response(page.cut(grants, lambda grant: GrantDocument.of(grant).as_json()))

    async def get_grant(self, request: web.Request) -> web.Response:
        grant = await self._find_grant(request)
        return _answer(GrantDocument.of(grant).as_json(), grant.revision)

    async def add_grant(self, request: web.Request) -> web.Response:
        body = await read_body(request, GrantBody)
        namespaces = request.get(NAMESPACES)
        if namespaces is not None:
            _check_inside(namespaces, body)
        policy = await self._control.policy()
        given = body.content()
        grant = policy.find_equal(make_grant(given, ""))
        if grant is None and namespaces is not None:
            _check_room(namespaces, policy)
        doubts = [f"grant {grant.id} says the same already: no other was made"] if grant is not None else []
        grant = grant or await self._directory.add_grant(given)
        doubts += _doubts_of_grant(request, grant, policy)
        return _answer(GrantDocument.of(grant).as_json(), grant.revision, 201, warnings=doubts)

    async def patch_grant(self, request: web.Request) -> web.Response:
        patch = await read_body(request, GrantPatch)
        policy = await self._control.policy()

        async def write(grant: Grant, expect: int) -> Grant:
            body = GrantBody(**patch.over(grant.stored()))
            if NAMESPACES in request:
                _check_not_of_owner(grant)
                _check_inside(request[NAMESPACES], body)
            return await self._directory.change_grant(grant.id, body.content(), expect=expect)

        grant = await patched(request, lambda: self._find_grant(request), write)
        doubts = _doubts_of_grant(request, grant, policy)
        return _answer(GrantDocument.of(grant).as_json(), grant.revision, warnings=doubts)

    async def delete_grant(self, request: web.Request) -> web.Response:
        async def delete(grant: Grant, expect: int) -> None:
            if NAMESPACES in request:
                _check_not_of_owner(grant)
            await self._directory.delete_grant(grant.id, expect=expect)
            note_removed(request, Removed(grants=[grant]))

        await patched(request, lambda: self._find_grant(request), delete)
        return web.Response(status=204)

    async def _find_grant(self, request: web.Request) -> Grant:
        """Return the grant in the path; one outside of the caller's namespaces is answered like one that is not."""
        grant_id = name_of(request, "grant")
        grant = await self._directory.get_grant(grant_id)
        if not _may_see(request, grant.repository):
            raise NotFoundError(f"there is no grant {grant_id}")
        return grant

    # ------------------------------------------------------------ questions and revocations

    async def explain(self, request: web.Request) -> web.Response:
        body = await read_body(request, ExplainBody)
        faults = []
        if (fault := _subject_fault(body.subject)) is not None:
            faults.append(Fault("#/subject", fault))
        if not is_repository(body.repository):
            faults.append(Fault("#/repository", "expected the name of a repository, such as team/app"))
        if body.tag is not None and not is_tag(body.tag):
            faults.append(Fault("#/tag", "expected a tag, such as v1"))
        if faults:
            raise invalid(faults)
        policy, caller = await self._control.policy(), request[CALLER].subject
        namespaces = None if body.subject == caller else request.get(NAMESPACES)
        if namespaces is not None and not _may_see(request, body.repository):
            # Of itself everybody may know everything: whoami shows the grants anyway.
            outside = Fault("#/repository", f"expected one that lies in {_joined(namespaces)}")
            not_self = Fault("#/subject", f"expected {caller}: only administrators and owners ask about others")
            raise ProblemError(403, "this is not yours to ask", faults=[outside if namespaces else not_self])
        decision = policy.explain(body.subject, body.repository, body.action, body.tag, namespaces=namespaces)
        document = DecisionDocument(
            allowed=decision.allowed, would_deny=decision.would_deny, grant=decision.grant, reason=decision.reason
        )
        return web.json_response(document.as_json())

    async def revoke(self, request: web.Request) -> web.Response:
        body = await read_body(request, RevocationBody)
        if body.token_id is not None and body.subject is None:
            await self._directory.revoke_token(body.token_id)
            token = TokenRevocationDocument(id=body.token_id, token_id=body.token_id)
            return web.json_response(token.as_json(), status=201)
        if body.subject is None or body.token_id is not None:
            raise ProblemError(400, "expected either subject or token_id")
        generation, removed = await self._directory.revoke(body.subject, also_secrets=body.secrets)
        left = [each.state(generation, time.time()) for each in await self._directory.list_secrets(body.subject)]
        document = SubjectRevocationDocument(
            id=f"{body.subject}@{generation}",
            subject=body.subject,
            generation=generation,
            secrets_deleted=len(removed.secrets),
            secrets_left=left.count(SecretState.VALID),
        )
        return web.json_response(document.as_json(), status=201)


def _doubts_of_grant(request: web.Request, grant: Grant, policy: Policy) -> list[str]:
    """Return why a grant is of no use as things are; it is made all the same, since who is named may come later."""
    doubts = []
    if grant.expires_at is not None and grant.expires_at <= time.time():
        doubts.append("the grant has expired already: it allows nothing")
    if grant.subject == ANONYMOUS and (changes := sorted(grant.actions & _CHANGING)):
        doubts.append(f"everyone, without any login, may {' and '.join(changes)} in {grant.repository}")
    # The owner of a namespace is not told who is there.
    if NAMESPACES not in request and (why := policy.why_of_no_use(grant.subject)) is not None:
        doubts.append(f"{why}: until that changes, the grant allows nothing")
    return doubts


def _may_see(request: web.Request, repository: str) -> bool:
    """Tell whether a repository, or all that a pattern matches, lies in a namespace of the caller's.

    An administrator sees all.
    """
    namespaces = request.get(NAMESPACES)
    return namespaces is None or any(is_below(repository, each) for each in namespaces)


def _check_inside(namespaces: tuple[str, ...], body: GrantBody) -> None:
    """Refuse a grant by the owner of namespaces that reaches outside of them, or makes another owner."""
    faults = []
    if not any(is_below(body.repository, each) for each in namespaces):
        faults.append(Fault("#/repository", f"expected a pattern that lies in {_joined(namespaces)}"))
    if Action.MANAGE in body.actions:
        faults.append(Fault("#/actions", "only an administrator gives the right to manage"))
    if faults:
        raise ProblemError(403, "this is not yours to give", faults=faults)


def _check_room(namespaces: tuple[str, ...], policy: Policy) -> None:
    """Refuse one more grant by the owner of namespaces that have as many as an owner may give."""
    if policy.count_grants_below(namespaces) >= _OWNERS_GRANTS_MAX:
        detail = (
            f"there are {_OWNERS_GRANTS_MAX} grants in {_joined(namespaces)} already: remove some first, give one "
            "to a group instead of to each of its members, or ask an administrator"
        )
        raise ProblemError(409, detail)


def _check_not_of_owner(grant: Grant) -> None:
    """Refuse what an owner does to a grant that makes an owner."""
    if Action.MANAGE in grant.actions:
        fault = Fault("", "only an administrator takes the right to manage away")
        raise ProblemError(403, "this is not yours to take", faults=[fault])


def _joined(namespaces: tuple[str, ...]) -> str:
    return " or ".join(namespaces)


def _covers(grant: Grant, repository: str) -> bool:
    pattern = grant.repository.replace(SUBJECT, "*")
    return repository == grant.repository or compile_repository_pattern(pattern).fullmatch(repository) is not None


def _subject_fault(text: str) -> str | None:
    try:
        parse_subject(text)
    except ValueError as error:
        return str(error)
    return None
