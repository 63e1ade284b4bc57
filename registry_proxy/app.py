"""The composition root: the only file that imports every package. Each resource is born and dies in one place."""

import asyncio
import contextlib
import logging
import re
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from registry_proxy.access.control import AccessControl
from registry_proxy.access.directory import FIRST_ADMIN, Directory
from registry_proxy.access.faults import InvalidError
from registry_proxy.access.id_tokens import ClaimRule, IdTokenVerifier, TrustedIssuer
from registry_proxy.access.issuer_keys import IssuerKeys
from registry_proxy.access.ldap import LdapPasswords
from registry_proxy.access.tokens import TokenSigner, TokenVerifier, create_key_file, open_signed
from registry_proxy.admin.app import AdminServices, make_admin_app
from registry_proxy.admin.audit import AuditFiles
from registry_proxy.admin.ops import ADMIN, PUBLIC, Readiness
from registry_proxy.admin.repositories import KnownRepositories
from registry_proxy.admin.server import serving_admin
from registry_proxy.admin.sites import Sites
from registry_proxy.audit.open import AuditOptions, open_trail
from registry_proxy.audit.signing import AuditVerifier
from registry_proxy.audit.trail import AuditTrail
from registry_proxy.audit.writer import Retention
from registry_proxy.cache.care import Caretaker
from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.layout import CacheMoveError, CacheSchemaError, prepare_cache
from registry_proxy.cache.membership import FileMemberships
from registry_proxy.cache.spool import DiskSpool
from registry_proxy.config.errors import StartError
from registry_proxy.config.model import AuthSettings, LdapSettings, OidcSettings, Settings, UpstreamSettings
from registry_proxy.edge.middleware import RequestIds
from registry_proxy.edge.origin import Origins
from registry_proxy.edge.public import PublicApp, PublicOptions
from registry_proxy.edge.server import run_public
from registry_proxy.http.connections import ConnectionLimits, Connections
from registry_proxy.node.host import ADMIN_PASSWORD_VARIABLE
from registry_proxy.node.listeners import refuse_new_connections
from registry_proxy.node.worker import Ending, WorkerContext
from registry_proxy.operations.discover import Discover
from registry_proxy.operations.holdings import Holdings
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.push import Push
from registry_proxy.operations.tags import RecordedTags, TagRules
from registry_proxy.operations.warm import Prefetch, Warmer
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.events import Observer
from registry_proxy.ports.journal import MarkSource
from registry_proxy.ports.names import RoutedRepository, StaleReason
from registry_proxy.ports.replicas import RegistryReader, StorageKind
from registry_proxy.ports.store import Store
from registry_proxy.protocol.patterns import compile_repository_pattern, compile_text_pattern
from registry_proxy.protocol.reference import Digest
from registry_proxy.replication.copies import Copies, Pace
from registry_proxy.replication.deletions import DeletionReplication, DeletionsElsewhere
from registry_proxy.replication.fallback_tags import AbsenceProof, FallbackTagComparison, forget_comparison
from registry_proxy.replication.inspection import Inspection
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.maintenance import Maintenance
from registry_proxy.replication.manifests import (
    ManifestReplication,
    count_recorded_tags,
    recorded_manifests,
    recorded_repositories,
)
from registry_proxy.replication.pushed import PushedBlobs
from registry_proxy.replication.recovery import Recovery, loss_warnings
from registry_proxy.replication.repair import Repairer
from registry_proxy.replication.sessions import SignedSessions
from registry_proxy.replication.tag_findings import TagFindings
from registry_proxy.replication.tag_records import read_tag_record
from registry_proxy.replication.uploads import UploadReplication
from registry_proxy.replication.verify import Verifier
from registry_proxy.store.changes import StoreWatch
from registry_proxy.store.open import open_store
from registry_proxy.store.schema import SchemaTooNewError
from registry_proxy.tasks import end, spawn
from registry_proxy.telemetry.access_log import AccessLog
from registry_proxy.telemetry.logs import json_logging
from registry_proxy.telemetry.metrics import PrometheusObserver
from registry_proxy.upstream.failover import FailoverReader, ProvesAbsent
from registry_proxy.upstream.replicas import Inspect, UpstreamConfig, UpstreamReplicas
from registry_proxy.upstream.routing import PrefixRouter, Route
from registry_proxy.upstream.sessions import ReplicaAddress, Timeouts

