"""The composition root: the only file that imports every package. One function opens and closes each resource."""

import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial

from registry_proxy import configured
from registry_proxy.access.open import Access, open_access, open_signer
from registry_proxy.access.tokens import open_signed
from registry_proxy.admin.app import AdminServices, make_admin_app
from registry_proxy.admin.audit import AuditFiles
from registry_proxy.admin.ops import ADMIN, PUBLIC, Readiness
from registry_proxy.admin.repositories import KnownRepositories
from registry_proxy.admin.server import serving_admin
from registry_proxy.audit.open import Audit, open_audit
from registry_proxy.audit.trail import AuditTrail
from registry_proxy.cache.layout import prepare_cache
from registry_proxy.cache.open import Cache, open_cache
from registry_proxy.config.model import Settings
from registry_proxy.directory.deployments import AnsweredDeployments, Deployments
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.first_admin import make_first_admin
from registry_proxy.edge.public import PublicApp
from registry_proxy.edge.server import run_public
from registry_proxy.events.open import Events, open_events
from registry_proxy.history.labels import read_labels
from registry_proxy.history.open import History, open_history
from registry_proxy.http.certificate import open_certificates
from registry_proxy.http.connections import Connections
from registry_proxy.node.drain import drain
from registry_proxy.node.host import ADMIN_PASSWORD_VARIABLE
from registry_proxy.node.worker import WorkerContext
from registry_proxy.operations.discover import Discover
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.push import Push
from registry_proxy.operations.referrers import Referrers
from registry_proxy.operations.tags import RecordedTags
from registry_proxy.operations.warm import Prefetch, Warmer
from registry_proxy.ports.metrics import CacheDiskStalled, Listener, Observer, PolicyCurrent
from registry_proxy.repair.duty import RepairDuty
from registry_proxy.repair.inspection import Inspection
from registry_proxy.replication.open import Records, ReplicaTools, Writes, open_records
from registry_proxy.rules.open import open_bases, open_rules
from registry_proxy.rules.reading import PushedImages
from registry_proxy.spool.spool import DiskSpool
from registry_proxy.store.changes import StoreWatch
from registry_proxy.store.open import open_store
from registry_proxy.tasks import running
from registry_proxy.telemetry.access_log import AccessLog
from registry_proxy.telemetry.logs import json_logging
from registry_proxy.telemetry.metrics import PrometheusObserver
from registry_proxy.upkeep.upstreams import Upstream
from registry_proxy.upstream.open import Upstreams, open_upstreams
from registry_proxy.upstream.routing import PrefixRouter


async def prepare(settings: Settings, admin_password: str | None) -> str | None:
    """Make cache, key and store ready, once, before any worker starts.

    The first admin gets ``admin_password``, or a generated one, which is returned.
    """
    with json_logging(), configured.start_errors():
        prepare_cache(settings.cache.path, settings.audit_path)
        open_signer(configured.signing_options(settings.auth))
        async with open_store(settings.store_url, settings.changes_path) as (store, _):
            configured.log_warnings(settings, await store.check_durability())
            async with contextlib.aclosing(Directory(store)) as directory:
                await directory.secrets.remove_expired_refresh_tokens()
                return await make_first_admin(directory.users, admin_password, ADMIN_PASSWORD_VARIABLE)


