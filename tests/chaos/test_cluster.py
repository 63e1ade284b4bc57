"""Faults of servers, and their recovery."""

import socket
from pathlib import Path

from tests.chaos.cluster import Cluster
from tests.chaos.plan import Fault, Harm
from tests.conftest import require_program
from tests.support.servers import redis_server, running, wait_for_port, wait_until


def test_a_server_whose_port_is_taken_when_it_comes_back_is_started_again(tmp_path: Path) -> None:
    """A lingering connection or another program may hold the port for a while."""
    require_program("redis-server")
    with running(redis_server(tmp_path / "redis")) as store, socket.socket() as other:
        servers = Cluster({}, {}, store, url="")
        fault = Fault(Harm.KILL, "redis", 0, 0)
        servers.do_harm(fault)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", store.port))
        other.listen()
        servers.end_harm(fault)
        wait_until(lambda: store.has_ended, "it could not listen")
        other.close()
        assert servers.wait_until_healed(20) == []
        wait_for_port(store.port, store.process)
