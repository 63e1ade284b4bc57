"""Bits that change in the cache, under load: visible changes are never served, one scrub finds invisible ones."""

import concurrent.futures
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import Proxy, User, digest_of, make_image, push_directly, random_bytes
from tests.support.servers import Server, blob_gets, wait_until

REPOSITORY = "team/app"
SIZES = (2000, 70_000, 300_000)
COUNT = 60
SHARE = 20  # one of so many is damaged


@pytest.fixture
def registry(start_registry: StartRegistry) -> Server:
    """Start one registry."""
    return start_registry()


def file_of(proxy: Proxy, digest: str) -> Path:
    """Return the path of a content in the cache."""
    algorithm, _, hexadecimal = digest.partition(":")
    return proxy.cache / "blobs" / algorithm / hexadecimal[:2] / hexadecimal


def flip(file: Path, chance: random.Random, *, leave_trace: bool) -> None:
    """Change one byte of a file; as rot does it, or in a way that its times show."""
    before = file.stat()
    descriptor = os.open(file, os.O_RDWR)  # mode 0444 stops neither root nor a bad disk
    try:
        at = chance.randrange(before.st_size)
        os.pwrite(descriptor, bytes([os.pread(descriptor, 1, at)[0] ^ (1 << chance.randrange(8))]), at)
    finally:
        os.close(descriptor)
    if not leave_trace:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


class Load:
    """Threads that pull every blob repeatedly, and compare."""

    def __init__(self, user: User, digests: Sequence[str]) -> None:
        self.wrong: list[str] = []
        self.pulls = 0
        self._user = user
        self._digests = digests
        self._stopping = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(4)

    def __enter__(self) -> Self:
        self._futures = [self._pool.submit(self._run, seed) for seed in range(4)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for future in self._futures:
            future.result()
        self._pool.shutdown()

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)
        with self._user.client(REPOSITORY) as client:
            while not self._stopping.is_set():
                digest = chance.choice(self._digests)
                try:
                    answer = client.get(f"/blobs/{digest}")
                except httpx.TransportError:
                    continue
                self.pulls += 1
                self._stopping.wait(0.005)  # the load needs to meet the changes, not to fill a processor
                if answer.status_code != 200 or digest_of(answer.content) != digest:
                    self.wrong.append(f"{digest}: {answer.status_code}, {len(answer.content)} bytes")


def fill(proxy: Proxy, registry: Server) -> tuple[User, list[str]]:
    """Put sixty blobs into the cache; return a user who may pull them, and their digests."""
    blobs = [random_bytes(SIZES[i % 3]) for i in range(COUNT)]
    push_directly(registry, REPOSITORY, "1", make_image(*blobs))
    user = proxy.add_user("ann", pull=["team/**"])
    digests = [digest_of(blob) for blob in blobs]
    for digest in digests:
        assert user.get(REPOSITORY, f"blobs/{digest}").status_code == 200
    wait_until(lambda: all(file_of(proxy, digest).exists() for digest in digests), "all are committed")
    return user, digests


def test_no_change_that_shows_is_ever_served(start_proxy: StartProxy, registry: Server) -> None:
    """A byte changes in one of twenty files while everything is pulled: no client ever gets a wrong body."""
    proxy = start_proxy([registry], {"workers": 2})
    user, digests = fill(proxy, registry)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Load(user, digests) as load:
        for _ in range(2):
            for digest in chance.sample(digests, COUNT // SHARE):
                file = file_of(proxy, digest)
                wait_until(file.exists, "it was fetched again")
                before, pulls = len(blob_gets(registry, digest)), load.pulls
                # Not in place: a body that is being sent would change with it, and no cache can prevent that.
                damaged = file.with_suffix(".damaged")
                damaged.write_bytes(file.read_bytes())
                flip(damaged, chance, leave_trace=True)
                damaged.chmod(0o444)
                damaged.rename(file)
                wait_until(lambda: load.pulls > pulls + 10, "the load goes on")  # noqa: B023 - called at once
                user.get(REPOSITORY, f"blobs/{digest}")
                wait_until(lambda: len(blob_gets(registry, digest)) > before, "it was fetched again")  # noqa: B023 - as above
    assert load.wrong == []
    assert proxy.metric("registry_proxy_cache_errors_total", reason="rot") >= 2 * (COUNT // SHARE)


def test_one_scrub_finds_all_rot_and_none_is_served_after(start_proxy: StartProxy, registry: Server) -> None:
    """Files change as on a bad disk, without a trace: after one round every body is right, and each rot is counted."""
    proxy = start_proxy([registry], {"workers": 2, "cache": {"scrub": {"rate": "1GiB"}}})
    user, digests = fill(proxy, registry)
    proxy.stop()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rotten = chance.sample(digests, COUNT // SHARE)
    for digest in rotten:
        flip(file_of(proxy, digest), chance, leave_trace=False)
    (proxy.cache / "scrub").unlink(missing_ok=True)  # a round begins with the start, not in a week
    proxy.start()
    ended = "registry_proxy_scrub_last_end_timestamp_seconds"
    wait_until(lambda: proxy.metric(ended) > 0, "the round has ended")
    assert proxy.metric("registry_proxy_cache_errors_total", reason="rot") == len(rotten)
    assert proxy.metric("registry_proxy_scrubbed_bytes_total") >= sum(SIZES) * COUNT // 3
    assert len(list((proxy.cache / "quarantine").iterdir())) == len(rotten)
    with Load(user, digests) as load:
        wait_until(lambda: load.pulls > 5 * COUNT, "everything was pulled")
    assert load.wrong == []
    for digest in rotten:  # the load may have requested all but one
        user.get(REPOSITORY, f"blobs/{digest}")
    assert all(user.get(REPOSITORY, f"blobs/{digest}").headers["X-Cache"] == "HIT" for digest in digests)
