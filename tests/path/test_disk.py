"""The disk of the cache: too small, full, worn out, unreadable. No pull fails because of it, and no worker dies."""

import concurrent.futures
import contextlib
import fnmatch
import os
import random
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.support.crowd import Crowd
from tests.support.disks import Disk, mounted_disk
from tests.support.product import Proxy, User, digest_of, make_image, push_directly, random_bytes
from tests.support.relay import Relay
from tests.support.servers import Server, wait_until

MIB = 1024 * 1024
REPOSITORY = "team/app"


@pytest.fixture
def registry(start_registry: StartRegistry) -> Server:
    """Start one registry."""
    return start_registry()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mount a file system of 32 MiB."""
    with mounted_disk(tmp_path / "small", 32) as mounted:
        yield mounted


def cache_on(disk: Disk, **limits: Any) -> dict[str, Any]:
    """Return a configuration of two workers whose cache is on the disk."""
    return {"workers": 2, "cache": {"path": str(disk.path / "cache"), **limits}}


def add_blobs(registry: Server, count: int, size_bytes: int) -> dict[str, bytes]:
    """Put new blobs into a registry; return them by digest."""
    image = make_image(*(random_bytes(size_bytes) for _ in range(count)))
    push_directly(registry, REPOSITORY, "1", image)
    return {digest: blob for digest, blob in image.blobs.items() if len(blob) == size_bytes}


def file_of(cache: Path, digest: str) -> Path:
    """Return the path of a content in a cache."""
    algorithm, _, encoded = digest.partition(":")
    return cache / "blobs" / algorithm / encoded[:2] / encoded


def committed(cache: Path) -> list[int]:
    """Return the sizes of committed contents."""
    return [path.stat().st_size for path in (cache / "blobs").rglob("*") if path.is_file()]


def accounted(proxy: Proxy) -> tuple[int, int]:
    """Return the node's own count of bytes and entries."""
    with proxy.admin() as admin:
        stats = admin.get("/cache").raise_for_status().json()
    return stats["size_bytes"], stats["entries"]


def pull_all(user: User, digests: list[str], clients: int, rounds: int = 1) -> list[str]:
    """Pull every digest with several clients at a time, each in another order; return the failures."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    user.token(f"repository:{REPOSITORY}:pull")

    def pull(number: int) -> list[str]:
        chance, wrong = random.Random(seed + number), []
        with user.client(REPOSITORY) as client:
            for digest in [each for _ in range(rounds) for each in chance.sample(digests, len(digests))]:
                try:
                    answer = client.get(f"/blobs/{digest}")
                except httpx.TransportError as error:
                    wrong.append(repr(error))
                    continue
                if answer.status_code != 200 or digest_of(answer.content) != digest:
                    wrong.append(f"{answer.status_code}, {len(answer.content)} bytes")
        return wrong

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return [fault for faults in pool.map(pull, range(clients)) for fault in faults]


def check_alive(proxy: Proxy, workers: set[int]) -> None:
    """Fail when a worker died, or the node reports itself as not ready."""
    assert {worker.pid for worker in proxy.workers()} == workers
    assert httpx.get(f"{proxy.admin_url}/readyz", timeout=30, verify=False).status_code == 200


def pids(proxy: Proxy) -> set[int]:
    """Return the workers' process ids."""
    return {worker.pid for worker in proxy.workers()}


@pytest.mark.parametrize("min_free", ["8MiB", "0"])
@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.soak)])
def test_pulls_of_far_more_than_the_disk_all_succeed(
    start_proxy: StartProxy, registry: Server, disk: Disk, min_free: str, rounds: int
) -> None:
    """On 32 MiB of disk, 200 MiB pulled by four clients all arrive, and the disk keeps its free space."""
    blobs = add_blobs(registry, 12 if rounds == 1 else 16, 4 * MIB)
    proxy = start_proxy([registry], cache_on(disk, min_free=min_free))
    cache, workers = disk.path / "cache", pids(proxy)
    user = proxy.add_user("ann", pull=["team/**"])
    assert pull_all(user, list(blobs), 4, rounds) == []
    check_alive(proxy, workers)
    wait_until(lambda: not [*(cache / "fills").iterdir()], "the last fill has ended")
    assert accounted(proxy) == (sum(committed(cache)), len(committed(cache)))
    if min_free != "0":
        free = os.statvfs(disk.path)
        assert free.f_bavail * free.f_frsize >= 8 * MIB
        assert proxy.metric("registry_proxy_cache_evicted_total") > 0


