"""One fetch for all: up to two hundred clients over two workers, and the death of the worker that fetches."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.support.crowd import Crowd
from tests.support.product import Proxy, digest_of, make_image, own_descriptors, push_directly, random_bytes
from tests.support.relay import Relay
from tests.support.servers import Server, blob_gets, wait_until

MIB = 1024 * 1024
CLIENTS = 200
SIZES = [8 * MIB, pytest.param(100 * MIB, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]


def token_of(proxy: Proxy) -> str:
    """Return a token that lets a new user pull."""
    return proxy.add_user("ann", pull=["team/**"]).token("repository:team/app:pull")


def crowd_of(proxy: Proxy, token: str, blob: bytes, count: int = CLIENTS) -> Crowd:
    """Return connected clients of a blob."""
    crowd = Crowd(f"{proxy.url}/v2/team/app/blobs/{digest_of(blob)}", blob, [f"Authorization: Bearer {token}"], count)
    crowd.connect()
    return crowd


@contextlib.contextmanager
def watching_memory(proxy: Proxy) -> Iterator[list[int]]:
    """Give a list of one number: the peak memory of all processes while the block ran."""
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


@pytest.mark.parametrize(("workers", "count", "limit_bytes"), [(1, 50, 150 * MIB), (2, 200, 200 * MIB)])
@pytest.mark.parametrize("size_bytes", SIZES)
def test_many_clients_of_a_cold_blob_cost_one_upstream_get(
    start_proxy: StartProxy, start_registry: StartRegistry, workers: int, count: int, limit_bytes: int, size_bytes: int
) -> None:
    """The logs of two registries have one GET, there is one miss, every body is right, and the memory is bounded."""
    registries = [start_registry("first"), start_registry("second")]
    blob = random_bytes(size_bytes)
    for registry in registries:
        push_directly(registry, "team/app", "1", make_image(blob))
    proxy = start_proxy(registries, {"workers": workers}, is_copy=False)
    crowd = crowd_of(proxy, token_of(proxy), blob, count)
    with watching_memory(proxy) as peak:
        crowd.run()
    assert [client.is_complete(size_bytes) and client.is_right for client in crowd.clients] == [True] * count
    wait_until(lambda: any(blob_gets(registry, digest_of(blob)) for registry in registries), "the request is logged")
    assert [status for registry in registries for status in blob_gets(registry, digest_of(blob))] == [200]
    served = [
        proxy.metric("registry_proxy_cache_requests_total", kind="blob", result=result)
        for result in ("hit", "latch", "miss")
    ]
    assert (sum(served), served[2]) == (count, 1)
    print(f"at most {peak[0] / MIB:.0f} MiB")
    assert peak[0] < limit_bytes, f"{peak[0] / MIB:.0f} MiB"


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
    """Clients of the other worker get right bodies, for at most one more request, a Range."""
    registry = start_registry()
    blob = random_bytes(size_bytes)
    push_directly(registry, "team/app", "1", make_image(blob))
    with Relay(registry.port, pause_after=size_bytes // 2).running() as relay:
        timeouts = {"upstreams": {"main": {"timeouts": {"stall": "60s", "probe": "30s"}}}}
        proxy = start_proxy([Server([], relay.port, tmp_path / "none")], {"workers": 2, **timeouts})
        crowd = crowd_of(proxy, token_of(proxy), blob)
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
    wait_until(lambda: len(blob_gets(registry, digest_of(blob))) == 2, "the cut request is logged")
    assert sorted(blob_gets(registry, digest_of(blob))) == [200, 206]


def test_clients_that_leave_or_dawdle_harm_nobody(
    start_proxy: StartProxy, start_registry: StartRegistry, tmp_path: Path
) -> None:
    """A hundred clients leave a fetch at any moment, one reads nothing: the others get all, and nothing is left."""
    registry = start_registry()
    blob = random_bytes(8 * MIB)
    push_directly(registry, "team/app", "1", make_image(blob))
    with Relay(registry.port, pause_after=len(blob) // 2).running() as relay:
        proxy = start_proxy([Server([], relay.port, tmp_path / "none")], {"workers": 2})
        token = token_of(proxy)
        workers = proxy.workers()
        before = [own_descriptors(worker, {relay.port}) for worker in workers]
        leaving, staying = crowd_of(proxy, token, blob, 100), crowd_of(proxy, token, blob, 20)
        staying.clients[0].reads_nothing = True
        herd = threading.Thread(target=staying.run)
        herd.start()
        try:
            leaving.run(leave_after=[i * len(blob) // 220 for i in range(100)])
            assert relay.paused.wait(60)
        finally:
            relay.resume()
            herd.join()
    others = staying.clients[1:]
    assert [client.is_complete(len(blob)) and client.is_right for client in others] == [True] * len(others)
    assert [client.is_right and client.status == 200 for client in leaving.clients] == [True] * 100
    wait_until(lambda: blob_gets(registry, digest_of(blob)) != [], "the request is logged")
    assert blob_gets(registry, digest_of(blob)) == [200]
    wait_until(lambda: not list((proxy.cache / "fills").iterdir()), "the fill has ended")
    allowed = [count + 4 for count in before]  # opened at their first use, such as the watch of other workers' fills
    for worker, most in zip(workers, allowed, strict=True):
        wait_until(lambda: own_descriptors(worker, {relay.port}) <= most, "all is closed")  # noqa: B023 - called at once
