"""A node that hangs behind the shipped nginx: it accepts connections, and never answers on them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.conftest import StartProxy, StartRegistry
from tests.nginx.shipped import nginx_server
from tests.support.product import Proxy, User, make_image, random_bytes
from tests.support.servers import Server, running

PATIENCE_SECONDS = 60.0
"""The time limit of a client: far below the 900 s that nginx waits for a write, far above a slow machine's delays."""


@contextmanager
def hung(node: Proxy) -> Iterator[None]:
    """Stop every process of a node: the kernel still accepts connections for it."""
    processes = node.processes()
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def test_every_read_is_answered_by_the_other_node(
    start_registry: StartRegistry, start_proxy: StartProxy, redis: Server, tmp_path: Path
) -> None:
    """Whichever node hangs, tokens, manifests and blobs are answered, and only the first reads wait for it."""
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    registry = start_registry()
    nodes = [start_proxy([registry], extra, name=name) for name in ("one", "two")]
    image = make_image(random_bytes(200_000))
    ann = nodes[0].add_user("ann", pull_push=["team/**"])
    ann.push("team/app", "1", image)
    with running(nginx_server(tmp_path / "nginx", None, *(node.port for node in nodes))) as nginx:
        for node in nodes:
            with hung(node):
                user: User = replace(ann, url=nginx.url, tokens={}, timeout_seconds=PATIENCE_SECONDS)
                for _ in range(3):
                    assert user.pull("team/app", "1").blobs == image.blobs
