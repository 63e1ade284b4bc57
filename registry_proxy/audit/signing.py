"""The signed heads of the audit logs: what was written up to them cannot be cut off or replaced unnoticed."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry_proxy.audit.chain import (
    GAP_ACTION,
    ChainFault,
    ChainReport,
    Head,
    SignedHead,
    has_line,
    list_chains,
    verify_chain,
)
from registry_proxy.audit.trail import AuditTrail, ChainWriter, SinkThread
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.events import AuditEvent
from registry_proxy.ports.store import Change, Store, Table

KIND = "registry-proxy-audit-head"
"""The ``typ`` of a signed head: it can never be taken for a token."""

SIGN_SECONDS = 5.0
"""With the time until lines are safe on the disk, a line is signed within ten seconds."""

_STALLED_SECONDS = 30.0
_log = logging.getLogger(__name__)

Sign = Callable[[bytes, str], str]
OpenSigned = Callable[[str, str, Mapping[str, Mapping[str, Any]]], bytes]


async def _read_head(store: Store, key: str, open_signed: OpenSigned) -> SignedHead | None:
    """Return a signed head. Raises ValueError when it is not signed by a known key, StoreUnavailableError."""
    record = await store.get(Table.AUDIT_HEADS, key)
    if record is None:
        return None
    jwks = {each.key: each.value["jwk"] for each in await store.list(Table.KEYS)}
    document = json.loads(open_signed(str(record.value["signed"]), KIND, jwks))
    if f"{document['node']}/{document['process']}" != key:
        raise ValueError("it is the head of another log")
    return SignedHead(Head(int(document["seq"]), str(document["hash"])), float(document["at"]))


@dataclass(frozen=True, slots=True)
class HeadSigner:
    """Signs the head of one process's chain into the store.

    Args:
        store: where to.
        node: whose log it is.
        process: which of its chains.
        directory: of the files.
        writer: tells what is safe on the disk.
        file: the thread that it writes in.
        trail: is told of a gap.
        sign: signs with the node's key.
        open_signed: returns what was signed.
    """

    store: Store
    node: str
    process: str
    directory: str
    writer: ChainWriter
    file: SinkThread
    trail: AuditTrail
    sign: Sign
    open_signed: OpenSigned

    async def run(self) -> None:
        """Sign every few seconds what is new, until cancelled; first look whether what was signed before is there."""
        signed: Head | None = None
        has_checked = False
        told_at = float("-inf")
        while True:
            await asyncio.sleep(SIGN_SECONDS)
            stalled_seconds = self.file.waiting_seconds()
            if stalled_seconds > _STALLED_SECONDS and time.monotonic() - told_at > _STALLED_SECONDS:
                _log.error("audit: %s has taken nothing for %.0f s", self.directory, stalled_seconds)
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
            document = {"node": self.node, "process": self.process, "seq": head.seq, "hash": head.hash}
            payload = json.dumps({**document, "at": time.time()}).encode()
            value = {"signed": self.sign(payload, KIND)}
            await self.store.commit([Change(Table.AUDIT_HEADS, f"{self.node}/{self.process}", value)])
        return head

    async def _check_start(self) -> bool:
        """Note in the log when lines are gone that were signed: signing anew must not cover it up."""
        if self.writer.synced is None:
            return False
        try:
            before = await _read_head(self.store, f"{self.node}/{self.process}", self.open_signed)
        except (ValueError, KeyError, TypeError):
            self.trail.record(AuditEvent(GAP_ACTION, "failed", rule="the head in the store is not signed by us"))
            return True
        if before is not None:
            files = (await asyncio.to_thread(list_chains, self.directory)).get(self.process, [])
            if not await asyncio.to_thread(has_line, files, before.head):
                reason = f"line {before.head.seq}, which was signed, is not in the files"
                self.trail.record(AuditEvent(GAP_ACTION, "failed", rule=reason))
        return True


@dataclass(frozen=True, slots=True)
class AuditVerification:
    """The result of verifying: a report for each process of this node; when other nodes last signed, by their ids."""

    reports: Sequence[ChainReport]
    elsewhere: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AuditVerifier:
    """Verifies the chains of all processes of a node.

    Args:
        store: holds the signed heads.
        node: whose log it is.
        is_only_node: whether no other node uses the store: then every head in it is of this node.
        directory: of the files.
        kept_seconds: how long retention keeps a log whose process is no more.
        open_signed: returns what was signed.
    """

    store: Store
    node: str
    is_only_node: bool
    directory: str
    kept_seconds: float
    open_signed: OpenSigned

    async def verify(self) -> AuditVerification:
        """Compare every signed head in the store with the files.

        Raises:
            StoreUnavailableError: the signed heads cannot be read.
            OSError: the files cannot be read.
        """
        heads: dict[str, SignedHead] = {}
        unsigned: set[str] = set()
        elsewhere: dict[str, float] = {}
        # Before the files: what is signed is in them already.
        for record in await self.store.list(Table.AUDIT_HEADS):
            node, _, process = record.key.partition("/")
            is_ours = node == self.node or self.is_only_node
            name = process if node == self.node else f"{process} (of node {node})"
            try:
                head = await _read_head(self.store, record.key, self.open_signed)
            except (ValueError, KeyError, TypeError):
                if is_ours:
                    unsigned.add(name)
                continue
            if head is not None and is_ours:
                heads[name] = head
            elif head is not None and self._is_kept(head):
                elsewhere[node] = max(head.signed_at, elsewhere.get(node, 0))
        return AuditVerification(await asyncio.to_thread(self._verify_files, heads, unsigned), elsewhere)

    def _is_kept(self, signed: SignedHead) -> bool:
        """Tell whether retention keeps what was signed, also of a process that is no more."""
        return time.time() - signed.signed_at <= self.kept_seconds

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
            elif signed is not None and self._is_kept(signed):
                fault = ChainFault("", 0, f"all files are missing: lines up to {signed.head.seq} were signed")
                report = ChainReport(process, 0, 0, signed.signed_at, 0, (fault,))
            else:
                continue  # retention has removed what a process left that there is no more
            reports.append(report)
        return reports
