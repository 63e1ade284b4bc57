"""The Prometheus series: names and labels that dashboards rely on, summed over workers."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from registry_proxy.ports.metrics import (
    AccessDecision,
    CacheBytes,
    CacheFailure,
    CacheRequest,
    ClientRequest,
    LoginAttempt,
    MetricEvent,
    PolicyCurrent,
    ReplicaInState,
    ReplicaPending,
    SentBytes,
    UpstreamRequest,
)
from registry_proxy.ports.names import CacheResult, ContentKind
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.scope import Action
from registry_proxy.telemetry.metrics import _SERIES, PrometheusObserver

WORKER = """
import sys
from registry_proxy.ports.metrics import CacheRequest, ClientRequest, ReplicaInState
from registry_proxy.ports.names import CacheResult, ContentKind
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.telemetry.metrics import PrometheusObserver
observer = PrometheusObserver(sys.argv[1], sys.argv[2])
for _ in range(int(sys.argv[3])):
    observer.observe(CacheRequest(ContentKind.BLOB, CacheResult.HIT))
observer.observe(ReplicaInState("main", "one", ReplicaState(sys.argv[4])))
observer.observe(ClientRequest("get_blob", "GET", 200, 0.01))
if len(sys.argv) > 5:
    print(observer.render().decode())
"""


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample of a scrape."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exercise(observer: PrometheusObserver) -> None:
    """Send one event of each kind."""
    events: list[MetricEvent] = [
        CacheRequest(ContentKind.MANIFEST, CacheResult.LATCH),
        SentBytes("upstream", 10),
        UpstreamRequest("main", "one", "GET", "2xx", 0.1),
        ReplicaInState("main", "one", ReplicaState.DOWN),
        ReplicaPending("main", "one", 3),
        AccessDecision(Action.PULL, "deny"),
        ClientRequest("get_blob", "GET", 200, 0.2),
        ClientRequest("unknown", "MADE-UP", 405, 0.2),
        CacheBytes("committed", 99),
        CacheFailure("write"),
        LoginAttempt("ok"),
        PolicyCurrent("0", 1.5e9),
    ]
    for event in events:
        observer.observe(event)


def test_names_and_labels() -> None:
    """The series of the product's contract, each with exactly its labels."""
    observer = PrometheusObserver()
    exercise(observer)
    found = samples(observer.render().decode())
    p = "registry_proxy_"
    expected = {
        (f"{p}cache_requests_total", frozenset({("kind", "manifest"), ("result", "latch")})): 1,
        (f"{p}cache_requests_total", frozenset({("kind", "blob"), ("result", "hit")})): 0,
        (f"{p}cache_bytes", frozenset({("state", "committed")})): 99,
        (f"{p}sent_bytes_total", frozenset({("source", "upstream")})): 10,
        (
            f"{p}upstream_requests_total",
            frozenset({("upstream", "main"), ("replica", "one"), ("method", "GET"), ("outcome", "2xx")}),
        ): 1,
        (f"{p}replica_state", frozenset({("upstream", "main"), ("replica", "one"), ("state", "down")})): 1,
        (f"{p}replica_state", frozenset({("upstream", "main"), ("replica", "one"), ("state", "up")})): 0,
        (f"{p}policy_current_timestamp_seconds", frozenset({("worker", "0")})): 1.5e9,
        (f"{p}replica_pending", frozenset({("upstream", "main"), ("replica", "one")})): 3,
        (f"{p}decisions_total", frozenset({("action", "pull"), ("result", "deny")})): 1,
        (f"{p}request_duration_seconds_count", frozenset({("route", "get_blob"), ("method", "GET")})): 1,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_every_event_changes_a_series() -> None:
    """An event class without a row of the table would fail where it is observed."""
    assert set(get_args(MetricEvent)) == set(_SERIES)


def test_methods_of_clients_make_no_series() -> None:
    """A thousand invented methods are one label."""
    observer = PrometheusObserver()
    before = observer.render().count(b'method="')
    for number in range(1000):
        observer.observe(ClientRequest("unknown", f"M{number}", 405, 0.1))
    assert observer.render().count(b'method="') == before


@pytest.mark.parametrize("order", [("up", "down"), ("down", "up")])
def test_a_scrape_shows_all_workers(tmp_path: Path, order: tuple[str, str]) -> None:
    """Counters are summed, also over a worker that was replaced; of a replica's state the latest value counts."""

    def worker(slot: str, count: int, state: str, *extra: str) -> str:
        arguments = [sys.executable, "-c", WORKER, str(tmp_path), slot, str(count), state, *extra]
        return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout

    worker("0", 2, "up")
    worker("1", 3, order[0])
    found = samples(worker("0", 5, order[1], "print"))
    hits = frozenset({("kind", "blob"), ("result", "hit")})
    assert found["registry_proxy_cache_requests_total", hits] == 10
    replica = {("upstream", "main"), ("replica", "one")}
    for state in order:
        key = ("registry_proxy_replica_state", frozenset(replica | {("state", state)}))
        assert found[key] == (state == order[1])
    count = ("registry_proxy_request_duration_seconds_count", frozenset({("route", "get_blob"), ("method", "GET")}))
    assert found[count] == 3


def test_the_files_of_values_have_no_holes(tmp_path: Path) -> None:
    """A count on a full disk kills no worker: the room of its files is allocated at its start."""
    subprocess.run([sys.executable, "-c", WORKER, str(tmp_path), "0", "1", "up"], check=True)
    files = [path.stat() for path in tmp_path.iterdir()]
    assert len(files) == 3
    assert all(status.st_blocks * 512 >= status.st_size for status in files)


def test_without_room_a_worker_counts_for_itself(tmp_path: Path) -> None:
    """A directory that accepts no files prevents no worker from serving."""
    observer = PrometheusObserver(str(tmp_path / "absent"), "0")
    exercise(observer)
    assert b"registry_proxy_sent_bytes_total" in observer.render()
