"""The registries' own garbage collection, one replica at a time, under pushes: docker-registry collects for real."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import httpx

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import Image, Proxy, User, make_image, push_blob_directly, random_bytes
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"
LAYER = random_bytes(100_000)


def name_of(server: Server) -> str:
    """Return the proxy's name of a registry."""
    return f"127.0.0.1:{server.port}"


def paused(proxy: Proxy, server: Server) -> float:
    """Return the gauge of a registry's pause."""
    return proxy.metric("registry_proxy_replica_paused", replica=name_of(server))


def config_of(server: Server) -> str:
    """Return the path of a registry's configuration."""
    return str(server.arguments[-1])


def collecting(registries: Sequence[Server], *options: str) -> str:
    """Return a shell command that collects the garbage of the registry named in REPLICA."""
    cases = [
        f"{name_of(server)}) docker-registry garbage-collect {' '.join(options)} {config_of(server)};;"
        for server in registries
    ]
    return f'case "$REPLICA" in {" ".join(cases)} *) exit 9;; esac >/dev/null 2>&1'


def holds(server: Server, image: Image) -> bool:
    """Tell whether a registry gives a manifest and every byte of its blobs, asked past the proxy."""
    base = f"{server.url}/v2/{REPOSITORY}"
    headers = {"Accept": image.media_type}
    manifest = httpx.get(f"{base}/manifests/{image.digest}", headers=headers, verify=False)
    bodies = [httpx.get(f"{base}/blobs/{digest}", verify=False).content for digest in image.blobs]
    return manifest.content == image.manifest and bodies == list(image.blobs.values())


@dataclass
class Pusher:
    """Pushes one image after another; ``acknowledged`` holds the images whose push succeeded."""

    user: User
    acknowledged: dict[str, Image] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Push until the end: images under their own tag, or by digest alone, and each under a tag that moves."""
        while not self._is_over.is_set():
            number = len(self.acknowledged)
            image = make_image(random_bytes(20_000), LAYER, label=str(number))
            try:
                self.user.push(REPOSITORY, image.digest if number % 2 else f"v{number}", image)
                self.user.push(REPOSITORY, "latest", image)
            except AssertionError as error:
                self.refused.append(str(error))
            else:
                self.acknowledged[str(number)] = image

    @contextmanager
    def pushing(self) -> Iterator[None]:
        """Push in a thread for the length of a with block."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()


def test_garbage_is_collected_under_pushes(registries: list[Server], start_proxy: StartProxy) -> None:
    """Every acknowledged image is whole at both registries, also without a tag; unreferenced contents are gone."""
    proxy = start_proxy(registries)
    pusher = Pusher(proxy.add_user("ann", pull_push=["team/**"]))
    garbage = [push_blob_directly(server, REPOSITORY, b"nothing refers to this") for server in registries]
    old = make_image(LAYER, label="old")
    pusher.user.push(REPOSITORY, "old", old)
    with pusher.pushing():
        wait_until(lambda: len(pusher.acknowledged) > 1, "pushes go on")
        result = proxy.command("replica", "gc", "main", "--run", collecting(registries, "-m"))
        reached = len(pusher.acknowledged)
    assert result.exit_code == 0, result.output + result.stderr
    assert reached > 3
    assert not pusher.refused
    wait_until(lambda: proxy.metric("registry_proxy_replica_pending") == 0, "all is repaired")
    for server, digest in zip(registries, garbage, strict=True):
        assert httpx.head(f"{server.url}/v2/{REPOSITORY}/blobs/{digest}", verify=False).status_code == 404
        assert all(holds(server, image) for image in [old, *pusher.acknowledged.values()])
    last = max(pusher.acknowledged, key=int)
    assert pusher.user.pull(REPOSITORY, "latest").digest == pusher.acknowledged[last].digest
    assert proxy.command("replica", "verify").exit_code == 0


def test_a_pause_is_known_at_every_node_and_outlives_them(
    registries: list[Server], start_proxy: StartProxy, redis: Server
) -> None:
    """While one registry is paused no node writes to it, also after a restart; after the pause it is repaired."""
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    one, two = start_proxy(registries, extra, name="one"), start_proxy(registries, extra, name="two")
    ann = one.add_user("ann", pull_push=["team/**"], delete=["team/**"])
    first, second = registries
    gone = make_image(b"gone", label="gone")
    ann.push(REPOSITORY, "gone", gone)
    assert [paused(node, first) for node in (one, two)] == [0, 0]
    result = one.command("replica", "pause", "main", name_of(first), "--reason", "its disk")
    assert result.exit_code == 0, result.stderr
    begun = writes(first)
    images = {"one": make_image(b"1"), "two": make_image(b"2"), "three": make_image(b"3")}
    ann.push(REPOSITORY, "one", images["one"])
    at_two = replace(ann, url=two.url)
    at_two.push(REPOSITORY, "two", images["two"])
    with at_two.client(REPOSITORY, "delete") as client:
        assert client.delete(f"/manifests/{gone.digest}").status_code == 202
    two.stop()
    two.start()
    at_two.push(REPOSITORY, "three", images["three"])
    assert writes(first) == begun
    assert all(holds(second, image) for image in images.values())
    assert at_two.pull(REPOSITORY, "one").digest == images["one"].digest
    wait_until(lambda: [paused(node, first) for node in (one, two)] == [1, 1], "both nodes tell of it")
    listed = one.command("replica", "list").stdout
    assert "paused" in listed
    assert "its disk" in listed
    refused = two.command("replica", "pause", "main", name_of(second))
    assert (refused.exit_code, "paused already" in refused.stderr) == (1, True)
    assert two.command("replica", "resume", "main", name_of(first)).exit_code == 0
    wait_until(lambda: all(holds(first, image) for image in images.values()), "it is repaired")
    wait_until(lambda: not holds(first, gone), "the deleted image is deleted there, too")
    wait_until(lambda: [paused(node, first) for node in (one, two)] == [0, 0], "both nodes tell of its end")
    again = one.command("replica", "resume", "main", name_of(first))
    assert (again.exit_code, "is not paused" in again.stderr) == (1, True)


def test_a_registry_that_remembers_what_was_collected_is_not_written_to(
    start_registry: StartRegistry, start_proxy: StartProxy
) -> None:
    """A registry that answers for collected layers, as Debian's does, stays paused until it is restarted."""
    registries = [start_registry(name, remembers_blobs=True) for name in ("first", "second")]
    first, _ = registries
    proxy = start_proxy(registries)
    ann = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(LAYER)
    for blob in image.blobs.values():
        assert ann.push_blob(REPOSITORY, blob).status_code == 201
    result = proxy.command("replica", "gc", "main", "--replica", name_of(first), "--run", collecting(registries))
    assert (result.exit_code, "restart the registry" in result.stderr) == (1, True), result.output + result.stderr
    ann.push(REPOSITORY, "latest", image)
    assert proxy.command("replica", "resume", "main", name_of(first)).exit_code == 1
    first.stop()
    first.start()
    wait_until(lambda: proxy.metric("registry_proxy_replica_state", state="down") == 0, "it is seen to be up")
    assert proxy.command("replica", "resume", "main", name_of(first)).exit_code == 0
    wait_until(lambda: holds(first, image), "it has the manifest, and the layers that were collected")


def writes(server: Server) -> int:
    """Return the number of write requests that a registry received."""
    return sum(server.log_text().count(f'"{method} /v2/') for method in ("POST", "PUT", "PATCH", "DELETE"))
