"""Comparisons of the admin API: the replicas of an upstream, compared in the background."""

import asyncio
from collections.abc import Mapping
from typing import Annotated

from aiohttp import web
from pydantic import Field

from registry_proxy.api.models import Body, Document, Text, WholeSeconds
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import ProblemError
from registry_proxy.api.requests import read_query
from registry_proxy.ports.repair import Comparison, Difference
from registry_proxy.tasks import spawn
from registry_proxy.upkeep.upstreams import Upstream, find_upstream


class VerifyBody(Body):
    """POST of a comparison: whether differences are repaired, and which replica decides where nothing else does."""

    repair: bool = False
    mend: Annotated[bool, Field(description="The former name of repair.", json_schema_extra={"deprecated": True})] = (
        False
    )
    prefer: str | None = None


class DifferenceDocument(Document):
    """A content that a replica misses; where ``replica`` is null all replicas miss it, and it is lost."""

    repository: Text
    kind: str
    name: str
    replica: str | None
    wanted: Text | None
    found: Text | None
    holders: list[str]


class FailureDocument(Document):
    """A replica that could not answer for a content, and the reason."""

    key: str
    replica: str
    reason: str


class ComparisonDocument(Document):
    """Progress and findings of a comparison of replicas; the lists hold the first thousand."""

    started_at: WholeSeconds
    done: Annotated[bool, Field(validation_alias="is_done")]
    error: str
    repositories: int
    repositories_done: int
    manifests: int
    blobs: int
    differing: int
    undecided: int
    lost: int
    sparse: Annotated[int, Field(description="Children of indexes that no replica has, and that nobody lost.")]
    repaired: int
    mended: Annotated[int, Field(description="The former name of repaired.", json_schema_extra={"deprecated": True})]
    failed: int
    differences: list[DifferenceDocument]
    failures: list[FailureDocument]


class ComparisonResource:
    """The handlers of comparisons; one is remembered until the next one of its upstream, by this process."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams
        self._comparisons: dict[str, Comparison] = {}
        self._running: set[asyncio.Task[None]] = set()

    @Endpoint("POST /upstreams/{name}/verify", "Begin to compare the replicas", statuses=(202,))
    async def verify_upstream(self, request: web.Request, body: VerifyBody) -> ComparisonDocument:
        """Start a comparison; 202, and GET returns its progress."""
        name, upstream = find_upstream(request, self._upstreams)
        if body.prefer is not None:
            upstream.check_replica("#/prefer", body.prefer)
        current = self._comparisons.get(name)
        if current is not None and not current.is_done:
            raise ProblemError(409, f"the replicas of {name} are being compared already")
        verifier = upstream.verifier
        comparison = self._comparisons[name] = verifier.new()
        comparing = verifier.compare(comparison, repair=body.repair or body.mend, prefer=body.prefer)
        task = spawn(comparing, f"comparison of {name}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return _document(comparison)

    @Endpoint("GET /upstreams/{name}/verify", "Show the running comparison, or else the last one")
    async def get_comparison(self, request: web.Request) -> ComparisonDocument:
        """Return the running comparison, or else the last one."""
        read_query(request)
        name, _ = find_upstream(request, self._upstreams)
        if (comparison := self._comparisons.get(name)) is None:
            raise ProblemError(404, f"the replicas of {name} were not compared since this node was started")
        return _document(comparison)


def _document(comparison: Comparison) -> ComparisonDocument:
    differences = [_difference_document(difference) for difference in comparison.differences]
    return ComparisonDocument.of(comparison, differences=differences, mended=comparison.repaired)


def _difference_document(difference: Difference) -> DifferenceDocument:
    key = difference.key
    return DifferenceDocument.of(difference, repository=key.routed.repository, kind=key.kind, name=key.name)
