"""What a worker has from the process that it is a copy of."""

import asyncio
import resource
import socket
from contextlib import closing

from registry_proxy.fork_server import ForkServer, RunCopy
from registry_proxy.load import load_worker
from tests.test_fork_server import wait


def test_the_first_workers_may_open_as_many_files_as_the_machine_allows() -> None:
    """Copies of a process that was made with a low soft limit, as a shell or systemd sets it, have the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def load() -> RunCopy:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard - 1), hard))
        load_worker()

        def tell(descriptors: list[int]) -> int:
            with socket.socket(fileno=descriptors[0]) as channel:
                channel.sendall(b"%d" % resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            return 0

        return tell

    async def scenario() -> int:
        ours, theirs = socket.socketpair()
        with ours, closing(ForkServer(load, [])) as forks:
            with theirs:
                pid = await forks.fork([theirs.fileno()])
            assert wait(pid) == 0
            return int(ours.recv(32))

    assert asyncio.run(scenario()) == hard
