"""Lets go of the clients of a worker that hangs with the disk of the cache, and ends it."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_LOOK_SECONDS = 1.0
_SILENT_LOOKS = 3
"""Of a loop that beats once in each of them."""


class StuckLoop:
    """Watches this process from a thread. ``beat`` is called by the loop, once a second at least.

    While the disk is silent and the loop with it, nobody answers the connections of this process, and it cannot even be
    killed. They are cut, so that clients ask again, on connections that another worker takes. The process is killed as
    well: the kernel may do that only when the disk answers again, but before anything goes on that clients have had
    done anew meanwhile. A push would come a second time, over newer ones.

    So is a process whose loop lives, once others have taken its place: a request that it still has may wait for the
    disk in a thread.

    Args:
        mark: the path of a file, in memory, that is there while the disk is silent; None where there is none.
        is_replaced: returns whether other workers have taken over.
    """

    def __init__(self, mark: str | None, is_replaced: Callable[[], bool]) -> None:
        self._mark = mark
        self._is_replaced = is_replaced
        self._has_beaten = True

    def beat(self) -> None:
        """Say that the loop lives."""
        self._has_beaten = True

    def start(self) -> None:
        """Watch from now on, as long as this process lives; without a mark do nothing."""
        if self._mark is not None:
            threading.Thread(target=self._run, args=(self._mark,), name="stuck loop", daemon=True).start()

    def _run(self, mark: str) -> None:
        silent_looks = 0
        while True:
            time.sleep(_LOOK_SECONDS)
            silent_looks = 0 if self._has_beaten and not self._is_replaced() else silent_looks + 1
            self._has_beaten = False
            if silent_looks >= _SILENT_LOOKS and os.path.exists(mark):
                _cut_connections()
                os.kill(os.getpid(), signal.SIGKILL)


def _cut_connections() -> None:
    """Shut down every TCP connection of this process, and no listener: those are of all workers."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            is_tcp = connection.family in {socket.AF_INET, socket.AF_INET6}
            if is_tcp and not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                connection.shutdown(socket.SHUT_RDWR)