REPLICA_PATIENCE_SECONDS = 5.0
"""How long a request waits for a replica to come back: docker gives up a pull at its first 503."""

_HANDSHAKE_SECONDS = 0.05
"""What connections that are under way are given to arrive before the address is closed."""

_FILES_PER_CONNECTION, _FILES_PER_ADMIN_CONNECTION = 2, 8
"""One in so many of the files that a worker may open is a connection of a client; one that is answered needs two."""

_IDLE_SECONDS_STOPPING, _IDLE_SECONDS_REPLACED = 1.0, 5.0
"""How long a connection may rest that was not told yet to close: its next request may be on its way."""

_log = logging.getLogger(__name__)


async def prepare(settings: Settings, admin_password: str | None) -> str | None:
    """Make cache, key and store ready, once, before any worker starts.

    Args:
        settings: the configuration.
        admin_password: for the first admin, when there is none yet; None to have one generated.

    Returns:
        The generated password of the first admin, if one was made with one.
    """
    with json_logging(), _start_errors():
        prepare_cache(settings.cache.path, settings.audit_path)
        _open_signer(settings.auth)
        async with open_store(settings.store_url, settings.changes_path) as (store, _):
            for warning in await store.check_durability():
                _log.warning("%s", warning)
            directory = Directory(store)
            try:
                made = await directory.ensure_first_admin(admin_password)
                if admin_password is not None and not await directory.has_password(FIRST_ADMIN, admin_password):
                    _log.warning(
                        "%s has no effect: there is an administrator already, and it is not the password of %s; "
                        "`registry-proxy admin reset --config FILE` sets a new one",
                        ADMIN_PASSWORD_VARIABLE,
                        FIRST_ADMIN,
                    )
                await directory.remove_expired_refresh_tokens()
                return made
            except InvalidError as error:
                raise StartError(
                    f"{ADMIN_PASSWORD_VARIABLE} cannot be the password of the first admin: {error}"
                ) from None
            finally:
                await directory.aclose()


@contextlib.contextmanager
def _start_errors() -> Iterator[None]:
    """Tell what an operator can mend in his words, without a traceback."""
    try:
        yield
    except (CacheMoveError, CacheSchemaError, SchemaTooNewError, StoreUnavailableError) as error:
        raise StartError(str(error)) from error


