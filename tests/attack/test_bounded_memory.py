"""Mappings with keys from callers, objects and replicas: each is listed here with its bound."""

import ast
import json
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from registry_proxy.operations.proofs import HoldingProofs
from registry_proxy.protocol.descriptor import OCI_MANIFEST, Descriptor, Manifest
from registry_proxy.protocol.reference import digest_of

PACKAGE = Path(__file__).parents[2] / "registry_proxy"
AT_THE_START = {"app", "cli", "config", "node", "offline", "load", "__main__"}
"""Parts that handle the configuration, their own processes or an operator's command, and no request."""

COLLECTIONS = {"dict", "OrderedDict", "set", "deque", "Counter", "WeakValueDictionary", "defaultdict"}

CACHES = {"FIFOCache", "LRUCache", "TTLCache"}
"""Classes of cachetools, bounded by their first argument."""

CONFIGURED = "one for each configured replica, upstream or issuer"
RUNNING = "one for each request, connection, task or fetch that is running"
STORED = "a copy of what lies in the store; what callers may store has its own bounds"
LANES = "one for each repository with events that wait: 100,000 for each of 100 subscriptions of administrators"
RECENT = "1,000 entries; names of 255 characters and digests, or what the row says"

BOUNDS = {
    "access.credentials.LoginLimiter._known": "10,000 users with the owners of their addresses",
    "access.credentials.LoginLimiter._turns": "64 that wait",
    "access.credentials.Passwords._remembered": "10,000 keyed digests of 32 bytes",
    "access.grants.CompiledGrants.by_id": STORED,
    "access.grants.CompiledGrants.by_subject": STORED,
    "access.grants.GrantIndex._by_end": STORED,
    "access.issuer_keys.IssuerKeys._keys": "an issuer's answer of bounded size",
    "access.policy.Policy._decided": "24 MiB",
    "access.policy.Policy._held": "one for each subject and action of the policy",
    "access.refresh_tokens.RefreshTokens._copies": STORED,
    "access.snapshot.Snapshots._tables": STORED,
    "access.tokens.TokenVerifier._keys": STORED,
    "access.tokens.TokenVerifier._verified": "16 MiB",
    "access.turns._Line._queues": "64 that wait",
    "admission.auth.AdminGuard._told_at": "1,000 subjects that exist, with addresses",
    "upkeep.comparisons.ComparisonResource._comparisons": CONFIGURED,
    "upkeep.comparisons.ComparisonResource._running": CONFIGURED,
    "upkeep.warm.WarmResource._jobs": "1,000 jobs of administrators",
    "upkeep.warm.WarmResource._running": RUNNING,
    "audit.chain._Verification.faults": "one verification, of an administrator",
    "audit.folding.Folding._whole": "256 owners, and the acts of those who logged in",
    "audit.trail.AuditTrail._asked": "20,000 questions of names with bounded lengths",
    "cache.disk.DiskCache._fills": RUNNING,
    "cache.disk.DiskCache._running": RUNNING,
    "cache.disk.DiskCache._touched": "100,000 digests of content that is here",
    "cache.holdings.FileHoldings._entries": "4,096 names of 255 characters",
    "cache.memory.SmallContents._contents": "32 MiB",
    "spool.spool.DiskSpool._running": "1,000 hashes",
    "spool.upload_file.UploadFile._readers": CONFIGURED,
    "spool.upload_file.UploadFile._window": "1 MiB",
    "cache.watch.FileWatcher._watches": RUNNING,
    "cache.writer.PartialFileWriter._pending": "1 MiB and a chunk",
    "edge.allowance.Allowance._whole_at": "10,000 subjects",
    "edge.fast_path.FastPath._heads": "4 MiB",
    "events.agenda.Agenda._calendar": LANES,
    "events.agenda.Agenda._due": LANES,
    "events.agenda.Agenda._renewed": RUNNING,
    "events.agenda.Agenda._serving": RUNNING,
    "events.agenda.Agenda._times": LANES,
    "events.backlog.Backlog._oldest": LANES,
    "events.backlog.Backlog._queued": "100 subscriptions",
    "events.breaker.Breakers._receivers": "one for each subscription, 500 at most",
    "events.deliveries.Deliveries._looked_at": LANES,
    "events.deliveries.Deliveries._newest_tried": LANES,
    "events.fan_out._Queue._deliveries": "100 events at once",
    "events.pulls.NotedPulls._notes": "1,000 pulls, then they are dropped and counted",
    "events.replica_watch.ReplicaWatch._down_since": CONFIGURED,
    "events.replica_watch.ReplicaWatch._reported": STORED,
    "files.writer_thread.WriterThread.pending": "20,000 events of 8 KB, or requests with paths of 1,000 characters",
    "history.keepers.Keepers._waiting": STORED,
    "history.purge.PurgedContent._waiting": "10,000 digests that administrators purged",
    "http.connections.Connections._owners": RUNNING,
    "http.connections.Connections._sites": RUNNING,
    "http.connections.Connections._reserved": RUNNING,
    "http.connections.Connections._tells_from": "reasons from a closed set",
    "http.listening.TlsListening._handshakes": RUNNING,
    "operations.discover.Discover._names": "one list for each upstream, of a million names at most",
    "operations.flight.SingleFlight._flying": RUNNING,
    "operations.proofs.HoldingProofs._links": "100,000 digests",
    "operations.proofs.HoldingProofs._walked": "100,000 digests, or the largest repository",
    "operations.warm.Prefetch._pulled": "4,096 subjects and repositories",
    "operations.warm.Prefetch._queue": "200 blobs",
    "operations.warm.Prefetch._workers": RUNNING,
    "repair.inspection.Inspection._refused": CONFIGURED,
    "replication.marks.JournalMarks._behind": STORED,
    "replication.marks.JournalMarks._entries": STORED,
    "replication.marks.JournalMarks._lost": STORED,
    "replication.marks.JournalMarks._missed_contents": STORED,
    "replication.marks.JournalMarks._refused": STORED,
    "replication.marks.JournalMarks._pending": STORED,
    "replication.marks.JournalMarks._under_way": STORED,
    "replication.recent_writes.RecentWrites._numbers": RECENT,
    "replication.sessions.SignedSessions._keys": "one for each period of hours that has a key in the store",
    "replication.upload_stream.ReplicaStream._next": CONFIGURED,
    "telemetry.folding.Folding._kinds": "2,000 lines of the log",
    "upstream.doubts.Doubts._asked_last": CONFIGURED,
    "upstream.doubts.Doubts._cuts": RECENT,
    "upstream.doubts.Doubts._lies": RECENT,
    "upstream.doubts.Doubts._limits": RECENT,
    "upstream.failover.FailoverReader._have_referrers": CONFIGURED,
    "replica.heads.Heads._believed": RECENT,
    "replica.heads.Heads._useless": RECENT,
    "replica.wrapped_manifests.WrappedManifests._originals": RECENT,
    "upstream.hedging.Hedging._durations": CONFIGURED,
    "replica.login.ReplicaLogin._locks": RUNNING,
    "replica.login.ReplicaLogin._refusals": RECENT,
    "replica.login.ReplicaLogin._tokens": "1,000 tokens of 16 KiB",
    "replica.login.ReplicaLogin._ways": RECENT,
    "upstream.replicas.UpstreamReplicas._watched": CONFIGURED,
    "upstream.replicas.UpstreamReplicas._tasks": CONFIGURED,
    "upstream.retries.Retries._budgets": RECENT,
    "upstream.retries.Retries._failures": RECENT,
    "upstream.separation.Separation._is_apart": CONFIGURED,
    "upstream.separation.Separation._latest": CONFIGURED,
    "upstream.separation.Separation._unverified": CONFIGURED,
    "upstream.sharing.SharedLists._kept": "32 MiB",
    "upstream.sharing.SharedLists._running": RUNNING,
    "replica.connections.ReplicaConnections._elsewhere": CONFIGURED,
}


