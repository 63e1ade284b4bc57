"""Upstreams of the admin API: how their replicas are, their repair, and comparing them."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aiohttp import web

from registry_proxy.admin.auth import CALLER
from registry_proxy.admin.bodies import ChosenBody, EmptyBody, PauseBody, ResumeBody, VerifyBody
from registry_proxy.admin.documents import (
    ComparisonDocument,
    DifferenceDocument,
    DismissalDocument,
    ExceptionDocument,
    FailureDocument,
    ForgottenDocument,
    Page,
    PauseDocument,
    RepairDocument,
    ReplicaDocument,
    UpstreamDocument,
)
from registry_proxy.admin.openapi import PAGE, Endpoint
from registry_proxy.admin.problems import Fault, ProblemError, invalid
from registry_proxy.admin.requests import format_time, read_body, read_page, read_query
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.journal import ContentException, Pause, PauseRefusedError
from registry_proxy.ports.repair import Comparison, Difference, Maintains, Repairs, RepairStatus, Verifies
from registry_proxy.ports.replicas import ReplicaState, ReplicaStatus, UpstreamStatus
from registry_proxy.tasks import spawn


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _replica_document(replica: ReplicaStatus, repair: RepairStatus, pause: PauseDocument | None) -> ReplicaDocument:
    started_at = None if repair.started_at is None else int(repair.started_at)
    return ReplicaDocument(
        name=replica.name,
        url=_without_credentials(replica.url),
        state=replica.state,
        reason="; ".join(filter(None, (replica.reason, repair.error if replica.state is ReplicaState.BEHIND else ""))),
        latency_seconds=replica.latency_seconds,
        pending=replica.pending,
        refused=replica.refused,
        keeps_apart=replica.keeps_apart,
        paused=pause,
        repair=RepairDocument(
            running=repair.is_running,
            started_at=format_time(started_at),
            done=repair.done,
            failed=repair.failed,
            error=repair.error,
        ),
    )


def _difference_document(difference: Difference) -> DifferenceDocument:
    key = difference.key
    return DifferenceDocument(
        repository=str(key.routed.repository),
        kind=str(key.kind),
        name=key.name,
        replica=difference.replica,
        wanted=None if difference.wanted is None else str(difference.wanted),
        found=None if difference.found is None else str(difference.found),
        holders=list(difference.holders),
    )


def _comparison_document(comparison: Comparison) -> dict[str, Any]:
    return ComparisonDocument(
        started_at=format_time(int(comparison.started_at)),
        done=comparison.is_done,
        error=comparison.error,
        repositories=comparison.repositories,
        repositories_done=comparison.repositories_done,
        manifests=comparison.manifests,
        blobs=comparison.blobs,
        differing=comparison.differing,
        undecided=comparison.undecided,
        lost=comparison.lost,
        mended=comparison.mended,
        failed=comparison.failed,
        differences=[_difference_document(difference) for difference in comparison.differences],
        failures=[FailureDocument(key=one.key, replica=one.replica, reason=one.reason) for one in comparison.failures],
    ).as_json()


def _exception_document(one: ContentException) -> ExceptionDocument:
    return ExceptionDocument(
        repository=str(one.key.routed.repository),
        kind=str(one.key.kind),
        name=one.key.name,
        lost=one.is_lost,
        refused=dict(one.refused),
        dismissed=one.is_dismissed,
    )


@contextmanager
def _refused_as_problem() -> Iterator[None]:
    try:
        yield
    except PauseRefusedError as error:
        raise ProblemError(409, str(error)) from error


class ReplicaResources:
    """The handlers; a comparison is remembered until the next one of its upstream, by this process."""

    def __init__(
        self,
        upstreams: Mapping[str, UpstreamStatus],
        repairers: Mapping[str, Repairs],
        verifiers: Mapping[str, Verifies],
        maintenances: Mapping[str, Maintains],
    ) -> None:
        self._upstreams = upstreams
        self._repairers = repairers
        self._verifiers = verifiers
        self._maintenances = maintenances
        self._comparisons: dict[str, Comparison] = {}
        self._running: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Endpoint]:
        """Return the routes, below /admin/v1."""
        return [
            Endpoint(
                "GET",
                "/upstreams",
                self.list_upstreams,
                "List upstreams and how their replicas are",
                {200: Page[UpstreamDocument]},
                query=PAGE,
            ),
            Endpoint("GET", "/upstreams/{name}", self.get_upstream, "Show an upstream", {200: UpstreamDocument}),
            Endpoint(
                "POST",
                "/upstreams/{name}/repair",
                self.repair_upstream,
                "Have what is pending, and what replicas refused, tried at once",
                {202: UpstreamDocument},
                body=EmptyBody,
            ),
            Endpoint(
                "GET",
                "/upstreams/{name}/exceptions",
                self.list_exceptions,
                "List what is lost, or refused by a replica",
                {200: Page[ExceptionDocument]},
                query=PAGE,
            ),
            Endpoint(
                "POST",
                "/upstreams/{name}/dismiss",
                self.dismiss_exceptions,
                "Stop to count and tell exceptions",
                {200: DismissalDocument},
                body=ChosenBody,
            ),
            Endpoint(
                "POST",
                "/upstreams/{name}/forget",
                self.forget_lost,
                "Forget contents that are lost, as if they had been deleted",
                {200: ForgottenDocument},
                body=ChosenBody,
            ),
            Endpoint(
                "POST",
                "/upstreams/{name}/pause",
                self.pause_replica,
                "Take a replica out of writes and repair",
                {200: UpstreamDocument},
                body=PauseBody,
            ),
            Endpoint(
                "POST",
                "/upstreams/{name}/resume",
                self.resume_replica,
                "Write to a paused replica again",
                {200: UpstreamDocument},
                body=ResumeBody,
            ),
            Endpoint(
                "POST",
                "/upstreams/{name}/verify",
                self.verify_upstream,
                "Begin to compare the replicas",
                {202: ComparisonDocument},
                body=VerifyBody,
            ),
            Endpoint(
                "GET",
                "/upstreams/{name}/verify",
                self.get_comparison,
                "Show the last comparison, or the one that runs",
                {200: ComparisonDocument},
            ),
        ]

    async def list_upstreams(self, request: web.Request) -> web.Response:
        page = read_page(read_query(request, PAGE))
        documents = {name: await self._upstream_document(name) for name in self._upstreams}
        return web.json_response(page.cut(documents, UpstreamDocument.as_json))

    async def get_upstream(self, request: web.Request) -> web.Response:
        read_query(request)
        document = await self._upstream_document(self._upstream_name(request))
        return web.json_response(document.as_json())

    async def repair_upstream(self, request: web.Request) -> web.Response:
        """Have what is pending or refused tried at once; how it goes is in the upstream's document."""
        name = self._upstream_name(request)
        await read_body(request, EmptyBody)
        await self._repairers[name].retry()
        return web.json_response((await self._upstream_document(name)).as_json(), status=202)

    async def list_exceptions(self, request: web.Request) -> web.Response:
        page = read_page(read_query(request, PAGE))
        name = self._upstream_name(request)
        exceptions = {str(one.key): one for one in await self._repairers[name].exceptions.list(name)}
        return web.json_response(page.cut(exceptions, lambda one: _exception_document(one).as_json()))

    async def dismiss_exceptions(self, request: web.Request) -> web.Response:
        """Dismiss exceptions: they stay in force, and are neither counted nor told any more."""
        name = self._upstream_name(request)
        body = await read_body(request, ChosenBody)
        count = await self._repairers[name].exceptions.dismiss(name, body.repository, body.name)
        return web.json_response(DismissalDocument(dismissed=count).as_json())

    async def forget_lost(self, request: web.Request) -> web.Response:
        """Forget lost contents: images that were deleted after the backup that was restored, for example."""
        name = self._upstream_name(request)
        body = await read_body(request, ChosenBody)
        count = await self._repairers[name].exceptions.forget(name, body.repository, body.name)
        return web.json_response(ForgottenDocument(forgotten=count).as_json())

    async def pause_replica(self, request: web.Request) -> web.Response:
        """Pause a replica; once its document says ``quiet`` nothing is being written to it any more."""
        name = self._upstream_name(request)
        body = await read_body(request, PauseBody)
        self._check_replica(name, "#/replica", body.replica)
        with _refused_as_problem():
            await self._maintenances[name].pause(body.replica, body.reason, request[CALLER].subject)
        return web.json_response((await self._upstream_document(name)).as_json())

    async def resume_replica(self, request: web.Request) -> web.Response:
        """End a pause: what the replica missed is repaired, as after an outage."""
        name = self._upstream_name(request)
        body = await read_body(request, ResumeBody)
        self._check_replica(name, "#/replica", body.replica)
        with _refused_as_problem():
            await self._maintenances[name].resume(body.replica, request[CALLER].subject, force=body.force)
        return web.json_response((await self._upstream_document(name)).as_json())

    def _check_replica(self, upstream: str, pointer: str, replica: str) -> None:
        replicas = [each.name for each in self._upstreams[upstream].status()]
        if replica not in replicas:
            raise invalid([Fault(pointer, f"expected one of its replicas: {', '.join(replicas)}")])

    def _upstream_name(self, request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in self._upstreams:
            raise ProblemError(404, f"there is no upstream {name[:100]!r}; there are: {', '.join(self._upstreams)}")
        return name

    async def _upstream_document(self, name: str) -> UpstreamDocument:
        await self._upstreams[name].refresh()
        repairs = self._repairers[name]
        replicas = self._upstreams[name].status()
        documents = [
            _replica_document(one, repairs.status(one.name), await self._pause_document(name, one.pause))
            for one in replicas
        ]
        warnings = [*repairs.warnings(), *self._upstreams[name].warnings()]
        return UpstreamDocument(name=name, lost=self._upstreams[name].lost, replicas=documents, warnings=warnings)

    async def _pause_document(self, upstream: str, pause: Pause | None) -> PauseDocument | None:
        if pause is None:
            return None
        quiet = False
        with suppress(StoreUnavailableError):  # then it is not known
            quiet = await self._maintenances[upstream].is_quiet(pause)
        return PauseDocument(reason=pause.reason, by=pause.by, since=format_time(int(pause.since)), quiet=quiet)

    async def verify_upstream(self, request: web.Request) -> web.Response:
        """Begin to compare; 202, and GET tells how far it is."""
        name = self._upstream_name(request)
        body = await read_body(request, VerifyBody)
        if body.prefer is not None:
            self._check_replica(name, "#/prefer", body.prefer)
        current = self._comparisons.get(name)
        if current is not None and not current.is_done:
            raise ProblemError(409, f"the replicas of {name} are being compared already")
        verifier = self._verifiers[name]
        comparison = self._comparisons[name] = verifier.new()
        task = spawn(verifier.compare(comparison, mend=body.mend, prefer=body.prefer), f"comparison of {name}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return web.json_response(_comparison_document(comparison), status=202)

    async def get_comparison(self, request: web.Request) -> web.Response:
        """Return the last comparison, or the one that runs."""
        read_query(request)
        name = self._upstream_name(request)
        if (comparison := self._comparisons.get(name)) is None:
            raise ProblemError(404, f"the replicas of {name} were not compared since this node was started")
        return web.json_response(_comparison_document(comparison))
