"""The admin listener: the admin API below /admin/v1, for whom ``admin_auth`` lets in, and what monitoring reads."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from registry_proxy.access.directory import Directory
from registry_proxy.access.tokens import TokenSigner
from registry_proxy.admin.access import AccessResources, answer_directory_errors
from registry_proxy.admin.audit import AuditFiles, AuditResources
from registry_proxy.admin.auth import AdminGuard, Control
from registry_proxy.admin.bodies import BODY_MAX_BYTES
from registry_proxy.admin.identities import IdentityResources
from registry_proxy.admin.me import MeResources
from registry_proxy.admin.node import Cache, NodeResources
from registry_proxy.admin.openapi import OpenApiResource
from registry_proxy.admin.ops import OPS_PATHS, StateSource, add_ops_routes
from registry_proxy.admin.policy import PolicyResources
from registry_proxy.admin.problems import answer_problems
from registry_proxy.admin.replicas import ReplicaResources
from registry_proxy.admin.repositories import KnownRepositories, RepositoryResources
from registry_proxy.admin.sites import Sites
from registry_proxy.admin.warm import WarmResources
from registry_proxy.operations.warm import Warmer
from registry_proxy.ports.events import AuditLog, ReloadOutcome
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.repair import Maintains, Repairs, Verifies
from registry_proxy.ports.replicas import UpstreamStatus
from registry_proxy.protocol.reference import Digest, Repository
from registry_proxy.tasks import request_id

_PREFIX = "/admin/v1"


class AdminControl(Control, Protocol):
    """``Control``, and what it does to keys."""

    async def rotate_key(self, signer: TokenSigner) -> str: ...


@dataclass(frozen=True, slots=True)
class AdminServices:
    """The services below the admin listener.

    Args:
        directory: users, groups, grants.
        control: logins, tokens and the current policy.
        signer: whose key can be rotated.
        replicas: the replicas of each upstream, by its name.
        repairers: what repairs them, by the upstream's name.
        verifiers: what compares them, by the upstream's name.
        cache: the node's cache.
        warmer: brings images into it.
        route: says where a repository lies.
        known: which repositories there are.
        purge_repository: forgets what a repository holds and returns it; waits for the disk.
        render_metrics: gives the exposition of all workers of the node.
        readiness: tells whether the node is ready; ``ops.Readiness``.
        reload: reads the configuration again; the workers that serve then are others.
        sites: refuses requests by foreign names and from foreign pages.
        client_address: tells who sent a request, also behind a trusted proxy.
        name_request: gives a request its ID.
        audit: is told of logins, refusals and changes.
        observer: receives an event for each login.
        audit_files: the audit log of the node.
    """

    directory: Directory
    control: AdminControl
    signer: TokenSigner
    replicas: Mapping[str, UpstreamStatus]
    repairers: Mapping[str, Repairs]
    verifiers: Mapping[str, Verifies]
    maintenances: Mapping[str, Maintains]
    cache: Cache
    warmer: Warmer
    route: Callable[[Repository], RoutedRepository]
    known: KnownRepositories
    purge_repository: Callable[[Repository], Collection[Digest]]
    render_metrics: Callable[[], bytes]
    readiness: StateSource
    reload: Callable[[], Awaitable[ReloadOutcome]]
    sites: Sites
    client_address: Callable[[web.BaseRequest], str]
    name_request: Callable[[web.BaseRequest], str]
    audit: AuditLog
    observer: Observer
    audit_files: AuditFiles


def make_admin_app(services: AdminServices) -> web.Application:
    """Return the application of the admin listener; its runner needs no settings of its own."""
    guard = AdminGuard(
        control=services.control,
        open_paths=OPS_PATHS,
        prefix=_PREFIX,
        sites=services.sites,
        client_address=services.client_address,
        name_request=services.name_request,
        audit=services.audit,
        observer=services.observer,
    )
    app = web.Application(
        middlewares=[answer_problems, guard.middleware(), answer_directory_errors], client_max_size=BODY_MAX_BYTES
    )
    app.on_response_prepare.append(_name_the_request)
    access = AccessResources(services.directory, services.control)
    node = NodeResources(
        cache=services.cache,
        purge_repository=services.purge_repository,
        render_metrics=services.render_metrics,
        reload=services.reload,
    )
    identities = IdentityResources(
        services.directory, services.control, lambda: services.control.rotate_key(services.signer)
    )
    me = MeResources(services.directory, services.control, services.client_address)
    replicas = ReplicaResources(services.replicas, services.repairers, services.verifiers, services.maintenances)
    warming = WarmResources(services.warmer, services.route)
    repositories = RepositoryResources(services.known)
    audit = AuditResources(services.audit_files, services.directory, services.control)
    policy = PolicyResources(services.directory, services.control)
    resources = (access, policy, identities, me, node, replicas, repositories, warming, audit)
    endpoints = [endpoint for each in resources for endpoint in each.routes()]
    openapi = OpenApiResource(endpoints, _PREFIX)
    for endpoint in [*endpoints, *openapi.routes()]:
        app.router.add_route(endpoint.method, _PREFIX + endpoint.path, endpoint.handler)
    add_ops_routes(app, services.render_metrics, services.readiness)
    return app


async def _name_the_request(_: web.Request, response: web.StreamResponse) -> None:
    """Give the answer the ID that is in the audit log; say nothing of the server."""
    response.headers.popall("Server", None)
    response.headers["X-Request-ID"] = request_id.get()