async def run_worker(settings: Settings, context: WorkerContext) -> None:
    """Serve one worker's listeners until it is told to drain, and then until its requests have ended."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(json_logging(worker=str(context.slot)))
        access_log = AccessLog(sys.stderr.fileno(), str(context.slot))
        stack.enter_context(access_log.running())
        begins = context.admin_socket is not None
        observer = PrometheusObserver(context.metrics, context.process, _replica_names(settings) if begins else None)
        observer.cache_disk_stalled(is_stalled=context.is_stand_in)
        node = await stack.enter_async_context(_open_node(settings, observer, context))
        verifiers = {
            name: Verifier(replica_set=replicas, store=node.store, journal=node.journal)
            for name, replicas in node.replicas.items()
        }
        # One worker of a node repairs: the one that can tell how it goes.
        repairers = _repairers(settings, node, verifiers, observer) if context.admin_socket is not None else {}
        # A cache in memory has none of the copies that are kept for replicas: it must not tell that they are lost.
        repairing = {} if context.is_stand_in else repairers
        comparisons = _comparisons(settings, node, verifiers) if context.admin_socket is not None else {}
        recoveries = _recoveries(settings, node, verifiers) if context.admin_socket is not None else {}
        duties = await stack.enter_async_context(_on_duty(node, repairing, comparisons, recoveries))
        trail = await stack.enter_async_context(_auditing(settings, node, observer, context))
        pull = _pull(settings, node, observer)
        app = _public_app(settings, node, pull, observer, trail, access_log)
        connections = _connections(settings, observer)
        public = await run_public(app.handle, context.public_sockets, connections[PUBLIC], app.hot.answer)
        admin = None
        if context.admin_socket is not None:
            services = _admin_services(
                settings, node, pull, repairers, verifiers, observer, trail, context, connections
            )
            admin = await stack.enter_async_context(
                serving_admin(make_admin_app(services), context.admin_socket, connections[ADMIN])
            )
        context.ready()
        await context.ending.wait()
        await duties.aclose()  # for the workers that come after, or the other nodes
        drain = settings.drain
        if context.ending.is_replaced:
            try:
                async with (
                    asyncio.timeout(None) as limit,
                    _in_background(_limit_at_stop(context.ending, limit, drain.timeout_seconds), "wait for a stop"),
                    asyncio.TaskGroup() as draining,
                ):
                    if admin is not None:
                        draining.create_task(admin.drain(drain.reload_timeout_seconds, _IDLE_SECONDS_REPLACED))
                    draining.create_task(public.drain(drain.reload_timeout_seconds, _IDLE_SECONDS_REPLACED))
            except TimeoutError:
                await public.drain(0, 0)
        else:
            await asyncio.sleep(drain.delay_seconds)
            for listener in context.public_sockets:
                refuse_new_connections(listener)
            await asyncio.sleep(_HANDSHAKE_SECONDS)
            ends_at = asyncio.get_running_loop().time() + drain.timeout_seconds
            await public.drain(drain.timeout_seconds, _IDLE_SECONDS_STOPPING)
            if admin is not None:  # last: it tells how the node does
                await admin.drain(ends_at - asyncio.get_running_loop().time(), _IDLE_SECONDS_STOPPING)


async def _limit_at_stop(ending: Ending, limit: asyncio.Timeout, seconds: float) -> None:
    await ending.wait_for_stop()
    limit.reschedule(asyncio.get_running_loop().time() + seconds)


# ---------------------------------------------------------------- what a worker stands on


def _connections(settings: Settings, observer: Observer) -> Mapping[str, Connections]:
    """Return what counts the connections of each listener of this worker."""
    origins, clock = Origins(settings.public_url, settings.trusted_proxies), asyncio.get_running_loop().time
    limits = {
        PUBLIC: ConnectionLimits().within_files(_FILES_PER_CONNECTION),
        ADMIN: ConnectionLimits(connections_max=512).within_files(_FILES_PER_ADMIN_CONNECTION),
    }
    return {
        name: Connections(each, origins, clock, partial(observer.connection_ended, name))
        for name, each in limits.items()
    }


def _replica_names(settings: Settings) -> Mapping[str, Sequence[str]]:
    return {name: [replica.name for replica in each.replicas] for name, each in settings.upstreams.items()}


def _guarded(settings: Settings) -> Sequence[str]:
    """Return the upstreams whose replicas can differ."""
    return [name for name, upstream in settings.upstreams.items() if upstream.can_differ]


@dataclass(frozen=True, slots=True)
class _Node:
    store: Store
    changes: StoreWatch
    control: AccessControl
    directory: Directory
    signer: TokenSigner
    cache: DiskCache
    caretaker: Caretaker
    spool: DiskSpool
    memberships: FileMemberships
    holdings: Holdings
    journal: Journal
    inspection: Inspection
    replicas: Mapping[str, UpstreamReplicas]
    readers: Mapping[str, RegistryReader]
    impatient_readers: Mapping[str, RegistryReader]
    router: PrefixRouter


def _routes(settings: Settings) -> list[Route]:
    return [
        Route(
            route.prefix,
            route.upstream,
            route.strip_prefix,
            route.namespaces,
            is_docker_hub="docker.io" in route.namespaces and settings.upstreams[route.upstream].read_only,
            is_writable=not settings.upstreams[route.upstream].read_only,
        )
        for route in settings.routes
    ]


@contextlib.asynccontextmanager
async def _open_node(settings: Settings, observer: Observer, context: WorkerContext) -> AsyncIterator[_Node]:
    async with contextlib.AsyncExitStack() as stack:
        opening = open_store(settings.store_url, settings.changes_path, observer.policy_current, may_create=False)
        store, changes = await stack.enter_async_context(opening)
        control, signer = await stack.enter_async_context(_open_access(settings, store, changes))
        directory = Directory(store)
        stack.push_async_callback(directory.aclose)
        limits = settings.cache
        router = PrefixRouter(_routes(settings))
        memberships = FileMemberships(limits.path)
        if context.was_away:
            memberships.doubt_all()
        cache = DiskCache(
            limits.path,
            limits.max_size_bytes,
            limits.min_free_bytes,
            observer,
            find_kept=_find_kept(limits.pinned, router, memberships),
            check_share=limits.scrub.check_share,
        )
        stack.push_async_callback(cache.close)
        caretaker = Caretaker(cache, limits.scrub.bytes_per_second, limits.scrub.interval_seconds)
        spool = DiskSpool(cache, is_lasting=not context.is_stand_in)
        if settings.sqlite_path is None:
            following = DeletionsElsewhere(store, changes, memberships).run()
            await stack.enter_async_context(_in_background(following, "deletions through other nodes"))
        guarded = _guarded(settings)
        journal = Journal(store, changes, observer, _replica_names(settings), guarded=guarded)
        with contextlib.suppress(StoreUnavailableError):  # a worker that takes another one's place while it is away
            await journal.roster.note()
            await journal.snapshot()  # the gauges say from the start which replica is behind
            for name, upstream in settings.upstreams.items():
                if not upstream.is_recorded:
                    await forget_comparison(store, name)
        proof = AbsenceProof(store, changes, journal)
        proofs = {name: proof for name, upstream in settings.upstreams.items() if upstream.is_recorded}
        recorded = [name for name, upstream in settings.upstreams.items() if upstream.is_recorded]
        inspection = Inspection(store=store, journal=journal, recorded=recorded)
        replicas: dict[str, UpstreamReplicas] = {}
        for name, upstream in settings.upstreams.items():
            inspect = inspection.inspect if upstream.can_differ else None
            opened = _upstream_replicas(name, upstream, journal, observer, memberships, inspect)
            replicas[name] = await stack.enter_async_context(opened)
        readers = _failover_readers(replicas, journal, REPLICA_PATIENCE_SECONDS, proofs)
        yield _Node(
            store=store,
            changes=changes,
            control=control,
            directory=directory,
            signer=signer,
            cache=cache,
            caretaker=caretaker,
            spool=spool,
            memberships=memberships,
            holdings=Holdings(
                readers=readers,
                separations={name: each.separation for name, each in replicas.items()},
                memberships=memberships,
                cache=cache,
                recorded=partial(recorded_manifests, store),
                pushed=PushedBlobs(store),
            ),
            journal=journal,
            inspection=inspection,
            replicas=replicas,
            readers=readers,
            impatient_readers=_failover_readers(replicas, journal, 0, proofs),
            router=router,
        )


@contextlib.asynccontextmanager
async def _on_duty(
    node: _Node,
    repairers: Mapping[str, Repairer],
    comparisons: Mapping[str, FallbackTagComparison],
    recoveries: Mapping[str, Recovery],
) -> AsyncIterator[contextlib.AsyncExitStack]:
    """Run what a worker does for the whole node; closing the stack leaves it to others."""
    async with contextlib.AsyncExitStack() as duties:
        await duties.enter_async_context(_in_background(node.caretaker.run(), "care of the cache"))
        await duties.enter_async_context(_in_background(_uploads(node).run(), "care of uploads"))
        for name, repairer in repairers.items():
            await duties.enter_async_context(_in_background(repairer.run(), f"repair of {name}"))
        for name, comparison in comparisons.items():
            await duties.enter_async_context(_in_background(comparison.run(), f"comparison of {name}"))
        for name, recovery in recoveries.items():
            await duties.enter_async_context(_in_background(recovery.run(), f"recovery of {name}"))
            keeping = node.inspection.keep_sentinels(node.replicas[name])
            await duties.enter_async_context(_in_background(keeping, f"sentinels of {name}"))
        yield duties


@contextlib.asynccontextmanager
async def _auditing(
    settings: Settings, node: _Node, observer: Observer, context: WorkerContext
) -> AsyncIterator[AuditTrail]:
    """Keep this worker's audit log, signed, for the length of a with block."""
    limits = settings.audit
    options = AuditOptions(
        directory=settings.audit_path,
        node=node.spool.node_id,
        process=context.process,
        acts=Retention(
            limits.file_bytes, limits.file_seconds, limits.changes.total_bytes, limits.changes.total_seconds
        ),
        traffic=Retention(limits.file_bytes, limits.file_seconds, limits.total_bytes, limits.total_seconds),
        records_pulls=limits.pulls,
        stdout=sys.stdout.fileno() if limits.stdout else None,
        syslog=limits.syslog,
    )
    opening = open_trail(
        options, store=node.store, dropped=observer.audit_dropped, sign=node.signer.sign, open_signed=open_signed
    )
    async with opening as trail:
        yield trail


