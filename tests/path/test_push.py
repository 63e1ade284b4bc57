"""Registries that die while the running product pushes to them: the client's answers, and the state afterwards."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.conftest import StartProxy
from tests.support.product import OCI_MANIFEST, Proxy, digest_of, make_image, notice_down, random_bytes
from tests.support.servers import Server, wait_until

MIB = 2**20
REPOSITORY = "team/app"


def start(start_proxy: StartProxy, registries: list[Server], write_quorum: int) -> Proxy:
    """Start a proxy before both registries."""
    replicas = [{"url": server.url} for server in registries]
    return start_proxy([], {"upstreams": {"main": {"replicas": replicas, "write_quorum": write_quorum}}})


def head(server: Server, path: str) -> httpx.Response:
    """Ask a registry past the proxy."""
    return httpx.head(f"{server.url}/v2/{REPOSITORY}/{path}", headers={"Accept": OCI_MANIFEST}, verify=False)


def digest_at(server: Server, tag: str) -> str | None:
    """Return the digest of a tag at a registry, asked past the proxy."""
    digest: str | None = head(server, f"manifests/{tag}").headers.get("Docker-Content-Digest")
    return digest


def is_equal(proxy: Proxy) -> bool:
    """Tell whether both registries are up and miss nothing."""
    return proxy.metric("registry_proxy_replica_state", state="up") == 2


def test_a_registry_that_dies_in_mid_push_is_not_noticed(registries: list[Server], start_proxy: StartProxy) -> None:
    """Killed in the middle of a layer: the client gets its 201s, and the registry gets the image when it is back."""
    _, second = registries
    proxy = start(start_proxy, registries, 1)
    user = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(4 * MIB))
    layer = max(image.blobs.values(), key=len)

    def body() -> Iterator[bytes]:
        yield layer[:MIB]
        wait_until(lambda: "POST" in second.log_text(), "the second registry takes part")
        second.stop(signal.SIGKILL)
        yield layer[MIB:]

    assert user.push_blob(REPOSITORY, body(), digest_of(layer)).status_code == 201
    user.push(REPOSITORY, "1", image)
    assert user.pull(REPOSITORY, "1") == image
    assert {path.name for path in proxy.pins.iterdir()} == {
        digest.replace(":", "-") for digest in (*image.blobs, image.digest)
    }
    second.start()
    wait_until(lambda: is_equal(proxy), "the registry is repaired")
    assert digest_at(second, "1") == image.digest
    assert all(head(second, f"blobs/{digest}").status_code == 200 for digest in image.blobs)
    wait_until(lambda: not list(proxy.pins.iterdir()), "nothing is kept for it any more")


def kill_workers(proxy: Proxy) -> None:
    """Kill every worker, and wait until others serve."""
    killed = proxy.workers()
    for worker in killed:
        worker.kill()
    wait_until(lambda: len(set(proxy.workers()) - set(killed)) == len(killed), "there are new workers")


def test_the_status_of_an_upload_is_true_after_losses(registries: list[Server], start_proxy: StartProxy) -> None:
    """A registry is killed, then every worker: the status has the true offset, and the upload continues there."""
    _, second = registries
    proxy = start_proxy(registries, {"workers": 2})
    user = proxy.add_user("ann", pull_push=["team/**"])
    layer = random_bytes(2 * MIB)

    def send(method: str, location: str, content: bytes = b"", **query: str) -> httpx.Response:
        with user.client(REPOSITORY, "pull,push") as client:
            url = httpx.URL(proxy.url).join(location).copy_merge_params(query)
            return client.request(method, url, content=content)

    start = send("POST", f"/v2/{REPOSITORY}/blobs/uploads/")
    at = send("PATCH", start.headers["Location"], layer[:MIB])
    assert at.status_code == 202, at.text
    second.stop(signal.SIGKILL)
    for _ in range(2):
        at = send("GET", at.headers["Location"])
        assert (at.status_code, at.headers["Range"]) == (204, f"0-{MIB - 1}")
        kill_workers(proxy)
    at = send("PATCH", at.headers["Location"], layer[MIB:])
    assert (at.status_code, at.headers["Range"]) == (202, f"0-{len(layer) - 1}")
    assert send("PUT", at.headers["Location"], digest=digest_of(layer)).status_code == 201
    second.start()
    wait_until(lambda: is_equal(proxy), "the registry is repaired")
    assert head(second, f"blobs/{digest_of(layer)}").status_code == 200


def test_a_quorum_that_is_known_to_be_missing_is_reported_first(
    registries: list[Server], start_proxy: StartProxy
) -> None:
    """POST and manifest get 503 with Retry-After, and the registry that is up receives no request."""
    first, second = registries
    proxy = start(start_proxy, registries, 2)
    user = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(1000))
    second.stop(signal.SIGKILL)
    notice_down(user, "team/other")
    for answer in (
        user.push_blob(REPOSITORY, next(iter(image.blobs.values()))),
        user.push_manifest(REPOSITORY, "1", image),
    ):
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True), answer.text
    assert f"/v2/{REPOSITORY}" not in first.log_text()


def test_a_quorum_lost_midway_rolls_forward(registries: list[Server], start_proxy: StartProxy) -> None:
    """One registry takes a moved tag, the other dies before: 503, and then both have the new one, never the old."""
    first, second = registries
    proxy = start(start_proxy, registries, 2)
    user = proxy.add_user("ann", pull_push=["team/**"])
    old, new = make_image(random_bytes(1000), label="old"), make_image(random_bytes(1000), label="new")
    user.push(REPOSITORY, "1", old)
    for blob in new.blobs.values():
        assert user.push_blob(REPOSITORY, blob).status_code == 201
    second.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(user.push_manifest, REPOSITORY, "1", new)
        wait_until(lambda: digest_at(first, "1") == new.digest, "the first registry has taken it")
        second.stop(signal.SIGKILL)
        assert answer.result().status_code == 503
    second.start()
    wait_until(lambda: is_equal(proxy), "the registry is repaired")
    assert digest_at(first, "1") == digest_at(second, "1") == new.digest
    assert user.push_manifest(REPOSITORY, "1", new).status_code == 201
    assert user.pull(REPOSITORY, "1") == new