def is_empty_collection(value: ast.expr) -> bool:
    """Tell whether an expression makes an empty collection."""
    if isinstance(value, ast.Dict):
        return not value.keys
    if isinstance(value, ast.List):
        return not value.elts
    if not isinstance(value, ast.Call):
        return False
    made = value.func.value if isinstance(value.func, ast.Subscript) else value.func
    return isinstance(made, ast.Name) and (made.id in CACHES or (made.id in COLLECTIONS and not value.args))


def collections_of(module: str, source: str) -> set[str]:
    """Return the names of the collections that the objects of a module hold, empty at first."""
    found = set()
    for owner in ast.walk(ast.parse(source)):
        if isinstance(owner, ast.ClassDef):
            makers = [each for each in owner.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
            for statement in (each for maker in makers for each in ast.walk(maker)):
                if not isinstance(statement, ast.AnnAssign | ast.Assign) or statement.value is None:
                    continue
                target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
                value = statement.value
                if isinstance(target, ast.Attribute) and is_empty_collection(value):
                    found.add(f"{module}.{owner.name}.{target.attr}")
    return found


def test_every_collection_that_outlives_a_request_has_a_bound_that_is_known() -> None:
    """A new mapping, set or queue needs an entry in the table above, with the bound that callers cannot exceed."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module.partition(".")[0] not in AT_THE_START:
            found |= collections_of(module, path.read_text())
    assert found - BOUNDS.keys() == set()


@pytest.mark.parametrize("source", ["class A:\n  def __init__(self):\n    self.b: dict[str, int] = {}"])
def test_a_collection_is_found(source: str) -> None:
    """The search above finds each form of a collection."""
    assert collections_of("m", source) == {"m.A.b"}


def test_manifests_with_many_parts_are_remembered_within_a_bound_of_digests() -> None:
    """Manifests of thousands of layers, which anybody with push can make, are remembered up to a number of digests."""
    proofs = HoldingProofs(
        readers={}, separations={}, holdings=MagicMock(), cache=MagicMock(), recorded=MagicMock(), pushed=MagicMock()
    )
    for number in range(12):
        parts = [
            {"mediaType": "a/b", "digest": str(digest_of(b"%d of %d" % (part, number))), "size": 1}
            for part in range(10_000)
        ]
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": parts[0], "layers": parts}
        body = json.dumps(document).encode()
        assert len(proofs._read_links(Manifest(Descriptor(OCI_MANIFEST, digest_of(body), len(body)), body))) == 10_000
        assert sum(map(len, proofs._links.values())) <= 100_000
