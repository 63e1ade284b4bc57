"""Events that metrics count, one class each, and the port that receives them.

The values of every label come from a closed set or from the configuration. A new metric is a class here, in the union
``MetricEvent``, a row of the table in ``telemetry/metrics.py``, and the place that observes it.
"""

from typing import Literal, NamedTuple, Protocol

from registry_proxy.ports.names import CacheResult, ContentKind, ReturnReason, StaleReason
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.ports.rules import Condition, RuleMode
from registry_proxy.protocol.scope import Action

ByteSource = Literal["cache", "upstream"]
CacheFailureReason = Literal["write", "read", "evict", "full", "mismatch", "rot"]
CacheShare = Literal["committed", "filling", "pinned"]
ConnectionEndReason = Literal["share", "room", "full"]
DeliveryOutcome = Literal["delivered", "failed", "dead", "dropped"]
DecisionResult = Literal["allow", "deny", "would_deny"]
HedgeWinner = Literal["first", "later", "none"]
Listener = Literal["public", "admin"]
LoginOutcome = Literal["ok", "refused", "limited", "unavailable"]
RepairOutcome = Literal["copied", "deleted", "given_up", "failed", "refused", "lost"]
SinkName = Literal["file", "stdout", "syslog", "decisions"]
UpstreamOutcome = Literal["2xx", "3xx", "4xx", "429", "5xx", "connect", "timeout", "stall", "cut", "mismatch"]


# Named tuples: as cheap to make as frozen classes, cheaper to read, and a slice of one is the key of its series.
class ClientRequest(NamedTuple):
    """A request of a client was answered, or ended before. ``method`` may be any word."""

    route: str
    method: str
    status: int
    duration_seconds: float


class AccessDecision(NamedTuple):
    """A right was decided. ``would_deny`` is an action that the policy on trial refuses and the present one allows."""

    action: Action
    result: DecisionResult


class LoginAttempt(NamedTuple):
    """A login ended. ``unavailable`` means that an issuer of ID tokens, or LDAP, does not answer."""

    outcome: LoginOutcome


class ConnectionEnd(NamedTuple):
    """A connection of a client was closed to make room for others."""

    listener: Listener
    reason: ConnectionEndReason


class SentBytes(NamedTuple):
    """Bytes of content were sent to a client."""

    source: ByteSource
    size_bytes: int


class CacheRequest(NamedTuple):
    """A content was requested."""

    kind: ContentKind
    result: CacheResult


class CacheBytes(NamedTuple):
    """The cache's disk holds so many bytes of a share."""

    state: CacheShare
    size_bytes: int


class CacheDiskStalled(NamedTuple):
    """A worker began on the cache's disk, or on a small cache in memory because the disk does not answer."""

    is_stalled: bool


class CacheFailure(NamedTuple):
    """The cache failed. ``mismatch``: a replica sent wrong content; ``rot``: a content went bad on the disk."""

    reason: CacheFailureReason


class CacheEviction(NamedTuple):
    """A content was evicted."""

    size_bytes: int


class ScrubbedBytes(NamedTuple):
    """Bytes of committed content were read and compared."""

    size_bytes: int


class ScrubEnd(NamedTuple):
    """The last round of the scrub ended at this time, in seconds since the epoch."""

    ended_at: float


class StaleAnswer(NamedTuple):
    """A tag was answered as it last was, because the upstream could not be asked."""

    reason: StaleReason


class PolicyCurrent(NamedTuple):
    """A worker knew at this time, in seconds since the epoch, that it decides by the store's policy."""

    worker: str
    at: float


class CertificateInUse(NamedTuple):
    """New connections of a listener get a certificate that expires at this time, in seconds since the epoch."""

    listener: Listener
    expires_at: float


class AuditLoss(NamedTuple):
    """Events did not reach a sink of the audit log."""

    sink: SinkName
    event_count: int


