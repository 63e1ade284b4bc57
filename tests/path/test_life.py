"""Reload, stop and rolling restart of the whole product under load, without a visible effect on clients."""

import base64
import itertools
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.conftest import StartProxy, StartRegistry, require_program
from tests.support.product import (
    ADMIN_PASSWORD,
    Image,
    Proxy,
    User,
    digest_of,
    make_image,
    push_blob_directly,
    random_bytes,
)
from tests.support.servers import Server, blob_gets, free_port, nginx_in_turns, running, wait_until
from tests.support.waiting import refuses

MIB = 1024 * 1024


def reload(proxy: Proxy, **changes: Any) -> httpx.Response:
    """Write the configuration with changes, and reload it."""
    settings = yaml.safe_load(proxy.config.read_text())
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(value, Mapping) and key in settings else value
    proxy.config.write_text(yaml.safe_dump(settings))
    with proxy.admin() as admin:
        return admin.post("/reload")


@dataclass
class Load:
    """Clients that pull and push all the time without retries, each on a connection that it keeps."""

    user: User
    image: Image
    cold: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def check(self, what: str, right: bool, answer: httpx.Response) -> None:  # noqa: FBT001 - an assertion
        """Count an answer."""
        self.counts[what] += 1
        if not right:
            self.failures.append(f"{what}: {answer.status_code} {answer.text[:200]}")

    def pull_hot(self, client: httpx.Client, _: int) -> None:
        """Pull a blob that is in the cache."""
        answer = client.get("/manifests/hot", headers={"Accept": self.image.media_type})
        self.check("manifest", answer.content == self.image.manifest, answer)
        for digest, blob in self.image.blobs.items():
            answer = client.get(f"/blobs/{digest}")
            self.check("hot", answer.content == blob, answer)

    def pull_cold(self, client: httpx.Client, turn: int) -> None:
        """Pull a blob that is only in a registry."""
        digest = self.cold[turn % len(self.cold)]
        answer = client.get(f"/blobs/{digest}")
        self.check("cold", digest_of(answer.content) == digest, answer)

    def push(self, client: httpx.Client, turn: int) -> None:
        """Push a blob as docker does, on one connection."""
        content = turn.to_bytes(8) + os.urandom(50_000)
        answer = client.post("/blobs/uploads/")
        self.check("post", answer.status_code == 202, answer)
        base = client.base_url
        answer = client.patch(base.join(answer.headers.get("Location", "/")), content=iter([content]))
        self.check("patch", answer.status_code == 202, answer)
        location = httpx.URL(base.join(answer.headers.get("Location", "/")))
        answer = client.put(location.copy_merge_params({"digest": digest_of(content)}))
        self.check("put", answer.status_code == 201, answer)

    def _work(self, task: Callable[[httpx.Client, int], None], pause_seconds: float) -> None:
        with self.user.client("team/app", "pull,push") as client:
            for turn in itertools.count():
                if self._stop.wait(pause_seconds):
                    return
                try:
                    task(client, turn)
                except httpx.HTTPError as error:
                    self.failures.append(f"{task.__name__}: {error!r}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the load for the length of a with block."""
        self.user.token("repository:team/app:pull,push")
        tasks = [
            (self.pull_hot, 0.1),
            (self.pull_hot, 1.01),
            (self.pull_cold, 0.03),
            (self.push, 0.1),
            (self.push, 0.3),
        ]
        threads = [threading.Thread(target=self._work, args=task) for task in tasks]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def verdict(self) -> None:
        """Fail after any failed request."""
        print(dict(self.counts))
        assert self.failures == []
        assert all(self.counts[what] > 5 for what in ("manifest", "hot", "cold", "post", "patch", "put")), self.counts


def make_load(proxy: Proxy, registry: Server, url: str | None = None) -> Load:
    """Return a load on a proxy; no cold blob is in any cache."""
    user = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(300_000), random_bytes(2 * MIB))
    user.push("team/app", "hot", image)
    cold = [push_blob_directly(registry, "team/app", random_bytes(100_000)) for _ in range(60)]
    user.url = url
    return Load(user, image, cold)


