"""Grants of the admin API, for administrators and owners of namespaces, and questions about rights."""

import time
from typing import Annotated

from aiohttp import web
from pydantic import WithJsonSchema

from registry_proxy.access.control import AccessControl
from registry_proxy.access.faults import InvalidError, faults_of
from registry_proxy.access.grant import Grant, GrantInput, GrantMode, make_grant
from registry_proxy.access.policy import Policy
from registry_proxy.access.subject import ANONYMOUS, subject_fault
from registry_proxy.admission.auth import CALLER, NAMESPACES
from registry_proxy.admission.namespaces import joined, lies_inside
from registry_proxy.admission.owners_turns import OwnersTurns
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import (
    USERS_BODY_MAX_BYTES,
    ActionNames,
    Actions,
    Body,
    Document,
    Page,
    Patch,
    SubjectName,
    Time,
    TimeInput,
    patch_of,
)
from registry_proxy.api.openapi import Audience, Endpoint
from registry_proxy.api.problems import Fault, ProblemError
from registry_proxy.api.requests import ASKED_FOR, PAGE, name_of, parse_page, read_query
from registry_proxy.api.revisions import patched
from registry_proxy.api.rules import AppliedRuleDocument
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.protocol.patterns import SUBJECT, compile_repository_pattern, is_below
from registry_proxy.protocol.reference import is_repository, is_tag
from registry_proxy.protocol.scope import Action
from registry_proxy.rules.rule import applying

_CHANGING = frozenset({Action.PUSH, Action.CREATE, Action.DELETE})
_FILTERS = (*PAGE, "subject", "repository")
_OWNERS_GRANTS_MAX = 1000
"""Limit of the grants in the namespaces of an owner: every request there is compared with all of them, and every worker
reads all grants again after a change."""

_ModeName = Annotated[str, WithJsonSchema({"type": "string", "enum": [mode.value for mode in GrantMode]})]


class GrantBody(Body):
    """POST of a grant."""

    max_bytes = USERS_BODY_MAX_BYTES
    subject: SubjectName
    repository: str
    tags: str = "*"
    actions: ActionNames
    mode: _ModeName = "enforce"
    expires_at: TimeInput = None

    def content(self) -> GrantInput:
        """Return the grant that the body describes."""
        return GrantInput(**dict(self))


GrantPatch = patch_of(
    GrantBody,
    "PATCH of a grant. Its subject and its repository are its identity, and never change.",
    without=("subject", "repository"),
)


class StatedGrantDocument(Document):
    """A grant of a subject, as a whole policy states it."""

    subject: str
    repository: str
    tags: str
    actions: Actions
    mode: GrantMode
    expires_at: Time | None


class GrantDocument(StatedGrantDocument):
    """A right of a subject."""

    id: str


class ExplainBody(Body):
    """A question about a right."""

    max_bytes = USERS_BODY_MAX_BYTES
    subject: SubjectName
    repository: str
    tag: str | None = None
    action: Action


class DecisionDocument(Document):
    """The answer to a question about a right, with the grant or the reason, and the rules of images for a write."""

    allowed: bool
    would_deny: bool
    grant: str | None
    reason: str
    rules: list[AppliedRuleDocument]


