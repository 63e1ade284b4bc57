"""One fetch for all: two hundred clients over two workers, and the death of the one that fetches."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.crowd import Crowd
from tests.path.test_done import push_directly
from tests.product import Proxy, digest_of, make_image, random_bytes
from tests.relay import Relay
from tests.servers import Server, wait_until

MIB = 1024 * 1024
CLIENTS = 200
SIZES = [16 * MIB, pytest.param(100 * MIB, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]


def blob_requests(registry: Server, digest: str) -> list[int]:
    """Return the statuses of the GETs of a blob that the registry has logged."""
    lines = [line for line in registry.log_text().splitlines() if f"/blobs/{digest} HTTP" in line and '"GET ' in line]
    return [int(line.split('HTTP/1.1" ')[1].split(" ")[0]) for line in lines]


def crowd_of(proxy: Proxy, blob: bytes) -> Crowd:
    """Return two hundred clients of a blob, connected."""
    user = proxy.add_user("ann", pull=["team/**"])
    token = user.token("repository:team/app:pull")
    crowd = Crowd(f"{proxy.url}/v2/team/app/blobs/{digest_of(blob)}", blob, [f"Authorization: Bearer {token}"], CLIENTS)
    crowd.connect()
    return crowd


@contextlib.contextmanager
def watching_memory(proxy: Proxy) -> Iterator[list[int]]:
    """Give a list of one number: the most memory that all processes had while the block ran."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            with contextlib.suppress(psutil.NoSuchProcess):
                peak[0] = max(peak[0], proxy.pss_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


@pytest.mark.parametrize("size_bytes", SIZES)
def test_two_hundred_clients_over_two_workers_cost_one_upstream_get(
    start_proxy: StartProxy, start_registry: StartRegistry, size_bytes: int
) -> None:
    """One GET in the registry's own log, every body right, less than 200 MiB of memory in all."""
    registry = start_registry()
    blob = random_bytes(size_bytes)
    push_directly(registry, "team/app", "1", make_image(blob))
    proxy = start_proxy([registry], {"workers": 2})
    crowd = crowd_of(proxy, blob)
    with watching_memory(proxy) as peak:
        crowd.run()
    assert [client.is_complete(size_bytes) and client.is_right for client in crowd.clients] == [True] * CLIENTS
    assert blob_requests(registry, digest_of(blob)) == [200]
    print(f"at most {peak[0] / MIB:.0f} MiB")
    assert peak[0] < 200 * MIB, f"{peak[0] / MIB:.0f} MiB"


def owner_of_the_fill(proxy: Proxy) -> psutil.Process:
    """Return the worker that has the unfinished file open for writing."""
    (owner,) = [
        worker
        for worker in proxy.workers()
        if any(file.path.endswith(".part") and "+" in file.mode for file in worker.open_files())
    ]
    return owner


@pytest.mark.parametrize("size_bytes", SIZES)
def test_the_death_of_the_worker_that_fetches_harms_no_client_of_the_other(
    start_proxy: StartProxy, start_registry: StartRegistry, tmp_path: Path, size_bytes: int
) -> None:
    """Killed at half: the clients of the other worker get right bodies, for at most one more request, a Range."""
    registry = start_registry()
    blob = random_bytes(size_bytes)
    push_directly(registry, "team/app", "1", make_image(blob))
    with Relay(registry.port, pause_after=size_bytes // 2).running() as relay:
        timeouts = {"upstreams": {"main": {"timeouts": {"stall": "60s", "probe": "30s"}}}}
        proxy = start_proxy([Server([], relay.port, tmp_path / "none")], {"workers": 2, **timeouts})
        crowd = crowd_of(proxy, blob)
        herd = threading.Thread(target=crowd.run)
        herd.start()
        try:
            assert relay.paused.wait(60)
            wait_until(lambda: all(client.received_bytes > MIB for client in crowd.clients), "every client has some")
            owner = owner_of_the_fill(proxy)
            lost = {one.raddr.port for one in owner.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED}
            owner.kill()
        finally:
            relay.resume()
            herd.join()
    others = [client for client in crowd.clients if client.local_port not in lost]
    print(f"{len(others)} clients on the surviving worker")
    assert others
    assert [client.is_complete(size_bytes) and client.is_right for client in others] == [True] * len(others)
    assert all(client.is_right for client in crowd.clients)
    wait_until(lambda: len(blob_requests(registry, digest_of(blob))) == 2, "the cut request is logged")
    assert sorted(blob_requests(registry, digest_of(blob))) == [200, 206]
