"""`registry-proxy serve` without the second of a processor that a new Python needs to load it.

It is copied from a process that has loaded all of it, as the service copies its workers. From there on nothing is
different: a process of its own, with its arguments, environment, output, signals and exit status. But passwords are
hashed quickly: each hash as it is stored takes 50 ms of a processor, and each start, user and login makes one.
"""

import asyncio
import faulthandler
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer.main

from registry_proxy.node.fork_server import ForkServer, RunCopy, name_process
from tests.support.passwords import hash_quickly

_PAUSE_SECONDS = 0.01


class Copied:
    """A process that was copied; the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, pid: int, arguments: Sequence[str]) -> None:
        self.pid = pid
        self.args = arguments
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status once it has ended. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(_PAUSE_SECONDS)
        return status

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def answer_of_a_copy(load: Callable[[], Callable[[], Any]]) -> Any:
    """Return the JSON answer of a copy of a process: ``load`` runs before the copy is made, its result in the copy."""

    def load_copy() -> RunCopy:
        tell = load()

        def run(descriptors: list[int]) -> int:
            with socket.socket(fileno=descriptors[0]) as channel:
                channel.sendall(json.dumps(tell()).encode())
            return 0

        return run

    ours, theirs = socket.socketpair()
    with ours, ours.makefile("rb") as answer, closing(ForkServer(load_copy, [])) as forks:
        with theirs:
            pid = asyncio.run(forks.fork([theirs.fileno()]))
        result = json.loads(answer.read())
        assert Copied(pid, []).wait(30) == 0
        return result


class Copies:
    """Copies the service for one test process."""

    def __init__(self) -> None:
        self._forks = ForkServer(_load, [])

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Copied:
        """Start a program, ``registry-proxy`` or ``service`` with its arguments; its output is added to ``log``."""
        order = json.dumps({"arguments": [*arguments], "environment": {**environment}}).encode()
        ours, theirs = socket.socketpair()
        with log.open("ab") as output, ours, theirs, ThreadPoolExecutor(1) as thread:  # there may be a loop in this one
            forking = self._forks.fork([theirs.fileno(), output.fileno()])
            pid = thread.submit(asyncio.run, forking).result()
            ours.sendall(order)
        return Copied(pid, arguments)

    def close(self) -> None:
        """Make no further copies."""
        self._forks.close()


def _load() -> RunCopy:
    # Imported here: in the copied process, and in no other.
    import redis.asyncio  # noqa: F401, PLC0415

    import registry_proxy.app  # noqa: PLC0415
    import registry_proxy.node.worker  # noqa: F401, PLC0415
    from registry_proxy.cli.main import app  # noqa: PLC0415
    from tests.support.fakes import service  # noqa: PLC0415

    warnings.simplefilter("ignore")  # as in a new Python; tests make errors of them
    hash_quickly(pytest.MonkeyPatch())
    command = typer.main.get_command(app)  # here, because it takes 40 ms of a processor
    programs: dict[str, Callable[[], object]] = {"registry-proxy": command, "service": service.main}

    def run(descriptors: list[int]) -> int:
        channel, output = descriptors
        with socket.socket(fileno=channel) as orders, orders.makefile("rb") as stream:
            order = json.loads(stream.read())
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        # The state of this process from its start belongs to the test, and its descriptors mean something else here.
        logging.getLogger().handlers.clear()
        faulthandler.disable()
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv = order["arguments"]
        name_process("registry-proxy")
        programs[sys.argv[0]]()
        return 0

    return run
