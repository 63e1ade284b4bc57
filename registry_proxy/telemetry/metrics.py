"""Every Prometheus series of the service; labels come from closed sets, never from a client."""

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from registry_proxy.ports.names import CacheResult, ContentKind, StaleReason
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.endpoints import operations
from registry_proxy.protocol.scope import Action
from registry_proxy.telemetry.samples import KINDS, sample_file

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger(__name__)
_FILE_BYTES = 1024 * 1024
"""Of a file of values: more than all series need. Beyond it the library goes on in a sparse file."""

_READ_ATTEMPTS = 5
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_UPSTREAM_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60)


@dataclass(frozen=True, slots=True)
class _Labels:
    """Some labels of a metric, and the values they may have together.

    A series has to be there before its first event: one that is born with it has never increased, so that no alert on
    an increase fires. ``starts`` are those that begin at 0, all of them where the set is closed.
    """

    names: tuple[str, ...]
    starts: tuple[tuple[str, ...], ...] = ()


def _label(name: str, *values: str) -> _Labels:
    return _Labels((name,), tuple((value,) for value in values))


_RESULT = _label("result", *CacheResult)
_SOURCE = _label("source", "cache", "upstream")
_OUTCOME = _label("outcome", "2xx", "3xx", "4xx", "429", "5xx", "connect", "timeout", "stall", "cut", "mismatch")
_WINNER = _label("winner", "first", "later", "none")
_DECISION = (_label("action", *Action), _label("result", "allow", "deny", "would_deny"))
_REASON = _label("reason", "write", "read", "evict", "full", "mismatch", "rot")
_RETURN = _label("reason", "older", "empty", "other", "exchanged")
_REPAIR = _label("outcome", "copied", "deleted", "given_up", "failed", "refused", "lost")
_LOGIN = _label("outcome", "ok", "refused", "limited", "unavailable")
_SINK = _label("sink", "file", "stdout", "syslog", "decisions")
_ENDED = (_label("listener", "public", "admin"), _label("reason", "share", "room", "full"))
_ROUTE = _Labels(
    ("route", "method"),
    (
        *sorted({(operation.name.lower(), method) for method, operation in operations()}),
        *(("token", method) for method in ("GET", "POST")),
        *((route, method) for route in ("keys", "healthz") for method in ("GET", "HEAD")),
        *(("unknown", method) for method in (*_METHODS, "other")),
    ),
)
_STATUS = _label("status", "400", "401", "403", "404", "405", "416", "429", "499", "500", "502", "503")
"""Those that begin at 0 are the errors, on which alerts are made."""


def _allocate(directory: str, process: str) -> bool:
    """Take the room of a worker's files; the library leaves holes, and writing to one on a full disk is a SIGBUS."""
    try:
        for kind in KINDS:
            fd = os.open(sample_file(directory, kind, process), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _FILE_BYTES)
            finally:
                os.close(fd)
    except OSError as error:
        _log.warning("no room for shared metrics, worker %s keeps its own to itself: %s", process, error.strerror)
        return False
    return True


