"""A real admin listener, with a real SQLite store and cache, and upstreams in the states of a test."""

import asyncio
import ipaddress
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import jsonschema_rs
from aiohttp import web
from aiohttp.test_utils import TestClient

from registry_proxy.access.control import AccessControl
from registry_proxy.access.tokens import TokenSigner, TokenVerifier, create_key_file, open_signed
from registry_proxy.admin.app import AdminServices, make_admin_app
from registry_proxy.admin.audit import AuditFiles
from registry_proxy.admin.ops import Readiness
from registry_proxy.admin.repositories import KnownRepositories
from registry_proxy.admission.auth import AdminGuard
from registry_proxy.admission.plain_http import PlainHttp
from registry_proxy.admission.sites import Sites
from registry_proxy.audit.signing import AuditVerifier, SignedDocuments
from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.holdings import FileHoldings
from registry_proxy.cache.layout import prepare_cache
from registry_proxy.directory.deployments import Deployments
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.users import UserInput
from registry_proxy.edge.middleware import RequestIds
from registry_proxy.edge.origin import Origins
from registry_proxy.events.outbox import StoreOutbox
from registry_proxy.events.receivers import ReceiverLimits
from registry_proxy.events.record import DeliveryRecord
from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.history.keepers import KeepLimits
from registry_proxy.history.labels import read_labels
from registry_proxy.history.open import open_history
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.tags import TagRules
from registry_proxy.operations.warm import Warmer
from registry_proxy.ports.events import ReloadOutcome
from registry_proxy.ports.journal import Pause, PauseRefusedError
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.repair import Comparison, Difference, RepairStatus
from registry_proxy.ports.replicas import ReplicaState, ReplicaStatus
from registry_proxy.ports.store import Store
from registry_proxy.protocol.reference import Digest
from registry_proxy.repair.exceptions import Exceptions
from registry_proxy.repair.recovery import loss_warnings
from registry_proxy.replication.manifests import count_recorded_tags, recorded_repositories
from registry_proxy.rules.open import open_bases
from registry_proxy.rules.reading import PushedImages
from registry_proxy.store.open import open_store
from registry_proxy.telemetry.metrics import PrometheusObserver
from registry_proxy.upkeep.upstreams import Upstream as UpstreamServices
from registry_proxy.upstream.routing import PrefixRouter, Route
from tests.support.fakes.memory import MemoryAudit, MemoryReader, holdings_of
from tests.support.passwords import quick_passwords

ADMIN = ("admin", "correct horse battery")
BOB = ("bob", "the password of bob")
CACHE_MAX_BYTES = 2**20

CALLERS = ("no token", "anonymous", "none", "pull", "create", "push", "delete", "owner", "admin")
"""The kinds of callers: no token, one of nobody, no right, one right everywhere, a namespace, the admin."""

_OPEN, _USERS, _ADMINS = frozenset(CALLERS), frozenset(CALLERS) - {"no token", "anonymous"}, frozenset({"admin"})
_OWNERS = frozenset({"owner", "admin"})

