"""Every alert of the documents fires in a real Prometheus, at the first event, and none before.

Reports: "the alert on repairs had never fired: its series was born with the first failure, and so had never increased".
"""

import itertools
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from registry_proxy.ports.metrics import (
    AccessDecision,
    AuditLoss,
    CacheDiskStalled,
    CacheEviction,
    CacheFailure,
    CacheRequest,
    ClientRequest,
    ConnectionEnd,
    DeliveryAttempt,
    DisabledSubscriptions,
    HedgedRequest,
    KeyRepair,
    LoginAttempt,
    LostContents,
    LostCopies,
    MetricEvent,
    OldestDelivery,
    PolicyCurrent,
    RepairedBytes,
    ReplicaInState,
    ReplicaPaused,
    ReplicaPending,
    ReplicaRefusals,
    RepositoriesMixed,
    ScrubbedBytes,
    SentBytes,
    StaleAnswer,
    UpstreamRequest,
    WrongContent,
)
from registry_proxy.ports.names import CacheResult, ContentKind, StaleReason
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.telemetry.metrics import CONTENT_TYPE, PrometheusObserver
from tests.conftest import StartProxy, require_program
from tests.support.product import digest_of, make_image, push_directly, random_bytes
from tests.support.servers import Server, free_port, running, wait_until

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "config" / "alerts.yml"
ALERTS: Mapping[str, str] = {
    rule["alert"]: rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}


FIRST_EVENTS: Mapping[str, MetricEvent] = {
    "ReplicaNotUp": ReplicaInState("main", "b", ReplicaState.DOWN),
    "ReplicaNotRepaired": ReplicaPending("main", "b", 1),
    "ReplicaPaused": ReplicaPaused("main", "a", is_paused=True),
    "ContentLost": LostContents("main", 1),
    "ReplicaRefuses": ReplicaRefusals("main", "b", 1),
    "CopiesLost": LostCopies("main", 1),
    "RepairFails": KeyRepair("main", "b", "failed"),
    "CacheDiskTrouble": CacheFailure("rot"),
    "CacheDiskHangs": CacheDiskStalled(is_stalled=True),
    "WrongContent": WrongContent("main", "b"),
    "RepositoriesMixed": RepositoriesMixed("main", "b", is_mixed=True),
    "ServerErrors": ClientRequest("start_upload", "POST", 503, 0.01),
    "EventsNotDelivered": OldestDelivery(601.0),
    "EventsGivenUp": DeliveryAttempt("dead", 1),
    "SubscriptionDisabled": DisabledSubscriptions(1),
    "PolicyOutdated": PolicyCurrent("0", time.time() - 11),
    "PasswordsTried": LoginAttempt("limited"),
    "AuditLogHasHoles": AuditLoss("file", 1),
}
REPEATED = {"ServerErrors": 100}
"""The number of occurrences for an event that is no fault when it happens once."""


