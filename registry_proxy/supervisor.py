"""Keeps the workers alive: binds the sockets, prepares the node once, replaces whoever crashes or hangs.

Each worker slot has a listening socket of its own, which stays open here while its worker is replaced, so that
connections wait instead of being reset. The settings travel over a socket pair: no secret is in argv or environment.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from registry_proxy.listeners import PortTakenError, bind_listeners
from registry_proxy.node import (
    ADMIN_PASSWORD_VARIABLE,
    StartError,
    empty_directory,
    locked_cache,
    raise_file_limit,
    worker_environment,
)
from registry_proxy.settings import Settings
from registry_proxy.tasks import spawn
from registry_proxy.telemetry.logs import json_logging
from registry_proxy.worker import DRAIN_SECONDS, send_order

_PREPARING = -1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the supervisor is, in seconds."""

    silence: float = 15.0  # a worker that has not said "alive" for so long is hung
    start: float = 60.0  # a worker that is not ready after this is not going to be
    drain: float = DRAIN_SECONDS + 1.0  # after this, what is left is killed
    first_back_off: float = 0.1
    longest_back_off: float = 5.0
    healthy: float = 30.0  # a worker that lived so long is restarted without back-off


@dataclass
class Worker:
    """One process and the channel to it."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    result: str | None = None
    reason: str = ""
    listening: asyncio.Task[None] = field(init=False)

    def __post_init__(self) -> None:
        self.listening = spawn(self._listen(), f"messages of process {self.process.pid}")

    async def _listen(self) -> None:
        """Take its messages until it closes the channel."""
        with contextlib.suppress(ConnectionError):
            async for line in self.reader:
                self.heard.set()
                word, _, rest = line.decode(errors="replace").strip().partition(" ")
                if word == "ready":
                    self.ready.set()
                elif word == "failed":
                    self.reason = rest
                elif word == "done":
                    self.result = rest

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def drain(self) -> None:
        """Ask it to finish what it does and end; one that does not serve yet has nothing to finish."""
        if self.ready.is_set():
            self.writer.write(b"drain\n")
        else:
            self.kill()

    async def ended(self) -> str:
        """Wait until it has ended; return why, as far as it said so."""
        status = await self.process.wait()
        await self.listening
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return self.reason or how


class Supervisor:
    """Runs one node until it is told to stop."""

    def __init__(self, settings: Settings, command: Sequence[str], timing: Timing) -> None:
        self._settings = settings
        self._command = command
        self._timing = timing
        self._stopping = asyncio.Event()
        self._workers: dict[int, Worker] = {}
        self._metrics_directory = os.path.join(settings.cache.path, "metrics")
        self._inherited: list[IO[str]] = []
        self._public: list[socket.socket] = []
        self._admin: socket.socket | None = None

    def stop(self) -> None:
        """Let the workers finish what they do; when called a second time, or when they take too long, end at once."""
        if self._stopping.is_set():
            self._kill_all()
            return
        self._stopping.set()
        for listener in self._listeners():  # the workers close theirs: from then on connections are refused
            listener.close()
        for worker in self._workers.values():
            worker.drain()
        asyncio.get_running_loop().call_later(self._timing.drain, self._kill_all)

    def _listeners(self) -> list[socket.socket]:
        return [*self._public, *([self._admin] if self._admin else [])]

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.kill()

    async def run(self) -> None:
        """Serve until ``stop``.

        Raises:
            StartError: it cannot start.
        """
        async with locked_cache(self._settings.cache.path) as lock:
            with contextlib.ExitStack() as stack:
                self._inherited = [lock]
                self._bind(stack)
                raise_file_limit()
                empty_directory(self._metrics_directory)
                try:
                    await self._serve()
                finally:
                    self._kill_all()
                    await asyncio.gather(*(worker.ended() for worker in self._workers.values()))

    async def _serve(self) -> None:
        try:
            await self._start()
        except StartError:
            if self._stopping.is_set():  # it was our order that ended the process
                return
            raise
        self._announce()
        async with asyncio.TaskGroup() as group:
            for slot in range(self._settings.workers):
                group.create_task(self._keep(slot), name=f"keep worker {slot}")

    def _bind(self, stack: contextlib.ExitStack) -> None:
        settings = self._settings
        try:
            for socket_ in bind_listeners(settings.listen.host, settings.listen.port, settings.workers):
                self._public.append(stack.enter_context(socket_))
            (self._admin,) = bind_listeners(settings.admin_listen.host, settings.admin_listen.port, 1)
            stack.enter_context(self._admin)
        except PortTakenError as error:
            raise StartError(f"{error}: end it, or choose another address (listen, admin_listen)") from None
        except OSError as error:
            message = f"cannot listen on {settings.listen} and {settings.admin_listen}: {error.strerror}"
            raise StartError(message) from None

    async def _start(self) -> None:
        """Prepare the node, then start all workers and wait until each is ready."""
        password = await self._prepare()
        if password is not None:
            print(f"The first admin is made: user admin, password {password} (it is shown only now)", flush=True)  # noqa: T201 - for the person who starts it
        workers = [await self._spawn(slot) for slot in range(self._settings.workers)]
        await asyncio.gather(*(self._wait_ready(slot, worker) for slot, worker in enumerate(workers)))

    async def _prepare(self) -> str | None:
        """Run the preparation in a process of its own, so that its libraries do not stay in this one."""
        order = {"admin_password": os.environ.get(ADMIN_PASSWORD_VARIABLE) or None}
        worker = self._workers[_PREPARING] = await self._spawn_process("prepare", order, [])
        timer = asyncio.get_running_loop().call_later(self._timing.start, worker.kill)
        reason = await worker.ended()
        timer.cancel()
        del self._workers[_PREPARING]
        if worker.result is None:
            raise StartError(f"the node cannot be prepared: {reason}")
        password: str | None = json.loads(worker.result)
        return password

    def _announce(self) -> None:
        settings = self._settings
        line = f"registry-proxy is ready: http://{settings.listen} (admin: http://{settings.admin_listen})"
        print(line, flush=True)  # noqa: T201 - for the person or the script that waits for it

    # ------------------------------------------------------------ processes

    async def _spawn(self, slot: int) -> Worker:
        """Start the worker of a slot on the socket of that slot."""
        if self._stopping.is_set():
            raise StartError("the service is stopping")
        public, admin = self._public[slot], self._admin if slot == 0 else None
        order = {"slot": slot, "public_fd": public.fileno(), "admin_fd": admin.fileno() if admin else None}
        worker = await self._spawn_process("worker", order, [public, admin] if admin else [public])
        self._workers[slot] = worker
        return worker

    async def _spawn_process(self, role: str, order: dict[str, Any], sockets: Sequence[socket.socket]) -> Worker:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    role,
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[
                        *(item.fileno() for item in (theirs, *sockets)),
                        *(lock.fileno() for lock in self._inherited),
                    ],
                    env=worker_environment(self._metrics_directory),
                )
            send_order(ours, {**order, "supervisor": os.getpid(), "settings": self._settings.to_json()})
        except OSError as error:
            ours.close()
            raise StartError(f"cannot start a {role} process: {error}") from None
        worker = Worker(process, *await asyncio.open_connection(sock=ours))
        if self._stopping.is_set():
            worker.kill()
        return worker

    async def _wait_ready(self, slot: int, worker: Worker) -> None:
        """Wait until a worker is ready; raise StartError, with its reason, when it ends or takes too long."""
        ready, ended = (
            spawn(worker.ready.wait(), f"worker {slot} ready"),
            spawn(worker.process.wait(), f"worker {slot}"),
        )
        try:
            await asyncio.wait({ready, ended}, timeout=self._timing.start, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        if worker.ready.is_set():
            return
        reason = f"not ready within {self._timing.start:g} s"
        if worker.process.returncode is not None:
            reason = await worker.ended()
        raise StartError(f"worker {slot} did not start: {reason}")

    async def _keep(self, slot: int) -> None:
        """Replace the worker of a slot whenever it ends, until the service stops."""
        loop, back_off = asyncio.get_running_loop(), 0.0
        while True:
            started = loop.time()
            worker = self._workers[slot]
            watching = spawn(self._watch(slot, worker), f"watchdog of worker {slot}")
            reason = await worker.ended()
            watching.cancel()
            if self._stopping.is_set():
                return
            lived = loop.time() - started
            back_off = 0.0 if lived > self._timing.healthy else self._next_back_off(back_off)
            _log.error("worker %d (process %d) %s; replaced in %.1f s", slot, worker.process.pid, reason, back_off)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), back_off)
                return
            await self._respawn(slot)

    def _next_back_off(self, back_off: float) -> float:
        return min(back_off * 2, self._timing.longest_back_off) if back_off else self._timing.first_back_off

    async def _respawn(self, slot: int) -> None:
        while not self._stopping.is_set():
            try:
                await self._spawn(slot)
            except StartError as error:  # no memory or no process left: it may come back
                _log.error("worker %d: %s", slot, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._timing.longest_back_off)
            else:
                return

    async def _watch(self, slot: int, worker: Worker) -> None:
        """Kill a worker that does not say that it is alive: its slot swallows connections."""
        while True:
            patience = self._timing.silence if worker.ready.is_set() else self._timing.start
            silent_for = 0.0
            while silent_for < patience and not worker.heard.is_set():  # sleeps are counted, not the clock: this
                await asyncio.sleep(min(1.0, patience))  # process may itself have been stopped
                silent_for += min(1.0, patience)
            if not worker.heard.is_set():
                _log.error("worker %d (process %d) is silent for %.0f s: killed", slot, worker.process.pid, silent_for)
                worker.kill()
                return
            worker.heard.clear()


async def run(settings: Settings, command: Sequence[str] | None = None, timing: Timing | None = None) -> None:
    """Run the node until SIGINT or SIGTERM: the first drains, the second ends at once.

    ``command`` starts a worker when ``worker FD`` or ``prepare FD`` is added to it.

    Raises:
        StartError: it cannot start.
    """
    own = (sys.executable, "-P", "-m", "registry_proxy")
    supervisor = Supervisor(settings, command or own, timing or Timing())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    with json_logging(worker="supervisor"):
        await supervisor.run()
