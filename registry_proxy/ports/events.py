"""Events for metrics and for the audit log."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from registry_proxy.ports.names import CacheResult, ContentKind, StaleReason
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.scope import Action


class Observer(Protocol):
    """Is told what happens; Prometheus is one. Values of all labels come from closed sets."""

    def cache_request(self, kind: ContentKind, result: CacheResult) -> None: ...
    def sent_bytes(self, source: str, size_bytes: int) -> None:
        """``source`` is cache or upstream."""

    def upstream_request(self, upstream: str, replica: str, method: str, outcome: str, duration_seconds: float) -> None:
        """``outcome`` is 2xx, 3xx, 4xx, 429, 5xx, connect, timeout, stall, cut or mismatch."""

    def replica_state(self, upstream: str, replica: str, state: ReplicaState) -> None: ...
    def replica_pending(self, upstream: str, replica: str, count: int) -> None: ...
    def replica_refused(self, upstream: str, replica: str, count: int) -> None:
        """Note how many keys a replica cannot have."""

    def replica_returned(self, upstream: str, replica: str, reason: str) -> None:
        """Note that a replica is not what it was; ``reason`` is older, empty, other or exchanged."""

    def replica_paused(self, upstream: str, replica: str, *, is_paused: bool) -> None: ...
    def lost_contents(self, upstream: str, count: int) -> None:
        """Note how many keys no replica of an upstream has any more."""

    def lost_copies(self, upstream: str, count: int) -> None:
        """Note how many contents that a replica misses this node kept for it, and no longer has."""

    def repositories_mixed(self, upstream: str, replica: str, is_mixed: bool) -> None:  # noqa: FBT001 - a gauge's value
        """Note whether a replica answers for a content in repositories that do not hold it."""

    def hedged(self, upstream: str, winner: str) -> None:
        """Note a question put to a second replica as well; ``winner`` is first, later, or none without an answer."""

    def decision(self, action: str, result: str) -> None:
        """``result`` is allow, deny or would_deny."""

    def request(self, route: str, method: str, status: int, duration_seconds: float) -> None: ...
    def cache_bytes(self, state: str, size_bytes: int) -> None:
        """``state`` is committed, filling or pinned."""

    def cache_error(self, reason: str) -> None:
        """``reason`` is write, read, evict, full, mismatch (a replica sent wrong content) or rot (it went bad here)."""

    def wrong_content(self, upstream: str, replica: str) -> None:
        """Note that a replica sent something else than the digest it was asked for."""

    def scrubbed(self, size_bytes: int) -> None:
        """Note how much committed content was read and compared."""

    def policy_current(self, at: float) -> None:
        """Note when this worker last knew that it decides by what the store holds, in seconds since the epoch."""

    def scrub_ended(self, ended_at: float) -> None:
        """Note when the scrub's last round ended, in seconds since the epoch."""

    def repaired(self, upstream: str, replica: str, outcome: str) -> None:
        """Note a key that a replica missed. ``outcome`` is copied, deleted, refused, lost, given_up or failed."""

    def repaired_bytes(self, upstream: str, replica: str, size_bytes: int) -> None:
        """Note the size of a blob that was sent to a replica that missed it."""

    def cache_evicted(self, size_bytes: int) -> None: ...
    def stale_answer(self, reason: StaleReason) -> None:
        """Note that a tag was answered as it was, because it could not be asked for."""

    def login(self, outcome: str) -> None:
        """``outcome`` is ok, refused, limited or unavailable (an issuer, or LDAP, does not answer)."""

    def audit_dropped(self, sink: str, count: int) -> None:
        """Note that events did not reach the audit log; ``sink`` is file, stdout, syslog or decisions."""

    def connection_ended(self, listener: str, reason: str) -> None:
        """Note a connection ended for others; ``listener`` is public or admin, ``reason`` share, room or full."""


class AuditKind(StrEnum):
    """The callers that can cause an event, which decides how many lines it may take and how long these are kept."""

    ACT = "act"
    """A change by an administrator, or of the service by itself: always a line of its own."""

    ACCOUNT = "account"
    """A login, or a change by a user or an owner of namespaces: bounded for each subject, and kept as long as acts."""

    TRAFFIC = "traffic"
    """A request of a client, and whatever was refused to anybody: refusals are bounded for each address."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something that shall be known later: who did, or was refused, what. No field may hold a secret.

    Args:
        action: what it is: login, pull, push, delete, or a resource of the admin API and its method (``users.put``).
        outcome: ok, refused (credentials), limited, denied (a right) or failed.
        subject: typed, such as ``user:ann``; of a login that was refused, whom it claimed to be.
        address: the client's.
        repository: the canonical name.
        tag: where one is named.
        digest: where one is named or made.
        rule: the id of the grant that decided, or the reason, also that of a login which its answer does not tell.
        detail: what else there is, as JSON has it.
        kind: the callers that can cause it.
    """

    action: str
    outcome: str
    subject: str = ""
    address: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""
    rule: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    kind: AuditKind = AuditKind.TRAFFIC


AskedRight = tuple[str, str, Action, str | None]
"""A question that was decided: subject, canonical repository, action, tag."""


class AuditLog(Protocol):
    """Remembers events; no method fails, and only ``written`` waits."""

    @property
    def records_pulls(self) -> bool:
        """Whether it wants to be told of each pull that was allowed."""

    def record(self, event: AuditEvent) -> None:
        """Take an event of the request that is being answered."""

    async def written(self) -> None:
        """Wait until the events recorded so far survive the end of this process, for a second at most."""

    def asked(self, right: AskedRight) -> None:
        """Take a question that was decided, so that another policy can be asked it as well."""


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """The outcome of reading the configuration again.

    ``generation`` is that of the workers that serve now, from 1. ``faults`` are those of the configuration, each with
    its place; ``failure`` is why workers did not start with it. With either the old workers serve on, with the old one.
    """

    generation: int
    faults: tuple[str, ...] = ()
    failure: str = ""
