"""Notifications to the service manager, on a socket like systemd's."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_proxy.node.notify import ServiceManager
from tests.conftest import StartProxy, StartRegistry
from tests.support.servers import wait_until


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that receives notifications; its path is ``notify`` in the directory of the test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "notify"))
        receiving.settimeout(20)
        yield receiving


def states(manager: socket.socket, count: int) -> list[str]:
    """Return the first words of the next notifications that are no pings of the watchdog."""
    found: list[str] = []
    while len(found) < count:
        state = manager.recv(4096).decode().splitlines()[0]
        if state != "WATCHDOG=1":
            found.append(state)
    return found


def test_a_service_is_ready_reloads_and_stops(
    manager: socket.socket, tmp_path: Path, start_registry: StartRegistry, start_proxy: StartProxy
) -> None:
    """READY comes once requests are answered, RELOADING and READY with a reload, STOPPING before the drain."""
    os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    try:
        proxy = start_proxy([start_registry("first")])
    finally:
        del os.environ["NOTIFY_SOCKET"]
    assert states(manager, 1) == ["READY=1"]
    proxy.send_signal(signal.SIGHUP)
    assert states(manager, 2) == ["RELOADING=1", "READY=1"]
    wait_until(lambda: "generation 2 serves" in proxy.log_text(), "the reload is over")
    proxy.stop()
    assert states(manager, 1) == ["STOPPING=1"]


async def test_the_watchdog_is_fed_by_the_process_that_it_watches(manager: socket.socket, tmp_path: Path) -> None:
    """Pings come for this process and for no other, and the variables are gone for the processes below it."""
    address = str(tmp_path / "notify")
    stranger = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"})
    assert stranger.ping_seconds is None
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    service = ServiceManager(environment)
    assert (environment, service.ping_seconds) == ({}, 10)
    service.ready("https://127.0.0.1:5000")
    assert manager.recv(4096) == b"READY=1\nSTATUS=serving https://127.0.0.1:5000"


def test_without_a_manager_nothing_happens() -> None:
    """A service without a manager, or whose manager is gone, goes on."""
    ServiceManager({}).ready("x")
    ServiceManager({"NOTIFY_SOCKET": "/absent/notify"}).stopping()
