"""The admin listener: the admin API below /admin/v1, behind ``admin.auth``, and the pages for monitoring."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from aiohttp import web

from registry_proxy.access.tokens import TokenSigner
from registry_proxy.admin.audit import AuditFiles, AuditResource
from registry_proxy.admin.deliveries import DeliveryResource
from registry_proxy.admin.deployments import DeploymentResource
from registry_proxy.admin.grants import GrantResource
from registry_proxy.admin.groups import GroupResource
from registry_proxy.admin.manifests import ManifestResource
from registry_proxy.admin.me import MeResource
from registry_proxy.admin.ops import StateSource, add_ops_routes
from registry_proxy.admin.policy import PolicyResource
from registry_proxy.admin.replay import ReplayResource
from registry_proxy.admin.repositories import KnownRepositories, RepositoryResource
from registry_proxy.admin.robots import RobotResource
from registry_proxy.admin.rules import RuleResource
from registry_proxy.admin.subscriptions import SubscriptionResource
from registry_proxy.admin.tags import TagResource
from registry_proxy.admin.tokens import Secrets, TokenResource
from registry_proxy.admin.users import UserResource
from registry_proxy.admission.auth import AdminGuard
from registry_proxy.api.models import BODY_MAX_BYTES
from registry_proxy.api.openapi import OpenApiResource, endpoints_of
from registry_proxy.api.problems import answer_problems
from registry_proxy.directory.deployments import Deployments
from registry_proxy.directory.directory import Directory
from registry_proxy.events.receivers import ReceiverLimits
from registry_proxy.events.record import DeliveryRecord
from registry_proxy.history.open import History
from registry_proxy.operations.warm import Warmer
from registry_proxy.ports.events import ReloadOutcome
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Digest, Repository
from registry_proxy.rules.registering import RegisteredBases
from registry_proxy.tasks import request_id
from registry_proxy.upkeep.cache import Cache, CacheResource
from registry_proxy.upkeep.comparisons import ComparisonResource
from registry_proxy.upkeep.exceptions import ExceptionResource
from registry_proxy.upkeep.keys import KeyResource
from registry_proxy.upkeep.node import NodeResource
from registry_proxy.upkeep.upstreams import Upstream, UpstreamResource
from registry_proxy.upkeep.warm import WarmResource

_PREFIX = "/admin/v1"


@dataclass(frozen=True, slots=True)
class AdminServices:
    """The services below the admin listener.

    Args:
        directory: users, groups, grants.
        signer: whose key can be rotated.
        upstreams: by name.
        cache: the node's cache.
        warmer: brings images into it.
        route: says where a repository lies.
        known: which repositories there are.
        history: what their tags are and were.
        purge_repository: forgets what a repository holds and returns it; waits for the disk.
        render_metrics: gives the exposition of all workers of the node.
        readiness: the node's state; ``ops.Readiness``.
        reload: reads the configuration again; the workers that serve then are others.
        guard: lets requests through; knows logins, tokens and the current policy.
        audit_files: the audit log of the node.
        deliveries: events on their way to receivers.
        receivers: the receivers that events may reach.
        public_url: where clients reach the registry; "" where that is not configured.
        deployments: reports of what runs where.
        bases: images that others are built FROM.
    """

    directory: Directory
    signer: TokenSigner
    upstreams: Mapping[str, Upstream]
    cache: Cache
    warmer: Warmer
    route: Callable[[Repository], RoutedRepository]
    known: KnownRepositories
    history: History
    purge_repository: Callable[[Repository], Collection[Digest]]
    render_metrics: Callable[[], bytes]
    readiness: StateSource
    reload: Callable[[], Awaitable[ReloadOutcome]]
    guard: AdminGuard
    audit_files: AuditFiles
    deliveries: DeliveryRecord
    receivers: ReceiverLimits
    public_url: str
    deployments: Deployments
    bases: RegisteredBases


def make_admin_app(services: AdminServices) -> web.Application:
    """Return the application of the admin listener; its runner needs no settings of its own."""
    app = web.Application(middlewares=[answer_problems, services.guard.middleware()], client_max_size=BODY_MAX_BYTES)
    app.on_response_prepare.append(_name_the_request)
    directory, control = services.directory, services.guard.control
    secrets = Secrets(directory, control)
    resources = [
        UserResource(directory, control),
        GroupResource(directory.groups),
        GrantResource(directory, control),
        RobotResource(directory.robots, secrets),
        TokenResource(directory, secrets),
        KeyResource(lambda: control.keys.rotate(services.signer)),
        MeResource(directory, control, services.guard.client_address),
        PolicyResource(directory, control),
        ReplayResource(services.audit_files, directory, control),
        CacheResource(
            cache=services.cache,
            purge_repository=services.purge_repository,
            render_metrics=services.render_metrics,
        ),
        WarmResource(services.warmer, services.route),
        UpstreamResource(services.upstreams),
        ExceptionResource(services.upstreams),
        ComparisonResource(services.upstreams),
        RepositoryResource(services.known),
        TagResource(services.history, services.route, control, services.guard.client_address),
        ManifestResource(services.history.purge, services.route, services.guard.client_address),
        AuditResource(services.audit_files),
        RuleResource(directory.rules, services.bases, services.route),
        SubscriptionResource(
            directory.subscriptions, services.deliveries, control, services.receivers, services.public_url
        ),
        DeliveryResource(services.deliveries, directory.subscriptions),
        DeploymentResource(services.deployments, control, services.route, services.history.record),
        NodeResource(services.reload),
    ]
    for resource in (*resources, OpenApiResource(resources, _PREFIX)):
        for name, endpoint in endpoints_of(resource):
            app.router.add_route(endpoint.method, _PREFIX + endpoint.path, getattr(resource, name))
    add_ops_routes(app, services.render_metrics, services.readiness)
    return app


async def _name_the_request(_: web.Request, response: web.StreamResponse) -> None:
    """Give the answer the ID that is in the audit log; say nothing of the server."""
    response.headers.popall("Server", None)
    response.headers["X-Request-ID"] = request_id.get()
