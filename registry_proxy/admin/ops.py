"""Pages of the admin listener for monitoring, without credentials: /metrics, /healthz, /readyz."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web

from registry_proxy.access.control import AccessControl
from registry_proxy.access.snapshot import WatchedChanges
from registry_proxy.admission.auth import OPS_PATHS
from registry_proxy.http.connections import Connections
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.metrics import Listener
from registry_proxy.ports.replicas import ReplicaState, UpstreamStatus
from registry_proxy.telemetry.metrics import CONTENT_TYPE

PUBLIC: Final = "public"
ADMIN: Final = "admin"


@dataclass(frozen=True, slots=True)
class State:
    """State of the node, in words.

    ``reasons`` say why it should get no requests; ``warnings`` what it cannot do, and no other node could either.
    """

    reasons: Sequence[str] = ()
    warnings: Sequence[str] = ()


StateSource = Callable[[], Awaitable[State]]


class Warns(Protocol):
    """Knows what an operator should know of one upstream."""

    def warnings(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Readiness:
    """Tells whether the node is ready; call it.

    Replicas that are down, or a store that is away, are no reason: they are the same for all nodes, which a load
    balancer would take out all at once, with what is in their caches.

    Args:
        upstreams: by name.
        control: where permissions come from; it may answer from its snapshot while the store is away.
        store: knows whether it is away.
        repairers: what repairs the upstreams, by name.
        store_warnings: texts that say that the store is empty or older than it was.
        is_draining: whether the node is about to stop.
        connections: those of this worker's listeners, by the listener's name.
        is_stand_in: whether a cache in memory stands in for one whose disk does not answer.
    """

    upstreams: Mapping[str, UpstreamStatus]
    control: AccessControl
    store: WatchedChanges
    repairers: Mapping[str, Warns]
    store_warnings: Callable[[], Awaitable[Sequence[str]]]
    is_draining: Callable[[], bool]
    connections: Mapping[Listener, Connections]
    is_stand_in: bool = False

    async def __call__(self) -> State:
        reasons = ["this node is draining"] if self.is_draining() else []
        try:
            await self.control.policy()
        except StoreUnavailableError:
            reasons.append("the store cannot be reached, and permissions are not known")
        # One that is behind in some keys still serves all others.
        warnings = [
            f"no replica of upstream {name} is up"
            for name, upstream in self.upstreams.items()
            if not any(replica.state in {ReplicaState.UP, ReplicaState.BEHIND} for replica in upstream.status())
        ]
        if self.store.is_silent():
            since = f"has not answered for {self.store.seconds_since_contact():.0f} s"
            warnings.append(
                f"the store {since}: permissions are those of then, pushes and changes are answered with 503"
            )
        warnings += await self.store_warnings()
        if self.is_stand_in:
            warnings.append(
                "the disk of the cache does not answer: content comes from the replicas, and a push that one of them"
                " misses is answered with 503"
            )
        sources: Sequence[Warns] = [*self.upstreams.values(), *self.repairers.values()]
        warnings += [warning for source in sources for warning in source.warnings()]
        for name, connections in self.connections.items():
            match connections.shortage():
                case "full" if name == PUBLIC:
                    reasons.append(f"{connections.total} connections are open, and new ones are refused")
                case "full" | "short":
                    warnings.append(
                        f"connections of the {name} listener run short: {connections.total} are open, and those that "
                        "are slow or at rest are ended for others"
                    )
                case _:
                    pass
        return State(reasons, warnings)


def add_ops_routes(app: web.Application, render_metrics: Callable[[], bytes], readiness: StateSource) -> None:
    """Add the paths to the admin listener.

    Args:
        app: where.
        render_metrics: gives the exposition of all workers of the node; called in a thread, for it reads files.
        readiness: the node's state.
    """

    async def metrics(_: web.Request) -> web.Response:
        body = await asyncio.to_thread(render_metrics)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        state = await readiness()
        document = {"ready": not state.reasons, "reasons": list(state.reasons), "warnings": list(state.warnings)}
        return web.json_response(document, status=503 if state.reasons else 200)

    for path, handler in zip(OPS_PATHS, (metrics, healthz, readyz), strict=True):
        app.router.add_get(path, handler)
