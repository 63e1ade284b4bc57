"""The start of a worker that fails: an error for the supervisor, which retries, and nothing left behind."""

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from typing import cast

import pytest

from registry_proxy.config.errors import StartError
from registry_proxy.node.fork_server import ForkServer
from registry_proxy.node.processes import Launcher


class Dying:
    """Makes processes that end before they receive anything."""

    pid = 0

    async def fork(self, _descriptors: Sequence[int]) -> int:
        self.pid = os.posix_spawn("/bin/true", ["true"], {})  # noqa: ASYNC221 - it is short
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the same
        return self.pid

    def reap(self, pid: int) -> int:
        """Reap one process."""
        return os.waitpid(pid, 0)[1]


async def launch(forks: Dying) -> None:
    """Start a worker without sockets."""
    await Launcher(cast("ForkServer", forks), [], print).launch("worker 0", 0, {}, [], None)


def test_a_worker_that_dies_before_it_has_its_order_is_an_error_and_no_zombie() -> None:
    """A worker killed right after its start, as by the kernel when memory is short, is an error, and is reaped."""

    async def scenario() -> None:
        forks = Dying()
        with pytest.raises(StartError, match="cannot start worker 0"):
            await launch(forks)
        async with asyncio.timeout(30):
            while True:
                try:
                    os.kill(forks.pid, 0)
                except ProcessLookupError:
                    break
                await asyncio.sleep(0)

    asyncio.run(scenario())


def test_no_descriptor_left_is_an_error_to_start_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a free descriptor gives StartError, after which the supervisor retries, and no other error."""

    def refuse() -> None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    async def scenario() -> None:
        monkeypatch.setattr(socket, "socketpair", refuse)
        try:
            with pytest.raises(StartError, match="Too many open files"):
                await launch(Dying())
        finally:
            monkeypatch.undo()

    asyncio.run(scenario())
