"""Opening the audit log of one process: its chains, their signatures, and the other sinks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from registry_proxy.audit.chain import TRAFFIC_SUFFIX
from registry_proxy.audit.signing import AuditVerifier, HeadSigner, OpenSigned, Sign, SignedDocuments
from registry_proxy.audit.sinks import DecisionSink, StreamSink, SyslogSink
from registry_proxy.audit.trail import AuditTrail, SinkThread
from registry_proxy.audit.writer import ChainWriter, Retention
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.events import AuditEvent, AuditKind
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.store import Store
from registry_proxy.tasks import running

_FLUSH_SECONDS = 30.0  # often enough for those who try another policy on what was asked


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """Place and bounds of the audit log of a process.

    Args:
        directory: of the node's audit log.
        node: its id.
        process: names the chains; no two processes at a time have the same.
        acts: the limits of changes and logins.
        traffic: the limits of all other events.
        records_pulls: whether pulls that are allowed are events.
        stdout: a file descriptor that receives each event as JSON, or None.
        syslog: the URL of a syslog daemon, or None.
        is_only_node: see ``AuditVerifier``.
    """

    directory: str
    node: str
    process: str
    acts: Retention
    traffic: Retention
    records_pulls: bool
    stdout: int | None
    syslog: str | None
    is_only_node: bool


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit log of a process, and the verifier of those of all processes of its node."""

    trail: AuditTrail
    verifier: AuditVerifier


@contextlib.asynccontextmanager
async def open_audit(
    options: AuditOptions, store: Store, observer: Observer, sign: Sign, open_signed: OpenSigned
) -> AsyncIterator[Audit]:
    """Keep an audit log, signed into the store, for the length of a with block.

    Args:
        options: where and how.
        store: receives the signed heads.
        observer: receives the number of events that a sink lost.
        sign: signs with the node's key.
        open_signed: returns what was signed.
    """
    node, process, documents = options.node, options.process, SignedDocuments(store, sign, open_signed)
    retention = {process: options.acts, f"{process}{TRAFFIC_SUFFIX}": options.traffic}
    writers = {chain: ChainWriter(options.directory, node, chain, limits) for chain, limits in retention.items()}
    files = {chain: SinkThread("file", writer, observer) for chain, writer in writers.items()}
    copies = []
    if options.stdout is not None:
        copies.append(SinkThread("stdout", StreamSink(options.stdout, node, process), observer))
    if options.syslog is not None:
        copies.append(SinkThread("syslog", SyslogSink(options.syslog, node, process), observer))
    acts, traffic = files.values()
    decisions = SinkThread("decisions", DecisionSink(options.directory, process), observer)
    trail = AuditTrail(
        acts=acts, traffic=traffic, decisions=decisions, copies=copies, records_pulls=options.records_pulls
    )
    signers = {
        chain: HeadSigner(documents=documents, writer=writer, file=files[chain], trail=trail)
        for chain, writer in writers.items()
    }
    verifier = AuditVerifier(
        documents=documents,
        node=node,
        is_only_node=options.is_only_node,
        directory=options.directory,
        acts_kept_seconds=options.acts.total_seconds,
        traffic_kept_seconds=options.traffic.total_seconds,
    )
    with trail.running():
        trail.record(AuditEvent("worker.start", "ok", kind=AuditKind.ACT))
        async with contextlib.AsyncExitStack() as background:
            for chain, signer in signers.items():
                await background.enter_async_context(running(signer.run(), f"signatures of audit log {chain}"))
            await background.enter_async_context(running(_flush(trail), "counted audit events"))
            yield Audit(trail, verifier)
        trail.record(AuditEvent("worker.end", "ok", kind=AuditKind.ACT))
    with contextlib.suppress(StoreUnavailableError):
        for signer in signers.values():
            await signer.sign_now()


async def _flush(trail: AuditTrail) -> None:
    while True:
        await asyncio.sleep(_FLUSH_SECONDS)
        trail.flush_asked()
        trail.flush_folded()
