"""Every Prometheus series of the service; labels come from closed sets, never from a client.

``_SERIES`` says which event changes which series. The fields of an event are labels, but for the amount, which is last;
the type of a field says which values the label may have.
"""

import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import EnumType
from functools import partial
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from registry_proxy.ports import metrics as events
from registry_proxy.ports.metrics import MetricEvent
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.endpoints import Operation
from registry_proxy.telemetry.samples import KINDS, sample_file

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger(__name__)
_FILE_BYTES = 1024 * 1024
"""Of a file of values: more than all series need. Beyond it the library goes on in a sparse file."""

_READ_ATTEMPTS = 5
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_UPSTREAM_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60)

_Change = Callable[..., None]
"""Changes one series by an amount, or a counter by 1 without one."""

_Changes = tuple[tuple[_Change, bool], ...]
"""The changes of one event, and whether each has its amount."""


_ROUTES = (
    *sorted((operation.label, method) for operation in Operation for method in operation.methods),
    *(("token", method) for method in ("GET", "POST")),
    *((route, method) for route in ("keys", "healthz") for method in ("GET", "HEAD")),
    *(("unknown", method) for method in (*_METHODS, "other")),
)
"""The routes and methods that occur together."""

_ERRORS = ("400", "401", "403", "404", "405", "416", "429", "499", "500", "502", "503")
"""The statuses that begin at 0: those on which alerts are made."""


@dataclass(frozen=True, slots=True)
class _Series:
    """A series, and how it follows from the fields of an event.

    Args:
        kind: a counter adds, a histogram observes, a gauge is set; ``state`` is a gauge for each state, 1 for the one
            it is in.
        noun: its name without ``registry_proxy_`` and ``_total``.
        text: its help.
        amount: the field that is added, observed or set, always the event's last one; empty adds 1.
        labels: the fields that are its labels, in their order; None for all but the event's amount.
        buckets: of a histogram.
    """

    kind: Literal["counter", "gauge", "histogram", "state"]
    noun: str
    text: str
    amount: str = ""
    labels: tuple[str, ...] | None = None
    buckets: Sequence[float] = ()

    def names(self, event_class: type[MetricEvent]) -> tuple[str, ...]:
        """Return the names of its labels."""
        return _label_fields(event_class) if self.labels is None else self.labels

    def open(self, event_class: type[MetricEvent], registry: CollectorRegistry) -> Counter | Gauge | Histogram:
        """Make the metric in a registry."""
        name, labels = f"registry_proxy_{self.noun}", self.names(event_class)
        if self.kind == "counter":
            return Counter(f"{name}_total", self.text, labels, registry=registry)
        if self.kind == "histogram":
            return Histogram(name, self.text, labels, buckets=self.buckets, registry=registry)
        # All workers see the same replicas and the same disk: the newest statement is the truth, a sum is not.
        return Gauge(name, self.text, labels, registry=registry, multiprocess_mode="mostrecent")

    def begin(self, metric: Any, event_class: type[MetricEvent], replicas: Mapping[str, Sequence[str]]) -> None:
        """Have the series of known labels begin at 0 in a metric."""
        names = self.names(event_class)
        if names and self.kind in {"counter", "histogram"}:
            for labels in _starts(event_class, names, replicas):
                metric.labels(*labels)

    def bind(self, metric: Any, event_class: type[MetricEvent], fields: Mapping[str, Any]) -> _Change:
        """Return the function that changes the series of a metric whose labels are these fields of an event."""
        values = [fields[name] for name in self.names(event_class) if name in fields]
        if self.kind == "state":
            return partial(_set_state, metric, *values)
        series = metric.labels(*values) if values else metric
        change: _Change = getattr(series, {"counter": "inc", "gauge": "set", "histogram": "observe"}[self.kind])
        return change


def _set_state(gauge: Gauge, upstream: str, replica: str, state: ReplicaState) -> None:
    for each in ReplicaState:
        gauge.labels(upstream, replica, each).set(each is state)


_counter = partial(_Series, "counter")
_gauge = partial(_Series, "gauge")

