"""The supervisor with real processes: those that it keeps alive and ends, and its output."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
import yaml

from registry_proxy.node import supervisor
from registry_proxy.node.listeners import PortTakenError, bind_listeners
from tests.support.copied import Copies
from tests.support.product import is_worker
from tests.support.servers import Started, free_port, wait_for_port, wait_until
from tests.support.waiting import refuses

SERVICE = Path(__file__).parents[1] / "support" / "fakes" / "service.py"
PATIENCE_SECONDS = 30.0


class Service:
    """A running supervisor, its output, and connections to its workers."""

    def __init__(
        self, root: Path, extra: Mapping[str, Any], copies: Copies, silence: float = 20, drain: float = 10
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.port, self.admin_port = free_port(), free_port()
        settings: dict[str, Any] = {
            "listen": f"127.0.0.1:{self.port}",
            "admin_listen": f"127.0.0.1:{self.admin_port}",
            "store": f"sqlite:///{root}/store.db",
            "cache": {"path": f"{root}/cache"},
            "upstreams": {"main": {"replicas": [{"url": "http://127.0.0.1:1"}]}},
            "routes": [{"prefix": "", "upstream": "main"}],
            "auth": {"signing_key_file": f"{root}/key.pem"},
            "drain": {"timeout": drain, "reload_timeout": drain},
            **extra,
        }
        self.settings, self.config = settings, root / f"{self.port}.yaml"
        self.configure()
        self.log = root / f"{self.port}.log"
        self._copies = copies
        self._command = ["service", str(self.config), str(silence)]
        self.process: Started | None = None
        self.environment: dict[str, str] = {}

    def configure(self, **changes: Any) -> None:
        """Write its configuration, with changes."""
        self.settings.update(changes)
        self.config.write_text(yaml.safe_dump(self.settings))

    def start(self) -> "Service":
        """Start it without waiting."""
        repository = str(SERVICE.parents[3])
        measured = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": repository, **measured, **self.environment}
        self.process = self._copies.run(self._command, environment, self.log)
        return self

    def started(self) -> "Service":
        """Start it and wait until it says that it is ready."""
        self.start()
        wait_until(lambda: self.status() is not None or "is ready" in self.text(), "ready")
        assert self.status() is None, self.text()
        return self

    def text(self) -> str:
        """Return its output so far."""
        return self.log.read_text()

    def status(self) -> int | None:
        """Return the exit status; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def wait(self) -> int:
        """Return the exit status once it has ended."""
        assert self.process is not None
        return self.process.wait(PATIENCE_SECONDS)

    def send_signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        assert self.process is not None
        self.process.send_signal(number)

    def workers(self) -> list[psutil.Process]:
        """Return its running child processes."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if is_worker(child) and runs(child)]

    def ask(self, line: str, port: int | None = None) -> str:
        """Return the answer of a worker to one line."""
        with Connection(port or self.port) as connection:
            return connection.ask(line)


def runs(process: psutil.Process) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended(process: psutil.Process) -> bool:
    """Tell whether a process has ended, reaped by its parent or not."""
    return not runs(process)


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended and its parent has reaped it."""
    return not psutil.pid_exists(pid)


