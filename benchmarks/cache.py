"""The cache's own figures: the byte hit ratio of its eviction against LRU, and a start with a million contents.

    python -m benchmarks.cache

The trace has the shape that registries see: layers requested by a zipf law, whose popularity drifts, and jobs that read
much once (a mirror, a scanner, a CI run of an old branch). The cache's real code decides, in a memory file system; LRU
is simulated beside it. A trace has no clock of its own, so later requests within a minute count as another use.
"""

import argparse
import asyncio
import hashlib
import os
import random
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import psutil

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.layout import CachePaths, prepare_cache, seal
from registry_proxy.cache.ledger import boot_id
from registry_proxy.protocol.reference import Digest
from registry_proxy.telemetry.metrics import PrometheusObserver


def trace(seed: int, requests: int, contents: int, scan_share: float) -> Iterator[tuple[int, int]]:
    """Give (content, KiB): zipf 0.9 over ``contents`` with drift, and scans of contents that are used only once."""
    chance = random.Random(seed)
    weights = list(accumulate(1 / rank**0.9 for rank in range(1, contents + 1)))
    scanned, drift = contents * 1000, 0
    position = 0
    while position < requests:
        if chance.random() < scan_share / 200:  # a scan reads 200 contents in a row
            for _ in range(200):
                scanned += 1
                position += 1
                yield scanned, _size(scanned)
            continue
        drift += chance.random() < 0.02
        rank = chance.choices(range(contents), cum_weights=weights)[0]
        position += 1
        yield rank + drift, _size(rank + drift)


def _size(content: int) -> int:
    """Return KiB, most of them small, some of half a GiB: as layers are."""
    return int(min(512 * 1024, max(1, random.Random(content).lognormvariate(8.5, 1.8))))


def _digest(content: int) -> Digest:
    return Digest("sha256", hashlib.sha256(str(content).encode()).hexdigest())


class _Lru:
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self._used = 0

    def ask(self, content: int, size: int) -> bool:
        if content in self._sizes:
            self._sizes.move_to_end(content)
            return True
        if size <= self._capacity:
            self._sizes[content] = size
            self._used += size
            while self._used > self._capacity:
                self._used -= self._sizes.popitem(last=False)[1]
        return False


class _Ours:
    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._paths = cache.paths

    def ask(self, content: int, size: int) -> bool:
        digest = _digest(content)
        path = self._paths.blob(digest)
        if os.path.exists(path):
            os.utime(path, ns=(time.time_ns(), 0))
            return True
        if size <= self._cache.space.max_size_bytes:
            temporary = self._paths.temporary()
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, size)
            seal(fd)
            os.close(fd)
            self._cache.space.make_room(size, over_max_size=False)
            self._cache.space.commit(temporary, digest, size)
        return False


def compare_eviction(requests: int, contents: int) -> None:
    """Print the byte hit ratios."""
    print(f"byte hit ratio, {requests} requests, zipf 0.9 over {contents} layers, popularity drifting\n")
    print("| cache, part of all layers | requests of scans | LRU | ours (SIEVE) | bytes from upstream, ours / LRU |")
    print("|---|---|---|---|---|")
    total = sum(_size(content) for content in range(contents))
    for part in (0.02, 0.1, 0.3):
        for scan_share in (0.0, 0.2, 0.5):
            capacity = int(total * part)
            root = Path(tempfile.mkdtemp(dir="/dev/shm"))
            prepare_cache(root)
            cache = DiskCache(root, capacity, 0, PrometheusObserver())
            rivals: dict[str, _Lru | _Ours] = {"lru": _Lru(capacity), "ours": _Ours(cache)}
            hits, asked = dict.fromkeys(rivals, 0), 0
            for content, size in trace(1, requests, contents, scan_share):
                asked += size
                for name, rival in rivals.items():
                    hits[name] += size * rival.ask(content, size)
            asyncio.run(cache.close())
            shutil.rmtree(root)
            ratio = {name: hit / asked for name, hit in hits.items()}
            less = (1 - ratio["ours"]) / (1 - ratio["lru"])
            print(f"| {part:.0%} | {scan_share:.0%} | {ratio['lru']:.3f} | {ratio['ours']:.3f} | {less:.2f} |")


def start_with(entries: int, directory: str) -> None:
    """Print the time until a cache with a number of contents is ready, and its memory."""
    root = Path(tempfile.mkdtemp(dir=directory))
    prepare_cache(root)
    paths = CachePaths(str(root))
    print(f"\nmaking {entries} contents in {root}", flush=True)
    os.mkdir(root / "blobs" / "sha256")
    for shard in range(256):
        os.mkdir(root / "blobs" / "sha256" / f"{shard:02x}")
    for number in range(entries):
        fd = os.open(paths.blob(_digest(number)), os.O_RDWR | os.O_CREAT)
        seal(fd)
        os.close(fd)
    (root / "page").unlink(missing_ok=True)
    print("| step | seconds | memory of the process |")
    print("|---|---|---|")
    process = psutil.Process()

    def tell(step: str, started_at: float) -> None:
        print(f"| {step} | {time.perf_counter() - started_at:.2f} | {process.memory_full_info().pss >> 20} MiB |")

    tell("before", time.perf_counter())
    for step in ("the first start: ready", "a later start: ready"):
        started_at = time.perf_counter()
        prepare_cache(root)
        cache = DiskCache(root, 1 << 40, 0, PrometheusObserver())
        tell(step, started_at)
        if cache.space.must_recount:
            started_at = time.perf_counter()
            cache.space.recount()
            tell("counted and put in order again, in the background", started_at)
        assert cache.space.entries == entries, boot_id()
        asyncio.run(cache.close())
    shutil.rmtree(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=60_000)
    parser.add_argument("--contents", type=int, default=6_000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where the million contents are made")
    arguments = parser.parse_args()
    compare_eviction(arguments.requests, arguments.contents)
    start_with(arguments.entries, arguments.directory)
