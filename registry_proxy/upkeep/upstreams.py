"""Upstreams of the admin API: the states of their replicas, pauses and repair."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

from aiohttp import web
from pydantic import Field

from registry_proxy.admission.auth import CALLER
from registry_proxy.api.models import Body, Document, EmptyBody, Page, WholeSeconds
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import Fault, ProblemError, invalid
from registry_proxy.api.requests import PAGE, read_page, read_query
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.journal import Pause, PauseRefusedError
from registry_proxy.ports.repair import Maintains, Repairs, RepairStatus, Verifies
from registry_proxy.ports.replicas import ReplicaState, ReplicaStatus, UpstreamStatus


class RepairDocument(Document):
    """Progress of the repair of one replica; ``done`` and ``failed`` count keys."""

    running: Annotated[bool, Field(validation_alias="is_running")]
    started_at: WholeSeconds | None
    done: int
    failed: int
    error: str


class PauseDocument(Document):
    """The pause of a replica: its reason, user and start.

    ``quiet`` once all writes to it have ended that began before: a program that reads its whole storage can start then.
    """

    reason: str
    by: str
    since: WholeSeconds
    quiet: bool


class ReplicaDocument(Document):
    """State of one replica; ``reason`` says why it is not up, "" when it is.

    It misses ``pending`` keys, and cannot have ``refused`` others.
    ``keeps_apart``: whether it answers for a content only in the repositories that hold it; null while unknown.
    ``paused`` is null where it is written to.
    """

    name: str
    url: str
    state: ReplicaState
    reason: str
    latency_seconds: float | None
    pending: int
    refused: int
    keeps_apart: bool | None
    paused: PauseDocument | None
    repair: RepairDocument


class UpstreamDocument(Document):
    """An upstream and its replicas; none of these has ``lost`` keys any more.

    ``warnings`` say what this node no longer keeps for a replica that misses it, and which pause may be forgotten.
    """

    name: str
    lost: int
    replicas: list[ReplicaDocument]
    warnings: list[str]


class PauseBody(Body):
    """The replica to exclude from writes and repair, with a reason for people."""

    replica: str
    reason: Annotated[str, Field(max_length=500)] = ""


class ResumeBody(Body):
    """The replica to write to again; ``force`` resumes also one that answers for blobs that are gone."""

    replica: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Upstream:
    """The services of one upstream."""

    replicas: UpstreamStatus
    repairs: Repairs
    verifier: Verifies
    maintenance: Maintains

    def check_replica(self, pointer: str, replica: str) -> None:
        """Raise ProblemError for a name in the body that none of the replicas has."""
        names = [each.name for each in self.replicas.status()]
        if replica not in names:
            raise invalid([Fault(pointer, f"expected one of its replicas: {', '.join(names)}")])


def find_upstream(request: web.Request, upstreams: Mapping[str, Upstream]) -> tuple[str, Upstream]:
    """Return the upstream in the path, with its name. Raises ProblemError."""
    name = request.match_info["name"]
    if name not in upstreams:
        raise ProblemError(404, f"there is no upstream {name[:100]!r}; there are: {', '.join(upstreams)}")
    return name, upstreams[name]


class UpstreamResource:
    """The handlers of upstreams."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams

    @Endpoint("GET /upstreams", "List upstreams and the states of their replicas", Page[UpstreamDocument], query=PAGE)
    async def list_upstreams(self, request: web.Request) -> web.Response:
        page = read_page(request)
        documents = {name: await _document(name, upstream) for name, upstream in self._upstreams.items()}
        return page.answer(documents, lambda document: document)

    @Endpoint("GET /upstreams/{name}", "Show an upstream")
    async def get_upstream(self, request: web.Request) -> UpstreamDocument:
        read_query(request)
        return await _document(*find_upstream(request, self._upstreams))

    @Endpoint("POST /upstreams/{name}/repair", "Try pending and refused contents at once", statuses=(202,))
    async def repair_upstream(self, request: web.Request, _body: EmptyBody) -> UpstreamDocument:
        """Try pending and refused contents at once; the upstream's document has the progress."""
        name, upstream = find_upstream(request, self._upstreams)
        await upstream.repairs.retry()
        return await _document(name, upstream)

    @Endpoint("POST /upstreams/{name}/pause", "Take a replica out of writes and repair")
    async def pause_replica(self, request: web.Request, body: PauseBody) -> UpstreamDocument:
        """Pause a replica; ``quiet`` in its document means that no write to it is under way."""
        name, upstream = find_upstream(request, self._upstreams)
        upstream.check_replica("#/replica", body.replica)
        with _refused_as_problem():
            await upstream.maintenance.pause(body.replica, body.reason, request[CALLER].subject)
        return await _document(name, upstream)

    @Endpoint("POST /upstreams/{name}/resume", "Write to a paused replica again")
    async def resume_replica(self, request: web.Request, body: ResumeBody) -> UpstreamDocument:
        """End a pause: the writes that the replica missed are repaired, as after an outage."""
        name, upstream = find_upstream(request, self._upstreams)
        upstream.check_replica("#/replica", body.replica)
        with _refused_as_problem():
            await upstream.maintenance.resume(body.replica, request[CALLER].subject, force=body.force)
        return await _document(name, upstream)


@contextmanager
def _refused_as_problem() -> Iterator[None]:
    try:
        yield
    except PauseRefusedError as error:
        raise ProblemError(409, str(error)) from error


async def _document(name: str, upstream: Upstream) -> UpstreamDocument:
    await upstream.replicas.refresh()
    replicas = [
        _replica_document(each, upstream.repairs.status(each.name), await _pause_document(each.pause, upstream))
        for each in upstream.replicas.status()
    ]
    warnings = [*upstream.repairs.warnings(), *upstream.replicas.warnings()]
    return UpstreamDocument(name=name, lost=upstream.replicas.lost, replicas=replicas, warnings=warnings)


def _replica_document(replica: ReplicaStatus, repair: RepairStatus, pause: PauseDocument | None) -> ReplicaDocument:
    reasons = (replica.reason, repair.error if replica.state is ReplicaState.BEHIND else "")
    return ReplicaDocument.of(
        replica,
        url=_without_credentials(replica.url),
        reason="; ".join(filter(None, reasons)),
        paused=pause,
        repair=RepairDocument.of(repair),
    )


async def _pause_document(pause: Pause | None, upstream: Upstream) -> PauseDocument | None:
    if pause is None:
        return None
    quiet = False
    with suppress(StoreUnavailableError):  # then it is not known
        quiet = await upstream.maintenance.is_quiet(pause)
    return PauseDocument.of(pause, quiet=quiet)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
