"""The worker's side of the supervisor: takes settings and sockets from it, says that it lives, ends on command.

Both talk in lines over a socket pair. The supervisor sends the command as JSON first, and later ``stop`` or
``hand over``, and ``reloaded OUTCOME``. The worker sends ``ready``, ``alive`` every second, ``failed REASON``,
``prepared RESULT``, and ``reload``, each of which is answered.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import uvloop

from registry_proxy.config.errors import StartError
from registry_proxy.config.model import Settings
from registry_proxy.node.fork_server import name_process
from registry_proxy.node.stuck import StuckLoop
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.events import ReloadOutcome
from registry_proxy.tasks import end_all, spawn

HEARTBEAT_SECONDS: Final = 1.0
STOP: Final = "stop"
HAND_OVER: Final = "hand over"
_LINE_MAX_BYTES: Final = 64 * 1024 * 1024  # of the command, with all settings
_log = logging.getLogger(__name__)


class Ending:
    """The command to end; wait for it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._stop = asyncio.Event()
        self.is_replaced = False
        """Whether other workers serve the same sockets from now on; else they are to be closed."""

    def give(self, *, is_replaced: bool) -> None:
        """Give the command; a second one only tells a worker that is replaced that now the service stops."""
        if not self._event.is_set():
            self.is_replaced = is_replaced
            self._event.set()
        if not is_replaced:
            self._stop.set()

    def is_set(self) -> bool:
        """Tell whether it was given."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Return when it is given."""
        await self._event.wait()

    async def wait_for_stop(self) -> None:
        """Return when the service stops."""
        await self._stop.wait()


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """The command of the supervisor to a worker.

    ``process`` is an identity that no other process of the node has now. ``metrics`` is the directory in which the
    workers share theirs. ``admin_socket`` is there in slot 0 only. ``ready()`` is called once requests are answered.
    ``reload()`` has the supervisor read the configuration again.

    ``is_stand_in`` says that the cache of the settings is one in memory, because the disk of the configured one hangs;
    ``was_away``, that it answers again, and that what its cache remembers of repositories may be out of date.
    """

    slot: int
    process: str
    metrics: str
    is_stand_in: bool
    was_away: bool
    public_sockets: Sequence[socket.socket]
    admin_socket: socket.socket | None
    ending: Ending
    ready: Callable[[], None]
    reload: Callable[[], Awaitable[ReloadOutcome]]


RunWorker = Callable[[Settings, WorkerContext], Awaitable[None]]
"""Serves until ``ending`` is set and the requests have ended; raises when it cannot start."""

Prepare = Callable[[Settings, str | None], Awaitable[str | None]]
"""Makes store, key and cache ready, once, before any worker serves; given REGISTRY_PROXY_ADMIN_PASSWORD, returns the
password that it made up for the first admin, or None."""


def main(run_worker: RunWorker, prepare: Prepare, descriptors: Sequence[int]) -> int:
    """Run one worker; return its exit status.

    Args:
        run_worker: serves.
        prepare: called before, by the first worker of all.
        descriptors: the channel to the supervisor, the sockets, and what is only to be kept open.
    """
    name_process("regproxy-worker")
    channel = socket.socket(fileno=descriptors[0])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(channel, descriptors[1:], run_worker, prepare))


async def _serve(channel: socket.socket, descriptors: Sequence[int], run_worker: RunWorker, prepare: Prepare) -> int:
    reader, writer = await asyncio.open_connection(sock=channel, limit=_LINE_MAX_BYTES)
    line = await reader.readline()
    if not line.endswith(b"\n"):
        return 1  # the supervisor is gone
    command = json.loads(line)
    settings = Settings.from_json(command["settings"])
    commands = _Commands(reader, writer)
    ending = commands.ending
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: ending.give(is_replaced=False))
    count = command["public_count"]
    context = WorkerContext(
        slot=command["slot"],
        process=command["process"],
        metrics=command["metrics"],
        is_stand_in=command["is_stand_in"],
        was_away=command["was_away"],
        public_sockets=[socket.socket(fileno=descriptor) for descriptor in descriptors[:count]],
        admin_socket=socket.socket(fileno=descriptors[count]) if command["has_admin"] else None,
        ending=ending,
        ready=lambda: writer.write(b"ready\n"),
        reload=commands.reload,
    )
    stuck = StuckLoop(command["mark"], lambda: ending.is_replaced)
    stuck.start()
    tasks = [spawn(_beat(writer, stuck), "heartbeat"), spawn(commands.obey(), "commands of the supervisor")]
    try:
        if command["is_first"]:
            result = await prepare(settings, command["admin_password"])
            writer.write(f"prepared {json.dumps(result)}\n".encode())
        await run_worker(settings, context)
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor tells it
        _tell_failure(writer, error)
        return 1
    else:
        return 0
    finally:
        await end_all(tasks)
        await _close(writer)


async def _beat(writer: asyncio.StreamWriter, stuck: StuckLoop) -> None:
    while True:
        stuck.beat()
        writer.write(b"alive\n")
        await asyncio.sleep(HEARTBEAT_SECONDS)


class _Commands:
    """Lines after the first, in both directions."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.ending = Ending()
        self._reloads: deque[asyncio.Future[ReloadOutcome]] = deque()

    async def reload(self) -> ReloadOutcome:
        """Ask for a reload and wait for what becomes of it; the answers come in the order of the questions."""
        outcome: asyncio.Future[ReloadOutcome] = asyncio.get_running_loop().create_future()
        self._reloads.append(outcome)
        self._writer.write(b"reload\n")
        return await outcome

    async def obey(self) -> None:
        """Take commands until this process ends, with the supervisor at the latest."""
        while line := (await self._reader.readline()).decode().rstrip("\n"):
            if line in {STOP, HAND_OVER}:
                self.ending.give(is_replaced=line == HAND_OVER)
            elif line.startswith("reloaded "):
                outcome, document = self._reloads.popleft(), json.loads(line.removeprefix("reloaded "))
                if not outcome.done():  # the one who asked may have gone
                    outcome.set_result(ReloadOutcome(**{**document, "faults": tuple(document["faults"])}))
        os._exit(1)  # the supervisor is gone, and there is nobody left to serve for


def _tell_failure(writer: asyncio.StreamWriter, error: Exception) -> None:
    """Tell the reason; an error that no operator can cause comes with its traceback."""
    if not isinstance(error, OSError | StartError | StoreUnavailableError):
        _log.error("this is a defect, or a dependency that behaves in a new way", exc_info=error)
    reason = " ".join(str(error).split()) or type(error).__name__
    writer.write(f"failed {reason[:2000]}\n".encode())


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
