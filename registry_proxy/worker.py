"""The worker's side of the supervisor: takes settings and sockets from it, says that it lives, ends when told to.

Both talk over a socket pair. The supervisor sends one frame (4 bytes of length, then JSON) and later the line
``drain``; the worker sends lines: ``ready``, ``alive`` every second, ``failed REASON``, ``done RESULT``.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import uvloop

from registry_proxy.node import StartError
from registry_proxy.settings import Settings
from registry_proxy.tasks import spawn

HEARTBEAT_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 10.0
_PR_SET_PDEATHSIG = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What the supervisor gives to one worker.

    The sockets listen already; ``admin_socket`` is there in slot 0 only. ``ready()`` is called once requests are
    answered. When ``draining`` is set, running requests have ``drain_seconds`` to end.
    """

    slot: int
    public_socket: socket.socket
    admin_socket: socket.socket | None
    draining: asyncio.Event
    ready: Callable[[], None]
    drain_seconds: float = DRAIN_SECONDS


RunWorker = Callable[[Settings, WorkerContext], Awaitable[None]]
"""Serves until ``draining`` is set and the requests have ended; raises when it cannot start."""

Prepare = Callable[[Settings, str | None], Awaitable[str | None]]
"""Makes store, key and cache ready, once, before any worker; given REGISTRY_PROXY_ADMIN_PASSWORD, returns the
password that it made up for the first admin, or None."""


def main(arguments: list[str], run_worker: RunWorker, prepare: Prepare) -> int:
    """Run one process that the supervisor started with ``worker FD`` or ``prepare FD``; return its exit status."""
    role, descriptor = arguments
    channel = socket.socket(fileno=int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group: the supervisor decides
    order = _receive_order(channel)
    _die_with(order["supervisor"])
    settings = Settings.from_json(order["settings"])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if role == "prepare":
            return runner.run(_prepare(channel, prepare(settings, order["admin_password"])))
        return runner.run(_serve(channel, settings, order, run_worker))


def send_order(channel: socket.socket, order: dict[str, Any]) -> None:
    """Send a worker its first frame; blocks until it has taken it."""
    frame = json.dumps(order).encode()
    channel.sendall(struct.pack("!I", len(frame)) + frame)


def _receive_order(channel: socket.socket) -> dict[str, Any]:
    (length,) = struct.unpack("!I", _receive(channel, 4))
    order: dict[str, Any] = json.loads(_receive(channel, length))
    return order


def _receive(channel: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        chunk = channel.recv(length - len(received))
        if not chunk:
            raise SystemExit(1)  # the supervisor is gone
        received += chunk
    return received


def _die_with(supervisor: int) -> None:
    """Let the kernel end this process when the supervisor ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it ended before the call
        raise SystemExit(1)


async def _prepare(channel: socket.socket, preparation: Awaitable[str | None]) -> int:
    _, writer = await asyncio.open_connection(sock=channel)
    try:
        result = await preparation
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor tells it
        _tell_failure(writer, error)
        return 1
    else:
        writer.write(f"done {json.dumps(result)}\n".encode())
        return 0
    finally:
        await _close(writer)


async def _serve(channel: socket.socket, settings: Settings, order: dict[str, Any], run_worker: RunWorker) -> int:
    reader, writer = await asyncio.open_connection(sock=channel)
    draining = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, draining.set)
    context = WorkerContext(
        slot=order["slot"],
        public_socket=socket.socket(fileno=order["public_fd"]),
        admin_socket=None if order["admin_fd"] is None else socket.socket(fileno=order["admin_fd"]),
        draining=draining,
        ready=lambda: writer.write(b"ready\n"),
    )
    tasks = [spawn(_beat(writer), "heartbeat"), spawn(_obey(reader, draining), "orders of the supervisor")]
    try:
        await run_worker(settings, context)
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor tells it
        _tell_failure(writer, error)
        return 1
    else:
        return 0
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _close(writer)


async def _beat(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"alive\n")
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def _obey(reader: asyncio.StreamReader, draining: asyncio.Event) -> None:
    while line := await reader.readline():
        if line == b"drain\n":
            draining.set()
    os._exit(1)  # the supervisor is gone, and there is nobody left to serve for


def _tell_failure(writer: asyncio.StreamWriter, error: Exception) -> None:
    """Tell the reason; an error that no operator can cause comes with its traceback."""
    if not isinstance(error, OSError | StartError):
        _log.error("this is a defect, or a dependency that behaves in a new way", exc_info=error)
    reason = " ".join(str(error).split()) or type(error).__name__
    writer.write(f"failed {reason[:2000]}\n".encode())


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


if __name__ == "__main__":
    sys.exit("started by the supervisor only")
