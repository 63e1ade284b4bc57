"""Hot manifest, hot blobs, cold blob with a herd: ours beside nginx static and docker-registry in proxy mode.

Run with `make bench`. Rounds are interleaved, so that a noisy neighbour hits everybody; medians are printed.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.load import Herd, Load, Target, describe_machine, run_herd, run_wrk
from tests.support.product import (
    OCI_MANIFEST,
    Image,
    Proxy,
    digest_of,
    make_image,
    proxy_server,
    push_blob_directly,
    push_directly,
    random_bytes,
)
from tests.support.servers import Server, docker_registry, free_port, running

MIB = 2**20
BIG_BYTES = 64 * MIB
HERD = 50
REPOSITORY = "bench/app"


@dataclass
class Stage:
    """All servers, and their contents."""

    backend: Server
    distribution: Server
    nginx: Server
    proxy: Proxy
    token: str
    image: Image
    nginx_root: Path

    def targets(self, path: str) -> list[Target]:
        """Return the servers of /v2/bench/app/<path>: the yardstick, the rival, ours."""
        accept = f"Accept: {OCI_MANIFEST}"
        suffix = f"/v2/{REPOSITORY}/{path}"
        return [
            Target("nginx static", self.nginx.url + suffix, self.nginx.pid),
            Target("docker-registry proxy", self.distribution.url + suffix, self.distribution.pid, (accept,)),
            Target(
                "registry-proxy",
                self.proxy.url + suffix,
                self.proxy.pid,
                (accept, f"Authorization: Bearer {self.token}"),
            ),
        ]

    def add_cold_blob(self) -> str:
        """Push a new big blob to the backend, put a copy before nginx, and return its digest."""
        blob = random_bytes(BIG_BYTES)
        push_blob_directly(self.backend, REPOSITORY, blob)
        (self.nginx_root / f"v2/{REPOSITORY}/blobs/{digest_of(blob)}").write_bytes(blob)
        return digest_of(blob)


def nginx_server(root: Path) -> Server:
    """Describe an nginx with one worker that serves files of ``root/html``."""
    port = free_port()
    (root / "html").mkdir(parents=True)
    config = root / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;\n"
        f"  client_body_temp_path {root}/tmp; server {{ listen 127.0.0.1:{port}; root {root}/html; }} }}\n"
    )
    return Server(["nginx", "-c", str(config), "-p", str(root)], port, root / "log")


def build_stage(stack: ExitStack, root: Path) -> Stage:
    """Start everything and put one image of a 32 KiB and a 64 MiB layer everywhere."""
    image = make_image(random_bytes(32 * 1024), random_bytes(BIG_BYTES))
    backend = stack.enter_context(running(docker_registry(root / "backend")))
    remote = backend.url
    distribution = stack.enter_context(running(docker_registry(root / "distribution", proxy_remote_url=remote)))
    proxy = proxy_server(root / "proxy", [backend])
    stack.enter_context(running(proxy))
    nginx = nginx_server(root / "nginx")
    stack.enter_context(running(nginx))
    push_directly(backend, REPOSITORY, "latest", image)
    html = root / "nginx" / "html"
    for folder in ("blobs", "manifests"):
        (html / f"v2/{REPOSITORY}/{folder}").mkdir(parents=True)
    for digest, blob in image.blobs.items():
        (html / f"v2/{REPOSITORY}/blobs/{digest}").write_bytes(blob)
    (html / f"v2/{REPOSITORY}/manifests/{image.digest}").write_bytes(image.manifest)
    user = proxy.add_user("bench", pull=["bench/**"])
    token = user.token(f"repository:{REPOSITORY}:pull")
    return Stage(backend, distribution, nginx, proxy, token, image, html)


def measure_hot(stage: Stage, path: str, *, connections: int, seconds: int, rounds: int) -> dict[str, list[Load]]:
    """Return the loads by target, rounds interleaved, after one request that makes each of them hot."""
    targets = stage.targets(path)
    for target in targets:
        headers = dict(header.split(": ", 1) for header in target.headers)
        httpx.get(target.url, headers=headers, timeout=60).raise_for_status()
    loads: dict[str, list[Load]] = {target.name: [] for target in targets}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for target in targets:
                script = Path(folder) / "report.lua"
                loads[target.name].append(run_wrk(target, connections=connections, seconds=seconds, script=script))
    return loads


def measure_herd(stage: Stage, rounds: int) -> tuple[dict[str, list[Herd]], dict[str, int]]:
    """Return the herds by target, and the number of GETs of the blobs that each caused at the backend."""
    herds: dict[str, list[Herd]] = {}
    gets: dict[str, int] = {}
    for _ in range(rounds):
        for position in range(3):
            digest = stage.add_cold_blob()
            target = stage.targets(f"blobs/{digest}")[position]
            herd = run_herd(target, clients=HERD, size_bytes=BIG_BYTES)
            if herd.wrong_bodies:
                raise RuntimeError(f"{target.name}: {herd.wrong_bodies} of {HERD} bodies were not whole")
            herds.setdefault(target.name, []).append(herd)
            lines = stage.backend.log_text().splitlines()
            count = sum(1 for line in lines if f"/blobs/{digest} HTTP" in line and '"GET ' in line)
            gets[target.name] = gets.get(target.name, 0) + count
    return herds, gets


def median(values: Sequence[Load] | Sequence[Herd], figure: Callable[[Load], float] | Callable[[Herd], float]) -> float:
    """Return the median of one figure over the rounds."""
    return statistics.median(figure(value) for value in values)  # type: ignore[arg-type]  # the two sequences are parallel


def print_small(title: str, loads: dict[str, list[Load]]) -> None:
    """Print the table of a small content: requests and CPU a request."""
    yardstick = median(loads["nginx static"], lambda load: load.requests_per_second)
    print(
        f"\n### {title}\n\n| server | requests/s | x nginx | CPU us a request | p50 ms | p99 ms |\n|---"
        "|---|---|---|---|---|"
    )
    for name, rounds in loads.items():
        rate = median(rounds, lambda load: load.requests_per_second)
        figures = [
            f"{rate:,.0f}",
            f"{rate / yardstick:.2f}",
            f"{median(rounds, lambda load: load.cpu_us_per_request):.1f}",
            f"{median(rounds, lambda load: load.p50_ms):.2f}",
            f"{median(rounds, lambda load: load.p99_ms):.2f}",
        ]
        print(f"| {name} | {' | '.join(figures)} |")


def print_big(title: str, loads: dict[str, list[Load]]) -> None:
    """Print the table of a big content: throughput and CPU a GiB."""
    rate_of = median(loads["nginx static"], lambda load: load.gib_per_second)
    cpu_of = median(loads["nginx static"], lambda load: load.cpu_seconds_per_gib)
    print(f"\n### {title}\n\n| server | GiB/s | x nginx | CPU s/GiB | x nginx |\n|---|---|---|---|---|")
    for name, rounds in loads.items():
        rate = median(rounds, lambda load: load.gib_per_second)
        cpu = median(rounds, lambda load: load.cpu_seconds_per_gib)
        print(f"| {name} | {rate:.2f} | {rate / rate_of:.2f} | {cpu:.3f} | {cpu / cpu_of:.2f} |")


def print_herd(title: str, herds: dict[str, list[Herd]], gets: dict[str, int]) -> None:
    """Print the table of the herd: the last client, its first byte, backend GETs."""
    yardstick = median(herds["nginx static"], lambda herd: herd.last_done)
    print(f"\n### {title}\n")
    print(
        "| server | backend GETs a round | last client s | x nginx hot | last first byte ms | CPU s |\n"
        "|---|---|---|---|---|---|"
    )
    for name, rounds in herds.items():
        done = median(rounds, lambda herd: herd.last_done)
        first = median(rounds, lambda herd: herd.last_first_byte) * 1e3
        cpu = median(rounds, lambda herd: herd.cpu_seconds)
        per_round = gets[name] / len(rounds)
        print(f"| {name} | {per_round:g} | {done:.2f} | {done / yardstick:.2f} | {first:.0f} | {cpu:.2f} |")


def main() -> None:
    """Measure and print; the exit status is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a run of small requests (default 2)")
    options = parser.parse_args()
    for program in ("nginx", "docker-registry", "wrk"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed: apt-get install {program}")
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        root.chmod(0o755)  # nginx's worker runs as another user
        stage = build_stage(stack, root)
        small, big = (digest for digest, blob in stage.image.blobs.items() if len(blob) >= 32 * 1024)
        print(f"{describe_machine()}; {options.rounds} interleaved rounds, medians; client on the same cores")
        run = {"seconds": options.seconds, "rounds": options.rounds}
        print_small(
            "Hot manifest by digest, 32 connections",
            measure_hot(stage, f"manifests/{stage.image.digest}", connections=32, **run),
        )
        print_small("Hot 32 KiB blob, 32 connections", measure_hot(stage, f"blobs/{small}", connections=32, **run))
        print_big("Hot 64 MiB blob, 4 connections", measure_hot(stage, f"blobs/{big}", connections=4, **run))
        print_herd(f"Cold 64 MiB blob, {HERD} clients at once (nginx: hot)", *measure_herd(stage, options.rounds))


if __name__ == "__main__":
    main()