ADMIN_ROUTES = {
    "GET /users": _ADMINS,
    "GET /users/{name}": _ADMINS,
    "PUT /users/{name}": _ADMINS,
    "PATCH /users/{name}": _ADMINS,
    "DELETE /users/{name}": _ADMINS,
    "GET /users/{name}/tokens": _ADMINS,
    "DELETE /users/{name}/tokens/{id}": _ADMINS,
    "GET /groups": _ADMINS,
    "GET /groups/{name}": _ADMINS,
    "PUT /groups/{name}": _ADMINS,
    "PATCH /groups/{name}": _ADMINS,
    "DELETE /groups/{name}": _ADMINS,
    "GET /grants": _OWNERS,
    "POST /grants": _OWNERS,
    "GET /grants/{name}": _OWNERS,
    "PATCH /grants/{name}": _OWNERS,
    "DELETE /grants/{name}": _OWNERS,
    "POST /explain": _USERS,
    "POST /revocations": _ADMINS,
    "GET /robots": _ADMINS,
    "GET /robots/{name}": _ADMINS,
    "PUT /robots/{name}": _ADMINS,
    "PATCH /robots/{name}": _ADMINS,
    "DELETE /robots/{name}": _ADMINS,
    "GET /robots/{name}/secrets": _ADMINS,
    "POST /robots/{name}/secrets": _ADMINS,
    "DELETE /robots/{name}/secrets/{id}": _ADMINS,
    "GET /me": _USERS,
    "POST /me/password": _USERS,
    "GET /me/tokens": _USERS,
    "POST /me/tokens": _USERS,
    "DELETE /me/tokens/{id}": _USERS,
    "POST /keys/rotate": _ADMINS,
    "GET /upstreams": _ADMINS,
    "GET /upstreams/{name}": _ADMINS,
    "POST /upstreams/{name}/repair": _ADMINS,
    "POST /upstreams/{name}/pause": _ADMINS,
    "POST /upstreams/{name}/resume": _ADMINS,
    "GET /upstreams/{name}/exceptions": _ADMINS,
    "POST /upstreams/{name}/dismiss": _ADMINS,
    "POST /upstreams/{name}/forget": _ADMINS,
    "GET /upstreams/{name}/verify": _ADMINS,
    "POST /upstreams/{name}/verify": _ADMINS,
    "GET /repositories": _ADMINS,
    "GET /tags": _USERS,
    "GET /tags/history": _USERS,
    "GET /tags/image": _USERS,
    "POST /tags/rollback": _USERS,
    "POST /tags/restore": _USERS,
    "POST /tags/promote": _USERS,
    "POST /manifests/purge": _ADMINS,
    "GET /rules": _ADMINS,
    "GET /rules/{name}": _ADMINS,
    "PUT /rules/{name}": _ADMINS,
    "PATCH /rules/{name}": _ADMINS,
    "DELETE /rules/{name}": _ADMINS,
    "POST /bases": _ADMINS,
    "GET /subscriptions": _OWNERS,
    "GET /subscriptions/{name}": _OWNERS,
    "PUT /subscriptions/{name}": _OWNERS,
    "PATCH /subscriptions/{name}": _OWNERS,
    "DELETE /subscriptions/{name}": _OWNERS,
    "POST /subscriptions/{name}/test": _ADMINS,
    "GET /deliveries": _OWNERS,
    "GET /deliveries/{id}": _OWNERS,
    "DELETE /deliveries/{id}": _OWNERS,
    "POST /deliveries/{id}/replay": _OWNERS,
    "GET /deployments": _USERS,
    "POST /deployments": _USERS,
    "GET /cache": _ADMINS,
    "GET /cache/blobs": _ADMINS,
    "POST /cache/verify": _ADMINS,
    "POST /cache/purge": _ADMINS,
    "POST /cache/warm": _ADMINS,
    "GET /cache/warm/{id}": _ADMINS,
    "POST /reload": _ADMINS,
    "GET /audit": _ADMINS,
    "POST /audit/verify": _ADMINS,
    "POST /audit/accept": _ADMINS,
    "POST /policy/replay": _ADMINS,
    "GET /openapi.json": _ADMINS,
    "GET /policy": _ADMINS,
    "PUT /policy": _ADMINS,
    "POST /policy/diff": _ADMINS,
    "GET /metrics": _OPEN,
    "GET /healthz": _OPEN,
    "GET /readyz": _OPEN,
}
"""Every route of the admin listener, below /admin/v1 where it lies there, with its permitted callers."""

_NAMES = {"users": "bob", "groups": "dev", "robots": "ci", "grants": "1", "upstreams": "main"}


def filled(path: str, *, name: str | None = None) -> str:
    """Return the path of a route with names in its slots; ``name`` replaces those of objects that may exist."""
    return path.replace("{name}", name or name_below(path)).replace("{id}", name or "1")


def name_below(path: str) -> str:
    """Return a name for the slot in the path of a route; a user or upstream of that name exists."""
    return _NAMES.get(path.split("/")[1], "x")


@dataclass
class Replica:
    """The state of a replica according to health."""

    name: str
    url: str
    state: ReplicaState = ReplicaState.UP
    latency_seconds: float | None = 0.0015
    pending: int = 0
    refused: int = 0
    keeps_apart: bool | None = True
    reason: str = ""
    pause: Pause | None = None


@dataclass
class Upstream:
    """Replicas in the states of a test."""

    replicas: list[Replica]
    lost: int = 0
    notices: Sequence[str] = ()

    async def refresh(self) -> None:
        """Nothing changes behind the test's back."""

    def status(self) -> Sequence[ReplicaStatus]:
        return [ReplicaStatus(**vars(replica)) for replica in self.replicas]

    def warnings(self) -> Sequence[str]:
        return self.notices


