"""Notifications to the service manager: those of systemd (sd_notify(3)), where it asks for them."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, MutableMapping

from registry_proxy.tasks import repeat

_SOCKET_VARIABLE, _WATCHDOG_VARIABLE, _PID_VARIABLE = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_PINGS_PER_LIMIT = 3

_log = logging.getLogger(__name__)


class ServiceManager:
    """Tells the service manager that the service is ready, reloads, stops and lives; without one it does nothing.

    Args:
        environment: of this process; the variables are removed, because they are meant for it alone.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop(_SOCKET_VARIABLE, "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        microseconds, pid = environment.pop(_WATCHDOG_VARIABLE, ""), environment.pop(_PID_VARIABLE, str(os.getpid()))
        is_watched = microseconds.isdecimal() and pid == str(os.getpid())
        self.ping_seconds = int(microseconds) / 1e6 / _PINGS_PER_LIMIT if is_watched else None
        """Time between two pings of the watchdog; None for no watchdog."""

    def ready(self, status: str) -> None:
        """Tell that requests are answered; ``status`` is for a person."""
        self._send("READY=1", f"STATUS=serving {status}")

    @contextlib.contextmanager
    def reloading(self, status: str) -> Iterator[None]:
        """Tell that a reload begins, and after it, also when it failed, that requests are answered as before."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self.ready(status)

    def stopping(self) -> None:
        """Tell that the service stops."""
        self._send("STOPPING=1", "STATUS=draining")

    async def keep_alive(self) -> None:
        """Ping the watchdog until cancelled: a supervisor that hangs is restarted."""
        if self.ping_seconds is not None:
            await repeat(self._ping, self.ping_seconds, at_once=True)

    async def _ping(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
                sending.settimeout(0)
                sending.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            _log.warning("the service manager did not receive %s: %s", assignments[0], error.strerror)