class Connection:
    """One connection to a worker."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self._file = self._socket.makefile("rw", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, line: str) -> str:
        """Send a line and return the next one."""
        self.send(line)
        return self.receive()

    def send(self, line: str) -> None:
        """Send a line."""
        self._file.write(line + "\n")
        self._file.flush()

    def receive(self) -> str:
        """Return the next line."""
        return self._file.readline().strip()


StartService = Callable[..., Service]


@pytest.fixture
def service(tmp_path: Path, copies: Copies) -> Iterator[StartService]:
    """Return a function that describes a service; all of them end after the test."""
    with ExitStack() as stack:

        def make(behaviour: str = "", *, name: str = "node", **options: Any) -> Service:
            extra: dict[str, Any] = {"workers": options.pop("workers", 1)}
            if behaviour:
                extra["routes"] = [{"prefix": behaviour, "upstream": "main"}]
            made = Service(tmp_path / name, extra, copies, **options)
            stack.callback(end, made)
            return made

        yield make


def end(service: Service) -> None:
    """Kill the remaining processes of the service."""
    if service.process is not None:
        service.process.kill()
        service.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_and_leaves_no_process(service: StartService, number: int) -> None:
    """After SIGINT or SIGTERM every worker is gone, the exit status is 0, and the port is free again."""
    running = service(workers=2).started()
    workers = running.workers()
    assert len(workers) == 2
    running.send_signal(number)
    assert running.wait() == 0, running.text()
    assert not psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)[1]
    for listener in bind_listeners("127.0.0.1", running.port, 1):
        listener.close()


def test_a_killed_worker_is_replaced_while_connections_wait(service: StartService) -> None:
    """After kill -9 of the only worker a client that connects meanwhile is answered by the next worker."""
    running = service().started()
    first = int(running.ask("pid"))
    psutil.Process(first).kill()
    assert int(running.ask("pid")) != first
    assert int(running.ask("pid", running.admin_port)) != first, "slot 0 has the admin listener again"
    wait_until(lambda: f"worker 0 (process {first}) killed by signal 9" in running.text(), "reported in the log")


def test_a_hung_worker_is_killed_and_replaced(service: StartService) -> None:
    """A worker without signs of life is replaced; the others go on."""
    running = service(workers=2, silence=3).started()
    workers = running.workers()
    workers[0].suspend()
    wait_until(lambda: not runs(workers[0]), "killed")
    wait_until(lambda: len(running.workers()) == 2, "replaced")
    assert workers[1].is_running()
    wait_until(lambda: "is silent" in running.text(), "reported in the log")
    for _ in range(20):
        assert running.ask("pid")


def test_workers_die_with_a_killed_supervisor_and_the_next_start_succeeds(service: StartService) -> None:
    """No worker survives a kill -9 of the supervisor, and the same configuration starts again immediately."""
    running = service(workers=2).started()
    workers = running.workers()
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.log.write_text("")
    running.started()
    assert not psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)[1]
    assert int(running.ask("pid")) not in {worker.pid for worker in workers}


def test_a_worker_ignores_sigint(service: StartService) -> None:
    """A terminal sends SIGINT to the whole group: the worker leaves the decision to the supervisor."""
    running = service().started()
    with Connection(running.port) as connection:
        worker = connection.ask("pid")
        psutil.Process(int(worker)).send_signal(signal.SIGINT)
        assert {connection.ask("pid") for _ in range(500)} == {worker}
    assert running.ask("pid") == worker


def test_draining_lets_a_running_request_end(service: StartService) -> None:
    """After SIGTERM a running request is answered, a new connection is refused, and then the service ends with 0."""
    running = service().started()
    with Connection(running.port) as connection:
        assert connection.ask("slow") == "started"
        running.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(running.port), "new connections are refused")
        assert running.status() is None
        assert connection.ask("go").isdecimal()
    assert running.wait() == 0


def test_a_second_signal_ends_it_at_once(service: StartService) -> None:
    """The second signal does not wait for running requests; the exit status is 0."""
    running = service().started()
    with Connection(running.port) as connection:
        assert connection.ask("slow") == "started"
        running.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(running.port), "draining")
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        assert connection.ask("go") == ""


def test_a_worker_that_does_not_drain_is_killed(service: StartService) -> None:
    """Draining has a time limit, after which the worker is killed."""
    running = service("undrainable/", drain=0.5).started()
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 0


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("broken/", " did not start: the disk is on fire"),
        ("never-ready/", " did not start: not ready within 4 s"),
        ("unprepared/", "the node cannot be prepared: the store is of a newer version"),
        ("dying/", "the node cannot be prepared: killed by signal 9"),
    ],
)
def test_a_failed_start_is_reported(service: StartService, behaviour: str, reason: str) -> None:
    """A first start that fails ends with status 1 and the reason, without a traceback, and leaves no process."""
    failing = service(behaviour, workers=2, silence=1 if behaviour == "never-ready/" else 20).start()
    assert failing.wait() == 1
    assert reason in failing.text()
    assert "Traceback" not in failing.text()
    assert "is ready" not in failing.text()


def test_a_signal_during_the_start_ends_it(service: StartService) -> None:
    """SIGTERM before the service is ready ends it with status 0, and leaves nothing."""
    starting = service("never-ready/", workers=2).start()
    wait_until(lambda: len(starting.workers()) == 2, "the workers are there")
    workers = starting.workers()
    starting.send_signal(signal.SIGTERM)
    assert starting.wait() == 0, starting.text()
    assert not psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)[1]


def test_a_cache_belongs_to_one_service(service: StartService) -> None:
    """A second service on the same cache does not start, and names the process that has it."""
    first = service().started()
    assert first.process is not None
    second = service().start()
    assert second.wait() == 1
    assert f"(process {first.process.pid})" in second.text()
    assert first.ask("pid")


@pytest.mark.parametrize("own", [True, False])
def test_a_taken_port_is_reported_with_its_holder(service: StartService, own: bool) -> None:  # noqa: FBT001
    """A port in use by another process, or another service of ours, gives status 1 and the name of its holder."""
    with ExitStack() as stack:
        taken = service(name="other", workers=2)
        if own:
            taken.started()
            holder = taken.process
        else:
            code = "import socket,sys;s=socket.create_server(('127.0.0.1',int(sys.argv[1])));sys.stdin.read()"
            command = [sys.executable, "-c", code, str(taken.port)]
            holder = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
            stack.callback(holder.kill)
            wait_for_port(taken.port)
        assert holder is not None
        late = service()
        late.environment["REGISTRY_PROXY__LISTEN"] = f"127.0.0.1:{taken.port}"
        late.start()
        assert late.wait() == 1
        assert f"127.0.0.1:{taken.port} is taken by process {holder.pid} (" in late.text(), "not by one of its workers"


def test_secrets_stay_out_of_argv_and_environment(service: StartService) -> None:
    """Workers see neither the configuration's variables nor the admin's password; the password is not printed."""
    running = service()
    running.environment["REGISTRY_PROXY_ADMIN_PASSWORD"] = "hidden from workers"
    running.environment["REGISTRY_PROXY__STORE"] = "redis://:hidden@127.0.0.1:1/0"
    running.started()
    inside = json.loads(running.ask("inside"))
    assert not [name for name in inside["environment"] if name.startswith("REGISTRY_PROXY")]
    assert "hidden" not in " ".join(inside["argv"])
    assert "hidden" not in running.text()


def test_a_made_up_password_is_printed_once(service: StartService) -> None:
    """The first start prints the generated password; a later one does not."""
    running = service().started()
    assert running.text().count("password made-up") == 1


def test_an_ipv6_listener_and_its_holder() -> None:
    """IPv6 literals work, and one in use is reported in brackets."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
        port = probe.getsockname()[1]
    listeners = bind_listeners("::1", port, 2)
    try:
        with pytest.raises(PortTakenError, match=rf"\[::1\]:{port} is taken by process \d+"):
            bind_listeners("::1", port, 1)
    finally:
        for listener in listeners:
            listener.close()