@dataclass
class Maintains:
    """Pauses the replicas; quiet as soon as a test says so."""

    upstream: Upstream
    is_over: bool = False
    remembers: bool = False

    async def pause(self, replica: str, reason: str, by: str) -> None:
        if any(each.pause for each in self.upstream.replicas):
            raise PauseRefusedError("one is paused already")
        self._set(replica, Pause(replica, reason, by, 1.5e9, 1))

    async def resume(self, replica: str, by: str, *, force: bool = False) -> None:  # noqa: ARG002 - not remembered here
        if not any(each.pause for each in self.upstream.replicas if each.name == replica):
            raise PauseRefusedError(f"replica {replica} is not paused")
        if self.remembers and not force:
            raise PauseRefusedError(f"replica {replica} remembers blobs")
        self._set(replica, None)

    async def is_quiet(self, pause: Pause) -> bool:  # noqa: ARG002 - there is one
        return self.is_over

    def _set(self, replica: str, pause: Pause | None) -> None:
        for each in self.upstream.replicas:
            each.pause = pause if each.name == replica else each.pause


@dataclass
class Repairs:
    """A repairer of the replicas: counts its wake-ups."""

    exceptions: Exceptions
    woken: int = 0
    now: RepairStatus = field(default_factory=RepairStatus)
    notices: Sequence[str] = ()

    def status(self, _: str) -> RepairStatus:
        return self.now

    def warnings(self) -> Sequence[str]:
        return self.notices

    async def retry(self) -> None:
        self.woken += 1


@dataclass
class Verifies:
    """A comparison of the replicas: finds the entries of ``finds``, once ``gate`` is open."""

    finds: list[Difference] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[tuple[bool, str | None]] = field(default_factory=list)

    def new(self) -> Comparison:
        return Comparison(1.5e9)

    async def compare(self, comparison: Comparison, *, repair: bool = False, prefer: str | None = None) -> None:
        self.asked.append((repair, prefer))
        await self.gate.wait()
        for difference in self.finds:
            comparison.note(difference)
        comparison.is_done = True


def _two_replicas() -> dict[str, Upstream]:
    return {"main": Upstream([Replica("a", "http://ann:secret@127.0.0.1:5001"), Replica("b", "http://[::1]:5002/")])}


@dataclass
class Node:
    """The services of an admin listener, and its application."""

    app: web.Application
    directory: Directory
    control: AccessControl
    signer: TokenSigner
    store: Store
    cache: DiskCache
    observer: PrometheusObserver
    upstreams: dict[str, Upstream]
    repairs: dict[str, "Repairs"]
    verifier: "Verifies"
    maintains: "Maintains"
    reader: MemoryReader
    draining: list[bool]
    audit: MemoryAudit
    reloads: list[ReloadOutcome] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


async def _no_referrers(routed: RoutedRepository, subject: Digest) -> list[Digest]:
    return []


