"""A cold pull of a five-layer image from a distant registry: straight from it, through the proxy, with prefetch.

Part of `make bench`. A link of 10 ms and 100 Mbit/s lies between the registry and its client; the client asks for
the manifest and then for the blobs, several at a time as docker does, or one after the other as skopeo does.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks.load import describe_machine
from tests.support.product import OCI_MANIFEST, Image, digest_of, make_image, proxy_server, push_directly, random_bytes
from tests.support.relay import Relay
from tests.support.servers import docker_registry, running

MIB = 2**20
REPOSITORY = "team/app"
LAYERS = 5
LINK_BYTES_PER_SECOND = 100_000_000 // 8
LINK_SECONDS = 0.010


def pull(url: str, token: str, image: Image, at_once: int) -> float:
    """Pull an image as a client does; return the seconds."""
    headers = {"Accept": OCI_MANIFEST} | ({"Authorization": f"Bearer {token}"} if token else {})
    with httpx.Client(base_url=f"{url}/v2/{REPOSITORY}", headers=headers, timeout=120) as client:
        started = time.perf_counter()
        assert client.get(f"/manifests/{image.digest}").content == image.manifest
        with ThreadPoolExecutor(at_once) as pool:
            bodies = pool.map(lambda digest: client.get(f"/blobs/{digest}").content, image.blobs)
            assert [digest_of(body) for body in bodies] == list(image.blobs)
        return time.perf_counter() - started


def compare(layer_bytes: int, rounds: int, at_once: Sequence[int]) -> None:
    """Print the time of each way."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        registry = stack.enter_context(running(docker_registry(root / "registry")))
        link = stack.enter_context(
            Relay(registry.port, bytes_per_second=LINK_BYTES_PER_SECOND, delay_seconds=LINK_SECONDS).running()
        )
        distant = f"http://127.0.0.1:{link.port}"
        ways: dict[str, tuple[str, str]] = {"straight from the registry": (distant, "")}
        for name, prefetch in (("through the proxy", False), ("the same with prefetch", True)):
            settings = {"upstreams": {"main": {"replicas": [{"url": distant}]}}, "cache": {"prefetch": prefetch}}
            proxy = proxy_server(root / f"proxy-{prefetch}", [], settings)
            stack.enter_context(running(proxy))
            user = proxy.add_user("ann", pull=["**"])
            ways[name] = (proxy.url, user.token(f"repository:{REPOSITORY}:pull"))
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds):
            for number in at_once:
                for name, (url, token) in ways.items():
                    image = make_image(*(random_bytes(layer_bytes) for _ in range(LAYERS)))
                    push_directly(registry, REPOSITORY, image.digest, image)
                    seconds.setdefault((name, number), []).append(pull(url, token, image, number))
        headings = " | ".join(f"{number} at a time, s | x" for number in at_once)
        print(f"\n| {LAYERS} layers of {layer_bytes / MIB:g} MiB | {headings} |")
        print("|---" * (1 + 2 * len(at_once)) + "|")
        for name in ways:
            cells = []
            for number in at_once:
                taken = statistics.median(seconds[name, number])
                usual = statistics.median(seconds["straight from the registry", number])
                cells.append(f"{taken:.3f} | {taken / usual:.2f}")
            print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Measure and print; the exit status is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    options = parser.parse_args()
    print(f"{describe_machine()}; link {LINK_SECONDS * 1e3:.0f} ms, 100 Mbit/s; medians of {options.rounds} rounds")
    for layer_bytes in (4 * MIB, MIB // 4):
        compare(layer_bytes, options.rounds, (3, 1))


if __name__ == "__main__":
    main()