_SERIES: Mapping[type[MetricEvent], tuple[_Series, ...]] = {
    events.ClientRequest: (
        _counter("responses", "Answers to clients."),
        _Series(
            "histogram",
            "request_duration_seconds",
            "Time from a request's header to the end of its answer.",
            "duration_seconds",
            ("route", "method"),
            _REQUEST_BUCKETS,
        ),
    ),
    events.AccessDecision: (_counter("decisions", "Decisions about rights."),),
    events.LoginAttempt: (_counter("logins", "Logins, by how they ended."),),
    events.ConnectionEnd: (
        _counter("connections_ended", "Connections of clients that were ended for others, by why."),
    ),
    events.SentBytes: (_counter("sent_bytes", "Bytes of content sent to clients.", "size_bytes"),),
    events.CacheRequest: (_counter("cache_requests", "Requests for content, by result."),),
    events.CacheBytes: (_gauge("cache_bytes", "Bytes on the cache's disk.", "size_bytes"),),
    events.CacheDiskStalled: (
        _gauge(
            "cache_disk_stalled",
            "1 while the cache's disk does not answer, and a small cache in memory stands in.",
            "is_stalled",
        ),
    ),
    events.CacheFailure: (_counter("cache_errors", "Failures of the cache."),),
    events.CacheEviction: (
        _counter("cache_evicted", "Contents evicted from the cache."),
        _counter("cache_evicted_bytes", "Bytes evicted from the cache.", "size_bytes"),
    ),
    events.ScrubbedBytes: (_counter("scrubbed_bytes", "Bytes of cached content read and compared.", "size_bytes"),),
    events.ScrubEnd: (_gauge("scrub_last_end_timestamp_seconds", "When the scrub's last round ended.", "ended_at"),),
    events.StaleAnswer: (_counter("stale_answers", "Tags answered as they were, by why."),),
    # A series for each worker: the newest statement of any would hide one that has lost the store.
    events.PolicyCurrent: (
        _gauge("policy_current_timestamp_seconds", "When it last knew that it decides by what the store holds.", "at"),
    ),
    events.CertificateInUse: (
        _gauge("certificate_expires_timestamp_seconds", "When the certificate of a listener expires.", "expires_at"),
    ),
    events.AuditLoss: (_counter("audit_dropped", "Events that did not reach the audit log.", "event_count"),),
    events.UpstreamRequest: (
        _counter("upstream_requests", "Requests to replicas."),
        _Series(
            "histogram",
            "upstream_request_duration_seconds",
            "Time a replica took to answer.",
            "duration_seconds",
            ("upstream", "replica", "method"),
            _UPSTREAM_BUCKETS,
        ),
    ),
    events.HedgedRequest: (_counter("hedged_requests", "Questions put to a second replica as well, by who answered."),),
    events.WrongContent: (_counter("wrong_content", "Contents from a replica that did not match their digest."),),
    events.ReplicaInState: (
        _Series("state", "replica_state", "1 for the state it is in.", "state", ("upstream", "replica", "state")),
    ),
    events.ReplicaPending: (_gauge("replica_pending", "Keys it is behind in.", "key_count"),),
    events.ReplicaRefusals: (_gauge("replica_refused", "Keys it cannot have, not dismissed.", "key_count"),),
    events.ReplicaPaused: (_gauge("replica_paused", "1 while it is paused.", "is_paused"),),
    events.ReplicaReturn: (_counter("replica_returned", "Replicas that came back changed, by reason."),),
    events.RepositoriesMixed: (
        _gauge(
            "replica_mixes_repositories",
            "1 where it answers for a content in repositories that do not hold it.",
            "is_mixed",
        ),
    ),
    events.LostContents: (_gauge("lost_contents", "Keys no replica has any more, not dismissed.", "key_count"),),
    events.LostCopies: (
        _gauge("lost_copies", "Contents that a replica misses and whose copy on this node is gone.", "content_count"),
    ),
    events.KeyRepair: (_counter("repairs", "Keys that a replica missed."),),
    events.RepairedBytes: (_counter("repaired_bytes", "Bytes sent to repair a replica.", "size_bytes"),),
    events.QueuedDeliveries: (_gauge("events_queued", "Deliveries of events that wait.", "delivery_count"),),
    events.OldestDelivery: (
        _gauge("events_oldest_age_seconds", "Age of the oldest delivery that waits for its receiver.", "age_seconds"),
    ),
    events.DeadLetters: (_gauge("events_dead", "Deliveries of events that were given up.", "delivery_count"),),
    events.DisabledSubscriptions: (
        _gauge("subscriptions_disabled", "Subscriptions that receivers have ended by 410.", "subscription_count"),
    ),
    events.RuleViolation: (_counter("rule_violations", "Violated conditions of rules of images."),),
    events.DeliveryAttempt: (_counter("event_deliveries", "Attempts to deliver events.", "event_count"),),
}