async def run_worker(settings: Settings, context: WorkerContext) -> None:
    """Serve one worker's listeners until the command to drain, and then until its requests have ended."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(json_logging(worker=str(context.slot)))
        access_log = AccessLog(sys.stderr.fileno(), str(context.slot))
        stack.enter_context(access_log.running())
        # One worker of a node has the admin listener. It repairs, because it can report on it.
        has_admin = context.admin_socket is not None
        replica_names = configured.replica_names(settings) if has_admin else None
        observer = PrometheusObserver(context.metrics, context.process, replica_names)
        observer.observe(CacheDiskStalled(context.is_stand_in))
        node = await stack.enter_async_context(_open_node(settings, observer, context))
        await stack.enter_async_context(running(node.events.pulls.run(), "pulls as events"))
        duties = await stack.enter_async_context(contextlib.AsyncExitStack())
        await duties.enter_async_context(running(node.cache.scrubber.run(), "scrub of the cache"))
        await duties.enter_async_context(running(node.writes.uploads.run(), "upkeep of uploads"))
        if has_admin:
            await duties.enter_async_context(node.repair.running(repairs=not context.is_stand_in))
        audit_options = configured.audit_options(settings, node.spool.node_id, context.process)
        opening = open_audit(audit_options, node.records.store, observer, node.access.signer.sign, open_signed)
        audit = await stack.enter_async_context(opening)
        app, warmer = _public_app(settings, node, observer, audit.trail, access_log)
        store, changes, keep = node.records.store, node.changes, configured.keep_limits(settings)
        readers, writes = node.upstreams.readers, node.writes
        history = open_history(store, changes, keep, warmer=warmer, readers=readers, writes=writes)
        connections = configured.connections(settings, observer)
        with configured.start_errors():
            tls = await stack.enter_async_context(open_certificates(configured.tls_files(settings), observer))
        public = await run_public(
            app.handle, context.public_sockets, connections[PUBLIC], app.fast_path.answer, tls.get(PUBLIC)
        )
        admin = answers = None
        if context.admin_socket is not None:
            services = _admin_services(settings, node, warmer, history, observer, audit, context, connections)
            admin = await stack.enter_async_context(
                serving_admin(make_admin_app(services), context.admin_socket, connections[ADMIN], tls.get(ADMIN))
            )
            answers = AnsweredDeployments(services.deployments, audit.trail)
        context.ready()
        if has_admin:  # not before: a long queue makes no start longer
            await duties.enter_async_context(running(node.events.deliveries.run(answers), "deliveries of events"))
            await duties.enter_async_context(running(node.events.replica_watch.run(), "events of replicas"))
            await duties.enter_async_context(running(history.run(), "history of tags"))
        await context.ending.wait()
        await duties.aclose()  # for the workers that come after, or the other nodes
        await drain(context, settings.drain, public, admin)


@dataclass(frozen=True, slots=True)
class _Node:
    """The open rooms below the listeners."""

    changes: StoreWatch
    access: Access
    directory: Directory
    cache: Cache
    spool: DiskSpool
    records: Records
    upstreams: Upstreams
    writes: Writes
    repair: RepairDuty
    router: PrefixRouter
    events: Events


@contextlib.asynccontextmanager
async def _open_node(settings: Settings, observer: Observer, context: WorkerContext) -> AsyncIterator[_Node]:
    def note_policy(at: float) -> None:
        observer.observe(PolicyCurrent(context.process, at))

    async with contextlib.AsyncExitStack() as stack:
        opening = open_store(settings.store_url, settings.changes_path, note_policy, may_create=False)
        store, changes = await stack.enter_async_context(opening)
        with configured.start_errors():
            access = await stack.enter_async_context(open_access(configured.access_options(settings), store, changes))
        directory = await stack.enter_async_context(contextlib.aclosing(Directory(store)))
        router = PrefixRouter(configured.routes(settings))
        cache_options = configured.cache_options(settings, context)
        cache = await stack.enter_async_context(open_cache(cache_options, observer, router.local_name))
        spool = DiskSpool(cache.disk, is_lasting=not context.is_stand_in)
        options, holdings = configured.record_options(settings), cache.holdings
        records = await stack.enter_async_context(open_records(options, store, changes, observer, holdings))
        inspection = Inspection(store=store, journal=records.journal, recorded=options.recorded)
        upstreams = await stack.enter_async_context(
            open_upstreams(
                configured.upstream_configs(settings),
                marks=records.journal.current,
                observer=observer,
                remembered=holdings,
                inspect=inspection.inspect,
                proves_absent=records.proof,
            )
        )
        receivers, replicas = configured.receiver_limits(settings), upstreams.replicas
        local_name = router.local_name
        opening_events = open_events(
            receivers, store, changes, local_name=local_name, upstreams=replicas, observer=observer
        )
        events = await stack.enter_async_context(opening_events)
        images = PushedImages(cache.disk, holdings, upstreams.readers)
        rules = open_rules(store, changes, images, events.outbox, local_name, observer)
        tools = ReplicaTools(
            records=records,
            replica_sets=upstreams.replicas,
            readers=upstreams.readers,
            impatient_readers=upstreams.impatient_readers,
            cache=cache.disk,
            holdings=holdings,
            pins=spool,
            observer=observer,
            outbox=events.outbox,
            rules=rules,
        )
        writes = Writes(tools)
        repair = RepairDuty(configured.repair_rates(settings), tools, inspection, writes.fallback_tags)
        yield _Node(changes, access, directory, cache, spool, records, upstreams, writes, repair, router, events)


def _public_app(
    settings: Settings, node: _Node, observer: Observer, trail: AuditTrail, access_log: AccessLog
) -> tuple[PublicApp, Warmer]:
    access, cache, upstreams, writes = node.access, node.cache, node.upstreams, node.writes
    pull = Pull(
        readers=upstreams.readers,
        impatient_readers=upstreams.impatient_readers,
        cache=cache.disk,
        holdings=cache.holdings,
        proofs=writes.proofs,
        observer=observer,
        tag_rules=configured.tag_rules(settings),
        # With SQLite there is one node, whose workers share what they know of tags.
        records=RecordedTags(node.records.tag, node.repair.tags.find, writes.seen, is_shared=not settings.sqlite_path),
    )
    referrers = Referrers(pull=pull, tags=writes.fallback_tags)
    push = Push(
        spool=node.spool,
        cache=cache.disk,
        holdings=cache.holdings,
        proofs=writes.proofs,
        sessions=writes.sessions,
        blobs=writes.uploads,
        writer=writes.manifests,
        referrers=referrers,
    )
    app = PublicApp(
        pull=pull,
        push=push,
        discover=Discover(readers=upstreams.readers, router=node.router),
        referrers=referrers,
        manage=Manage(holdings=cache.holdings, proofs=writes.proofs, deletions=writes.deletions, referrers=referrers),
        router=node.router,
        control=access.control,
        directory=node.directory,
        signer=access.signer,
        observer=observer,
        audit=trail,
        pulls=node.events.pulls,
        log_request=access_log,
        options=configured.public_options(settings),
        prefetch=Prefetch(pull) if settings.cache.prefetch else None,
    )
    return app, Warmer(pull, referrers.digests)


def _admin_services(  # noqa: PLR0917 - the parts of a worker, in the order in which they are made
    settings: Settings,
    node: _Node,
    warmer: Warmer,
    history: History,
    observer: PrometheusObserver,
    audit: Audit,
    context: WorkerContext,
    connections: Mapping[Listener, Connections],
) -> AdminServices:
    cache, repair = node.cache, node.repair
    images = PushedImages(cache.disk, cache.holdings, node.upstreams.readers)
    return AdminServices(
        bases=open_bases(node.records.store, warmer.pull, images),
        directory=node.directory,
        signer=node.access.signer,
        upstreams={
            name: Upstream(replicas, repair.repairers[name], repair.verifiers[name], repair.maintenances[name])
            for name, replicas in node.upstreams.replicas.items()
        },
        cache=cache.disk,
        warmer=warmer,
        route=node.router.route,
        known=KnownRepositories(
            node.records.repositories, node.records.count_tags, cache.holdings.repositories, node.router.local_name
        ),
        history=history,
        purge_repository=lambda repository: cache.holdings.purge(node.router.route(repository)),
        render_metrics=partial(observer.render, cache.disk.stats),
        readiness=Readiness(
            node.upstreams.replicas,
            node.access.control,
            node.changes,
            repair.repairers,
            repair.warnings,
            context.ending.is_set,
            connections,
            is_stand_in=context.is_stand_in,
        ),
        reload=context.reload,
        guard=configured.admin_guard(settings, node.access.control, audit.trail, observer),
        audit_files=AuditFiles(settings.audit_path, audit.verifier, audit.trail.flush_asked),
        deliveries=node.events.record,
        receivers=configured.receiver_limits(settings),
        public_url=settings.public_url or "",
        deployments=Deployments(
            store=node.records.store,
            changes=node.changes,
            outbox=node.events.outbox,
            route=node.router.route,
            read_labels=partial(read_labels, warmer.pull),
        ),
    )
