"""The speed of a registry's repair after an absence: few large blobs, many small ones, from cache and registry.

Part of `make bench`. Two real registries; images are pushed through the proxy while one of them is down.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.failover import p99
from benchmarks.load import describe_machine
from tests.support.product import Image, Proxy, User, make_image, proxy_server, random_bytes
from tests.support.servers import Server, docker_registry, running

MIB = 2**20
REPOSITORY = "bench/app"
_TIMEOUT_SECONDS = 600
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Missed:
    """The images that a registry misses: one layer each, each under its own tag."""

    name: str
    images: int
    layer_bytes: int

    @property
    def objects(self) -> int:
        """Layers, configurations, manifests and tags."""
        return 4 * self.images

    @property
    def mib(self) -> float:
        """The layers' size."""
        return self.images * self.layer_bytes / MIB


@dataclass(frozen=True)
class Run:
    """Seconds from the start of the repair, and from the registry's first accepted connection, to its end."""

    repair_seconds: float
    total_seconds: float


def push_all(user: User, missed: Missed, run: int) -> None:
    """Push the images, a few at a time."""
    images: list[tuple[str, Image]] = [
        (f"{run}-{number}", make_image(random_bytes(missed.layer_bytes), label=f"{run}-{number}"))
        for number in range(missed.images)
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda image: user.push(REPOSITORY, *image), images))


def measure(proxy: Proxy, away: Server, user: User, missed: Missed, run: int, *, from_cache: bool) -> Run:
    """Make one registry miss some images, and time its repair; raise when it fails."""
    away.stop(9)
    push_all(user, missed, run)
    if not from_cache:
        proxy.stop()
        for entry in ("blobs", "repositories"):
            shutil.rmtree(proxy.cache / entry)
        proxy.start()
    name, begun_at = f"127.0.0.1:{away.port}", 0.0
    away.start()
    returned_at = time.monotonic()
    with proxy.admin() as admin:
        while True:
            upstream = admin.get("/upstreams/main").raise_for_status().json()
            replica = next(each for each in upstream["replicas"] if each["name"] == name)
            now = time.monotonic()
            if replica["repair"]["running"] and not begun_at:
                begun_at = now
            if now - returned_at > _TIMEOUT_SECONDS:
                raise RuntimeError(f"not repaired in time: {replica}")
            if not replica["pending"]:
                return Run(now - (begun_at or returned_at), now - returned_at)
            time.sleep(_POLL_SECONDS)


def report(missed: Missed, source: str, runs: Sequence[Run]) -> None:
    """Print a row."""
    seconds = [run.repair_seconds for run in runs]
    usual, worst = statistics.median(seconds), p99(seconds)
    total = statistics.median(run.total_seconds for run in runs)
    rates = " | ".join(f"{amount / usual:.0f} | {amount / worst:.0f}" for amount in (missed.mib, missed.objects))
    print(f"| {missed.name} | {source} | {usual:.2f} | {worst:.2f} | {rates} | {total:.2f} |", flush=True)


def main() -> None:
    """Measure and print; the exit status is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each kind (default 5)")
    options = parser.parse_args()
    print(
        f"{describe_machine()}; {options.runs} runs; registries and proxy on the same cores\n\n"
        "### A registry that was away is repaired (`repair_rate: 0`)\n\n"
        "| missed | bytes from | s, median | s, p99 | MiB/s, median | MiB/s at p99 | objects/s, median "
        "| objects/s at p99 | s from its return to equal, median |\n|---|---|---|---|---|---|---|---|---|"
    )
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        registries = [stack.enter_context(running(docker_registry(root / name))) for name in ("first", "second")]
        upstream = {"repair_rate": "0", "replicas": [{"url": server.url} for server in registries]}
        proxy = proxy_server(root / "proxy", [], {"upstreams": {"main": upstream}})
        stack.enter_context(running(proxy))
        user = proxy.add_user("bench", pull_push=["bench/**"])
        number = 0
        for missed in (Missed("8 layers of 32 MiB", 8, 32 * MIB), Missed("100 layers of 1 KiB", 100, 1024)):
            for source in ("the cache", "the other registry"):
                runs = []
                for _ in range(options.runs):
                    number += 1
                    runs.append(measure(proxy, registries[1], user, missed, number, from_cache=source == "the cache"))
                report(missed, source, runs)


if __name__ == "__main__":
    main()