@asynccontextmanager
async def admin_node(root: Path) -> AsyncIterator[Node]:
    """Open a node below ``root`` with the users admin (an administrator) and bob."""
    key_file = str(root / "key.pem")
    create_key_file(key_file)
    verifier, signer = TokenVerifier("registry-proxy"), TokenSigner(key_file, "registry-proxy", 300)
    observer, upstreams, draining = PrometheusObserver(), _two_replicas(), [False]
    prepare_cache(str(root / "cache"))
    cache = DiskCache(str(root / "cache"), CACHE_MAX_BYTES, 0, observer)
    holdings = FileHoldings(str(root / "cache"))
    reloads: list[ReloadOutcome] = []
    router = PrefixRouter([Route("", "main")])
    reader, compares, maintains = MemoryReader(), Verifies(), Maintains(upstreams["main"])
    audit, origins = MemoryAudit(), Origins(None, [ipaddress.ip_network("127.0.0.1/32")])

    async def reload() -> ReloadOutcome:
        return reloads.pop(0) if reloads else ReloadOutcome(2)

    async with open_store(f"sqlite:///{root / 'store.db'}", str(root / "page")) as (store, changes):
        repairs = {"main": Repairs(Exceptions(store))}
        with quick_passwords():
            directory, control = Directory(store), AccessControl(store, changes, verifier, outage_max_age_seconds=None)
        async with control.publishing(signer):
            await directory.users.put(ADMIN[0], UserInput(password=ADMIN[1], is_admin=True))
            await directory.users.put(BOB[0], UserInput(password=BOB[1]))
            pull = Pull(
                readers={"main": reader},
                impatient_readers={"main": reader},
                cache=cache,
                holdings=holdings,
                proofs=holdings_of(reader, holdings, cache),
                observer=observer,
                tag_rules={"main": TagRules(10)},
            )
            outbox = StoreOutbox(CurrentSubscriptions(store, changes), router.local_name)
            services = AdminServices(
                directory=directory,
                signer=signer,
                upstreams={"main": UpstreamServices(upstreams["main"], repairs["main"], compares, maintains)},
                cache=cache,
                warmer=Warmer(pull, _no_referrers),
                history=open_history(
                    store,
                    changes,
                    KeepLimits(0, 0),
                    warmer=Warmer(pull, _no_referrers),
                    readers={"main": reader},
                    writes=cast(Any, Mock()),
                ),
                bases=open_bases(store, pull, PushedImages(cache, holdings, {"main": reader})),
                route=router.route,
                known=KnownRepositories(
                    partial(recorded_repositories, store),
                    partial(count_recorded_tags, store),
                    holdings.repositories,
                    router.local_name,
                ),
                purge_repository=lambda name: holdings.purge(RoutedRepository("main", name)),
                render_metrics=observer.render,
                readiness=Readiness(
                    upstreams,
                    control,
                    changes,
                    repairs,
                    partial(loss_warnings, store, ["main"]),
                    lambda: draining[0],
                    {},
                ),
                reload=reload,
                guard=AdminGuard(
                    control=control,
                    sites=Sites(None, ["registry.internal"]),
                    plain_http=PlainHttp(origins.is_trusted, is_allowed=False),
                    client_address=origins.client_address,
                    name_request=RequestIds(origins).name,
                    audit=audit,
                    observer=observer,
                ),
                audit_files=AuditFiles(
                    str(root / "audit"),
                    AuditVerifier(
                        documents=SignedDocuments(store, signer.sign, open_signed),
                        node="node",
                        is_only_node=True,
                        directory=str(root / "audit"),
                        acts_kept_seconds=3600,
                        traffic_kept_seconds=3600,
                    ),
                    lambda: None,
                ),
                deliveries=DeliveryRecord(store),
                receivers=ReceiverLimits(allows_private=False, allowed_hosts=(), services=()),
                public_url="https://registry.example",
                deployments=Deployments(
                    store=store,
                    changes=changes,
                    outbox=outbox,
                    route=router.route,
                    read_labels=partial(read_labels, pull),
                ),
            )
            app = make_admin_app(services)
            yield Node(
                app=app,
                directory=directory,
                control=control,
                signer=signer,
                store=store,
                cache=cache,
                observer=observer,
                upstreams=upstreams,
                repairs=repairs,
                verifier=compares,
                maintains=maintains,
                reader=reader,
                draining=draining,
                audit=audit,
                reloads=reloads,
            )
        await directory.aclose()
        await control.aclose()
    await cache.close()


class Contract:
    """The OpenAPI document of an admin listener: the answers that it may give."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._operations = [
            (method.upper(), re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), operation)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        ]
        self._validators: dict[str, jsonschema_rs.Validator] = {}

    def check(
        self, method: str, path: str, status: int, media_type: str, answer: Any, *, is_tagged: bool | None = None
    ) -> None:
        """Fail unless the document has this answer; unknown operations are answered with problems only.

        ``is_tagged`` says whether it carries an ETag; None skips that check.
        """
        found = (each for verb, pattern, each in self._operations if verb == method and pattern.fullmatch(path))
        operation: dict[str, Any] = next(found, {})
        answers = operation.get("responses", {"4XX": {"$ref": "#/components/responses/problem"}})
        where = f"{method} {path}: {status} {answer}"
        described = answers.get(str(status)) or answers.get(f"{status // 100}XX")
        assert described is not None, where
        assert is_tagged in {None, "ETag" in described.get("headers", {})}, where
        if described == {"$ref": "#/components/responses/problem"}:
            described = self.document["components"]["responses"]["problem"]
        if answer is None:
            assert "content" not in described, where
            return
        schema = described["content"][media_type]["schema"]
        if schema["$ref"] not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[schema["$ref"]] = jsonschema_rs.validator_for(whole)
        errors = [error.message for error in self._validators[schema["$ref"]].iter_errors(answer)]
        assert errors == [], where


_contracts: list[Contract] = []


async def contract_of(node: Node, http: TestClient[web.Request, web.Application]) -> Contract:
    """Return the contract of a listener; all listeners give the same, and making it takes a while."""
    if not _contracts:
        _contracts.append(await _fetch_contract(node, http))
    return _contracts[0]


async def _fetch_contract(node: Node, http: TestClient[web.Request, web.Application]) -> Contract:
    token = node.signer.issue(f"user:{ADMIN[0]}", 0, (), time.time()).token
    async with http.get("/admin/v1/openapi.json", headers={"Authorization": f"Bearer {token}"}) as response:
        return Contract(await response.json())
