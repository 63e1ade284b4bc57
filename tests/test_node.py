"""What one node has to itself, and the state of the process that it starts in."""

import asyncio
import json
import os
import socket
import sys
from contextlib import closing

from registry_proxy.fork_server import ForkServer, RunCopy
from registry_proxy.node import open_standard_streams
from tests.test_fork_server import wait


def test_nothing_that_is_opened_takes_the_place_of_closed_output() -> None:
    """Started with input, output and errors closed, a process prints into nothing, and so do those that it starts."""

    def load() -> RunCopy:
        def tell(descriptors: list[int]) -> int:
            for standard in range(3):
                os.close(standard)
            sys.stdin = sys.stdout = sys.stderr = None
            open_standard_streams()
            with socket.socket(fileno=descriptors[0]) as channel:
                print("to nobody")
                print("to nobody", file=sys.stderr, flush=True)
                opened = [[os.readlink(f"/proc/self/fd/{number}"), os.get_inheritable(number)] for number in range(3)]
                channel.sendall(json.dumps(opened).encode())
            return 0

        return tell

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with ours, closing(ForkServer(load, [])) as forks:
            with theirs:
                pid = await forks.fork([theirs.fileno()])
            assert json.loads(ours.recv(1000)) == [[os.devnull, True]] * 3
            assert wait(pid) == 0

    asyncio.run(scenario())
