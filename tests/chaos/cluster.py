"""Two registries, two nodes, a Redis, an nginx and a receiver of events, as real processes, with their faults.

The caches of the nodes can lie on disks that freeze: a program serves them, and is stopped. It needs root and FUSE;
elsewhere no disk freezes, and the report of a run says so.
"""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
from typer.testing import CliRunner

from registry_proxy.cli.main import app
from tests.chaos.events import Arrival, Emptied, read_arrivals
from tests.chaos.objects import break_off, garble, recent_object
from tests.chaos.plan import HARMS_OF_ALL, Fault, Harm
from tests.conftest import require_program
from tests.nginx.shipped import nginx_server
from tests.support.copied import Copies
from tests.support.disks import StallingDisk, mounted_by_program
from tests.support.product import ADMIN_PASSWORD, Proxy, merge, proxy_server
from tests.support.servers import Server, docker_registry, free_port, nginx_in_turns, redis_server, running


class Front(StrEnum):
    """The server in front of the nodes, to which clients connect."""

    TURNS = "each request at another node"
    """Chooses the node at each request, also within an upload: nodes of one worker continue each other's uploads."""

    SHIPPED = "as shipped"
    """nginx/two-nodes.conf without TLS, and nodes of two workers."""


_HARMS_TO_DATA = frozenset({Harm.OLDER, Harm.WIPE, Harm.SWAP})
_HARMS_TO_OBJECTS: Mapping[Harm, Callable[[Path], Callable[[], None]]] = {Harm.GARBLE: garble, Harm.BREAK: break_off}
_HEALING_SECONDS_MAX = 300.0

USER = "ann"
PASSWORD = "password of a user"


