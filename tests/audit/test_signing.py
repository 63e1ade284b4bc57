"""Signed heads are compared with the files of the node that signed them."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.audit.signing import AuditVerification, AuditVerifier, NotAcceptableError, SignedDocuments
from registry_proxy.ports.store import Change, Table
from registry_proxy.store.open import open_store


def open_unsigned(text: str, _kind: str, _jwks: Mapping[str, Any]) -> bytes:
    """Return a "signed" text itself; anything else counts as unsigned."""
    if not text.startswith("{"):
        raise ValueError("not signed")
    return text.encode()


def sign_plainly(payload: bytes, _kind: str) -> str:
    """Return a text that ``open_unsigned`` opens."""
    return payload.decode()


def head(node: str, process: str, age_seconds: float = 0) -> Change:
    """Return the record of a head."""
    document = {"node": node, "process": process, "seq": 7, "hash": "0" * 64, "at": time.time() - age_seconds}
    return Change(Table.AUDIT_HEADS, f"{node}/{process}", {"signed": json.dumps(document)})


async def verification(root: Path, *, is_only_node: bool) -> AuditVerification:
    """Verify a node without any file, whose store holds heads of its own, of another node, and old ones."""
    heads = [
        head("own", "0"),
        head("own", "1", 7200),
        head("other", "0", 60),
        head("other", "1"),
        head("gone", "0", 7200),
    ]
    async with open_store(f"sqlite:///{root / 'store.db'}", None) as (store, _):
        await store.commit([*heads, Change(Table.AUDIT_HEADS, "forged/0", {"signed": "x"})])
        verifier = AuditVerifier(
            documents=SignedDocuments(store, sign_plainly, open_unsigned),
            node="own",
            is_only_node=is_only_node,
            directory=str(root / "audit"),
            acts_kept_seconds=3600,
            traffic_kept_seconds=3600,
        )
        return await verifier.verify()


async def test_heads_of_other_nodes_are_listed(tmp_path: Path) -> None:
    """Among several nodes only this one's heads are faults; for the others the last signature is reported."""
    found = await verification(tmp_path, is_only_node=False)
    assert [(report.process, len(report.faults)) for report in found.reports] == [("0", 1)]
    assert found.elsewhere == {"other": pytest.approx(time.time(), abs=30)}


async def test_every_head_is_of_the_only_node(tmp_path: Path) -> None:
    """With SQLite a head under another id belongs to this node before it lost its id: named, as a forged one is."""
    found = await verification(tmp_path, is_only_node=True)
    names = ["0", "0 (of node forged)", "0 (of node other)", "1 (of node other)"]
    assert [report.process for report in found.reports] == names
    assert all(report.faults for report in found.reports)
    assert found.elsewhere == {}


async def test_accepted_faults_are_listed_apart(tmp_path: Path) -> None:
    """An accepted fault is listed apart; a later fault counts again, and a forged list accepts nothing."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", None) as (store, _):
        await store.commit([head("own", "0")])
        verifier = AuditVerifier(
            documents=SignedDocuments(store, sign_plainly, open_unsigned),
            node="own",
            is_only_node=True,
            directory=str(tmp_path / "audit"),
            acts_kept_seconds=3600,
            traffic_kept_seconds=3600,
        )
        assert [len(report.faults) for report in (await verifier.accept("user:admin", "a fire")).reports] == [1]
        (report,) = (await verifier.verify()).reports
        (known,) = report.accepted
        assert (report.faults, known.by, known.reason) == ((), "user:admin", "a fire")
        with pytest.raises(NotAcceptableError, match="nothing to accept"):
            await verifier.accept("user:admin", "again")
        await store.commit([head("own", "1")])
        assert [len(report.faults) for report in (await verifier.verify()).reports] == [0, 1]
        await verifier.accept("user:boss", "another fire")
        accepted = [each.by for report in (await verifier.verify()).reports for each in report.accepted]
        assert accepted == ["user:admin", "user:boss"]
        await store.commit([Change(Table.AUDIT_HEADS, "accepted:own", {"signed": "forged"})])
        assert [len(report.faults) for report in (await verifier.verify()).reports] == [1, 1]