def _repairers(
    settings: Settings, node: _Node, verifiers: Mapping[str, Verifier], observer: Observer
) -> Mapping[str, Repairer]:
    return {
        name: Repairer(
            replica_set=node.replicas[name],
            store=node.store,
            journal=node.journal,
            copies=Copies(
                replica_sets=node.replicas,
                readers=node.impatient_readers,
                cache=node.cache,
                memberships=node.memberships,
                pace=Pace(upstream.repair_bytes_per_second),
                copied=observer.repaired_bytes,
            ),
            verifier=verifiers[name],
            pins=node.spool,
            observer=observer,
        )
        for name, upstream in settings.upstreams.items()
    }


def _comparisons(
    settings: Settings, node: _Node, verifiers: Mapping[str, Verifier]
) -> Mapping[str, FallbackTagComparison]:
    return {
        name: FallbackTagComparison(
            replica_set=node.replicas[name], store=node.store, journal=node.journal, verifier=verifiers[name]
        )
        for name, upstream in settings.upstreams.items()
        if upstream.is_recorded and len(upstream.replicas) > 1
    }


def _recoveries(settings: Settings, node: _Node, verifiers: Mapping[str, Verifier]) -> Mapping[str, Recovery]:
    names = _guarded(settings)
    return {
        name: Recovery(
            replica_set=node.replicas[name],
            store=node.store,
            journal=node.journal,
            verifier=verifiers[name],
            upstreams=names,
        )
        for name in names
    }


