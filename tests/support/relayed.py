"""Two registries behind relays, and the proxy before them: to stop a registry at a chosen byte of a download."""

import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.copied import Copies
from tests.support.product import Proxy, User, proxy_server, push_blob_directly, random_bytes
from tests.support.relay import Relay
from tests.support.servers import Server, docker_registry, running, wait_until

REPOSITORY = "team/app"


@dataclass(frozen=True)
class Download:
    """A body, and the seconds that it took without those for which the relay held it."""

    body: bytes
    seconds: float


@dataclass
class Relayed:
    """Two registries, each behind a relay, and the proxy before them."""

    registries: list[Server]
    relays: list[Relay]
    proxy: Proxy
    user: User

    def add_blob(self, size_bytes: int) -> bytes:
        """Put a new blob into both registries."""
        blob = random_bytes(size_bytes)
        for registry in self.registries:
            push_blob_directly(registry, REPOSITORY, blob)
        return blob

    def wait_for_both(self) -> None:
        """Return when both replicas count as up."""
        wait_until(lambda: self.proxy.metric("registry_proxy_replica_state", state="up") == 2, "both replicas are up")

    def kill_while_serving(self, digest: str, offset: int, first: int = 0) -> Download:
        """Pull a blob; kill -9 the registry that serves it when it has sent ``offset`` bytes.

        ``first`` is where the client begins.
        """
        self.wait_for_both()
        for relay in self.relays:
            relay.pause_next(offset)
        with ThreadPoolExecutor(1) as pool:
            pull = pool.submit(self.pull, digest, first)
            wait_until(lambda: any(relay.paused.is_set() for relay in self.relays), "the registry serves")
            serving = next(i for i, relay in enumerate(self.relays) if relay.paused.is_set())
            held_at = time.monotonic()
            self.registries[serving].stop(signal.SIGKILL)
            held_seconds = time.monotonic() - held_at
            for relay in self.relays:
                relay.resume()
            download = pull.result()
        self.registries[serving].start()
        return Download(download.body, download.seconds - held_seconds)

    def pull(self, digest: str, first: int = 0) -> Download:
        """Pull a blob from the byte ``first`` on."""
        headers = {"Range": f"bytes={first}-"} if first else {}
        begun_at = time.monotonic()
        answer = self.user.get(REPOSITORY, f"blobs/{digest}", **headers)
        seconds = time.monotonic() - begun_at
        assert answer.status_code == (206 if first else 200), answer.text
        return Download(answer.content, seconds)


@contextmanager
def relayed(root: Path, settings: Mapping[str, Any] | None = None, copies: Copies | None = None) -> Iterator[Relayed]:
    """Start all of them; ``copies``, where given, starts the proxy."""
    registries = [docker_registry(root / name) for name in ("first", "second")]
    with ExitStack() as stack:
        for registry in registries:
            stack.enter_context(running(registry))
        relays = [stack.enter_context(Relay(registry.port).running()) for registry in registries]
        upstream = [Server([], relay.port, root / "none") for relay in relays]
        proxy = proxy_server(root / "proxy", upstream, settings, copies=copies)
        stack.enter_context(running(proxy))
        yield Relayed(registries, relays, proxy, proxy.add_user("ann", pull=["team/**"]))
