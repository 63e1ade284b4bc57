"""Deployments of the admin API: reports of what was made to run where, and the list of them."""

import time
from collections.abc import Callable
from typing import Annotated

from aiohttp import web
from pydantic import WithJsonSchema

from registry_proxy.access.control import AccessControl
from registry_proxy.access.grants import given_by, own_pattern
from registry_proxy.access.logins import LoginResult
from registry_proxy.access.policy import Policy
from registry_proxy.access.subject import ANONYMOUS, SubjectKind
from registry_proxy.admission.auth import CALLER
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import USERS_BODY_MAX_BYTES, Body, Document, Page, Time, TimeInput
from registry_proxy.api.openapi import Audience, Endpoint
from registry_proxy.api.problems import Fault, ProblemError
from registry_proxy.api.requests import PAGE, parse_page, read_query
from registry_proxy.directory.deployments import Deployments, ImageUnavailableError
from registry_proxy.history.record import TagHistory
from registry_proxy.ports.deployments import DeploymentHistory, DeploymentReport, Outcome, Receipt
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.patterns import compile_repository_pattern
from registry_proxy.protocol.reference import Repository, Tag
from registry_proxy.protocol.scope import Action
from registry_proxy.tasks import request_id

_FILTERS = (*PAGE, "repository", "environment", "history")
_OutcomeName = Annotated[str, WithJsonSchema({"type": "string", "enum": [each.value for each in Outcome]})]


class DeploymentBody(Body):
    """POST of a report: the outcome of a deployment, and its time, now where none is given."""

    max_bytes = USERS_BODY_MAX_BYTES
    environment: str
    repository: str
    digest: str
    outcome: _OutcomeName = Outcome.SUCCEEDED.value
    tag: str = ""
    at: TimeInput = None


class DeploymentDocument(Document):
    """The receipt of a deployment. ``behind`` counts the moves of the tag since, up to 100; null for not known."""

    id: str
    environment: str
    repository: str
    tag: str
    digest: str
    outcome: Outcome
    runs: bool
    at: Time
    since: Time
    subject: str
    source: str
    revision: str
    behind: int | None


class DeploymentResource:
    """The handlers of deployments.

    Args:
        deployments: reports and receipts.
        control: knows who may pull.
        route: says where a repository lies.
        history: knows how often a tag was moved since.
    """

    def __init__(
        self,
        deployments: Deployments,
        control: AccessControl,
        route: Callable[[Repository], RoutedRepository],
        history: TagHistory,
    ) -> None:
        self._deployments = deployments
        self._control = control
        self._route = route
        self._history = history

    @Endpoint("POST /deployments", "Report a deployment", statuses=(201,), audience=Audience.SELF)
    async def report(self, request: web.Request, body: DeploymentBody) -> Answer[DeploymentDocument]:
        """Put a report on record, of a robot or job that may pull there, or of a user who may push there, too."""
        caller, policy = request[CALLER], await self._control.policy()
        if not _may_report(policy, caller, body):
            fault = Fault("#/repository", "expected one that you may pull and push, or as a robot pull")
            raise ProblemError(403, "this is not yours to report", faults=[fault])
        reporter = Actor(caller.subject, request_id=request_id.get())
        try:
            history, receipt = await self._deployments.report(DeploymentReport(**dict(body)), reporter)
        except ImageUnavailableError:
            detail = f"no replica can say now whether {body.repository} holds {body.digest}; nothing was recorded"
            raise ProblemError(503, detail, headers={"Retry-After": "5"}) from None
        return Answer(await self._document(history, receipt, receipt.tag))

    @Endpoint(
        "GET /deployments", "List what runs where", Page[DeploymentDocument], query=_FILTERS, audience=Audience.SELF
    )
    async def list_deployments(self, request: web.Request) -> web.Response:
        """Return the receipts of what runs, and of later deployments that failed; with ``history`` all receipts."""
        query = read_query(request, _FILTERS)
        page, caller, policy = parse_page(query), request[CALLER], await self._control.policy()
        is_whole = query.get("history", "false")
        if is_whole not in {"true", "false"}:
            raise ProblemError(400, "history: expected true or false")
        found = {
            f"{history.environment}|{history.repository}|{number:02d}": (history, receipt)
            for history in await self._deployments.list()
            if query.get("repository", history.repository) == history.repository
            and query.get("environment", history.environment) == history.environment
            and _may(policy, caller, history.repository, Action.PULL)
            for number, receipt in enumerate(history.receipts)
            if is_whole == "true" or number == 0 or receipt is history.running
        }
        answer = page.cut(found, lambda item: item)
        documents = []
        for history, receipt in answer["items"]:
            shows_tag = _may(policy, caller, history.repository, Action.PULL, receipt.tag or None)
            documents.append((await self._document(history, receipt, receipt.tag if shows_tag else "")).as_json())
        return web.json_response({**answer, "items": documents})

    async def _document(self, history: DeploymentHistory, receipt: Receipt, tag: str) -> DeploymentDocument:
        """Return the document of a receipt; ``tag`` is "" where the caller may not know it."""
        return DeploymentDocument.of(
            receipt,
            tag=tag,
            environment=history.environment,
            repository=history.repository,
            runs=receipt == history.running,
            behind=await self._moves_since(Repository(history.repository), Tag(tag), receipt.digest) if tag else None,
        )

    async def _moves_since(self, repository: Repository, tag: Tag, digest: str) -> int | None:
        try:
            return await self._history.moves_since(self._route(repository), tag, digest)
        except RegistryError:  # no route leads to it any more
            return None


def _may_report(policy: Policy, caller: LoginResult, report: DeploymentBody) -> bool:
    """Tell whether a caller may report: pull alone would let every reader say what runs."""
    repository, tag = report.repository, report.tag or None
    if not caller.may_manage or not _may(policy, caller, repository, Action.PULL, tag):
        return False
    is_user = caller.subject.startswith(f"{SubjectKind.USER}:")
    may_change = _may(policy, caller, repository, Action.CREATE, tag)
    return may_change or (not is_user and _has_own_grant(policy, caller.subject, repository))


def _has_own_grant(policy: Policy, subject: str, repository: str) -> bool:
    """Tell whether a grant in the subject's name, or that of a group, is for a repository, and not only everyone's."""
    now = time.time()
    own = [
        grant for grant in policy.grants_of(subject) if grant.subject != ANONYMOUS and (grant.expires_at or now) >= now
    ]
    patterns = (own_pattern(grant.repository, subject) for grant in own if Action.PULL in grant.actions)
    return any(each is not None and compile_repository_pattern(each).fullmatch(repository) for each in patterns)


def _may(policy: Policy, caller: LoginResult, repository: str, action: Action, tag: str | None = None) -> bool:
    is_given = caller.actions is None or action in given_by(caller.actions)
    return is_given and policy.decide(caller.subject, repository, action, tag).allowed
