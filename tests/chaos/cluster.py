"""Two registries, two nodes, a Redis and an nginx, as real processes, and what can be done to them."""

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import httpx
import psutil
import redis
from typer.testing import CliRunner

from registry_proxy.cli.main import app
from tests.chaos.plan import Fault, Harm
from tests.conftest import require_program
from tests.nginx.shipped import nginx_server
from tests.support.copied import Copies
from tests.support.product import ADMIN_PASSWORD, Proxy, proxy_server
from tests.support.servers import Server, docker_registry, nginx_in_turns, redis_server, running


class Front(StrEnum):
    """What stands before the clients."""

    TURNS = "each request at another node"
    """Also within an upload: nodes of one worker go on with what the other one began."""

    SHIPPED = "as shipped"
    """nginx/two-nodes.conf, but for TLS, and nodes of two workers."""


USER = "ann"
PASSWORD = "password of a user"


@dataclass
class Cluster:
    """Everything that is started; clients find it at ``url``."""

    replicas: dict[str, Server]
    nodes: dict[str, Proxy]
    redis: Server
    url: str
    harmed: set[str] = field(default_factory=set)
    copies: dict[str, Path] = field(default_factory=dict)
    """By replica: its storage as it was before the last fault to its data."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what can fail."""
        return (*self.replicas, *self.nodes, "redis")

    def _server(self, target: str) -> Server:
        return self.replicas.get(target) or self.nodes.get(target) or self.redis

    def do_harm(self, fault: Fault) -> None:
        """Let a fault happen."""
        server = self._server(fault.target)
        if fault.harm in {Harm.OLDER, Harm.WIPE, Harm.SWAP}:
            self._harm_data(fault)
        elif fault.harm is Harm.EMPTY:
            with redis.Redis(port=self.redis.port) as client:
                client.flushall()
        elif fault.harm is Harm.STOP:
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
        """Let a server go on, or start it again."""
        self.harmed.remove(fault.target)
        server = self._server(fault.target)
        if fault.harm is Harm.EMPTY:
            self._make_user_again()
            return
        if fault.harm is Harm.SWAP:
            for other in self.replicas.values():
                if other is not server:
                    other.launch()
        if fault.harm is not Harm.STOP:
            server.launch()
            return
        for process in _processes(server):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def _harm_data(self, fault: Fault) -> None:
        """Stop a registry and change its storage: to the copy of before the last such fault, to nothing, to another."""
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

    def _make_user_again(self) -> None:
        """Do what an operator does whose store is empty: make an administrator past the API, and the users."""
        node = next(iter(self.nodes.values()))
        secret = node.root / "password"
        secret.write_text(ADMIN_PASSWORD)
        arguments = ["admin", "reset", "--config", str(node.config), "--password-file", str(secret)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        node.add_user(USER, PASSWORD, pull_push_delete=["team/**"])

    def tend(self) -> None:
        """Start again what ended by itself, as a service manager does: a node cannot start without Redis."""
        for target in self.targets:
            process = self._server(target).process
            if target not in self.harmed and process is not None and process.poll() is not None:
                self._server(target).launch()

    # ------------------------------------------------------------ looking

    def ailments(self, *, mind_pending: bool = True) -> list[str]:
        """Return what has not healed; ``mind_pending`` asks that no replica lacks anything."""
        found = []
        try:
            with redis.Redis(port=self.redis.port, socket_timeout=2, socket_connect_timeout=2) as client:
                client.ping()
        except (redis.RedisError, OSError) as error:
            found.append(f"redis: {error!r}")
        states = {"up"} if mind_pending else {"up", "behind"}
        for name, node in self.nodes.items():
            try:
                if (answer := httpx.get(f"{node.admin_url}/readyz", timeout=5, verify=False)).status_code != 200:
                    found.append(f"{name}: {answer.text}")
                up = sum(node.metric("registry_proxy_replica_state", state=state) for state in states)
                if up != len(self.replicas):
                    found.append(f"{name}: {up:g} replicas are up")
                if mind_pending and "the store came back" in answer.text:
                    found.append(f"{name}: the replicas were not compared since the store was emptied")
                if mind_pending and (pending := node.metric("registry_proxy_replica_pending")):
                    found.append(f"{name}: {pending:g} keys are pending")
            except (httpx.HTTPError, OSError) as error:
                found.append(f"{name}: {error!r}")
        return found

    def wait_until_healed(self, timeout_seconds: float = 60, *, mind_pending: bool = True) -> list[str]:
        """Return [] when all is well, or what is not after the time-out."""
        deadline = time.monotonic() + timeout_seconds
        while ailments := self.ailments(mind_pending=mind_pending):
            self.tend()
            if time.monotonic() > deadline:
                return ailments
            time.sleep(0.2)
        return []

    def logs(self) -> str:
        """Return what the nodes said that was not an answer to a request: errors and warnings, with tracebacks."""
        lines = [
            f"{name}: {line[:2000]}"
            for name, node in self.nodes.items()
            for line in node.log_text().splitlines()
            if '"level": "ERROR"' in line or "Traceback" in line
        ]
        return "\n".join(lines[-20:])


def _data_of(server: Server) -> Path:
    return server.log.parent / "data"


def _processes(server: Server) -> list[psutil.Process]:
    return server.processes() if isinstance(server, Proxy) else [psutil.Process(server.pid)]


@contextmanager
def cluster(root: Path, front: Front, copies: Copies) -> Iterator[Cluster]:
    """Start all of it, the nodes by ``copies``, with a user who may pull, push and delete in team."""
    for program in ("docker-registry", "redis-server", "nginx"):
        require_program(program)
    with ExitStack() as stack:
        replicas = {name: docker_registry(root / name) for name in ("replica-1", "replica-2")}
        store = redis_server(root / "redis")
        for server in (*replicas.values(), store):
            stack.enter_context(running(server))
        extra = {
            "store": f"redis://127.0.0.1:{store.port}/0",
            "workers": 2 if front is Front.SHIPPED else 1,
            "cache": {"max_size": "64MiB"},
            "upstreams": {"main": {"replicas": [{"name": name, "url": one.url} for name, one in replicas.items()]}},
        }
        nodes = {name: proxy_server(root / name, [], extra, copies=copies) for name in ("node-1", "node-2")}
        for node in nodes.values():
            stack.enter_context(running(node))
        nodes["node-1"].add_user(USER, PASSWORD, pull_push_delete=["team/**"])
        ports = [node.port for node in nodes.values()]
        if front is Front.SHIPPED:
            nginx = nginx_server(root / "nginx", None, *ports)
        else:
            # A manifest is kept by nginx until it has all of it, and so can be sent again.
            nginx = nginx_in_turns(root / "nginx", ports, "location ~ /manifests/ { proxy_pass http://nodes; }")
        stack.enter_context(running(nginx))
        yield Cluster(replicas, nodes, store, nginx.url)