class GrantResource:
    """The handlers of grants."""

    def __init__(self, directory: Directory, control: AccessControl) -> None:
        self._directory = directory
        self._control = control
        self._turns = OwnersTurns(control)

    @Endpoint("GET /grants", "List grants", Page[GrantDocument], query=_FILTERS, audience=Audience.OWNERS)
    async def list_grants(self, request: web.Request) -> web.Response:
        query = read_query(request, _FILTERS)
        page = parse_page(query)
        subject, repository = query.get("subject"), query.get("repository")
        if subject is not None and (fault := subject_fault(subject)) is not None:
            raise ProblemError(400, f"subject: {fault}")
        grants = {
            grant.id: grant
            for grant in await self._directory.grants.list(request.get(NAMESPACES))
            if (subject is None or grant.subject == subject) and (repository is None or _covers(grant, repository))
        }
        return page.answer(grants, GrantDocument.of)

    @Endpoint("GET /grants/{name}", "Show a grant", is_revised=True, audience=Audience.OWNERS)
    async def get_grant(self, request: web.Request) -> Answer[GrantDocument]:
        grant = await self._find_grant(request)
        return Answer(GrantDocument.of(grant), revision=grant.revision)

    @Endpoint("POST /grants", "Give a right", statuses=(201,), is_revised=True, audience=Audience.OWNERS)
    async def add_grant(self, request: web.Request, body: GrantBody) -> Answer[GrantDocument]:
        namespaces = request.get(NAMESPACES)
        if namespaces is not None:
            _check_inside(namespaces, body)
        async with self._turns.turn(request):
            policy = await self._control.policy()
            given = body.content()
            grant = policy.find_equal(make_grant(given, ""))
            if grant is None and namespaces is not None:
                _check_room(namespaces, policy)
            doubts = [f"grant {grant.id} says the same already: no other was made"] if grant is not None else []
            grant = grant or await self._directory.grants.add(given)
        doubts += _doubts_of_grant(request, grant, policy)
        return Answer(GrantDocument.of(grant), revision=grant.revision, warnings=doubts)

    @Endpoint(
        "PATCH /grants/{name}", "Change fields of a grant", body=GrantPatch, is_revised=True, audience=Audience.OWNERS
    )
    async def patch_grant(self, request: web.Request, patch: Patch) -> Answer[GrantDocument]:
        policy = await self._control.policy()

        async def write(grant: Grant, expect: int) -> Grant:
            body = GrantBody(**patch.over(grant.stored()))
            if NAMESPACES in request:
                _check_not_of_owner(grant)
                _check_inside(request[NAMESPACES], body)
            return await self._directory.grants.change(grant.id, body.content(), expect=expect)

        async with self._turns.turn(request):
            grant = await patched(request, lambda: self._find_grant(request), write)
        doubts = _doubts_of_grant(request, grant, policy)
        return Answer(GrantDocument.of(grant), revision=grant.revision, warnings=doubts)

    @Endpoint("DELETE /grants/{name}", "Remove a grant", is_revised=True, audience=Audience.OWNERS)
    async def delete_grant(self, request: web.Request) -> None:
        async def delete(grant: Grant, expect: int) -> None:
            if NAMESPACES in request:
                _check_not_of_owner(grant)
            await self._directory.grants.delete(grant.id, expect=expect)
            request[ASKED_FOR] = {"grants_removed": [GrantDocument.of(grant).as_json()]}

        async with self._turns.turn(request):
            await patched(request, lambda: self._find_grant(request), delete)

    async def _find_grant(self, request: web.Request) -> Grant:
        """Return the grant in the path; one outside of the caller's namespaces seems not to exist."""
        grant_id = name_of(request, "grant")
        grant = await self._directory.grants.get(grant_id)
        if not lies_inside(request, grant.repository):
            raise NotFoundError(f"there is no grant {grant_id}")
        return grant

    @Endpoint(
        "POST /explain", "Decide a question about a right, with the reason", audience=Audience.USERS, is_question=True
    )
    async def explain(self, request: web.Request, body: ExplainBody) -> DecisionDocument:
        is_name, is_any_tag = is_repository(body.repository), body.tag is None or is_tag(body.tag)
        faults = faults_of(
            subject=subject_fault(body.subject),
            repository=None if is_name else "expected the name of a repository, such as team/app",
            tag=None if is_any_tag else "expected a tag, such as v1",
        )
        if faults:
            raise InvalidError(faults)
        policy, caller = await self._control.policy(), request[CALLER].subject
        namespaces = None if body.subject == caller else request.get(NAMESPACES)
        if namespaces is not None and not lies_inside(request, body.repository):
            # Of itself everybody may know everything: whoami shows the grants anyway.
            outside = Fault("#/repository", f"expected one that lies in {joined(namespaces)}")
            not_self = Fault("#/subject", f"expected {caller}: only administrators and owners ask about others")
            raise ProblemError(403, "this is not yours to ask", faults=[outside if namespaces else not_self])
        decision = policy.explain(body.subject, body.repository, body.action, body.tag, namespaces=namespaces)
        judges = decision.allowed and body.action in _CHANGING
        rules = await self._directory.rules.list() if judges else ()
        applied = applying(rules, body.repository, body.tag, deletes=body.action is Action.DELETE)
        documents = [AppliedRuleDocument.of(rule, conditions=list(rule.conditions)) for rule in applied]
        return DecisionDocument.of(decision, rules=documents)


def _doubts_of_grant(request: web.Request, grant: Grant, policy: Policy) -> list[str]:
    """Return why a grant has no effect yet; it is made all the same, since its subject may come later."""
    doubts = []
    if grant.expires_at is not None and grant.expires_at <= time.time():
        doubts.append("the grant has expired already: it allows nothing")
    if grant.subject == ANONYMOUS and (changes := sorted(grant.actions & _CHANGING)):
        doubts.append(f"everyone, without any login, may {' and '.join(changes)} in {grant.repository}")
    # The owner of a namespace does not learn which users exist.
    if NAMESPACES not in request and (why := policy.why_of_no_use(grant.subject)) is not None:
        doubts.append(f"{why}: until that changes, the grant allows nothing")
    return doubts


def _check_inside(namespaces: tuple[str, ...], body: GrantBody) -> None:
    """Refuse a grant by the owner of namespaces that reaches outside of them, or makes another owner."""
    faults = []
    if not any(is_below(body.repository, each) for each in namespaces):
        faults.append(Fault("#/repository", f"expected a pattern that lies in {joined(namespaces)}"))
    if Action.MANAGE in body.actions:
        faults.append(Fault("#/actions", "only an administrator gives the right to manage"))
    if faults:
        raise ProblemError(403, "this is not yours to give", faults=faults)


def _check_room(namespaces: tuple[str, ...], policy: Policy) -> None:
    """Refuse one more grant by the owner of namespaces that have as many as an owner may give."""
    if policy.count_grants_below(namespaces) >= _OWNERS_GRANTS_MAX:
        detail = (
            f"there are {_OWNERS_GRANTS_MAX} grants in {joined(namespaces)} already: remove some first, give one "
            "to a group instead of to each of its members, or ask an administrator"
        )
        raise ProblemError(409, detail)


def _check_not_of_owner(grant: Grant) -> None:
    """Refuse an owner's change of a grant that makes an owner."""
    if Action.MANAGE in grant.actions:
        fault = Fault("", "only an administrator removes the right to manage")
        raise ProblemError(403, "this is not yours to take", faults=[fault])


def _covers(grant: Grant, repository: str) -> bool:
    pattern = grant.repository.replace(SUBJECT, "*")
    return repository == grant.repository or compile_repository_pattern(pattern).fullmatch(repository) is not None