@pytest.mark.parametrize("reloads", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_reloads_fail_no_request(start_proxy: StartProxy, start_registry: StartRegistry, reloads: int) -> None:
    """Through many reloads pulls, hot and cold, pushes and kept connections succeed; one generation is left."""
    registry = start_registry()
    proxy = start_proxy([registry])
    load = make_load(proxy, registry)
    with load.running():
        for number in range(reloads):
            answer = reload(proxy, workers=number % 2 + 1)
            assert answer.json() == {"generation": number + 2}
    load.verdict()
    with proxy.admin() as admin:  # all generations summed, none counted twice
        blobs = admin.get("/cache").json()["requests"]["blob"]
    served = load.counts["hot"] + load.counts["cold"]
    assert served == blobs["hit"] + blobs["miss"] + blobs["latch"]
    assert len(list((proxy.cache / "metrics").glob("counter_*.db"))) <= 12
    wait_until(lambda: len(proxy.workers()) == 2, "the old generations are gone")


def test_a_reload_changes_what_is_configured(
    start_proxy: StartProxy, start_registry: StartRegistry, tmp_path: Path
) -> None:
    """Replicas, routes, token lifetime and password files are the new ones; a bad file changes nothing."""
    first, second = start_registry("first"), start_registry("second")
    proxy = start_proxy([first])
    user = proxy.add_user("ann", pull_push=["**"])
    blob = random_bytes(10_000)
    digest = push_blob_directly(second, "app", blob)
    assert user.get("mirror/app", f"blobs/{digest}").status_code == 404
    password = tmp_path / "password"
    password.write_text("of a replica")
    replica = {"name": "late", "url": second.url, "username": "u", "password_file": str(password)}
    routes = [{"prefix": "", "upstream": "main"}, {"prefix": "mirror/", "upstream": "late", "strip_prefix": True}]
    auth = {"token_lifetime": 77}
    assert reload(proxy, upstreams={"late": {"replicas": [replica]}}, routes=routes, auth=auth).status_code == 200
    # A client that connects at this very moment may still meet the worker that is about to hand over.
    wait_until(lambda: user.get("mirror/app", f"blobs/{digest}").content == blob, "the new route is in force")
    query = {"service": "registry-proxy"}
    assert httpx.get(f"{proxy.url}/auth/token", params=query, verify=False).json()["expires_in"] == 77
    password.unlink()
    refused = reload(proxy, auth={"token_lifetime": 1}, store="sqlite:////elsewhere")
    assert refused.status_code == 422
    faults = [fault["detail"] for fault in refused.json()["errors"]]
    assert any("password_file" in fault for fault in faults)
    assert any("token_lifetime" in fault for fault in faults)
    assert httpx.get(f"{proxy.url}/auth/token", params=query, verify=False).json()["expires_in"] == 77
    gone = reload(
        proxy,
        upstreams={"late": {"replicas": [{"url": second.url}]}},
        auth=auth,
        store=f"sqlite:///{proxy.root}/store.db",
    )
    assert gone.status_code == 200, gone.text
    wait_until(lambda: len(proxy.workers()) == 1, "the old worker is gone")
    metrics = httpx.get(f"{proxy.admin_url}/metrics", verify=False).text
    assert f'replica="127.0.0.1:{second.port}"' in metrics
    assert 'state="up",upstream="late"' in metrics
    assert 'registry_proxy_replica_state{replica="late"' not in metrics, "a removed replica has no metrics any more"


def test_the_command_reloads_and_tells_every_fault(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """`registry-proxy reload` ends with 0 and the generation, or with 1 and the faults with their lines."""
    proxy = start_proxy([start_registry()])
    done = proxy.command("reload")
    assert (done.exit_code, "generation 2" in done.output) == (0, True), done.output
    proxy.config.write_text(proxy.config.read_text() + "tag_ttl: 3\nworkers: 0\n")
    done = proxy.command("reload")
    assert done.exit_code == 1
    assert "config.yaml:" in done.stderr
    assert "tag_ttl: unknown key" in done.stderr


@dataclass
class SlowRegistry:
    """A relay to a registry that passes bytes on only as long as the gate is open."""

    target: int
    gate: threading.Event = field(default_factory=threading.Event)
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator["SlowRegistry"]:
        """Listen for the length of a with block."""
        with ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", self.port)))
            thread = threading.Thread(target=self._accept, args=(listener,), daemon=True)
            thread.start()
            self.gate.set()
            yield self
            self.gate.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _accept(self, listener: socket.socket) -> None:
        with ExitStack() as stack:
            while True:
                try:
                    client = listener.accept()[0]
                except OSError:
                    return
                server = socket.create_connection(("127.0.0.1", self.target))
                thread = threading.Thread(target=self._relay, args=(client, server))
                thread.start()
                stack.callback(thread.join)
                stack.callback(_hang_up, client)
                stack.callback(_hang_up, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        # Closing both resets the registry's connection: it logs no line about a request that it can still answer.
        with client, server:
            asking = threading.Thread(target=self._copy, args=(client, server, False))
            asking.start()
            self._copy(server, client, is_gated=True)
            asking.join()

    def _copy(self, source: socket.socket, sink: socket.socket, is_gated: bool) -> None:  # noqa: FBT001 - one caller
        sent = 0
        with suppress(OSError):
            while piece := source.recv(65536):
                if is_gated and sent > 2 * MIB:
                    self.gate.wait()
                sink.sendall(piece)
                sent += len(piece)
        _hang_up(sink)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("patience", ["60s", "200ms"])
def test_a_fetch_outlives_the_generation_that_began_it(
    start_proxy: StartProxy, start_registry: StartRegistry, patience: str
) -> None:
    """A client in the old worker gets its body while that worker may go on; a Range continues a fetch that is cut."""
    registry = start_registry()
    with SlowRegistry(registry.port).running() as slow:
        timeouts = {"stall": "60s", "first_byte": "20s"}
        upstreams = {"main": {"replicas": [{"url": slow.url}], "timeouts": timeouts}}
        proxy = start_proxy([], {"upstreams": upstreams, "drain": {"reload_timeout": patience}})
        user = proxy.add_user("ann", pull=["team/**"])
        blob = random_bytes(16 * MIB)
        digest = push_blob_directly(registry, "team/app", blob)
        slow.gate.clear()
        bodies: dict[str, bytes] = {}

        def pull(name: str) -> None:
            try:
                bodies[name] = user.get("team/app", f"blobs/{digest}").content
            except httpx.HTTPError:
                bodies[name] = b""

        user.token("repository:team/app:pull")
        old = proxy.workers()[0]
        threads = [threading.Thread(target=pull, args=("old",))]
        threads[0].start()
        part = proxy.cache / "fills" / f"{digest.replace(':', '-')}.part"
        wait_until(lambda: part.exists() and part.stat().st_size > MIB, "the fetch is half done")
        assert reload(proxy).status_code == 200
        threads.append(threading.Thread(target=pull, args=("new",)))
        threads[1].start()
        if patience == "200ms":
            wait_until(lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE, "the old worker is gone")
        slow.gate.set()
        for thread in threads:
            thread.join()
        assert bodies["new"] == blob
        if patience == "60s":
            assert bodies["old"] == blob
            wait_until(lambda: blob_gets(registry, digest) != [], "the request is logged")
            assert blob_gets(registry, digest) == [200]
        else:
            wait_until(lambda: len(blob_gets(registry, digest)) == 2, "the one that was cut, and one Range")
        wait_until(lambda: not part.exists(), "committed")


def test_stopping_tells_first_and_closes_later(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """For ``drain.delay`` a node is not ready and still answers; then it refuses connections; then it ends.

    Requests on the admin listener that never end get no more than their time, and cost the audit log nothing: also one
    in a worker that a reload has replaced, which had ten minutes.
    """
    proxy = start_proxy([start_registry()], {"drain": {"delay": "2s", "timeout": "1s"}})
    assert proxy.process is not None
    credentials = base64.b64encode(f"admin:{ADMIN_PASSWORD}".encode()).decode()
    held = (
        "PUT /admin/v1/policy HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n"
        f"Authorization: Basic {credentials}\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(2):
            assert reload(proxy).status_code == 200
            holding = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.admin_port), timeout=30))
            holding.sendall(held.encode())
            assert b" 100 Continue" in holding.recv(1000)
        kept = stack.enter_context(httpx.Client(base_url=proxy.url, verify=False))
        assert kept.get("/healthz").status_code == 200
        proxy.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{proxy.admin_url}/readyz", verify=False).status_code == 503, "not ready")
        assert httpx.get(f"{proxy.admin_url}/readyz", verify=False).json()["reasons"] == ["this node is draining"]
        assert httpx.get(f"{proxy.url}/healthz", verify=False).status_code == 200
        while (answer := kept.get("/healthz")).headers.get("Connection") != "close":
            assert answer.status_code == 200
        assert answer.status_code == 200
        wait_until(lambda: refuses(proxy.port), "refused")
        assert proxy.process.wait(20) == 0
    audit = "".join(file.read_text() for file in proxy.audit.glob("*.jsonl"))
    assert audit.count('"action":"worker.end"') == 3


def test_a_stop_answers_every_connection_that_it_took(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """Each of many clients that connect and ask all the time is answered or refused, and none is reset."""
    proxy = start_proxy([start_registry()], {"workers": 2})
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = httpx.get(f"{proxy.url}/healthz", timeout=30, verify=False)
                outcomes[str(answer.status_code)] += 1
            except httpx.ConnectError:
                outcomes["refused"] += 1
                return
            except httpx.HTTPError as error:
                outcomes[repr(error)] += 1
                return

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: outcomes["200"] > 100, "under load")
    proxy.stop()
    stop.set()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"200", "refused"}, outcomes


def test_a_rolling_restart_of_two_nodes_fails_no_request(
    start_proxy: StartProxy, start_registry: StartRegistry, redis: Server, tmp_path: Path
) -> None:
    """Two nodes on one Redis behind nginx are stopped by SIGTERM and restarted in turn, under pulls and pushes."""
    registries = start_registry("first"), start_registry("second")
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    nodes = [start_proxy(registries, extra, name=name) for name in ("one", "two")]
    require_program("nginx")
    nginx = nginx_in_turns(tmp_path / "nginx", [node.port for node in nodes])
    with running(nginx):
        load = make_load(nodes[0], registries[0], nginx.url)
        with load.running():
            for node in nodes:
                time.sleep(1)  # load on both
                node.stop()
                node.start()
            time.sleep(1)
    load.verdict()