def test_an_address_of_another_machine_is_refused(service: StartService) -> None:
    """An address of another machine gives status 1 and a sentence."""
    failing = service()
    failing.environment["REGISTRY_PROXY__LISTEN"] = "192.0.2.1:5000"
    assert failing.start().wait() == 1
    assert "cannot listen on 192.0.2.1:5000" in failing.text()
    assert "Traceback" not in failing.text()


def test_a_cache_that_cannot_be_made_is_reported(service: StartService, tmp_path: Path) -> None:
    """A cache path below a file gives status 1 and a sentence."""
    (tmp_path / "file").write_text("")
    failing = service()
    failing.environment["REGISTRY_PROXY__CACHE__PATH"] = str(tmp_path / "file" / "cache")
    assert failing.start().wait() == 1
    assert "cannot use the cache directory" in failing.text()


# ---------------------------------------------------------------- reload


def answers(running: Service) -> bool:
    """Tell whether a worker answers now; one that is being killed does not."""
    try:
        return running.ask("pid").isdecimal()
    except OSError:
        return False


def reloaded(running: Service) -> dict[str, Any]:
    """Reload the service as the admin API does, and return the outcome."""
    outcome: dict[str, Any] = json.loads(running.ask("reload", running.admin_port))
    return outcome


def test_sighup_replaces_every_worker_and_lets_the_old_ones_finish(service: StartService) -> None:
    """A new process serves the next connection; an old one still answers its running request."""
    running = service(workers=2).started()
    old = {worker.pid for worker in running.workers()}
    with Connection(running.port) as connection:
        assert connection.ask("slow") == "started"
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: "generation 2 serves" in running.text(), "reloaded")
        assert {int(running.ask("pid")) for _ in range(20)}.isdisjoint(old)
        assert int(running.ask("pid", running.admin_port)) not in old
        wait_until(lambda: len(old & {worker.pid for worker in running.workers()}) == 1, "the idle one has gone")
        assert int(connection.ask("go")) in old
    wait_until(lambda: old.isdisjoint(worker.pid for worker in running.workers()), "the other one has gone too")
    assert len(running.workers()) == 2