class PrometheusObserver:
    """Counts what happens; an ``Observer``.

    Args:
        directory: where the workers of this node share their values, one file for each kind and worker; None keeps
            them in this process. It must be empty when the node starts.
        process: distinguishes this worker from those that run beside it, of whatever generation; a worker that was
            given the one of a worker that has ended counts on from there. No underscore.
        replicas: the configured ones by upstream; all series of known labels begin at 0. None where another worker of
            the node has them begin: a scrape is the sum, and 2,000 values would be read of each worker.
    """

    def __init__(
        self,
        directory: str | None = None,
        process: str = "0",
        replicas: Mapping[str, Sequence[str]] | None = MappingProxyType({}),
    ) -> None:
        if directory is not None and not _allocate(directory, process):
            directory = None
        self._directory = directory
        if directory is not None:
            # Read by prometheus_client each time it opens a value's file.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
            values.ValueClass = values.MultiProcessValue(process_identifier=lambda: process)  # type: ignore[no-untyped-call]  # the library has no types here
        else:
            values.ValueClass = values.MutexValue
        self._registry = CollectorRegistry()
        self._begins = replicas is not None
        pairs = [(upstream, replica) for upstream, names in (replicas or {}).items() for replica in names]
        replica = _Labels(("upstream", "replica"), tuple(pairs))
        upstream = _label("upstream", *(replicas or {}))
        method = _label("method", *_METHODS)
        kind = _label("kind", *ContentKind)
        self._cache_requests = self._counter("cache_requests", "Requests for content, by result.", kind, _RESULT)
        self._sent_bytes = self._counter("sent_bytes", "Bytes of content sent to clients.", _SOURCE)
        self._upstream_requests = self._counter("upstream_requests", "Requests to replicas.", replica, method, _OUTCOME)
        self._hedged = self._counter(
            "hedged_requests", "Questions put to a second replica as well, by who answered.", upstream, _WINNER
        )
        self._decisions = self._counter("decisions", "Decisions about rights.", *_DECISION)
        self._responses = self._counter("responses", "Answers to clients.", _ROUTE, _STATUS)
        self._cache_errors = self._counter("cache_errors", "Failures of the cache.", _REASON)
        self._cache_evicted = self._counter("cache_evicted", "Contents evicted from the cache.")
        self._cache_evicted_bytes = self._counter("cache_evicted_bytes", "Bytes evicted from the cache.")
        stale = _label("reason", *StaleReason)
        self._stale_answers = self._counter("stale_answers", "Tags answered as they were, by why.", stale)
        self._repairs = self._counter("repairs", "Keys that a replica missed.", replica, _REPAIR)
        self._repaired_bytes = self._counter("repaired_bytes", "Bytes sent to repair a replica.", replica)
        self._wrong_contents = self._counter(
            "wrong_content", "Contents that a replica sent and that were not what was asked for.", replica
        )
        self._returned = self._counter(
            "replica_returned", "Replicas that were not what they had been, by what they were.", replica, _RETURN
        )
        self._scrubbed_bytes = self._counter("scrubbed_bytes", "Bytes of cached content read and compared.")
        self._logins = self._counter("logins", "Logins, by how they ended.", _LOGIN)
        self._connections_ended = self._counter(
            "connections_ended", "Connections of clients that were ended for others, by why.", *_ENDED
        )
        self._audit_dropped = self._counter("audit_dropped", "Events that did not reach the audit log.", _SINK)
        self._request_durations = self._histogram(
            "request_duration_seconds",
            "Time from a request's header to the end of its answer.",
            _REQUEST_BUCKETS,
            _ROUTE,
        )
        self._upstream_durations = self._histogram(
            "upstream_request_duration_seconds", "Time a replica took to answer.", _UPSTREAM_BUCKETS, replica, method
        )
        self._replica_state = self._gauge("replica_state", "1 for the state it is in.", "upstream", "replica", "state")
        self._replica_pending = self._gauge("replica_pending", "Keys it is behind in.", "upstream", "replica")
        self._replica_refused = self._gauge(
            "replica_refused", "Keys it cannot have, not dismissed.", "upstream", "replica"
        )
        self._replica_paused = self._gauge("replica_paused", "1 while it is paused.", "upstream", "replica")
        self._lost_contents = self._gauge("lost_contents", "Keys no replica has any more, not dismissed.", "upstream")
        self._lost_copies = self._gauge(
            "lost_copies", "Contents that a replica misses and whose copy on this node is gone.", "upstream"
        )
        self._repositories_mixed = self._gauge(
            "replica_mixes_repositories",
            "1 where it answers for a content in repositories that do not hold it.",
            "upstream",
            "replica",
        )
        self._cache_bytes = self._gauge("cache_bytes", "Bytes on the cache's disk.", "state")
        self._cache_disk_stalled = self._gauge(
            "cache_disk_stalled", "1 while the cache's disk does not answer, and a small cache in memory stands in."
        )
        # A series for each worker: the newest statement of any would hide one that has lost the store.
        self._policy_current = self._gauge(
            "policy_current_timestamp_seconds", "When it last knew that it decides by what the store holds.", "worker"
        )
        self._process = process
        self._scrub_ended = self._gauge("scrub_last_end_timestamp_seconds", "When the scrub's last round ended.")
        # labels() costs more than all the rest of counting: the bound series are kept.
        self._bound: dict[tuple[object, ...], Callable[[float], None]] = {}

    def _counter(self, noun: str, text: str, *labels: _Labels) -> Counter:
        names = [name for each in labels for name in each.names]
        counter = Counter(f"registry_proxy_{noun}_total", text, names, registry=self._registry)
        self._begin(counter, labels)
        return counter

    def _histogram(self, noun: str, text: str, buckets: Sequence[float], *labels: _Labels) -> Histogram:
        names = [name for each in labels for name in each.names]
        histogram = Histogram(f"registry_proxy_{noun}", text, names, buckets=buckets, registry=self._registry)
        self._begin(histogram, labels)
        return histogram

    def _begin(self, metric: Counter | Histogram, labels: Sequence[_Labels]) -> None:
        """Have every series of a metric whose labels are known start at 0."""
        if labels and self._begins:
            for values_of_each in itertools.product(*(each.starts for each in labels)):
                metric.labels(*itertools.chain.from_iterable(values_of_each))

    def _gauge(self, noun: str, text: str, *labels: str) -> Gauge:
        # All workers see the same replicas and the same disk: the newest statement is the truth, a sum is not.
        return Gauge(f"registry_proxy_{noun}", text, labels, registry=self._registry, multiprocess_mode="mostrecent")

    def _add(self, counter: Counter, amount: float, *labels: str) -> None:
        key = (counter, *labels)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = (counter.labels(*labels) if labels else counter).inc
        bound(amount)

    def _observe(self, histogram: Histogram, seconds: float, *labels: str) -> None:
        key = (histogram, *labels)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = histogram.labels(*labels).observe
        bound(seconds)

    def cache_request(self, kind: ContentKind, result: CacheResult) -> None:
        self._add(self._cache_requests, 1, kind.value, result.value)

    def sent_bytes(self, source: str, size_bytes: int) -> None:
        self._add(self._sent_bytes, size_bytes, source)

    def upstream_request(self, upstream: str, replica: str, method: str, outcome: str, duration_seconds: float) -> None:
        self._add(self._upstream_requests, 1, upstream, replica, method, outcome)
        self._observe(self._upstream_durations, duration_seconds, upstream, replica, method)

    def replica_state(self, upstream: str, replica: str, state: ReplicaState) -> None:
        for each in ReplicaState:
            self._replica_state.labels(upstream, replica, each.value).set(each is state)

    def replica_pending(self, upstream: str, replica: str, count: int) -> None:
        self._replica_pending.labels(upstream, replica).set(count)

    def replica_refused(self, upstream: str, replica: str, count: int) -> None:
        self._replica_refused.labels(upstream, replica).set(count)

    def replica_returned(self, upstream: str, replica: str, reason: str) -> None:
        self._add(self._returned, 1, upstream, replica, reason)

    def replica_paused(self, upstream: str, replica: str, *, is_paused: bool) -> None:
        self._replica_paused.labels(upstream, replica).set(is_paused)

    def lost_contents(self, upstream: str, count: int) -> None:
        self._lost_contents.labels(upstream).set(count)

    def lost_copies(self, upstream: str, count: int) -> None:
        self._lost_copies.labels(upstream).set(count)

    def repositories_mixed(self, upstream: str, replica: str, is_mixed: bool) -> None:  # noqa: FBT001 - a gauge's value
        self._repositories_mixed.labels(upstream, replica).set(is_mixed)

    def hedged(self, upstream: str, winner: str) -> None:
        self._add(self._hedged, 1, upstream, winner)

    def decision(self, action: str, result: str) -> None:
        self._add(self._decisions, 1, action, result)

    def request(self, route: str, method: str, status: int, duration_seconds: float) -> None:
        known = method if method in _METHODS else "other"
        self._add(self._responses, 1, route, known, str(status))
        self._observe(self._request_durations, duration_seconds, route, known)

    def cache_bytes(self, state: str, size_bytes: int) -> None:
        self._cache_bytes.labels(state).set(size_bytes)

    def cache_error(self, reason: str) -> None:
        self._add(self._cache_errors, 1, reason)

    def cache_disk_stalled(self, *, is_stalled: bool) -> None:
        """Tell whether a cache in memory stands in for the one on disk."""
        self._cache_disk_stalled.set(is_stalled)

    def cache_evicted(self, size_bytes: int) -> None:
        self._add(self._cache_evicted, 1)
        self._add(self._cache_evicted_bytes, size_bytes)

    def stale_answer(self, reason: StaleReason) -> None:
        self._add(self._stale_answers, 1, reason.value)

    def repaired(self, upstream: str, replica: str, outcome: str) -> None:
        self._add(self._repairs, 1, upstream, replica, outcome)

    def repaired_bytes(self, upstream: str, replica: str, size_bytes: int) -> None:
        self._add(self._repaired_bytes, size_bytes, upstream, replica)

    def wrong_content(self, upstream: str, replica: str) -> None:
        self._add(self._wrong_contents, 1, upstream, replica)

    def scrubbed(self, size_bytes: int) -> None:
        self._add(self._scrubbed_bytes, size_bytes)

    def policy_current(self, at: float) -> None:
        self._policy_current.labels(self._process).set(at)

    def scrub_ended(self, ended_at: float) -> None:
        self._scrub_ended.set(ended_at)

    def login(self, outcome: str) -> None:
        self._add(self._logins, 1, outcome)

    def connection_ended(self, listener: str, reason: str) -> None:
        self._add(self._connections_ended, 1, listener, reason)

    def audit_dropped(self, sink: str, count: int) -> None:
        self._add(self._audit_dropped, count, sink)

    def render(self) -> bytes:
        """Return the text of a scrape: this process, or all workers of the node summed."""
        if self._directory is None:
            return generate_latest(self._registry)
        for _ in range(_READ_ATTEMPTS - 1):
            with contextlib.suppress(FileNotFoundError):  # a worker ended between the list of files and its turn
                return self._render_all(self._directory)
        return self._render_all(self._directory)

    def _render_all(self, directory: str) -> bytes:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]  # the library has no types here
        return generate_latest(registry)