@dataclass
class Cluster:
    """All servers of the cluster; clients connect to ``url``."""

    replicas: dict[str, Server]
    nodes: dict[str, Proxy]
    redis: Server
    url: str
    receiver: Server | None = None
    """The receiver of all events; ``log`` beside its file of arrivals."""
    emptied: list[Emptied] = field(default_factory=list)
    harmed: set[str] = field(default_factory=set)
    copies: dict[str, Path] = field(default_factory=dict)
    """By replica: a copy of its storage from before the last fault to its data."""
    front: Front = Front.TURNS
    disks: Mapping[str, StallingDisk] = field(default_factory=dict)
    """By node: the disk of its cache, where that disk can freeze."""
    ends: dict[str, ExitStack] = field(default_factory=dict)
    """By target: the end of its fault, where that is more than a new start."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets of faults."""
        return (*self.replicas, *self.nodes, "redis", *(() if self.receiver is None else ("receiver",)))

    @property
    def arrivals(self) -> list[Arrival]:
        """The deliveries that the receiver has accepted so far."""
        return [] if self.receiver is None else read_arrivals(_file_of(self.receiver))

    @property
    def further_harms(self) -> frozenset[Harm]:
        """The faults that are possible here beyond those of every server."""
        possible = frozenset(Harm).difference(HARMS_OF_ALL)
        if not self.disks:
            possible -= {Harm.FREEZE}
        # An nginx that waits for a node without a limit would show nothing.
        return possible if self.front is Front.SHIPPED else possible - {Harm.HANG}

    def _server(self, target: str) -> Server:
        if target == "receiver" and self.receiver is not None:
            return self.receiver
        return self.replicas.get(target) or self.nodes.get(target) or self.redis

    def do_harm(self, fault: Fault) -> None:
        """Begin a fault."""
        server = self._server(fault.target)
        if fault.harm in _HARMS_TO_DATA:
            self._harm_data(fault)
        elif fault.harm in _HARMS_TO_OBJECTS:
            self._harm_object(fault)
        elif fault.harm is Harm.FREEZE:
            self._ending(fault).enter_context(self.disks[fault.target].stalled())
        elif fault.harm is Harm.EMPTY:
            self.emptied.append(Emptied(time.time(), float("inf")))
            with redis.Redis(port=self.redis.port) as client:
                client.flushall()
            # An older copy may hold a deleted image, and no record of that exists any more (docs/availability.md).
            self.copies.clear()
        elif fault.harm in {Harm.STOP, Harm.HANG}:
            for process in _processes(server):
                process.send_signal(signal.SIGSTOP)
        elif fault.harm is Harm.RESTART:
            server.stop()
        elif isinstance(server, Proxy):
            server.kill_everything()
        else:
            server.stop(signal.SIGKILL)
        self.harmed.add(fault.target)

    def end_harm(self, fault: Fault) -> None:
        """Resume a server, or start it again."""
        self.harmed.remove(fault.target)
        server = self._server(fault.target)
        if fault.harm is Harm.EMPTY:
            self._make_user_again()
            return
        if fault.harm is Harm.FREEZE or fault.harm in _HARMS_TO_OBJECTS:
            self.ends.pop(fault.target).close()
            return
        if fault.harm is Harm.SWAP:
            for other in self.replicas.values():
                if other is not server:
                    other.launch()
        if fault.harm not in {Harm.STOP, Harm.HANG}:
            server.launch()
            return
        for process in _processes(server):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def _harm_data(self, fault: Fault) -> None:
        """Stop a registry and change its storage: to the copy from the last such fault, to nothing, to another one."""
        server = self.replicas[fault.target]
        for one in self.replicas.values() if fault.harm is Harm.SWAP else [server]:
            one.stop(signal.SIGKILL)
        data = _data_of(server)
        if fault.harm is Harm.SWAP:
            other = next(_data_of(one) for one in self.replicas.values() if one is not server)
            aside = data.with_name("aside")
            for source, target in ((data, aside), (other, data), (aside, other)):
                source.rename(target)
            return
        copy, kept = self.copies.get(fault.target), data.with_name(f"copy-{time.monotonic_ns()}")
        data.rename(kept)
        if fault.harm is Harm.OLDER and copy is not None:
            shutil.copytree(copy, data)
        self.copies[fault.target] = kept

    def _harm_object(self, fault: Fault) -> None:
        """Damage one of the objects that a registry has stored last."""
        ending = self._ending(fault)
        if (path := recent_object(_data_of(self.replicas[fault.target]), fault.pick)) is not None:
            ending.callback(_HARMS_TO_OBJECTS[fault.harm](path))

    def _ending(self, fault: Fault) -> ExitStack:
        return self.ends.setdefault(fault.target, ExitStack())

    def _make_user_again(self) -> None:
        """Create an administrator past the API, and the users, as an operator with an empty store does."""
        node = next(iter(self.nodes.values()))
        secret = node.root / "password"
        secret.write_text(ADMIN_PASSWORD)
        arguments = ["admin", "reset", "--config", str(node.config), "--password-file", str(secret)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        node.add_user(USER, PASSWORD, pull_push_delete=["team/**"])
        if self.receiver is not None:
            _subscribe(node, self.receiver)
        self.emptied[-1] = replace(self.emptied[-1], ended=time.time())

    def tend(self) -> None:
        """Restart servers that ended by themselves, as a service manager does: a node cannot start without Redis."""
        for target in self.targets:
            process = self._server(target).process
            if target not in self.harmed and process is not None and process.poll() is not None:
                self._server(target).launch()

    # ------------------------------------------------------------ looking

    def ailments(self, *, mind_pending: bool = True) -> list[str]:
        """Return everything that has not healed; with ``mind_pending`` also replicas that miss something."""
        found = []
        try:
            with redis.Redis(port=self.redis.port, socket_timeout=2, socket_connect_timeout=2) as client:
                client.ping()
        except (redis.RedisError, OSError) as error:
            found.append(f"redis: {error!r}")
        if self.receiver is not None and not _answers(self.receiver):
            found.append("receiver: no answer")
        states = {"up"} if mind_pending else {"up", "behind"}
        for name, node in self.nodes.items():
            try:
                if (answer := httpx.get(f"{node.admin_url}/readyz", timeout=5, verify=False)).status_code != 200:
                    found.append(f"{name}: {answer.text}")
                up = sum(node.metric("registry_proxy_replica_state", state=state) for state in states)
                if up != len(self.replicas):
                    found.append(f"{name}: {up:g} replicas are up")
                if node.metric("registry_proxy_cache_disk_stalled"):
                    found.append(f"{name}: the disk of its cache is not used")
                if mind_pending and "the store came back" in answer.text:
                    found.append(f"{name}: the replicas were not compared since the store was emptied")
                if mind_pending and (pending := node.metric("registry_proxy_replica_pending")):
                    found.append(f"{name}: {pending:g} keys are pending")
            except (httpx.HTTPError, OSError) as error:
                found.append(f"{name}: {error!r}")
        return found

    def wait_until_healed(self, timeout_seconds: float = 60, *, mind_pending: bool = True) -> list[str]:
        """Return [] when all is well, or the ailments once nothing was repaired for the time-out.

        A busy machine may need minutes to restore a replica; the wait ends after five in any case.
        """
        began, repaired = time.monotonic(), 0.0
        deadline = began + timeout_seconds
        while ailments := self.ailments(mind_pending=mind_pending):
            self.tend()
            if (now_repaired := self._repaired()) != repaired:
                repaired, deadline = now_repaired, time.monotonic() + timeout_seconds
            if time.monotonic() > min(deadline, began + _HEALING_SECONDS_MAX):
                return ailments
            time.sleep(0.2)
        return []

    def _repaired(self) -> float:
        """Return the number of keys that the reachable nodes have repaired."""
        count = 0.0
        for node in self.nodes.values():
            with suppress(httpx.HTTPError, OSError):
                count += node.metric("registry_proxy_repairs_total")
        return count

    def logs(self) -> str:
        """Return the lines of the nodes' logs that are no access log: errors and warnings, with tracebacks."""
        lines = [
            f"{name}: {line[:2000]}"
            for name, node in self.nodes.items()
            for line in node.log_text().splitlines()
            if '"level": "ERROR"' in line or "Traceback" in line
        ]
        return "\n".join(lines[-20:])


def _answers(receiver: Server) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(receiver.url, timeout=2).status_code == 200
    return False


def _file_of(receiver: Server) -> Path:
    return receiver.log.with_name("events")


def _receiver(root: Path) -> Server:
    root.mkdir()
    port, log = free_port(), root / "log"
    command = [sys.executable, "-m", "tests.chaos.receiver", str(port), str(log.with_name("events"))]
    return Server(command, port, log)


def _subscribe(node: Proxy, receiver: Server) -> None:
    types = ["push", "manifest", "delete", "replica_down", "replica_repaired"]
    with node.admin() as admin:
        body = {"url": receiver.url, "events": types}
        admin.put("/subscriptions/chaos", json=body).raise_for_status()


def _data_of(server: Server) -> Path:
    return server.log.parent / "data"


def _processes(server: Server) -> list[psutil.Process]:
    return server.processes() if isinstance(server, Proxy) else [psutil.Process(server.pid)]


@contextmanager
def cluster(root: Path, front: Front, copies: Copies, *, may_freeze: bool = False) -> Iterator[Cluster]:
    """Start the cluster, the nodes by ``copies``, with a user who may pull, push and delete in team.

    With ``may_freeze`` the caches lie on disks that can freeze, where this machine allows that.
    """
    for program in ("docker-registry", "redis-server", "nginx"):
        require_program(program)
    with ExitStack() as stack:
        replicas = {name: docker_registry(root / name) for name in ("replica-1", "replica-2")}
        store = redis_server(root / "redis")
        receiver = _receiver(root / "receiver")
        for server in (*replicas.values(), store, receiver):
            stack.enter_context(running(server))
        extra = {
            "store": f"redis://127.0.0.1:{store.port}/0",
            "events": {"allowed_hosts": ["127.0.0.1"]},
            "workers": 2 if front is Front.SHIPPED else 1,
            "cache": {"max_size": "64MiB"},
            "upstreams": {"main": {"replicas": [{"name": name, "url": one.url} for name, one in replicas.items()]}},
        }
        names = ("node-1", "node-2")
        found = {name: _mounted(stack, root / f"disk-{name}") for name in names if may_freeze}
        disks = {name: disk for name, disk in found.items() if disk is not None}
        nodes = {
            name: proxy_server(root / name, [], merge(extra, _cache_on(disks.get(name))), copies=copies)
            for name in names
        }
        for node in nodes.values():
            stack.enter_context(running(node))
        nodes["node-1"].add_user(USER, PASSWORD, pull_push_delete=["team/**"])
        _subscribe(nodes["node-1"], receiver)
        ports = [node.port for node in nodes.values()]
        if front is Front.SHIPPED:
            nginx = nginx_server(root / "nginx", None, *ports)
        else:
            # nginx buffers a manifest whole, and so can send it again.
            nginx = nginx_in_turns(root / "nginx", ports, "location ~ /manifests/ { proxy_pass http://nodes; }")
        stack.enter_context(running(nginx))
        servers = Cluster(replicas, nodes, store, nginx.url, receiver, front=front, disks=disks)
        try:
            yield servers
        finally:
            for ending in servers.ends.values():
                ending.close()


def _mounted(stack: ExitStack, root: Path) -> StallingDisk | None:
    try:
        return stack.enter_context(mounted_by_program(root))
    except pytest.skip.Exception as reason:  # the other faults go on without it
        print(f"no disk freezes in this run: {reason}")
        return None


def _cache_on(disk: StallingDisk | None) -> Mapping[str, Any]:
    return {} if disk is None else {"cache": {"path": str(disk.path / "cache"), "min_free": "0"}}