def test_a_bad_configuration_is_refused_and_the_old_one_stays(service: StartService) -> None:
    """A fault of the file, or a change that needs a restart, is reported with its place; no process is replaced."""
    running = service().started()
    before = running.ask("pid")
    running.configure(workers="many", tag="x")
    outcome = reloaded(running)
    assert outcome["generation"] == 1
    assert any("workers: expected a whole number" in fault for fault in outcome["faults"])
    assert any("tag: unknown key" in fault for fault in outcome["faults"])
    del running.settings["tag"]
    secret = "redis://:hidden@127.0.0.1:1/0"
    running.configure(workers=1, listen="127.0.0.1:3", admin_listen="127.0.0.1:4", store=secret)
    faults = reloaded(running)["faults"]
    assert [fault.partition(":")[0] for fault in faults] == ["listen", "admin_listen", "store"]
    assert all("needs a restart" in fault for fault in faults)
    running.config.unlink()
    assert "cannot be read" in reloaded(running)["faults"][0]
    assert running.ask("pid") == before
    assert "the old one stays in force" in running.text()
    assert "hidden" not in running.text()


def test_a_stop_does_not_wait_for_a_reload(service: StartService) -> None:
    """While a reload never finishes loading, SIGTERM ends all processes; the caller of the reload gets the reason."""
    running = service()
    running.environment["RELOAD_HANGS"] = "yes"
    running.started()
    assert running.process is not None
    supervisor_process = psutil.Process(running.process.pid)
    with Connection(running.port) as connection, Connection(running.admin_port) as first:
        assert connection.ask("slow") == "started"
        first.send("reload")
        wait_until(lambda: len(supervisor_process.children()) == 3, "worker, its fork server, and the one that loads")
        with Connection(running.admin_port) as second:
            running.send_signal(signal.SIGTERM)
            assert json.loads(first.receive())["failure"] == "the service is stopping"
            assert json.loads(second.ask("reload"))["failure"] == "the service is stopping"
        assert connection.ask("go").isdecimal()
    assert running.wait() == 0


@pytest.mark.parametrize("behaviour", ["broken/", "never-ready/"])
def test_workers_that_do_not_start_leave_the_old_ones(service: StartService, behaviour: str) -> None:
    """The error has the reason, new processes are gone, and the old workers go on, replaced when they crash."""
    running = service(silence=2 if behaviour == "never-ready/" else 20).started()
    before = running.ask("pid")
    running.configure(routes=[{"prefix": behaviour, "upstream": "main"}], workers=3)
    outcome = reloaded(running)
    assert outcome["failure"].startswith("worker ")
    assert "did not start" in outcome["failure"]
    wait_until(lambda: [str(worker.pid) for worker in running.workers()] == [before], "no other process is left")
    assert {running.ask("pid") for _ in range(20)} == {before}, "no socket is left without a worker"
    psutil.Process(int(before)).kill()
    assert running.ask("pid") != before


def test_the_number_of_workers_changes(service: StartService) -> None:
    """With more and fewer workers there are as many processes as configured, and every connection is answered."""
    running = service(workers=2).started()
    for number, workers in enumerate((5, 1, 3), 2):
        running.configure(workers=workers)
        assert reloaded(running) == {"generation": number, "faults": [], "failure": ""}
        wait_until(lambda expected=workers: len(running.workers()) == expected, f"{workers} workers")  # type: ignore[misc]  # mypy has no type for a lambda's default
        assert len({running.ask("pid") for _ in range(50)}) <= workers


