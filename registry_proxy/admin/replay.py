"""Replay of the admin API: the answers of a proposed policy to the latest questions of this node."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from aiohttp import web
from pydantic import Field

from registry_proxy.access.control import AccessControl
from registry_proxy.access.faults import InvalidError
from registry_proxy.access.grant import make_grant
from registry_proxy.access.policy import Policy
from registry_proxy.admin.audit import AuditFiles
from registry_proxy.admin.grants import GrantBody
from registry_proxy.api.models import Body, Document, Members, Time
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import Fault, invalid, pointer_to
from registry_proxy.audit.sinks import RecordedDecision, read_decisions
from registry_proxy.directory.directory import Directory
from registry_proxy.protocol.scope import Action

_CHUNK = 500


class ReplayBody(Body):
    """A proposed policy: the current grants, without some and with others; with ``replace`` none of the current ones.

    ``groups`` lists those whose members differ from the current ones.
    """

    add: Annotated[list[GrantBody], Field(max_length=100_000)] = []
    remove: Annotated[list[str], Field(max_length=100_000)] = []
    replace: bool = False
    groups: Annotated[dict[str, Members], Field(max_length=10_000)] = {}
    limit: Annotated[int, Field(ge=1, le=100_000)] = 10_000


class QuestionDocument(Document):
    """A question that the proposed policy answers differently; the grant is the one that allows it, now or then."""

    subject: str
    repository: str
    tag: str | None
    action: Action
    count: int
    first_at: Time
    last_at: Time
    grant: str | None
    reason: str


class ReplayDocument(Document):
    """The answers of a proposed policy to the latest questions."""

    decisions: int
    since: Time | None
    newly_denied: list[QuestionDocument]
    newly_allowed: list[QuestionDocument]
    subjects_newly_denied: list[str]
    subjects_newly_allowed: list[str]


class ReplayResource:
    """The handler of replays."""

    def __init__(self, files: AuditFiles, directory: Directory, control: AccessControl) -> None:
        self._files = files
        self._directory = directory
        self._control = control

    @Endpoint("POST /policy/replay", "Try another policy on the latest questions", is_question=True)
    async def replay(self, _: web.Request, body: ReplayBody) -> ReplayDocument:
        """Put the latest questions to a proposed policy; return where its answers differ from those of today."""
        faults = []
        added = []
        for index, given in enumerate(body.add):
            try:
                added.append(make_grant(given.content(), f"proposed-{index + 1}"))
            except InvalidError as error:
                faults += [Fault(pointer_to(["add", index, field]), text) for field, text in error.faults]
        grants = await self._directory.grants.list()
        unknown = set(body.remove) - {grant.id for grant in grants}
        faults += [
            Fault(pointer_to(["remove", index]), "there is no grant with this id")
            for index, grant_id in enumerate(body.remove)
            if grant_id in unknown
        ]
        if faults:
            raise invalid(faults)
        self._files.flush()
        decisions = await asyncio.to_thread(read_decisions, self._files.directory, body.limit)
        policy = await self._control.policy()
        kept = [] if body.replace else [grant for grant in grants if grant.id not in set(body.remove)]
        members = {name: [each.removeprefix("user:") for each in inside] for name, inside in body.groups.items()}
        return await _compare(policy, policy.with_grants([*kept, *added], members), decisions)


async def _compare(today: Policy, proposed: Policy, decisions: Sequence[RecordedDecision]) -> ReplayDocument:
    """Return the questions that the proposed policy newly denies or allows; other requests are served meanwhile."""
    denied, allowed = [], []
    for index, each in enumerate(decisions):
        if index % _CHUNK == _CHUNK - 1:
            await asyncio.sleep(0)
        question = (each.subject, each.repository, Action(each.action), each.tag)
        (before, _), (after, _) = today.decide_request(*question), proposed.decide_request(*question)
        if before.allowed and not after.allowed:
            denied.append(QuestionDocument.of(each, grant=before.grant, reason=after.reason))
        elif after.allowed and not before.allowed:
            allowed.append(QuestionDocument.of(each, grant=after.grant, reason=after.reason))
    return ReplayDocument(
        decisions=len(decisions),
        since=min((each.first_at for each in decisions), default=None),
        newly_denied=denied,
        newly_allowed=allowed,
        subjects_newly_denied=sorted({question.subject for question in denied}),
        subjects_newly_allowed=sorted({question.subject for question in allowed}),
    )
