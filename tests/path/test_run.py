"""`make run`: its messages before it starts anything."""

import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from registry_proxy.config.load import load_settings
from scripts import run


def test_ports_that_are_taken_can_be_moved() -> None:
    """Each port in use is reported with its holder and the variable that moves it; then the new port is used."""
    with socket.create_server(("127.0.0.1", 0)) as held, socket.create_server(("127.0.0.1", 0)) as registry:
        taken, also_taken = held.getsockname()[1], registry.getsockname()[1]
        replicas = '[{"name": "first", "url": "http://127.0.0.1:%d"}, {"name": "far", "url": "https://example.com"}]'
        environment = {
            "REGISTRY_PROXY__LISTEN": "127.0.0.1:1",
            "REGISTRY_PROXY__ADMIN_LISTEN": f"127.0.0.1:{taken}",
            "REGISTRY_PROXY__UPSTREAMS__MAIN__REPLICAS": replicas % also_taken,
        }
        settings = load_settings(str(run.DEFAULT_CONFIG), environment)
        assert run.registry_ports(settings) == [also_taken]
        with pytest.raises(SystemExit) as refusal:
            run.refuse_taken_ports(settings)
        lines = str(refusal.value).splitlines()
        assert [line.partition(" is taken by process ")[0] for line in lines[:-1]] == [
            f"port {taken}",
            f"port {also_taken}",
        ]
        assert lines[0].endswith("; REGISTRY_PROXY__ADMIN_LISTEN sets another one")
        assert lines[1].endswith("; REGISTRY_PROXY__UPSTREAMS__MAIN__REPLICAS sets another one")
    run.refuse_taken_ports(load_settings(str(run.DEFAULT_CONFIG), environment))
    readme = (run.ROOT / "README.md").read_text()
    assert all(f"`{name}=" in readme for name in environment)


def test_a_registry_that_ends_by_itself_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The message has number, exit status, log and a command to restart it; a stopped registry ends in silence."""
    is_stopping = threading.Event()
    registry = run.Registry(2, subprocess.Popen(["sleep", "60"], text=True), "start it", tmp_path / "log")
    registry.process.send_signal(signal.SIGKILL)
    run.tell_of_end(registry, is_stopping)
    assert capsys.readouterr().out.splitlines() == [
        f"registry 2 ended by signal 9: see {tmp_path / 'log'}",
        "  start it again: start it",
        "  (Ctrl-C here does not stop what is started so)",
    ]
    is_stopping.set()
    run.tell_of_end(registry, is_stopping)
    assert capsys.readouterr().out == ""
