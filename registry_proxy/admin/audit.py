"""The audit log of the admin API, and what another policy would have said to what was asked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from aiohttp import web

from registry_proxy.access.directory import Directory
from registry_proxy.access.faults import InvalidError
from registry_proxy.access.grant import make_grant
from registry_proxy.access.grants import Policy
from registry_proxy.access.subject import ANONYMOUS, parse_subject
from registry_proxy.admin.auth import CALLER, Control
from registry_proxy.admin.bodies import AcceptBody, EmptyBody, ReplayBody
from registry_proxy.admin.documents import (
    AcceptedFaultDocument,
    AuditPage,
    AuditVerificationDocument,
    ChainDocument,
    ChainFaultDocument,
    OtherNodeDocument,
    QuestionDocument,
    ReplayDocument,
)
from registry_proxy.admin.openapi import Endpoint
from registry_proxy.admin.problems import Fault, ProblemError, invalid, pointer_to
from registry_proxy.admin.requests import ASKED_FOR, format_time, read_body, read_page, read_query
from registry_proxy.audit.chain import ChainReport
from registry_proxy.audit.search import AuditQuery, place_of, search, search_last
from registry_proxy.audit.signing import AuditVerification, NotAcceptableError
from registry_proxy.audit.sinks import RecordedDecision, read_decisions
from registry_proxy.audit.trail import format_moment
from registry_proxy.protocol.scope import Action

_FIELDS = ("subject", "repository", "action", "outcome", "request_id")
_OUTCOMES = ("ok", "refused", "limited", "denied", "failed")
_QUERY = ("since", "until", "limit", "after", "last", *_FIELDS)
_CHUNK = 500


class Verifier(Protocol):
    """``telemetry.audit_signing.AuditVerifier``, which says what it raises."""

    async def verify(self) -> AuditVerification: ...
    async def accept(self, by: str, reason: str) -> AuditVerification: ...


@dataclass(frozen=True, slots=True)
class AuditFiles:
    """The audit log of this node: where it lies, what verifies it, and what hands out what was asked just now."""

    directory: str
    verifier: Verifier
    flush: Callable[[], None]


def _chain_document(report: ChainReport) -> ChainDocument:
    return ChainDocument(
        process=report.process,
        first=report.first,
        last=report.last,
        signed_at=format_time(report.signed_at),
        unsigned=report.unsigned,
        begins_at=report.begins_at,
        removed=max(0, report.first - 1),
        faults=[ChainFaultDocument(file=fault.file, line=fault.line, text=fault.text) for fault in report.faults],
        accepted=[
            AcceptedFaultDocument(
                file=each.fault.file,
                line=each.fault.line,
                text=each.fault.text,
                by=each.by,
                at=format_time(each.at),
                reason=each.reason,
            )
            for each in report.accepted
        ],
    )


def _question_document(decision: RecordedDecision, grant: str | None, reason: str) -> QuestionDocument:
    return QuestionDocument(
        subject=decision.subject,
        repository=decision.repository,
        tag=decision.tag,
        action=Action(decision.action),
        count=decision.count,
        first_at=decision.first_at,
        last_at=decision.last_at,
        grant=grant,
        reason=reason,
    )


class AuditResources:
    """The handlers over the audit log and the recorded decisions of this node."""

    def __init__(self, files: AuditFiles, directory: Directory, control: Control) -> None:
        self._files = files
        self._directory = directory
        self._control = control
        self._verifying = asyncio.Lock()

    def routes(self) -> list[Endpoint]:
        """Return the routes, below /admin/v1."""
        return [
            Endpoint(
                "GET",
                "/audit",
                self.list_events,
                "List events of the audit log of this node",
                {200: AuditPage},
                query=_QUERY,
            ),
            Endpoint(
                "POST",
                "/audit/verify",
                self.verify,
                "Compare the audit log with its hashes and signatures",
                {200: AuditVerificationDocument},
                body=EmptyBody,
            ),
            Endpoint(
                "POST",
                "/audit/accept",
                self.accept,
                "Accept the faults of the audit log: they are told, and do not count any more",
                {200: AuditVerificationDocument},
                body=AcceptBody,
            ),
            Endpoint(
                "POST",
                "/policy/replay",
                self.replay,
                "Try another policy on what was asked lately",
                {200: ReplayDocument},
                body=ReplayBody,
            ),
        ]

    async def list_events(self, request: web.Request) -> web.Response:
        """List events, oldest first; with ``last`` only that many of the newest."""
        query = read_query(request, _QUERY)
        page = read_page(query)
        _check_fields(query)
        wanted = AuditQuery(
            since=_read_time(query.get("since"), "since"),
            until=_read_time(query.get("until"), "until"),
            after=_read_place(page.after),
            fields={name: query[name] for name in _FIELDS if name in query},
        )
        if "last" in query:
            count = read_page({"limit": query["last"]}).limit
            events = await asyncio.to_thread(search_last, self._files.directory, wanted, count)
            # There are no older ones to go on with: ``next`` is where new ones will come.
            return web.json_response({"items": events, "next": place_of(events[-1]) if events else None})
        events = await asyncio.to_thread(search, self._files.directory, wanted, page.limit + 1)
        more, events = len(events) > page.limit, events[: page.limit]
        return web.json_response({"items": events, "next": place_of(events[-1]) if more else None})

    async def verify(self, request: web.Request) -> web.Response:
        """Read the whole log and compare it with its hashes and signatures."""
        await read_body(request, EmptyBody)
        async with self._verified_once():
            return await self._verification()

    async def accept(self, request: web.Request) -> web.Response:
        """Accept all faults that there are, and record each in the log."""
        body = await read_body(request, AcceptBody)
        async with self._verified_once():
            try:
                found = await self._files.verifier.accept(request[CALLER].subject, body.reason)
            except NotAcceptableError as error:
                raise ProblemError(409, str(error)) from None
            faults = [f"{report.process}: {fault.text}" for report in found.reports for fault in report.faults]
            request[ASKED_FOR] = {"reason": body.reason, "faults": faults}
            return await self._verification()

    @contextlib.asynccontextmanager
    async def _verified_once(self) -> AsyncIterator[None]:
        """Refuse a second walk over the whole log beside one. Raises ProblemError."""
        if self._verifying.locked():
            raise ProblemError(409, "the audit log is being verified already: wait until that has ended")
        async with self._verifying:
            yield

    async def _verification(self) -> web.Response:
        found = await self._files.verifier.verify()
        document = AuditVerificationDocument(
            intact=not any(report.faults for report in found.reports),
            processes=[_chain_document(report) for report in found.reports],
            elsewhere=[
                OtherNodeDocument(node=node, signed_at=format_time(signed_at))
                for node, signed_at in sorted(found.elsewhere.items())
            ],
        )
        return web.json_response(document.as_json())

    async def replay(self, request: web.Request) -> web.Response:
        """Ask a proposed policy what was asked lately, and tell where its answers differ from those of today."""
        body = await read_body(request, ReplayBody)
        faults = []
        added = []
        for index, given in enumerate(body.add):
            try:
                added.append(make_grant(given.content(), f"proposed-{index + 1}"))
            except InvalidError as error:
                faults += [Fault(pointer_to(["add", index, field]), text) for field, text in error.faults]
        grants = await self._directory.list_grants()
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
        document = await _compare(policy, policy.with_grants([*kept, *added], members), decisions)
        return web.json_response(document.as_json())


async def _compare(today: Policy, proposed: Policy, decisions: Sequence[RecordedDecision]) -> ReplayDocument:
    """Return what the proposed policy newly denies and newly allows; others are served meanwhile."""
    denied, allowed = [], []
    for index, each in enumerate(decisions):
        if index % _CHUNK == _CHUNK - 1:
            await asyncio.sleep(0)
        question = (each.subject, each.repository, Action(each.action), each.tag)
        (before, _), (after, _) = today.decide_request(*question), proposed.decide_request(*question)
        if before.allowed and not after.allowed:
            denied.append(_question_document(each, before.grant, after.reason))
        elif after.allowed and not before.allowed:
            allowed.append(_question_document(each, after.grant, after.reason))
    return ReplayDocument(
        decisions=len(decisions),
        since=min((each.first_at for each in decisions), default=None),
        newly_denied=denied,
        newly_allowed=allowed,
        subjects_newly_denied=sorted({question.subject for question in denied}),
        subjects_newly_allowed=sorted({question.subject for question in allowed}),
    )


def _check_fields(query: Mapping[str, str]) -> None:
    """Refuse what nothing in the log can be: "nothing found" would be taken for "nothing happened"."""
    if query.get("outcome", _OUTCOMES[0]) not in _OUTCOMES:
        raise ProblemError(400, f"outcome: expected one of {', '.join(_OUTCOMES)}")
    try:
        parse_subject(query.get("subject", ANONYMOUS))
    except ValueError as error:
        raise ProblemError(400, f"subject: {error}") from None


def _read_time(text: str | None, name: str) -> str:
    """Return a time as the log has it; "" for none."""
    if text is None:
        return ""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return format_moment(moment.timestamp())
    expected = "expected a time with its zone (RFC 3339), such as 2030-01-31T00:00:00Z"
    if " " in text:
        expected += "; write + as %2B"
    raise ProblemError(400, f"{name}: {expected}")


def _read_place(text: str) -> str:
    if text:
        _read_time(text.partition("/")[0], "after")
    return text
