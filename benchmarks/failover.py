"""The cost of failures for a client: a registry that is killed, silent or slow; and the delay of rights elsewhere.

Part of `make bench`. Two real registries, each behind a relay that delays its answers, or stops at the byte of
the kill. For the delay of revocations and grants: two nodes of the product on one real Redis.
"""

import argparse
import itertools
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.load import describe_machine
from tests.support.product import (
    OCI_MANIFEST,
    Image,
    Proxy,
    User,
    digest_of,
    make_image,
    proxy_server,
    push_blob_directly,
    random_bytes,
)
from tests.support.relayed import REPOSITORY, Relayed, relayed
from tests.support.servers import Server, docker_registry, redis_server, running, wait_until

MIB = 2**20
_POLL_SECONDS = 0.005


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile: the worst of up to 100."""
    return sorted(values)[max(0, round(len(values) * 0.99) - 1)]


def row(name: str, values: Sequence[float]) -> str:
    """Return a line of a table: median, p99 and worst in milliseconds."""
    figures = (statistics.median(values), p99(values), max(values))
    return f"| {name} | {' | '.join(f'{seconds * 1e3:.1f}' for seconds in figures)} |"


HEADING = "| ms | median | p99 | worst |\n|---|---|---|---|"


def timed(client: httpx.Client, method: str, path: str) -> float:
    """Return the seconds of a request, whose answer must be 200."""
    begun_at = time.perf_counter()
    answer = client.request(method, path, headers={"Accept": OCI_MANIFEST})
    seconds = time.perf_counter() - begun_at
    assert answer.status_code == 200, answer.text
    return seconds


# ---------------------------------------------------------------- killed


def kills(pair: Relayed, count: int, chance: random.Random) -> None:
    """Print the delay of a download when the registry that serves it is killed."""
    undisturbed, wrong = [], 0
    blobs = []
    for _ in range(count):
        pair.wait_for_both()
        blob = pair.add_blob(64 * MIB)
        undisturbed.append(pair.pull(digest_of(blob)).seconds)
        blob = pair.add_blob(64 * MIB)
        download = pair.kill_while_serving(digest_of(blob), chance.randrange(64 * MIB))
        blobs.append(download.seconds)
        wrong += download.body != blob
    usual = statistics.median(undisturbed)
    added = [seconds - usual for seconds in blobs]
    print(
        f"\n### The serving registry is killed (SIGKILL) at a random byte of a cold 64 MiB blob, {count} times\n\n"
        f"{HEADING}\n{row('undisturbed', undisturbed)}\n{row('added by a kill', added)}\n\nwrong bodies: {wrong}"
    )


# ---------------------------------------------------------------- silent and slow


def push_image(registry: Server, tag: str, image: Image, repository: str = REPOSITORY) -> None:
    """Push an image to a registry past the proxy."""
    for blob in image.blobs.values():
        push_blob_directly(registry, repository, blob)
    url = f"{registry.url}/v2/{repository}/manifests/{tag}"
    httpx.put(url, content=image.manifest, headers={"Content-Type": image.media_type}, verify=False).raise_for_status()


def add_images(pair: Relayed, prefix: str, count: int) -> list[Image]:
    """Put images, each under its own tag, into both registries."""
    images = [make_image(random_bytes(20_000), label=f"{prefix} {number}") for number in range(count)]
    for number, image in enumerate(images):
        for registry in pair.registries:
            push_image(registry, f"{prefix}-{number}", image)
    return images


def head_tags(client: httpx.Client, prefix: str, images: Sequence[Image]) -> list[float]:
    """Return the seconds of a HEAD of each tag, none of which is in the cache."""
    return [timed(client, "HEAD", f"/manifests/{prefix}-{number}") for number in range(len(images))]


@dataclass(frozen=True)
class Beside:
    """One proxy before two upstreams of two registries each, which share the healthy one."""

    hole: Server
    well: Sequence[Server]
    proxy: Proxy
    user: User

    def paths(self, repository: str, kind: str, count: int) -> list[str]:
        """Put contents where an upstream has its repository; return the paths for the first request of each."""
        upstream, _, name = repository.partition("/")
        registries = (self.hole, self.well[0]) if upstream == "holed" else self.well
        if kind == "GET":
            blobs = [random_bytes(20_000) for _ in range(count)]
            for blob, registry in itertools.product(blobs, registries):
                push_blob_directly(registry, name, blob)
            return [f"/blobs/{digest_of(blob)}" for blob in blobs]
        for number, registry in itertools.product(range(count), registries):
            push_image(registry, f"{number}", make_image(label=f"{repository} {number}"), name)
        return [f"/manifests/{number}" for number in range(count)]

    def hole_is_up(self) -> bool:
        """Tell whether the product marks the hung registry as up."""
        labels = {"upstream": "holed", "replica": f"127.0.0.1:{self.hole.port}"}
        return self.proxy.metric("registry_proxy_replica_state", state="up", **labels) == 1

    def asked(self) -> float:
        """Return the number of requests, answered or not, to that registry."""
        return self.proxy.metric("registry_proxy_upstream_requests_total", replica=f"127.0.0.1:{self.hole.port}")


@contextmanager
def beside(root: Path) -> Iterator[Beside]:
    """Start all of them."""
    with ExitStack() as stack:
        servers = [stack.enter_context(running(docker_registry(root / name))) for name in ("hole", "one", "two")]
        hole, *well = servers
        upstreams = {"holed": [hole, well[0]], "main": [well[1], well[0]]}
        extra = {
            "upstreams": {name: {"replicas": [{"url": one.url} for one in some]} for name, some in upstreams.items()},
            "routes": [{"prefix": f"{name}/", "upstream": name, "strip_prefix": True} for name in upstreams],
        }
        proxy = proxy_server(root / "proxy", [], extra)
        stack.enter_context(running(proxy))
        yield Beside(hole, well, proxy, proxy.add_user("ann", pull=["**"]))


def black_hole(servers: Beside, kind: str, text: str, count: int) -> None:
    """Print the cost of a registry that accepts connections and never answers, after its deadline has passed once.

    In turns: a request to the upstream with that registry, and two to one without; the second of these shows how much
    two figures differ by chance.
    """
    rows = {"undisturbed": "main/usual", "undisturbed, again": "main/again", "beside the black hole": "holed/usual"}
    paths = {name: servers.paths(repository, kind, count) for name, repository in rows.items()}
    first = servers.paths("holed/first", kind, 10)
    wait_until(servers.hole_is_up, "it is well")
    with ExitStack() as stack:
        clients = {name: stack.enter_context(servers.user.client(repository)) for name, repository in rows.items()}
        client = stack.enter_context(servers.user.client("holed/first"))
        servers.hole.send_signal(signal.SIGSTOP)
        try:
            paid = max(timed(client, kind, path) for path in first)
            wait_until(lambda: not servers.hole_is_up(), "it is known not to answer")
            before = servers.asked()
            times: dict[str, list[float]] = {name: [] for name in rows}
            for turn in range(count):
                for name in itertools.islice(itertools.cycle(rows), turn, turn + len(rows)):
                    times[name].append(timed(clients[name], kind, paths[name][turn]))
            asked = servers.asked() - before
        finally:
            servers.hole.send_signal(signal.SIGCONT)
    usual = times["undisturbed"]
    lines = [
        f"| {name} | {statistics.median(some) * 1e3:.1f} | {p99(some) * 1e3:.1f} | {max(some) * 1e3:.1f} "
        f"| {(statistics.median(some) - statistics.median(usual)) * 1e3:+.1f} | {(p99(some) - p99(usual)) * 1e3:+.1f} |"
        for name, some in times.items()
    ]
    print(
        f"\n{text}; the slowest of the first {len(first)}, with the deadline: {paid * 1e3:.0f} ms; "
        f"requests sent there afterwards: {asked:g}\n\n"
        "| ms | median | p99 | worst | added to the median | added to the p99 |\n|---|---|---|---|---|---|\n"
        + "\n".join(lines)
    )


def slow_replica(pair: Relayed, count: int, delay_seconds: float) -> None:
    """Print the cost of a registry that answers late."""
    pair.wait_for_both()
    usual_images, images = add_images(pair, "quick", count), add_images(pair, "slow", count)
    with pair.user.client(REPOSITORY) as client:
        usual = head_tags(client, "quick", usual_images)
        before = pair.proxy.metric("registry_proxy_upstream_requests_total", method="HEAD")
        pair.relays[0].delay_seconds = delay_seconds
        heads = head_tags(client, "slow", images)
        asked = pair.proxy.metric("registry_proxy_upstream_requests_total", method="HEAD") - before
        manifests = [timed(client, "GET", f"/manifests/{image.digest}") for image in images]
        pair.relays[0].delay_seconds = 0
    print(
        f"\n### One of two registries answers {delay_seconds * 1e3:.0f} ms late: {count} cold requests of each kind\n\n"
        f"{HEADING}\n{row('HEAD of a tag, undisturbed', usual)}\n{row('HEAD of a tag', heads)}\n"
        f"{row('GET of a manifest', manifests)}\n\nanswered HEADs for {count} requests: {asked:g}"
    )


# ---------------------------------------------------------------- rights on two nodes


@contextmanager
def two_nodes(root: Path) -> Iterator[list[Proxy]]:
    """Start two nodes on one Redis before one registry."""
    with ExitStack() as stack:
        registry = stack.enter_context(running(docker_registry(root / "registry")))
        store = stack.enter_context(running(redis_server(root / "redis")))
        extra = {"store": f"redis://127.0.0.1:{store.port}/0"}
        nodes = [proxy_server(root / name, [registry], extra) for name in ("one", "two")]
        for node in nodes:
            stack.enter_context(running(node))
        yield nodes


def seconds_until(client: httpx.Client, path: str, statuses: set[int]) -> float:
    """Return the seconds until a node gives the expected answer."""
    begun_at = time.perf_counter()
    while client.get(path).status_code not in statuses:
        time.sleep(_POLL_SECONDS)
    return time.perf_counter() - begun_at


def rights(root: Path, trials: int) -> None:
    """Print the time until a change of rights, acknowledged by one node, counts on both."""
    delays: dict[str, list[float]] = {}
    with two_nodes(root) as nodes, nodes[0].admin() as admin:
        user = nodes[0].add_user("ann", pull_push=[REPOSITORY])
        image = make_image(random_bytes(1000))
        user.push(REPOSITORY, "1", image)
        path = f"/manifests/{image.digest}"
        users = [User(node, user.name, user.password) for node in nodes]
        for _ in range(trials):
            for one in users:
                one.tokens.clear()
            with ExitStack() as stack:
                clients = [stack.enter_context(one.client(REPOSITORY)) for one in users]
                for client in clients:
                    seconds_until(client, path, {200})
                admin.post("/revocations", json={"subject": "user:ann"}).raise_for_status()
                for name, client in zip(("this node", "the other node"), clients, strict=True):
                    delays.setdefault(f"revocation, {name}", []).append(seconds_until(client, path, {401}))
        subject = {"subject": "user:ann", "repository": REPOSITORY, "actions": ["pull", "push"]}
        for one in users:
            one.tokens.clear()
        with ExitStack() as stack:
            clients = [stack.enter_context(one.client(REPOSITORY)) for one in users]
            for _ in range(trials):
                (grant,) = [g["id"] for g in admin.get("/grants").json()["items"] if g["subject"] == "user:ann"]
                admin.delete(f"/grants/{grant}").raise_for_status()
                for name, client in zip(("this node", "the other node"), clients, strict=True):
                    delays.setdefault(f"grant removed, {name}", []).append(seconds_until(client, path, {401}))
                admin.post("/grants", json=subject).raise_for_status()
                for name, client in zip(("this node", "the other node"), clients, strict=True):
                    delays.setdefault(f"grant added, {name}", []).append(seconds_until(client, path, {200}))
    rows = "\n".join(row(name, values) for name, values in delays.items())
    print(
        f"\n### Two nodes on one Redis: from the answer to a change of rights until it counts, {trials} trials\n\n"
        f"{HEADING}\n{rows}"
    )


def main() -> None:
    """Measure and print; the exit status is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="downloads that are disturbed (default 20)")
    parser.add_argument("--requests", type=int, default=200, help="beside a silent or slow registry (default 200)")
    parser.add_argument("--delay", type=float, default=0.3, help="seconds by which the slow one is late (default 0.3)")
    parser.add_argument("--trials", type=int, default=100, help="of each change of rights (default 100)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the offsets")
    options = parser.parse_args()
    print(f"{describe_machine()}; seed {options.seed}; the client on the same cores")
    with tempfile.TemporaryDirectory(prefix="bench-") as root, relayed(Path(root)) as pair:
        if options.kills:
            kills(pair, options.kills, random.Random(options.seed))
        if options.requests:
            slow_replica(pair, options.requests, options.delay)
    with tempfile.TemporaryDirectory(prefix="bench-") as root, beside(Path(root)) as servers:
        if options.requests:
            print(f"\n### One of two registries stands still (SIGSTOP): {options.requests} cold requests of each kind")
            for kind, text in (("HEAD", "HEAD of a tag"), ("GET", "GET of a 20 KB layer")):
                black_hole(servers, kind, text, options.requests)
    with tempfile.TemporaryDirectory(prefix="bench-") as root:
        if options.trials:
            rights(Path(root), options.trials)


if __name__ == "__main__":
    main()