def _label_fields(event_class: type[MetricEvent]) -> tuple[str, ...]:
    """Return the fields of an event that are labels: all but the amount, which is the last."""
    has_amount = any(series.amount for series in _SERIES[event_class])
    return event_class._fields[: len(event_class._fields) - has_amount]


def _starts(
    event_class: type[MetricEvent], names: tuple[str, ...], replicas: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, ...]]:
    """Give the labels of the series that begin at 0: all that are possible where the sets of values are closed.

    A series has to be there before its first event: one that is born with it has never increased, so that no alert on
    an increase fires.
    """
    known: dict[tuple[str, ...], Sequence[tuple[str, ...]]] = {
        ("route", "method"): _ROUTES,
        ("upstream", "replica"): [(upstream, replica) for upstream in replicas for replica in replicas[upstream]],
        ("upstream",): [(upstream,) for upstream in replicas],
        ("method",): [(method,) for method in _METHODS],
        ("status",): [(status,) for status in _ERRORS],
    }
    types, choices = get_type_hints(event_class), []
    while names:
        together = names[: 2 if names[:2] in known else 1]
        closed_set = types[together[0]]
        values = closed_set if isinstance(closed_set, EnumType) else get_args(closed_set)
        choices.append(known.get(together) or [(str(value),) for value in values])
        names = names[len(together) :]
    for chosen in itertools.product(*choices):
        yield tuple(itertools.chain.from_iterable(chosen))


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


def _label_reader(event_class: type[MetricEvent]) -> Callable[[Any], tuple[object, ...]]:
    """Return the function that takes the labels from an event."""
    if event_class is events.ClientRequest:
        return _read_answer
    return itemgetter(slice(len(_label_fields(event_class))))


def _read_answer(event: events.ClientRequest) -> tuple[str, str, int]:
    route, method, status, _ = event
    return route, method if method in _METHODS else "other", status


class PrometheusObserver:
    """Counts what happens; an ``Observer``.

    Args:
        directory: where the workers of this node share their values, one file for each kind and worker; None keeps
            them in this process. It must be empty when the node starts.
        process: distinguishes this worker from those that run beside it, of whatever generation; a worker that was
            given the one of a worker that has ended counts on from there. No underscore.
        replicas: the configured ones by upstream; all series of known labels begin at 0, at the first scrape. None
            where another worker of the node has them begin: a scrape is the sum, and 2,000 values would be read of each
            worker.
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
        self._metrics = {
            event_class: [series.open(event_class, self._registry) for series in changed]
            for event_class, changed in _SERIES.items()
        }
        self._beginning, self._to_begin = threading.Lock(), replicas
        # labels() costs more than all the rest of counting: the bound series are kept, as many as the closed sets have.
        self._bound = {
            event_class: (_label_reader(event_class), dict[tuple[object, ...], _Changes]()) for event_class in _SERIES
        }

    def observe(self, event: MetricEvent, /) -> None:
        read_labels, bound = self._bound[type(event)]
        labels = read_labels(event)
        for change, has_amount in bound.get(labels) or self._bind(type(event), labels):
            change(event[-1]) if has_amount else change()

    def _bind(self, event_class: type[MetricEvent], labels: tuple[object, ...]) -> _Changes:
        fields = dict(zip(event_class._fields, labels, strict=False))
        changed = zip(_SERIES[event_class], self._metrics[event_class], strict=True)
        changes = tuple((series.bind(metric, event_class, fields), bool(series.amount)) for series, metric in changed)
        self._bound[event_class][1][labels] = changes
        return changes

    def _begin_series(self) -> None:
        """Have all series of known labels begin at 0: nobody sees them earlier, and a start is 50 ms shorter."""
        with self._beginning:
            if self._to_begin is None:
                return
            for event_class, changed in _SERIES.items():
                for series, metric in zip(changed, self._metrics[event_class], strict=True):
                    series.begin(metric, event_class, self._to_begin)
            self._to_begin = None

    def render(self, refresh: Callable[[], object] = lambda: None) -> bytes:
        """Return the text of a scrape: this process, or all workers of the node summed.

        Args:
            refresh: sets gauges before it, such as sizes on the disk, which would go with the worker that had set them.
        """
        self._begin_series()
        refresh()
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