@contextmanager
def exposing(render: Callable[[], bytes]) -> Iterator[int]:
    """Answer scrapes in a thread; give the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = render()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class Prometheus:
    """A real Prometheus with the shipped rules, without their waiting times."""

    def __init__(self, root: Path, target: str) -> None:
        document = yaml.safe_load(RULES.read_text())
        for group in document["groups"]:
            group["rules"] = [{name: rule[name] for name in ("alert", "expr")} for rule in group["rules"]]
        (root / "rules.yml").write_text(yaml.safe_dump(document))
        configuration = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(root / "rules.yml")],
            "scrape_configs": [{"job_name": "node", "static_configs": [{"targets": [target]}]}],
        }
        (root / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        port = free_port()
        program = [require_program("prometheus"), f"--config.file={root}/prometheus.yml"]
        arguments = [f"--storage.tsdb.path={root}/data", f"--web.listen-address=127.0.0.1:{port}"]
        self.server = Server([*program, *arguments], port, root / "prometheus.log")

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """Run it; the with block begins when it has scraped a healthy node, and no alert fires."""
        with running(self.server):
            ready = f"{self.server.url}/-/ready"
            wait_until(lambda: httpx.get(ready, timeout=30, verify=False).status_code == 200, "it is ready")
            wait_until(self.has_compared, "it has scraped twice")
            assert self.firing() == set()
            yield

    def ask(self, path: str, **query: str) -> Any:
        """Return the answer of the API."""
        answer = httpx.get(f"{self.server.url}/api/v1/{path}", params=query, timeout=30, verify=False)
        return answer.raise_for_status().json()["data"]

    def has_compared(self) -> bool:
        """Tell whether it has scraped twice and evaluated the rules since."""
        samples = self.ask("query", query="min(count_over_time(registry_proxy_logins_total[1h]))")["result"]
        groups = self.ask("rules")["groups"]
        return bool(samples) and int(samples[0]["value"][1]) > 2 and bool(groups[0]["lastEvaluation"])

    def firing(self) -> set[str]:
        """Return the alerts that fire."""
        return {each["labels"]["alertname"] for each in self.ask("alerts")["alerts"] if each["state"] == "firing"}


@pytest.fixture
def node() -> PrometheusObserver:
    """The metrics of a healthy node right after its start."""
    observer = PrometheusObserver(replicas={"main": ["a", "b"]})
    for replica in ("a", "b"):
        observer.observe(ReplicaInState("main", replica, ReplicaState.UP))
        observer.observe(ReplicaPending("main", replica, 0))
    observer.observe(PolicyCurrent("0", time.time() + 3600))
    return observer


def test_every_alert_fires_at_the_first_event(tmp_path: Path, node: PrometheusObserver) -> None:
    """A healthy node raises no alert; then each kind of event happens once, and each alert fires."""
    assert set(FIRST_EVENTS) == set(ALERTS)
    with exposing(node.render) as port:
        prometheus = Prometheus(tmp_path, f"127.0.0.1:{port}")
        with prometheus.comparing():
            for alert, event in FIRST_EVENTS.items():
                for _ in range(REPEATED.get(alert, 1)):
                    node.observe(event)
            wait_until(lambda: prometheus.firing() == set(ALERTS), "all alerts fire")


def test_the_rules_are_those_of_the_documents() -> None:
    """Promtool finds no fault in the rules, and docs/operations.md explains each alert and no other."""
    promtool = require_program("promtool")
    subprocess.run([promtool, "check", "rules", str(RULES)], check=True, capture_output=True, timeout=60)
    section = (ROOT / "docs" / "operations.md").read_text().split("\n## Recommended alerts\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(ALERTS)


def series(node: PrometheusObserver) -> set[str]:
    """Return the names and labels of all counters and histograms that are exposed."""
    lines = node.render().decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if re.match(r"\w+_(total|count|sum|bucket)\b", line)}


CLOSED_SETS: Mapping[type[MetricEvent], Sequence[Iterable[Any]]] = {
    CacheRequest: (ContentKind, CacheResult),
    SentBytes: (("cache", "upstream"), [1]),
    UpstreamRequest: (
        ["main"],
        ("a", "b"),
        ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"),
        ("2xx", "3xx", "4xx", "5xx", "connect", "timeout", "stall", "cut", "mismatch"),
        [0.1],
    ),
    HedgedRequest: (["main"], ("first", "later", "none")),
    AccessDecision: (("pull", "push", "create", "delete", "manage"), ("allow", "deny", "would_deny")),
    CacheFailure: (("write", "read", "evict", "full", "mismatch", "rot"),),
    CacheEviction: ([1],),
    StaleAnswer: (StaleReason,),
    KeyRepair: (["main"], ("a", "b"), ("copied", "deleted", "given_up", "failed")),
    RepairedBytes: (["main"], ("a", "b"), [1]),
    WrongContent: (["main"], ("a", "b")),
    ScrubbedBytes: ([1],),
    DeliveryAttempt: (("delivered", "failed", "dead", "dropped"), [1]),
    LoginAttempt: (("ok", "refused", "limited", "unavailable"),),
    ConnectionEnd: (("public", "admin"), ("share", "room", "full")),
    AuditLoss: (("file", "stdout", "syslog", "decisions"), [1]),
}
"""Events, with all values of each label."""

ANSWERS = {("get_blob", "GET"), ("ping", "HEAD"), ("commit_upload", "PUT"), ("token", "POST"), ("unknown", "MADE-UP")}


def test_no_series_is_born_with_its_first_event(node: PrometheusObserver) -> None:
    """For any event with a label of a closed set, its series existed at 0 before."""
    before = series(node)
    for event_class, values in CLOSED_SETS.items():
        for fields in itertools.product(*values):
            node.observe(event_class(*fields))
    for (route, method), status in itertools.product(ANSWERS, (401, 404, 429, 500, 502, 503)):
        node.observe(ClientRequest(route, method, status, 0.1))
    assert series(node) - before == set()


def make_read_only(registry: Server) -> None:
    """Make a registry refuse writes from its next start on."""
    config = Path(registry.arguments[-1])
    text = config.read_text()
    config.write_text(text.replace("delete: {", "maintenance: {readonly: {enabled: true}}, delete: {"))


def flip(file: Path) -> None:
    """Change the first byte of a file."""
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.soak
def test_every_alert_fires_over_a_node(
    tmp_path: Path, start_proxy: StartProxy, registries: list[Server], redis: Server
) -> None:
    """Over the running product each fault happens once, and its alert fires."""
    syslog = {"audit": {"syslog": f"tcp://127.0.0.1:{free_port()}"}}
    proxy = start_proxy(registries, {"store": f"redis://127.0.0.1:{redis.port}/0", **syslog})
    ann = proxy.add_user("ann", pull_push=["team/**"])
    first, second = registries
    layers = [random_bytes(100_000) for _ in range(3)]
    ann.push("team/app", "1", make_image(layers[0]))
    push_directly(first, "team/past", "1", make_image(layers[1]))
    prometheus = Prometheus(tmp_path, f"127.0.0.1:{proxy.admin_port}")
    with prometheus.comparing():

        def fires(*names: str) -> None:
            wait_until(lambda: set(names) <= prometheus.firing(), f"{names} fire", timeout_seconds=60)

        flip(proxy.cache / "blobs" / "sha256" / digest_of(layers[0])[7:9] / digest_of(layers[0])[7:])
        ann.get("team/app", f"blobs/{digest_of(layers[0])}")
        fires("CacheDiskTrouble")
        (stored,) = (tmp_path / "first").rglob(f"{digest_of(layers[1])[7:]}/data")
        flip(stored)
        ann.get("team/past", f"blobs/{digest_of(layers[1])}")
        fires("WrongContent")
        second.stop()
        ann.push("team/app", "2", make_image(layers[2]))
        fires("ReplicaNotUp", "ReplicaNotRepaired")
        proxy.stop()
        shutil.rmtree(proxy.cache)
        proxy.start()
        fires("CopiesLost")
        make_read_only(second)
        second.start()
        fires("RepairFails")
        for _ in range(12):
            httpx.get(f"{proxy.url}/auth/token", auth=("ann", "a guess"), timeout=30, verify=False)
        fires("PasswordsTried")
        wrk = [require_program("wrk"), "-t1", "-c16", "-H", "Authorization: Bearer none", f"{proxy.url}/v2/"]
        wait_until(
            lambda: (
                bool(subprocess.run([*wrk, "-d5"], check=True, capture_output=True))
                and "AuditLogHasHoles" in prometheus.firing()
            ),
            "20,000 events wait for the syslog, and the next are lost",
            timeout_seconds=120,
        )
        first.stop()
        second.stop()
        with ann.client("team/app", "pull,push") as client:
            wait_until(lambda: client.post("/blobs/uploads/").status_code == 503, "no quorum")
            for _ in range(100):
                client.post("/blobs/uploads/")
        fires("ServerErrors")
        redis.stop()
        fires("PolicyOutdated")
