"""Messages of a worker to its supervisor."""

import json
import socket

import pytest

from registry_proxy.config.model import Settings
from registry_proxy.node.worker import _serve
from registry_proxy.ports.errors import StoreUnavailableError


async def test_a_store_that_is_away_when_it_starts_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    """The supervisor gets the reason, and starts another worker; the log has no traceback."""

    async def run_worker(*_: object) -> None:
        raise StoreUnavailableError("Redis does not answer")

    async def prepare(*_: object) -> None:
        raise AssertionError("another one has prepared the node")

    main = {"replicas": [{"url": "http://127.0.0.1:1"}]}
    settings = Settings.model_validate({"upstreams": {"main": main}, "routes": [{"prefix": "", "upstream": "main"}]})
    command = {
        "slot": 0,
        "process": "0",
        "public_count": 0,
        "has_admin": False,
        "is_first": False,
        "metrics": "",
        "mark": None,
        "is_stand_in": False,
        "was_away": False,
    }
    command["settings"] = settings.to_json()
    supervisor, worker = socket.socketpair()
    with supervisor:
        supervisor.sendall(f"{json.dumps(command)}\n".encode())
        assert await _serve(worker, [], run_worker, prepare) == 1
        assert supervisor.recv(1000).endswith(b"failed Redis does not answer\n")
    assert caplog.text == ""