@contextlib.asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    task = spawn(work, name)
    try:
        yield
    finally:
        await end(task)


async def _repeat(work: Callable[[], object], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        work()


def _find_kept(
    patterns: Sequence[str], router: PrefixRouter, memberships: FileMemberships
) -> Callable[[], Collection[Digest]]:
    """Return what finds the content of the pinned repositories."""
    if not patterns:
        return frozenset
    pinned = re.compile("|".join(compile_repository_pattern(pattern).pattern for pattern in patterns))

    def is_pinned(routed: RoutedRepository) -> bool:
        name = router.local_name(routed)
        return name is not None and pinned.fullmatch(name) is not None

    return lambda: memberships.digests_of(is_pinned)


@contextlib.asynccontextmanager
async def _open_access(
    settings: Settings, store: Store, changes: StoreWatch
) -> AsyncIterator[tuple[AccessControl, TokenSigner]]:
    auth, outage = settings.auth, settings.store_outage
    control = AccessControl(
        store,
        changes,
        TokenVerifier(auth.service),
        outage_max_age_seconds=outage.max_age_seconds if outage.mode == "open" else None,
        id_tokens=IdTokenVerifier(map(_trusted_issuer, auth.oidc, auth.oidc.values())) if auth.oidc else None,
        ldap=None if auth.ldap is None else _ldap_passwords(auth.ldap),
    )
    signer = _open_signer(auth)
    try:
        async with control.publishing(signer):
            await control.policy()
            yield control, signer
    finally:
        await control.aclose()


def _open_signer(auth: AuthSettings) -> TokenSigner:
    """Return what signs with the node's private key, which is made if there is none. Raises StartError."""
    try:
        create_key_file(auth.signing_key_file)
        return TokenSigner(auth.signing_key_file, auth.service, round(auth.token_lifetime_seconds))
    except OSError as error:
        reason = f"{auth.signing_key_file} cannot be used: {error.strerror}"
    except ValueError as error:
        reason = str(error)
    raise StartError(f"auth.signing_key_file: {reason}")


def _trusted_issuer(name: str, configured: OidcSettings) -> TrustedIssuer:
    rules = [
        ClaimRule(
            name=rule.name,
            claims={claim: tuple(map(compile_text_pattern, each)) for claim, each in rule.claims.items()},
            subject=rule.subject,
            groups=rule.groups,
        )
        for rule in configured.rules
    ]
    keys = IssuerKeys(configured.issuer, configured.jwks_url, configured.ca_file)
    return TrustedIssuer(name, configured.issuer, configured.audience, rules, keys)


def _ldap_passwords(configured: LdapSettings) -> LdapPasswords:
    tls = ssl.create_default_context(cafile=configured.ca_file) if configured.uses_tls else None
    return LdapPasswords(configured.host, configured.port, configured.bind_dn, tls)


@contextlib.asynccontextmanager
async def _upstream_replicas(  # noqa: PLR0917 - all that an upstream is made of
    name: str,
    upstream: UpstreamSettings,
    marks: MarkSource,
    observer: Observer,
    memberships: FileMemberships,
    inspect: Inspect | None,
) -> AsyncIterator[UpstreamReplicas]:
    addresses = [
        ReplicaAddress(
            upstream=name,
            name=replica.name,
            url=replica.url,
            username=replica.username,
            password=replica.read_password(),
            ca_file=None if replica.ca_file is None else Path(replica.ca_file),
            realm_hosts=replica.realm_hosts,
            redirect_hosts=replica.redirect_hosts,
            allow_plain_credentials=replica.insecure_credentials,
            server_name=replica.server_name,
        )
        for replica in upstream.replicas
    ]
    seconds = upstream.timeouts
    config = UpstreamConfig(
        name=name,
        storage=StorageKind(upstream.storage),
        read_only=upstream.read_only,
        write_quorum=upstream.quorum,
        replicas=addresses,
        timeouts=Timeouts(
            seconds.connect_seconds, seconds.first_byte_seconds, seconds.stall_seconds, seconds.probe_seconds
        ),
        mixes_repositories=upstream.mixes_repositories,
    )
    replicas = UpstreamReplicas(config, marks, observer, memberships, inspect)
    try:
        await replicas.start()
        yield replicas
    finally:
        await replicas.aclose()


def _failover_readers(
    replicas: Mapping[str, UpstreamReplicas],
    marks: MarkSource,
    patience_seconds: float,
    proofs: Mapping[str, ProvesAbsent],
) -> Mapping[str, RegistryReader]:
    return {
        name: FailoverReader(members, marks, patience_seconds, proofs.get(name)) for name, members in replicas.items()
    }


# ---------------------------------------------------------------- what it serves


def _pull(settings: Settings, node: _Node, observer: Observer) -> Pull:
    return Pull(
        readers=node.readers,
        impatient_readers=node.impatient_readers,
        cache=node.cache,
        memberships=node.memberships,
        holdings=node.holdings,
        observer=observer,
        tag_rules={
            name: TagRules(
                upstream.tag_ttl_seconds,
                frozenset(map(StaleReason, upstream.stale_on)),
                is_recorded=not upstream.read_only and not upstream.pushed_past_us,
            )
            for name, upstream in settings.upstreams.items()
        },
        records=RecordedTags(
            read=partial(read_tag_record, node.store),
            find=TagFindings(
                replica_sets=node.replicas, store=node.store, journal=node.journal, inspection=node.inspection
            ).find,
            # With SQLite there is one node, whose workers share what they know of tags.
            is_shared=settings.sqlite_path is None,
        ),
    )


def _uploads(node: _Node) -> UploadReplication:
    return UploadReplication(replica_sets=node.replicas, journal=node.journal, cache=node.cache, pins=node.spool)


def _public_app(  # noqa: PLR0917 - all that a worker has, in the order in which it is made
    settings: Settings, node: _Node, pull: Pull, observer: Observer, trail: AuditTrail, access_log: AccessLog
) -> PublicApp:
    uploads = _uploads(node)
    manifests = ManifestReplication(
        replica_sets=node.replicas,
        store=node.store,
        journal=node.journal,
        cache=node.cache,
        memberships=node.memberships,
        uploads=uploads,
    )
    return PublicApp(
        pull=pull,
        push=Push(
            spool=node.spool,
            cache=node.cache,
            memberships=node.memberships,
            holdings=node.holdings,
            sessions=SignedSessions(node.store),
            blobs=uploads,
            manifests=manifests,
        ),
        discover=Discover(readers=node.readers, router=node.router),
        manage=Manage(
            memberships=node.memberships,
            holdings=node.holdings,
            deletions=DeletionReplication(
                replica_sets=node.replicas, readers=node.readers, store=node.store, journal=node.journal
            ),
        ),
        router=node.router,
        control=node.control,
        directory=node.directory,
        signer=node.signer,
        observer=observer,
        audit=trail,
        log_request=access_log,
        options=PublicOptions(
            settings.auth.service,
            settings.public_url,
            settings.trusted_proxies,
            settings.auth.refresh_token_lifetime_seconds if settings.auth.refresh_tokens else None,
        ),
        prefetch=Prefetch(pull) if settings.cache.prefetch else None,
    )


def _render_metrics(cache: DiskCache, observer: PrometheusObserver) -> bytes:
    """Return a scrape. The sizes on the disk are read for it: a gauge would go with the worker that had set it."""
    cache.stats()
    return observer.render()


def _admin_services(  # noqa: PLR0917 - all that a worker has, in the order in which it is made
    settings: Settings,
    node: _Node,
    pull: Pull,
    repairers: Mapping[str, Repairer],
    verifiers: Mapping[str, Verifier],
    observer: PrometheusObserver,
    trail: AuditTrail,
    context: WorkerContext,
    connections: Mapping[str, Connections],
) -> AdminServices:
    origins = Origins(settings.public_url, settings.trusted_proxies)
    directory = settings.audit_path
    return AdminServices(
        directory=node.directory,
        signer=node.signer,
        control=node.control,
        replicas=node.replicas,
        repairers=repairers,
        verifiers=verifiers,
        maintenances={
            name: Maintenance(replica_set=replicas, store=node.store, journal=node.journal)
            for name, replicas in node.replicas.items()
        },
        cache=node.cache,
        warmer=Warmer(pull),
        route=node.router.route,
        known=KnownRepositories(
            recorded=partial(recorded_repositories, node.store),
            count_tags=partial(count_recorded_tags, node.store),
            cached=node.memberships.repositories,
            local_name=node.router.local_name,
        ),
        purge_repository=lambda repository: node.memberships.purge(node.router.route(repository)),
        render_metrics=partial(_render_metrics, node.cache, observer),
        readiness=Readiness(
            node.replicas,
            node.control,
            node.changes,
            repairers,
            partial(loss_warnings, node.store, _guarded(settings)),
            context.ending.is_set,
            connections,
            is_stand_in=context.is_stand_in,
        ),
        reload=context.reload,
        sites=Sites(settings.public_url, settings.admin_hosts),
        client_address=origins.client_address,
        name_request=RequestIds(origins).name,
        audit=trail,
        count_login=observer.login,
        audit_files=AuditFiles(
            directory,
            AuditVerifier(
                store=node.store,
                node=node.spool.node_id,
                is_only_node=settings.sqlite_path is not None,
                directory=directory,
                acts_kept_seconds=settings.audit.changes.total_seconds,
                traffic_kept_seconds=settings.audit.total_seconds,
                sign=node.signer.sign,
                open_signed=open_signed,
            ),
            trail.flush_asked,
        ),
    )
