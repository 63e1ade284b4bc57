"""The audit log of the admin API."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field

from registry_proxy.access.subject import ANONYMOUS, subject_fault
from registry_proxy.admission.auth import CALLER
from registry_proxy.api.models import Body, Document, EmptyBody, Page, Time, format_time
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import ProblemError
from registry_proxy.api.requests import ASKED_FOR, parse_page, read_query
from registry_proxy.audit.chain import ChainReport
from registry_proxy.audit.search import AuditQuery, place_of, search, search_last
from registry_proxy.audit.signing import AuditVerifier, NotAcceptableError
from registry_proxy.audit.trail import format_moment

_FIELDS = ("subject", "repository", "action", "outcome", "request_id")
_OUTCOMES = ("ok", "refused", "limited", "denied", "failed")
_QUERY = ("since", "until", "limit", "after", "last", *_FIELDS)


@dataclass(frozen=True, slots=True)
class AuditFiles:
    """The audit log of this node: its directory, its verifier, and a flush of the latest questions."""

    directory: str
    verifier: AuditVerifier
    flush: Callable[[], None]


class AcceptBody(Body):
    """POST to accept the faults of the audit log."""

    reason: Annotated[str, Field(min_length=1, max_length=500)]


class AuditPage(Page[dict[str, Any]]):
    """Events of the audit log, oldest first; fields that say nothing are absent."""


class ChainFaultDocument(Document):
    """A place where the audit log differs from its hashes or signatures."""

    file: str
    line: int
    text: str


class AcceptedFaultDocument(ChainFaultDocument):
    """A fault that an administrator has accepted."""

    by: str
    at: Time
    reason: str


class ChainDocument(Document):
    """Findings in one chain of the audit log; ``unsigned`` counts the lines after the last signature.

    Retention has removed ``removed`` lines, all of them older than ``begins_at``, the time of the first one left.
    """

    process: str
    first: int
    last: int
    begins_at: Time | None
    removed: int
    signed_at: Time | None
    unsigned: int
    faults: list[ChainFaultDocument]
    accepted: list[AcceptedFaultDocument]


class OtherNodeDocument(Document):
    """Another node whose log was signed into the store, last at this time; only that node can verify it."""

    node: str
    signed_at: Time | None


class AuditVerificationDocument(Document):
    """The result of a verification of this node's audit log; accepted faults and removals by retention do not count.

    ``elsewhere`` lists the nodes whose log is not here.
    """

    intact: bool
    processes: list[ChainDocument]
    elsewhere: list[OtherNodeDocument]


def _chain_document(report: ChainReport) -> ChainDocument:
    accepted = [
        AcceptedFaultDocument.of(each.fault, by=each.by, at=each.at, reason=each.reason) for each in report.accepted
    ]
    return ChainDocument.of(report, removed=max(0, report.first - 1), accepted=accepted)


class AuditResource:
    """The handlers of the audit log of this node."""

    def __init__(self, files: AuditFiles) -> None:
        self._files = files
        self._verifying = asyncio.Lock()

    @Endpoint("GET /audit", "List events of the audit log of this node", AuditPage, query=_QUERY)
    async def list_events(self, request: web.Request) -> web.Response:
        """List events, oldest first; with ``last`` only this number of the newest."""
        query = read_query(request, _QUERY)
        page = parse_page(query)
        _check_fields(query)
        wanted = AuditQuery(
            since=_read_time(query.get("since"), "since"),
            until=_read_time(query.get("until"), "until"),
            after=_read_place(page.after),
            fields={name: query[name] for name in _FIELDS if name in query},
        )
        if "last" in query:
            count = parse_page({"limit": query["last"]}).limit
            events = await asyncio.to_thread(search_last, self._files.directory, wanted, count)
            # There are no older ones to go on with: ``next`` is where new ones will come.
            return web.json_response({"items": events, "next": place_of(events[-1]) if events else None})
        events = await asyncio.to_thread(search, self._files.directory, wanted, page.limit + 1)
        more, events = len(events) > page.limit, events[: page.limit]
        return web.json_response({"items": events, "next": place_of(events[-1]) if more else None})

    @Endpoint("POST /audit/verify", "Compare the audit log with its hashes and signatures", is_question=True)
    async def verify(self, _: web.Request, _body: EmptyBody) -> AuditVerificationDocument:
        """Read the whole log and compare it with its hashes and signatures."""
        async with self._verified_once():
            return await self._verification()

    @Endpoint("POST /audit/accept", "Accept the faults of the audit log: they stay listed and no longer count")
    async def accept(self, request: web.Request, body: AcceptBody) -> AuditVerificationDocument:
        """Accept all faults that there are, and record each in the log."""
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
            raise ProblemError(409, "a verification of the audit log runs already: wait for its end")
        async with self._verifying:
            yield

    async def _verification(self) -> AuditVerificationDocument:
        found = await self._files.verifier.verify()
        return AuditVerificationDocument(
            intact=not any(report.faults for report in found.reports),
            processes=[_chain_document(report) for report in found.reports],
            elsewhere=[
                OtherNodeDocument(node=node, signed_at=format_time(at)) for node, at in sorted(found.elsewhere.items())
            ],
        )


def _check_fields(query: Mapping[str, str]) -> None:
    """Refuse values that no event can have: "nothing found" would be read as "nothing happened"."""
    if query.get("outcome", _OUTCOMES[0]) not in _OUTCOMES:
        raise ProblemError(400, f"outcome: expected one of {', '.join(_OUTCOMES)}")
    if (fault := subject_fault(query.get("subject", ANONYMOUS))) is not None:
        raise ProblemError(400, f"subject: {fault}")


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