def test_every_request_for_a_reload_is_answered(service: StartService) -> None:
    """Many simultaneous requests, through old workers too, are answered one by one or together, with one generation."""
    running = service().started()
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(running.admin_port)) for _ in range(8)]
        for connection in connections:
            connection.send("reload")
            running.send_signal(signal.SIGHUP)
        outcomes = [json.loads(connection.receive()) for connection in connections]
    assert all(outcome["generation"] > 1 and not outcome["failure"] for outcome in outcomes)
    wait_until(lambda: len(running.workers()) == 1, "one worker")
    assert running.status() is None


def test_identities_are_used_again(service: StartService) -> None:
    """After many reloads there are as many metrics files as simultaneous processes."""
    running = service().started()
    seen = set()
    for _ in range(5):
        reloaded(running)
        seen.add(json.loads(running.ask("inside"))["id"])
        wait_until(lambda: len(running.workers()) == 1, "the old one has gone")
    assert seen <= {"0", "1"}


def has_others(running: Service, killed: list[psutil.Process]) -> bool:
    """Tell whether as many workers run as were killed, and none of those."""
    return len(set(running.workers()) - set(killed)) == len(killed)


def test_workers_that_die_together_get_an_identity_each(service: StartService) -> None:
    """Two with one identity would write to the same metrics files, and no scrape could be answered any more."""
    running = service(workers=2).started()
    for _ in range(3):
        killed = running.workers()
        for worker in killed:
            worker.kill()
        wait_until(functools.partial(has_others, running, killed), "both are replaced")
        wait_until(lambda: answers(running), "they answer")
        inside = [json.loads(running.ask("inside")) for _ in range(40)]
        assert len({one["id"] for one in inside}) == len({one["slot"] for one in inside})


def test_a_hung_worker_is_no_obstacle_to_a_reload(service: StartService) -> None:
    """A stopped worker is replaced with the others, and killed."""
    running = service(workers=2, silence=3).started()
    hung = running.workers()[0]
    hung.suspend()
    running.send_signal(signal.SIGHUP)
    wait_until(lambda: "generation 2 serves" in running.text(), "reloaded")
    wait_until(lambda: not runs(hung), "killed")
    wait_until(lambda: len(running.workers()) == 2, "two workers")
    assert running.ask("pid")


def test_a_worker_that_crashes_during_a_reload_is_replaced(service: StartService) -> None:
    """Old workers that die while the new ones start leave one worker in each slot, and all requests are answered."""
    running = service(workers=2).started()
    for _ in range(2):
        running.send_signal(signal.SIGHUP)
        for worker in running.workers():
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        wait_until(lambda: answers(running), "a worker is there again")
    wait_until(lambda: len(running.workers()) == 2, "two workers")
    assert {json.loads(running.ask("inside"))["slot"] for _ in range(60)} == {0, 1}


def test_with_what_makes_the_workers_killed_a_worker_is_replaced_all_the_same(service: StartService) -> None:
    """The supervisor replaces the process from which workers are copied while the service runs."""
    running = service().started()
    assert running.process is not None
    (forker,) = (child for child in psutil.Process(running.process.pid).children() if not is_worker(child))
    for victim in (forker, running.workers()[0]):
        victim.kill()
        wait_until(functools.partial(is_gone, victim.pid), "it has ended, and is no zombie")
    wait_until(lambda: answers(running), "a worker is there again")
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 0


def test_an_old_worker_that_does_not_end_is_killed(service: StartService) -> None:
    """The time of an old generation is bounded."""
    running = service("undrainable/", drain=0.2).started()
    old = running.workers()[0]
    running.configure(routes=[{"prefix": "", "upstream": "main"}])
    reloaded(running)
    wait_until(lambda: [worker.pid for worker in running.workers()].count(old.pid) == 0, "killed")
    assert running.ask("pid")


def test_old_generations_do_not_pile_up(service: StartService) -> None:
    """During reloads only a few generations may finish their work; the oldest are ended."""
    running = service().started()
    running.configure(drain={"timeout": 0.2, "reload_timeout": 60})
    with ExitStack() as stack:
        for _ in range(1 + supervisor.MAX_OLD_GENERATIONS):
            reloaded(running)
            assert stack.enter_context(Connection(running.port)).ask("slow") == "started"
        wait_until(lambda: len(running.workers()) == 1 + supervisor.MAX_OLD_GENERATIONS, "as many as may")
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 0
