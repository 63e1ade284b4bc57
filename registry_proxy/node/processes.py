"""The processes of the service as the supervisor sees them, each with the channel to it."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from registry_proxy.config.errors import StartError
from registry_proxy.node.fork_server import ForkServer
from registry_proxy.node.worker import HAND_OVER, STOP
from registry_proxy.ports.events import ReloadOutcome
from registry_proxy.tasks import spawn

_LOOK_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


class Child:
    """A process that this one is the parent of, without having started it itself.

    Args:
        pid: its id.
        reap: given that, returns the status of a process that has ended.
    """

    def __init__(self, pid: int, reap: Callable[[int], int]) -> None:
        self.pid = pid
        self._wait = reap
        self._descriptor = os.pidfd_open(pid)
        loop = asyncio.get_running_loop()
        self._status: asyncio.Future[int] = loop.create_future()
        loop.add_reader(self._descriptor, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._status.set_result(os.waitstatus_to_exitcode(self._wait(self.pid)))

    async def wait(self) -> int:
        """Return its exit status once it has ended, that of a signal less than 0."""
        return await asyncio.shield(self._status)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if not self._status.done():
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


@dataclass(eq=False)
class Process:
    """One process and the channel to it.

    Args:
        name: for the log, such as ``worker 0``.
        identity: no other process that runs has it; free again when it has ended.
        process: the kernel's.
        reader: what it says.
        writer: receives the commands.
        ask_reload: called when it asks for a reload; what was made of it goes to ``answer_reload``.

    Attributes:
        ready: set once it serves.
        prepared: set once it has prepared the node, as only the first worker of all does.
        result: what that returned, as JSON.
    """

    name: str
    identity: int
    process: Child
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ask_reload: "Callable[[Process], None]"
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    prepared: asyncio.Event = field(default_factory=asyncio.Event)
    result: str = ""
    _heard: bool = False
    _reason: str = ""

    async def run(self, silence_seconds: float, start_seconds: float) -> str:
        """Take its messages and wait until it has ended; return why, as far as it said so.

        Args:
            silence_seconds: a process that has not said that it lives for so long is hung, and is killed.
            start_seconds: the same for one that is not ready yet.
        """
        watching = spawn(self._watch(silence_seconds, start_seconds), f"watchdog of {self.name}")
        with contextlib.suppress(ConnectionError):
            async for line in self.reader:
                self._take(line.decode(errors="replace").strip())
        status = await self.process.wait()
        watching.cancel()
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return self._reason or how

    def _take(self, message: str) -> None:
        self._heard = True
        word, _, remainder = message.partition(" ")
        if word == "ready":
            self.ready.set()
        elif word == "failed":
            self._reason = remainder
        elif word == "prepared":
            self.result = remainder
            self.prepared.set()
        elif word == "reload":
            self.ask_reload(self)

    async def _watch(self, silence_seconds: float, start_seconds: float) -> None:
        """Kill it when it does not say that it is alive: its sockets swallow connections."""
        while True:
            patience = silence_seconds if self.ready.is_set() else start_seconds
            pause, silent_for, self._heard = min(_LOOK_SECONDS, patience), 0.0, False
            while silent_for < patience and not self._heard:  # sleeps are counted, not the clock: this process may
                await asyncio.sleep(pause)  # itself have been stopped
                silent_for += pause
            if not self._heard:
                _log.error("%s (process %d) is silent for %.0f s: killed", self.name, self.process.pid, silent_for)
                self.kill()
                return

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def stop(self) -> None:
        """Ask it to finish what it does and end; one that does not serve yet has nothing to finish."""
        self._tell_last(STOP)

    def hand_over(self) -> None:
        """Ask the same of a worker whose sockets others serve from now on."""
        self._tell_last(HAND_OVER)

    def _tell_last(self, command: str) -> None:
        if self.ready.is_set():
            self._tell(command)
        else:
            self.kill()

    def answer_reload(self, outcome: ReloadOutcome) -> None:
        """Send it the outcome of the reload that it requested."""
        self._tell(f"reloaded {json.dumps(asdict(outcome))}")

    def _tell(self, line: str) -> None:
        if not self.writer.is_closing():
            self.writer.write(f"{line}\n".encode())


@dataclass(frozen=True, slots=True)
class Launcher:
    """Starts workers.

    Args:
        forks: makes the processes.
        inherited: descriptors that every one of them keeps open.
        ask_reload: see ``Process``.
    """

    forks: ForkServer
    inherited: Sequence[int]
    ask_reload: Callable[[Process], None]

    async def launch(
        self,
        name: str,
        identity: int,
        command: dict[str, Any],
        public: Sequence[socket.socket],
        admin: socket.socket | None,
    ) -> Process:
        """Start a worker, give it its command and the sockets. Raises StartError when the machine cannot."""
        with contextlib.ExitStack() as on_failure:
            try:
                ours, theirs = map(on_failure.enter_context, socket.socketpair())
                sockets = [theirs, *public, *([] if admin is None else [admin])]
                with theirs:
                    pid = await self.forks.fork([*(item.fileno() for item in sockets), *self.inherited])
                # Before the command: it takes care of one that has ended before it read that.
                child = Child(pid, self.forks.reap)
                line = json.dumps({**command, "public_count": len(public), "has_admin": admin is not None})
                ours.sendall(f"{line}\n".encode())
                reader, writer = await asyncio.open_connection(sock=ours)
            except OSError as error:
                raise StartError(f"cannot start {name}: {error}") from None
            on_failure.pop_all()
        return Process(name, identity, child, reader, writer, self.ask_reload)


class Identities:
    """The numbers of the processes of a node; a process keeps its own from before its start until it has ended."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    @contextlib.contextmanager
    def taking(self) -> Iterator[int]:
        """Take the lowest free number; it is free again where the start of the process fails."""
        identity = next(number for number in itertools.count() if number not in self._taken)
        self._taken.add(identity)
        try:
            yield identity
        except BaseException:
            self.free(identity)
            raise

    def free(self, identity: int) -> None:
        """Have the number of a process that has ended used again."""
        self._taken.discard(identity)


async def first_of(seconds: float | None, *waits: Coroutine[Any, Any, object]) -> None:
    """Return when one of some waits is over, or the time."""
    tasks = [spawn(wait, "wait") for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