def test_a_follower_of_a_fetch_on_a_full_disk_gets_the_rest_from_upstream(
    start_proxy: StartProxy, registry: Server, disk: Disk, tmp_path: Path
) -> None:
    """With the disk full at half a body, ten clients over two workers have it whole, and nothing stays on the disk."""
    (blob,) = add_blobs(registry, 1, 16 * MIB).values()
    with Relay(registry.port, pause_after=len(blob) // 2).running() as relay:
        proxy = start_proxy([Server([], relay.port, tmp_path / "none")], cache_on(disk, min_free="0"))
        workers, cache = pids(proxy), disk.path / "cache"
        token = proxy.add_user("ann", pull=["team/**"]).token(f"repository:{REPOSITORY}:pull")
        url = f"{proxy.url}/v2/{REPOSITORY}/blobs/{digest_of(blob)}"
        crowd = Crowd(url, blob, [f"Authorization: Bearer {token}"], 10)
        crowd.connect()
        herd = threading.Thread(target=crowd.run)
        herd.start()
        try:
            assert relay.paused.wait(60)
            wait_until(lambda: all(client.received_bytes > MIB for client in crowd.clients), "every client has some")
            disk.fill()
        finally:
            relay.resume()
            herd.join()
        assert [client.is_complete(len(blob)) and client.is_right for client in crowd.clients] == [True] * 10
        check_alive(proxy, workers)
        assert proxy.metric("registry_proxy_cache_errors_total", reason="write") >= 1
        assert proxy.metric("registry_proxy_cache_errors_total", reason="read") == 10
        assert committed(cache) == []
        wait_until(lambda: not [*(cache / "fills").iterdir()], "nothing is left of it")


@pytest.mark.parametrize("size_bytes", [10_000, 3 * MIB])
def test_content_that_the_disk_cannot_read_any_more_comes_from_upstream(
    start_proxy: StartProxy, registry: Server, disk: Disk, size_bytes: int
) -> None:
    """Blobs and a manifest on a device that fails arrive correctly at clients, whole and in part."""
    blobs = add_blobs(registry, 4, size_bytes)
    proxy = start_proxy([registry], cache_on(disk, min_free="0"))
    workers, cache = pids(proxy), disk.path / "cache"
    user = proxy.add_user("ann", pull=["team/**"])
    user.pull(REPOSITORY, "1")
    files = [file_of(cache, digest) for digest in blobs]
    wait_until(lambda: all(file.exists() for file in files), "all are committed")
    proxy.stop()  # it keeps small contents in memory
    proxy.start()
    workers = pids(proxy)
    disk.stop_reading(*files)
    for digest, blob in blobs.items():
        part = user.get(REPOSITORY, f"blobs/{digest}", Range="bytes=5000-7000")
        assert (part.status_code, part.content) == (206, blob[5000:7001])
        assert user.get(REPOSITORY, f"blobs/{digest}").content == blob
    user.pull(REPOSITORY, "1")
    check_alive(proxy, workers)
    assert proxy.metric("registry_proxy_cache_errors_total", reason="read") >= 1


def test_a_device_that_takes_no_more_writes_fails_no_pull(
    start_proxy: StartProxy, registry: Server, tmp_path: Path
) -> None:
    """Writes fail under the file system, then all calls: hits, misses and deletes succeed, and all workers live."""
    cold, hot = add_blobs(registry, 6, 3 * MIB), add_blobs(registry, 2, 2 * MIB)
    with mounted_disk(tmp_path / "worn", 64, 24) as disk:
        proxy = start_proxy([registry], cache_on(disk, min_free="0"))
        user = proxy.add_user("ann", pull_push_delete=["team/**"])
        manifest = user.pull(REPOSITORY, "1")
        assert pull_all(user, list(hot), 2) == []
        workers = pids(proxy)
        disk.stop_writing()
        assert pull_all(user, [*hot, *cold], 4) == []
        assert proxy.metric("registry_proxy_cache_errors_total", reason="write") >= 1
        disk.die()
        with pytest.raises(OSError, match="Input/output error"):
            (disk.path / "new").touch()
        assert pull_all(user, [*hot, *cold], 4) == []
        user.pull(REPOSITORY, "1")
        check_alive(proxy, workers)
        # Whether the gauges of the disk can still be read depends on the kernel's memory of it.
        assert httpx.get(f"{proxy.admin_url}/metrics", verify=False).status_code in {200, 503}
        with user.client(REPOSITORY, "delete") as client:
            assert client.delete(f"/manifests/{manifest.digest}").status_code == 202
        assert user.get(REPOSITORY, f"manifests/{manifest.digest}").status_code == 404
        assert user.get(REPOSITORY, "manifests/1").status_code == 404
        check_alive(proxy, workers)


def test_ten_readers_of_a_blob_that_is_evicted_meanwhile_all_complete(
    start_proxy: StartProxy, registry: Server
) -> None:
    """After the eviction of its file all bodies end right; the next pull is a miss, never an empty 200."""
    wanted, others = add_blobs(registry, 1, 24 * MIB), add_blobs(registry, 4, 8 * MIB)
    ((digest, blob),) = wanted.items()
    proxy = start_proxy([registry], {"workers": 2, "cache": {"max_size": "32MiB", "min_free": "0"}})
    user = proxy.add_user("ann", pull=["team/**"])
    assert pull_all(user, [digest], 1) == []
    file = file_of(proxy.cache, digest)
    wait_until(file.exists, "it is committed")
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        evicted = threading.Event()
        begun = threading.Barrier(11)

        def read() -> str:
            with user.client(REPOSITORY) as client, client.stream("GET", f"/blobs/{digest}") as answer:
                chunks = answer.iter_raw(MIB)
                body = next(chunks)
                begun.wait(60)
                evicted.wait(60)
                return digest_of(body + b"".join(chunks))

        readers = [pool.submit(read) for _ in range(10)]
        begun.wait(60)
        os.utime(file, ns=(0, 0))  # as if last used long ago
        assert pull_all(user, list(others), 2) == []
        wait_until(lambda: not file.exists(), "it is evicted")
        evicted.set()
        assert [reader.result() for reader in readers] == [digest] * 10
    again = user.get(REPOSITORY, f"blobs/{digest}")
    assert (again.status_code, again.headers["X-Cache"], again.content) == (200, "MISS", blob)


def test_two_workers_keep_to_the_limit_together(start_proxy: StartProxy, registry: Server) -> None:
    """Eight clients fetch far more than the limit: it is never exceeded, and nothing is counted twice."""
    blobs = add_blobs(registry, 24, MIB)
    proxy = start_proxy([registry], {"workers": 2, "cache": {"max_size": "8MiB", "min_free": "0"}})
    user = proxy.add_user("ann", pull=["team/**"])
    done, peak = threading.Event(), [0]

    def sizes_now() -> dict[str, int]:
        found = {}
        for folder in ("blobs", "fills"):
            for root, _, names in os.walk(proxy.cache / folder):
                for name in names if folder == "blobs" else fnmatch.filter(names, "*.part"):
                    with contextlib.suppress(FileNotFoundError):
                        found[name] = os.stat(f"{root}/{name}").st_size
        return found

    def watch() -> None:
        while not done.wait(0.02):
            seen = sizes_now()
            if seen == sizes_now():  # else the values would be of different times
                peak[0] = max(peak[0], sum(seen.values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert pull_all(user, list(blobs), 8) == []
    finally:
        done.set()
        watcher.join()
    wait_until(lambda: not proxy.temporary_files(), "the last fill has ended")
    sizes = committed(proxy.cache)
    assert accounted(proxy) == (sum(sizes), len(sizes))
    assert 0 < peak[0] <= (8 + 4) * MIB


def load(user: User, digests: list[str], stopping: threading.Event, wrong: list[str], seed: int) -> None:
    """Pull and push until the stop event; note every wrong answer. A connection that breaks is none."""
    chance = random.Random(seed)
    while not stopping.is_set():
        with contextlib.suppress(httpx.TransportError):
            if chance.random() < 0.3:
                user.push_blob(REPOSITORY, random_bytes(300_000))
                continue
            digest = chance.choice(digests)
            answer = user.get(REPOSITORY, f"blobs/{digest}")
            if answer.status_code != 200 or digest_of(answer.content) != digest:
                wrong.append(f"{answer.status_code}, {len(answer.content)} bytes")


@contextlib.contextmanager
def under_load(user: User, digests: list[str], seed: int) -> Iterator[None]:
    """Run six clients during the block; fail after any wrong answer."""
    stopping, wrong = threading.Event(), list[str]()
    threads = [
        threading.Thread(target=load, args=(user, digests, stopping, wrong, seed + number)) for number in range(6)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.soak)])
def test_after_kill_9_the_accounts_equal_the_disk(
    start_proxy: StartProxy, start_registry: StartRegistry, kills: int
) -> None:
    """Fills, pushes and evictions of two workers, killed at random moments, leave nothing partial or miscounted."""
    registry = start_registry()
    digests = list(add_blobs(registry, 30, 700_000))
    proxy = start_proxy([registry], {"workers": 2, "cache": {"max_size": "8MiB", "min_free": "0"}})
    user = proxy.add_user("ann", pull_push=["team/**"])
    user.token(f"repository:{REPOSITORY}:pull")
    user.token(f"repository:{REPOSITORY}:pull,push")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for kill in range(kills):
        # The counters of requests outlive the kill; the last counts may not.
        wanted = proxy.metric("registry_proxy_cache_requests_total") + chance.randrange(1, 60)
        with under_load(user, digests, seed + 10 * kill):
            wait_until(partial(has_counted, proxy, wanted), "there is load")
            if chance.random() < 0.5:
                chance.choice(proxy.workers()).send_signal(signal.SIGKILL)  # one goes before the others
                threading.Event().wait(chance.random() * 0.2)
            proxy.kill_everything()
        left = sorted(committed(proxy.cache))
        proxy.start()
        assert proxy.temporary_files() == []
        assert sorted(committed(proxy.cache)) == left
        assert accounted(proxy) == (sum(left), len(left))
        assert sum(left) <= 8 * MIB + 6 * 300_000  # a push may exceed it until the next one makes room
    assert pull_all(user, digests, 2) == []
    with proxy.admin() as admin:
        assert admin.post("/cache/verify", timeout=60).raise_for_status().json() == {"bad": []}


def has_counted(proxy: Proxy, wanted: float) -> bool:
    """Tell whether the cache has counted a number of requests."""
    return proxy.metric("registry_proxy_cache_requests_total") >= wanted
