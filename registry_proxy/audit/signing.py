"""The signed heads of the audit logs: what was written up to them cannot be cut off or replaced unnoticed."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from registry_proxy.audit.chain import (
    GAP_ACTION,
    TRAFFIC_SUFFIX,
    AcceptedFault,
    ChainFault,
    ChainReport,
    Head,
    SignedHead,
    has_line,
    list_chains,
    verify_chain,
)
from registry_proxy.audit.trail import AuditTrail, SinkThread
from registry_proxy.audit.writer import ChainWriter
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.events import AuditEvent, AuditKind
from registry_proxy.ports.store import Change, Store, Table

KIND = "registry-proxy-audit-head"
"""The ``typ`` of a signed head: it can never pass as a token."""

ACCEPTED_KIND = "registry-proxy-audit-accepted"
"""The ``typ`` of the signed list of faults that an administrator has accepted."""

FAULTS_ACCEPTED_MAX = 1000

_ACCEPTED_PREFIX = "accepted:"  # of keys in the table of heads, with the node's id behind it

SIGN_SECONDS = 5.0
"""With the time until lines are safe on the disk, a line is signed within ten seconds."""

_STALLED_SECONDS = 30.0
_log = logging.getLogger(__name__)

Sign = Callable[[bytes, str], str]
OpenSigned = Callable[[str, str, Mapping[str, Mapping[str, Any]]], bytes]


@dataclass(frozen=True, slots=True)
class SignedDocuments:
    """Documents in the table of heads.

    Args:
        store: holds them, and the public keys of this registry.
        sign: signs with the node's key.
        open_signed: returns what was signed.
    """

    store: Store
    sign: Sign
    open_signed: OpenSigned

    async def write(self, key: str, kind: str, document: Mapping[str, Any]) -> None:
        """Sign a document into the store. Raises StoreUnavailableError."""
        value = {"signed": self.sign(json.dumps(document).encode(), kind)}
        await self.store.commit([Change(Table.AUDIT_HEADS, key, value)])

    async def read(self, key: str, kind: str) -> Any:
        """Return a document; None where there is none.

        Raises:
            ValueError, KeyError, TypeError: it is not signed with a key of this registry.
            StoreUnavailableError: it cannot be read.
        """
        record = await self.store.get(Table.AUDIT_HEADS, key)
        if record is None:
            return None
        keys = {each.key: each.value["jwk"] for each in await self.store.list(Table.KEYS)}
        return json.loads(self.open_signed(str(record.value["signed"]), kind, keys))

    async def read_head(self, key: str) -> SignedHead | None:
        """Return a signed head. Raises as ``read``."""
        document = await self.read(key, KIND)
        if document is None:
            return None
        if f"{document['node']}/{document['process']}" != key:
            raise ValueError("it is the head of another log")
        return SignedHead(Head(int(document["seq"]), str(document["hash"])), float(document["at"]))


@dataclass(frozen=True, slots=True)
class HeadSigner:
    """Signs the head of one process's chain into the store.

    Args:
        documents: where to.
        writer: writes the chain, and tells what is safe on the disk.
        file: the thread that it writes in.
        trail: receives the event of a gap.
    """

    documents: SignedDocuments
    writer: ChainWriter
    file: SinkThread
    trail: AuditTrail

    async def run(self) -> None:
        """Sign every few seconds what is new, until cancelled; first look whether what was signed before is there."""
        signed: Head | None = None
        has_checked = False
        told_at = float("-inf")
        while True:
            await asyncio.sleep(SIGN_SECONDS)
            stalled_seconds = self.file.waiting_seconds()
            if stalled_seconds > _STALLED_SECONDS and time.monotonic() - told_at > _STALLED_SECONDS:
                _log.error("audit: %s has accepted no event for %.0f s", self.writer.directory, stalled_seconds)
                told_at = time.monotonic()
            try:
                if not has_checked:
                    has_checked = await self._check_start()
                if has_checked and self.writer.synced not in {None, signed}:
                    signed = await self.sign_now()
            except (StoreUnavailableError, OSError) as error:
                _log.warning("audit: the head of the log is not signed: %s", error)

    async def sign_now(self) -> Head | None:
        """Sign the last line that is safe on the disk. Raises StoreUnavailableError."""
        head = self.writer.synced
        if head is not None:
            node, process = self.writer.node, self.writer.process
            document = {"node": node, "process": process, "seq": head.seq, "hash": head.hash, "at": time.time()}
            await self.documents.write(f"{node}/{process}", KIND, document)
        return head

    async def _check_start(self) -> bool:
        """Note in the log when lines are gone that were signed: signing anew must not cover it up."""
        if self.writer.synced is None:
            return False
        try:
            before = await self.documents.read_head(f"{self.writer.node}/{self.writer.process}")
        except (ValueError, KeyError, TypeError):
            self._record_gap("the head in the store is not signed by us")
            return True
        if before is not None:
            files = (await asyncio.to_thread(list_chains, self.writer.directory)).get(self.writer.process, [])
            if not await asyncio.to_thread(has_line, files, before.head):
                self._record_gap(f"line {before.head.seq}, which was signed, is not in the files")
        return True

    def _record_gap(self, reason: str) -> None:
        # An act, whichever chain has it: refusals beside it must not fold it.
        rule = f"log of process {self.writer.process}: {reason}"
        self.trail.record(AuditEvent(GAP_ACTION, "failed", rule=rule, kind=AuditKind.ACT))


class NotAcceptableError(Exception):
    """Faults cannot be accepted; the message says why."""


@dataclass(frozen=True, slots=True)
class AuditVerification:
    """The result of verifying: a report for each process of this node; when other nodes last signed, by their ids."""

    reports: Sequence[ChainReport]
    elsewhere: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AuditVerifier:
    """Verifies the chains of all processes of a node.

    Args:
        documents: the signed heads.
        node: whose log it is.
        is_only_node: whether no other node uses the store: then every head in it is of this node.
        directory: of the files.
        acts_kept_seconds: how long retention keeps the acts of a process that is no more.
        traffic_kept_seconds: how long it keeps the rest.
    """

    documents: SignedDocuments
    node: str
    is_only_node: bool
    directory: str
    acts_kept_seconds: float
    traffic_kept_seconds: float

    async def verify(self) -> AuditVerification:
        """Compare every signed head in the store with the files; accepted faults are listed apart from others.

        Raises:
            StoreUnavailableError: the signed heads cannot be read.
            OSError: the files cannot be read.
        """
        heads: dict[str, SignedHead] = {}
        unsigned: set[str] = set()
        elsewhere: dict[str, float] = {}
        # Before the files: what is signed is in them already.
        for record in await self.documents.store.list(Table.AUDIT_HEADS):
            if record.key.startswith(_ACCEPTED_PREFIX):
                continue
            node, _, process = record.key.partition("/")
            is_ours = node == self.node or self.is_only_node
            name = process if node == self.node else f"{process} (of node {node})"
            try:
                head = await self.documents.read_head(record.key)
            except (ValueError, KeyError, TypeError):
                if is_ours:
                    unsigned.add(name)
                continue
            if head is not None and is_ours:
                heads[name] = head
            elif head is not None and self._is_kept(process, head):
                elsewhere[node] = max(head.signed_at, elsewhere.get(node, 0))
        reports = await asyncio.to_thread(self._verify_files, heads, unsigned)
        accepted = await self._accepted()
        return AuditVerification([_without_accepted(report, accepted) for report in reports], elsewhere)

    async def accept(self, by: str, reason: str) -> AuditVerification:
        """Accept all present faults: from now on they are reported as accepted, and count as no faults.

        Args:
            by: the administrator's subject.
            reason: in words, for later readers.

        Returns:
            What was verified before.

        Raises:
            NotAcceptableError: there is no fault, or there are too many.
            StoreUnavailableError, OSError: as ``verify``.
        """
        found = await self.verify()
        at = time.time()
        new = [
            (report.process, AcceptedFault(fault, by, at, reason))
            for report in found.reports
            for fault in report.faults
        ]
        if not new:
            raise NotAcceptableError("there is nothing to accept: the log is as it was written")
        # An accepted fault that is not found any more, because retention has removed its place, is forgotten.
        entries = [(report.process, each) for report in found.reports for each in report.accepted] + new
        if len(entries) > FAULTS_ACCEPTED_MAX:
            raise NotAcceptableError(
                f"{len(entries)} faults are more than the {FAULTS_ACCEPTED_MAX} that can be accepted: "
                f"move the files of {self.directory} away, and accept that they are missing"
            )
        document = {"node": self.node, "faults": [{"process": process, **asdict(each)} for process, each in entries]}
        await self.documents.write(f"{_ACCEPTED_PREFIX}{self.node}", ACCEPTED_KIND, document)
        return found

    async def _accepted(self) -> Mapping[tuple[str, ChainFault], AcceptedFault]:
        """Return the accepted faults by process; none where the list is not signed by a key of this registry."""
        try:
            document = await self.documents.read(f"{_ACCEPTED_PREFIX}{self.node}", ACCEPTED_KIND)
            if document is None or document["node"] != self.node:
                return {}
            accepted = [
                (each["process"], AcceptedFault(ChainFault(**each["fault"]), each["by"], each["at"], each["reason"]))
                for each in document["faults"]
            ]
        except (ValueError, KeyError, TypeError):
            return {}
        return {(process, each.fault): each for process, each in accepted}

    def _is_kept(self, process: str, signed: SignedHead) -> bool:
        """Tell whether retention keeps what was signed, also of a process that is no more."""
        is_traffic = process.partition(" ")[0].endswith(TRAFFIC_SUFFIX)
        kept_seconds = self.traffic_kept_seconds if is_traffic else self.acts_kept_seconds
        return time.time() - signed.signed_at <= kept_seconds

    def _verify_files(self, heads: Mapping[str, SignedHead], unsigned: set[str]) -> list[ChainReport]:
        chains = list_chains(self.directory)
        reports = []
        for process in sorted({*chains, *heads, *unsigned}):
            files, signed = chains.get(process, []), heads.get(process)
            if process in unsigned:
                fault = ChainFault("", 0, "the head in the store is not signed with a key of this registry")
                report = verify_chain(files, None) if files else ChainReport(process, 0, 0, None, 0, ())
                report = ChainReport(process, report.first, report.last, None, 0, (*report.faults, fault))
            elif files:
                report = verify_chain(files, signed)
            elif signed is not None and self._is_kept(process, signed):
                fault = ChainFault("", 0, f"all files are missing: lines up to {signed.head.seq} were signed")
                report = ChainReport(process, 0, 0, signed.signed_at, 0, (fault,))
            else:
                continue  # retention has removed what a process left that there is no more
            reports.append(report)
        return reports


def _without_accepted(report: ChainReport, accepted: Mapping[tuple[str, ChainFault], AcceptedFault]) -> ChainReport:
    """Return a report that lists its accepted faults apart."""
    known = {fault: accepted[report.process, fault] for fault in report.faults if (report.process, fault) in accepted}
    faults = tuple(fault for fault in report.faults if fault not in known)
    return replace(report, faults=faults, accepted=tuple(known.values()))