class UpstreamRequest(NamedTuple):
    """A request to a replica ended; a body that breaks later is one more, with ``cut`` or ``stall``."""

    upstream: str
    replica: str
    method: str
    outcome: UpstreamOutcome
    duration_seconds: float


class HedgedRequest(NamedTuple):
    """A question was put to a second replica as well. The winner is ``none`` where neither answered."""

    upstream: str
    winner: HedgeWinner


class WrongContent(NamedTuple):
    """A replica sent other bytes than the digest promises."""

    upstream: str
    replica: str


class ReplicaInState(NamedTuple):
    """A replica is in a state now."""

    upstream: str
    replica: str
    state: ReplicaState


class ReplicaPending(NamedTuple):
    """A replica is behind in so many keys."""

    upstream: str
    replica: str
    key_count: int


class ReplicaRefusals(NamedTuple):
    """A replica refuses so many keys for good, without the dismissed ones."""

    upstream: str
    replica: str
    key_count: int


class ReplicaPaused(NamedTuple):
    """A replica is paused, or is not."""

    upstream: str
    replica: str
    is_paused: bool


class ReplicaReturn(NamedTuple):
    """A replica came back with another content than it had."""

    upstream: str
    replica: str
    reason: ReturnReason


class RepositoriesMixed(NamedTuple):
    """A replica answers for a content in repositories that do not hold it, or was seen not to."""

    upstream: str
    replica: str
    is_mixed: bool


class LostContents(NamedTuple):
    """No replica of an upstream has so many keys any more, without the dismissed ones."""

    upstream: str
    key_count: int


class LostCopies(NamedTuple):
    """This node lost so many contents that it kept for a replica that misses them."""

    upstream: str
    content_count: int


class KeyRepair(NamedTuple):
    """The repair of one key that a replica missed ended."""

    upstream: str
    replica: str
    outcome: RepairOutcome


class RepairedBytes(NamedTuple):
    """A blob of this size was sent to a replica that missed it."""

    upstream: str
    replica: str
    size_bytes: int


class QueuedDeliveries(NamedTuple):
    """So many deliveries of events wait, for all subscriptions together."""

    delivery_count: int


class OldestDelivery(NamedTuple):
    """The oldest delivery that waits for an enabled receiver was queued so long ago; 0 where none waits."""

    age_seconds: float


class DeadLetters(NamedTuple):
    """So many deliveries of events were given up and are on record."""

    delivery_count: int


class DisabledSubscriptions(NamedTuple):
    """So many subscriptions were disabled by the service, because their receivers want no events."""

    subscription_count: int


class DeliveryAttempt(NamedTuple):
    """Attempts to deliver an event ended. ``failed`` is repeated; ``dropped`` was never queued for want of room."""

    outcome: DeliveryOutcome
    event_count: int


class RuleViolation(NamedTuple):
    """A write of a tag violated a condition of a rule, in this mode."""

    condition: Condition
    mode: RuleMode


MetricEvent = (
    ClientRequest
    | AccessDecision
    | LoginAttempt
    | ConnectionEnd
    | SentBytes
    | CacheRequest
    | CacheBytes
    | CacheDiskStalled
    | CacheFailure
    | CacheEviction
    | ScrubbedBytes
    | ScrubEnd
    | StaleAnswer
    | PolicyCurrent
    | CertificateInUse
    | AuditLoss
    | UpstreamRequest
    | HedgedRequest
    | WrongContent
    | ReplicaInState
    | ReplicaPending
    | ReplicaRefusals
    | ReplicaPaused
    | ReplicaReturn
    | RepositoriesMixed
    | LostContents
    | LostCopies
    | KeyRepair
    | RepairedBytes
    | QueuedDeliveries
    | OldestDelivery
    | DeadLetters
    | DisabledSubscriptions
    | DeliveryAttempt
    | RuleViolation
)


class Observer(Protocol):
    """Receives one event for each thing that is counted or measured; Prometheus is one observer."""

    def observe(self, event: MetricEvent, /) -> None:
        """Count an event, from any thread. Never fails, never waits."""
