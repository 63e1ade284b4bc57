"""Keeps the workers alive: binds the sockets, has the node prepared, replaces workers that crash, hang or are outdated.

The listening sockets stay open here while workers come and go, so that connections wait instead of being reset. The
settings travel over a socket pair: no secret is in argv or environment.

The workers that run with the same settings are a generation. A reload starts the next one on the same sockets, and when
all of it is ready the one before hands over: it takes nothing new and ends when it has finished.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Callable

from registry_proxy.config.discovery import Discovery
from registry_proxy.config.errors import StartError
from registry_proxy.config.load import SettingsError
from registry_proxy.config.model import Settings
from registry_proxy.node.disk_watch import DiskWatch
from registry_proxy.node.fork_server import ForkServer
from registry_proxy.node.generation import Generation, Timing, Worker, needs_restart
from registry_proxy.node.host import ADMIN_PASSWORD_VARIABLE, empty_directory, locked_cache, raise_file_limit
from registry_proxy.node.listeners import PortTakenError, bind_listeners
from registry_proxy.node.memory import NodeMemory, claim_memory
from registry_proxy.node.notify import ServiceManager
from registry_proxy.node.processes import Identities, Launcher, Process, first_of
from registry_proxy.node.refusal import refusing
from registry_proxy.ports.events import ReloadOutcome
from registry_proxy.tasks import end, spawn
from registry_proxy.telemetry.logs import json_logging
from registry_proxy.telemetry.samples import forget_gauges

MAX_OLD_GENERATIONS = 4
"""How many may finish what they do at the same time: each takes the memory of its workers."""

_PAUSE_AFTER_DNS_SECONDS = 10.0
"""Until DNS may cause the next reload: one that is refused is not tried again at once."""

_LOOK_SECONDS = 1.0
_MOVE_SECONDS = 10.0
"""Time for workers to get ready when the disk hangs or answers again, and until they are tried again."""

_STOPPING = "the service is stopping"
_log = logging.getLogger(__name__)


class Supervisor:
    """Runs one node until the command to stop.

    Args:
        load: reads the configuration; raises SettingsError.
        forks: makes the processes of the workers.
        timing: its patience.

    Raises:
        SettingsError: the configuration cannot be used.
    """

    def __init__(self, load: Callable[[], Settings], forks: ForkServer, timing: Timing) -> None:
        self._load = load
        self._settings = load()  # those of the first generation; what needs a restart stays as it is here
        self._forks = forks
        self._timing = timing
        self._manager = ServiceManager(os.environ)
        self._memory: NodeMemory | None = None
        self._metrics_directory = os.path.join(self._settings.cache.path, "metrics")
        self._disk = DiskWatch(self._settings.cache.path, timing.disk, timing.calm)
        self._disk_changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._processes: set[Process] = set()
        self._identities = Identities()
        self._public: list[socket.socket] = []
        self._admin: socket.socket | None = None
        self._current = Generation(1, self._settings, self._settings)
        self._old: list[Generation] = []
        self._discovery = Discovery(os.path.join(self._settings.cache.path, "discovered.json"))
        self._reload_wanted = asyncio.Event()
        self._reload_askers: list[Process] = []

    # ------------------------------------------------------------ commands

    def stop(self) -> None:
        """Let the workers finish what they do; when called a second time, or when they take too long, end at once."""
        if self._stopping.is_set():
            self._kill_all()
            return
        self._stopping.set()
        self._manager.stopping()
        self._current.over.set()
        self._close_listeners()  # the workers close theirs: from then on connections are refused
        for process in self._processes:
            process.stop()
        drain = self._current.settings.drain
        patience = drain.delay_seconds + drain.timeout_seconds + self._timing.grace
        asyncio.get_running_loop().call_later(patience, self._kill_all)

    def reload(self, asker: Process | None = None) -> None:
        """Read the configuration again, soon; all who ask before that are given the same answer."""
        if asker is not None and self._stopping.is_set():
            asker.answer_reload(self._stopping_outcome())
        elif asker is not None:
            self._reload_askers.append(asker)
        self._reload_wanted.set()

    def _stopping_outcome(self) -> ReloadOutcome:
        return ReloadOutcome(self._current.number, failure=_STOPPING)

    def _kill_all(self) -> None:
        for process in self._processes:
            process.kill()

    # ------------------------------------------------------------ its life

    async def run(self) -> None:
        """Serve until ``stop``.

        Raises:
            StartError: it cannot start.
        """
        async with locked_cache(self._settings.cache.path) as lock:
            with contextlib.ExitStack() as stack:
                self._launcher = Launcher(self._forks, [lock.fileno()], self.reload)
                stack.callback(self._close_listeners)
                self._current.configured = self._current.settings = await self._discovery.expand(self._settings)
                self._bind()
                if (memory := claim_memory(self._settings.cache.path, self._settings.workers)) is not None:
                    self._memory, self._metrics_directory = memory, memory.metrics
                    stack.callback(memory.close)
                raise_file_limit()
                empty_directory(self._metrics_directory)
                try:
                    await self._serve()
                finally:
                    self._kill_all()
                    ends = asyncio.gather(*(process.process.wait() for process in self._processes))
                    with contextlib.suppress(TimeoutError):  # a process that waits for a disk that hangs ends later
                        await asyncio.wait_for(ends, self._timing.grace)

    async def _serve(self) -> None:
        try:
            password = await self._prepare()
            if password is not None:
                print(f"The first admin is made: user admin, password {password} (it is shown only now)", flush=True)  # noqa: T201 - for the person who starts it
            await self._start(self._current)
        except StartError:
            if self._stopping.is_set():  # it was our command that ended the process
                return
            raise
        print(f"registry-proxy is ready: {self._settings.describe_listeners()}", flush=True)  # noqa: T201 - for the person or the script that waits for it
        self._manager.ready(self._settings.describe_listeners())
        self._keep_all(self._current)
        self._discovery.confirm(self._settings)
        following = [spawn(self._follow_dns(), "replicas in DNS"), spawn(self._follow_disk(), "disk of the cache")]
        following.append(spawn(self._manager.keep_alive(), "watchdog"))
        while not self._stopping.is_set():
            await first_of(None, self._stopping.wait(), self._reload_wanted.wait(), self._disk_changed.wait())
            if self._disk_changed.is_set():
                await self._move_to_disk()
            if self._reload_wanted.is_set():
                self._reload_wanted.clear()
                askers, self._reload_askers = self._reload_askers, []
                with self._manager.reloading(self._settings.describe_listeners()):
                    outcome = await self._reload_unless_stopped()
                for asker in askers:
                    asker.answer_reload(outcome)
        for each in following:
            each.cancel()
        generations = [self._current, *self._old]
        await asyncio.gather(*(worker.end for each in generations for worker in each.workers.values()))

    def _bind(self) -> None:
        settings = self._settings
        try:
            self._public = bind_listeners(settings.listen.host, settings.listen.port, settings.workers)
            (self._admin,) = bind_listeners(settings.admin_listen.host, settings.admin_listen.port, 1)
        except PortTakenError as error:
            raise StartError(f"{error}: end it, or choose another address (listen, admin_listen)") from None
        except OSError as error:
            message = f"cannot listen on {settings.listen} and {settings.admin_listen}: {error.strerror}"
            raise StartError(message) from None

    def _close_listeners(self) -> None:
        for listener in self._listeners():
            listener.close()

    def _listeners(self) -> list[socket.socket]:
        return [*self._public, *([self._admin] if self._admin else [])]

    async def _prepare(self) -> str | None:
        """Start the first worker, wait until it has made the node ready for all; return a password that it made up."""
        await self._launch(self._current, 0, is_first=True)
        worker = self._current.workers[0]
        if (reason := await self._why_not(worker, worker.process.prepared, "done")) is not None:
            raise StartError(f"the node cannot be prepared: {reason}")
        password: str | None = json.loads(worker.process.result)
        return password

    # ------------------------------------------------------------ reload

    async def _reload_unless_stopped(self) -> ReloadOutcome:
        reloading = spawn(self._reload(), "reload")
        await first_of(None, self._stopping.wait(), asyncio.wait([reloading]))
        if reloading.done():
            return reloading.result()
        await end(reloading)
        return self._refused(self._stopping_outcome())

    async def _reload(self) -> ReloadOutcome:
        """Replace the generation by one with the configuration as it is now; on any fault change nothing."""
        number = self._current.number
        try:
            configured = self._load()
            settings = await self._discovery.expand(configured)
            if faults := tuple(needs_restart(self._settings, settings)):
                return self._refused(ReloadOutcome(number, faults=faults))
            await self._forks.renew()
            await self._start_next(settings)
        except SettingsError as error:
            return self._refused(ReloadOutcome(number, faults=tuple(map(str, error.faults))))
        except (StartError, OSError) as error:
            return self._refused(ReloadOutcome(number, failure=str(error)))
        self._discovery.confirm(configured)
        _log.info("the configuration is reloaded: generation %d serves", self._current.number)
        return ReloadOutcome(self._current.number)

    async def _start_next(self, settings: Settings) -> None:
        """Replace the generation by one with these settings, for the disk as it is.

        Raises:
            StartError, OSError: it does not start, and nothing has changed.
        """
        generation = self._next_generation(settings)
        sockets = len(self._public)
        try:
            self._bind_more(settings.workers)
            await self._start(generation)
        except BaseException:
            generation.kill()
            for unused in self._public[sockets:]:
                unused.close()
            del self._public[sockets:]
            raise
        outdated, self._current = self._current, generation
        if self._stopping.is_set():
            generation.over.set()
        self._keep_all(generation)
        self._retire(outdated)

    def _next_generation(self, settings: Settings) -> Generation:
        number = self._current.number + 1
        if not self._disk.is_silent:
            return Generation(number, settings, settings)
        if self._memory is None:
            raise StartError("there is no memory (/dev/shm) for a cache that takes its place")
        return Generation(number, settings, self._memory.stand_in(settings, number), is_stand_in=True)

    # ------------------------------------------------------------ the disk of the cache

    async def _follow_disk(self) -> None:
        """Tell everybody when the disk of the cache hangs, and when it answers again."""
        if self._memory is not None:
            self._memory.remember_node(self._settings.cache.path)
        with self._disk.running():
            while True:
                await self._disk.changed()
                if self._memory is not None:
                    self._memory.set_mark(is_silent=self._disk.is_silent)
                self._disk_changed.set()

    async def _move_to_disk(self) -> None:
        """Have a generation for the disk as it is: with a cache in memory while it hangs, else with its own.

        While none can be started, requests are refused, with the reason: no worker may be there to do it.
        """
        disk = f"the disk of the cache ({self._settings.cache.path})"
        hangs = f"{disk} has not answered for {self._timing.disk:g} s"
        async with contextlib.AsyncExitStack() as stack:
            is_refusing = False
            while self._disk.is_silent != self._current.is_stand_in and not self._stopping.is_set():
                self._disk_changed.clear()
                fact = hangs if self._disk.is_silent else f"{disk} answers again"
                _log.error("%s: new workers take over", fact)
                try:
                    async with asyncio.timeout(_MOVE_SECONDS):
                        await self._start_next(self._current.configured)
                except (StartError, OSError) as error:  # TimeoutError is an OSError
                    _log.error("%s, and no worker starts: %s", fact, error)
                    if self._disk.is_silent and not is_refusing:
                        is_refusing = True
                        await stack.enter_async_context(refusing(self._listeners(), f"{hangs}, and it is needed"))
                    await first_of(_MOVE_SECONDS, self._stopping.wait(), self._disk_changed.wait())
        self._disk_changed.clear()

    async def _follow_dns(self) -> None:
        """Reload whenever DNS names other replicas."""
        while True:
            await self._discovery.changed()
            _log.info("DNS names other replicas")
            self.reload()
            await asyncio.sleep(_PAUSE_AFTER_DNS_SECONDS)

    def _refused(self, outcome: ReloadOutcome) -> ReloadOutcome:
        reason = "; ".join(outcome.faults) or outcome.failure
        _log.error("the configuration is not reloaded, the old one stays in force: %s", reason)
        return outcome

    def _bind_more(self, workers: int) -> None:
        """Have a socket for each worker; with fewer workers than sockets, each serves some: none is ever closed."""
        missing = workers - len(self._public)
        if missing > 0:
            listen = self._settings.listen
            try:
                self._public += bind_listeners(listen.host, listen.port, missing, beside_own=True)
            except OSError as error:
                raise StartError(f"cannot listen once more on {listen}: {error.strerror}") from None

    def _retire(self, generation: Generation) -> None:
        generation.over.set()
        for worker in generation.running():
            worker.process.hand_over()
        if self._memory is not None and generation.is_stand_in:
            ends = [worker.end for worker in generation.workers.values()]
            removing = self._memory.remove_cache(generation.number, ends)
            generation.keepers.append(spawn(removing, f"cache of generation {generation.number}"))
        loop, drain = asyncio.get_running_loop(), self._current.settings.drain
        loop.call_later(generation.settings.drain.reload_timeout_seconds + self._timing.grace, generation.kill)
        self._old = [old for old in [*self._old, generation] if old.running()]
        for surplus in self._old[:-MAX_OLD_GENERATIONS]:
            loop.call_later(drain.timeout_seconds + self._timing.grace, surplus.kill)

    # ------------------------------------------------------------ processes

    def _admit(self, process: Process) -> Worker:
        self._processes.add(process)
        if self._stopping.is_set():
            process.kill()
        return Worker(process, spawn(self._follow(process), f"life of {process.name}"))

    async def _follow(self, process: Process) -> str:
        reason = await process.run(self._timing.silence, self._timing.start)
        self._processes.discard(process)
        self._forks.reap_orphans()
        forget_gauges(self._metrics_directory, str(process.identity))
        self._identities.free(process.identity)
        return reason

    async def _start(self, generation: Generation) -> None:
        """Start all workers of a generation that are not there and wait until each is ready.

        Raises:
            StartError: one does not get so.
        """
        for slot in range(generation.settings.workers):
            if slot not in generation.workers:
                await self._launch(generation, slot)
        await asyncio.gather(*(self._wait_ready(slot, worker) for slot, worker in generation.workers.items()))

    async def _launch(self, generation: Generation, slot: int, *, is_first: bool = False) -> None:
        """Start the worker of a slot on the sockets of that slot; the first of all prepares the node before."""
        if self._stopping.is_set():
            raise StartError(_STOPPING)
        public = self._public[slot :: generation.settings.workers]
        admin = self._admin if slot == 0 else None
        command = {
            "slot": slot,
            "is_first": is_first,
            "admin_password": (os.environ.get(ADMIN_PASSWORD_VARIABLE) or None) if is_first else None,
            "metrics": self._metrics_directory,
            "mark": None if self._memory is None or generation.is_stand_in else self._memory.mark,
            "is_stand_in": generation.is_stand_in,
            "was_away": self._current.is_stand_in and not generation.is_stand_in,
            "settings": generation.settings.to_json(),
        }
        with self._identities.taking() as identity:
            command["process"] = str(identity)
            process = await self._launcher.launch(f"worker {slot}", identity, command, public, admin)
        generation.workers[slot] = self._admit(process)
        if generation.over.is_set():
            process.kill()

    async def _wait_ready(self, slot: int, worker: Worker) -> None:
        """Wait until a worker is ready; raise StartError, with its reason, when it ends or takes too long."""
        if (reason := await self._why_not(worker, worker.process.ready, "ready")) is not None:
            raise StartError(f"worker {slot} did not start: {reason}")

    async def _why_not(self, worker: Worker, said: asyncio.Event, state: str) -> str | None:
        """Wait until a worker has said that it is so far; return why it did not when it ends or takes too long."""
        await first_of(self._timing.start, said.wait(), asyncio.wait([worker.end]))
        if said.is_set():
            return None
        return worker.end.result() if worker.end.done() else f"not {state} within {self._timing.start:g} s"

    def _keep_all(self, generation: Generation) -> None:
        generation.keepers = [
            spawn(self._keep(generation, slot), f"keep worker {slot} of generation {generation.number}")
            for slot in generation.workers
        ]

    async def _keep(self, generation: Generation, slot: int) -> None:
        """Replace the worker of a slot whenever it ends, until the generation is over."""
        loop, back_off = asyncio.get_running_loop(), 0.0
        while True:
            started, worker = loop.time(), generation.workers[slot]
            await asyncio.wait([worker.end])
            while self._disk.is_silent and not generation.is_stand_in and not generation.over.is_set():
                await first_of(_LOOK_SECONDS, generation.over.wait())  # it would hang too, and others take over
            if generation.over.is_set():
                return
            lived = loop.time() - started
            back_off = 0.0 if lived > self._timing.healthy else self._next_back_off(back_off)
            pid, reason = worker.process.process.pid, worker.end.result()
            _log.error("worker %d (process %d) %s; replaced in %.1f s", slot, pid, reason, back_off)
            await first_of(back_off, generation.over.wait())
            while not generation.over.is_set():
                try:
                    await self._launch(generation, slot)
                except StartError as error:  # no memory or no process left: it may come back
                    _log.error("worker %d: %s", slot, error)
                    await first_of(self._timing.longest_back_off, generation.over.wait())
                else:
                    break

    def _next_back_off(self, back_off: float) -> float:
        return min(back_off * 2, self._timing.longest_back_off) if back_off else self._timing.first_back_off


async def run(load: Callable[[], Settings], forks: ForkServer, timing: Timing | None = None) -> None:
    """Run the node until SIGINT or SIGTERM: the first drains, the second ends at once. SIGHUP reloads.

    The copies of ``forks`` run ``worker.main``.

    Raises:
        SettingsError: what ``load`` gives cannot be used.
        StartError: it cannot start.
    """
    supervisor = Supervisor(load, forks, timing or Timing())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    loop.add_signal_handler(signal.SIGCHLD, forks.reap_orphans)
    with json_logging(worker="supervisor"):
        await supervisor.run()
