"""A registry that was away is repaired by the running product: real registries, without a command."""

import json
from collections.abc import Sequence

import httpx
import yaml

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import OCI_MANIFEST, Image, Proxy, make_image, push_directly, random_bytes
from tests.support.servers import Server, wait_until

MIB = 2**20
REPOSITORY = "team/app"


def start(start_proxy: StartProxy, registries: Sequence[Server], **upstream: object) -> Proxy:
    """Start a proxy before both, with further settings of their upstream."""
    replicas = [{"url": server.url} for server in registries]
    return start_proxy([], {"upstreams": {"main": {"replicas": replicas, **upstream}}})


def contents(server: Server) -> dict[str, str | None]:
    """Return every tag of a registry with its digest, asked past the proxy."""
    tags = httpx.get(f"{server.url}/v2/{REPOSITORY}/tags/list", verify=False).json().get("tags") or []
    accept = {"Accept": f"{OCI_MANIFEST}, application/vnd.oci.image.index.v1+json"}
    heads = {
        tag: httpx.head(f"{server.url}/v2/{REPOSITORY}/manifests/{tag}", headers=accept, verify=False) for tag in tags
    }
    return {tag: head.headers["Docker-Content-Digest"] for tag, head in heads.items()}


def has_image(server: Server, image: Image) -> bool:
    """Tell whether a registry has every blob of an image and its manifest, asked past the proxy."""
    paths = [f"blobs/{digest}" for digest in image.blobs] + [f"manifests/{image.digest}"]
    accept = {"Accept": OCI_MANIFEST}
    return all(
        httpx.head(f"{server.url}/v2/{REPOSITORY}/{path}", headers=accept, verify=False).status_code == 200
        for path in paths
    )


def pending(proxy: Proxy, server: Server) -> float:
    """Return the number of keys that a registry misses."""
    return proxy.metric("registry_proxy_replica_pending", replica=f"127.0.0.1:{server.port}")


def is_up(proxy: Proxy, server: Server) -> bool:
    """Tell whether a registry is up and misses nothing."""
    return proxy.metric("registry_proxy_replica_state", state="up", replica=f"127.0.0.1:{server.port}") == 1


def test_a_registry_that_was_away_becomes_equal_by_itself(registries: list[Server], start_proxy: StartProxy) -> None:
    """It has all writes made while it was down, soon after its return, and no answer meanwhile was older."""
    first, second = registries
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"], delete=["team/**"])
    images = [make_image(random_bytes(MIB), label=str(number)) for number in range(4)]
    user.push(REPOSITORY, "moved", images[0])
    user.push(REPOSITORY, "gone", images[1])
    user.push(REPOSITORY, "kept", images[2])
    second.stop(9)
    user.push(REPOSITORY, "moved", images[3])
    user.push(REPOSITORY, "new", images[3])
    with user.client(REPOSITORY, "delete") as client:
        assert client.delete(f"/manifests/{images[1].digest}").status_code == 202
    second.start()
    for _ in range(50):  # from its return on, repaired or not
        assert user.head(REPOSITORY, "manifests/moved").headers["Docker-Content-Digest"] == images[3].digest
        assert user.get(REPOSITORY, "manifests/gone").status_code == 404
    wait_until(lambda: is_up(proxy, second) and pending(proxy, second) == 0, "the registry is repaired")
    wanted = {"moved": images[3].digest, "new": images[3].digest, "kept": images[2].digest}
    assert contents(first) == contents(second) == wanted
    assert has_image(second, images[3])
    wait_until(lambda: not list(proxy.pins.iterdir()), "nothing is kept for it any more")
    first.stop(9)
    for entry in ("blobs", "repositories"):  # from the repaired one alone
        (proxy.cache / entry).rename(proxy.root / f"lost-{entry}")
    proxy.stop()
    proxy.start()
    assert user.pull(REPOSITORY, "moved") == images[3]


def test_a_repair_outlives_the_proxy(registries: list[Server], start_proxy: StartProxy) -> None:
    """After kill -9 of everything in the middle of a slow repair and a restart the repair is completed."""
    _, second = registries
    proxy = start(start_proxy, registries, repair_rate="100KiB")
    user = proxy.add_user("ann", pull_push=["team/**"])
    images = [make_image(random_bytes(MIB), label=str(number)) for number in range(6)]
    second.stop(9)
    for number, image in enumerate(images):
        user.push(REPOSITORY, str(number), image)
    second.start()
    wait_until(lambda: proxy.metric("registry_proxy_repairs_total", outcome="copied") > 0, "it is under way")
    proxy.kill_everything()
    assert contents(second) == {}
    proxy.config.write_text(proxy.config.read_text().replace("100KiB", "100MiB"))
    proxy.start()
    wait_until(lambda: is_up(proxy, second) and pending(proxy, second) == 0, "the registry is repaired")
    assert contents(second) == {str(number): image.digest for number, image in enumerate(images)}
    assert all(has_image(second, image) for image in images)


def test_the_command_follows_a_repair(registries: list[Server], start_proxy: StartProxy) -> None:
    """`replica repair` returns 0 when nothing is pending, else 1 with the reason for each replica."""
    _, second = registries
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"])
    second.stop(9)
    user.push(REPOSITORY, "1", make_image(random_bytes(1000)))
    away = proxy.command("replica", "repair")
    assert (away.exit_code, f"127.0.0.1:{second.port}" in away.stderr, "down" in away.stderr) == (1, True, True)
    apart = proxy.command("replica", "verify")
    assert (apart.exit_code, "could not be compared" in apart.stderr, "no difference" in apart.stderr) == (
        1,
        True,
        False,
    )
    second.start()
    wait_until(lambda: proxy.metric("registry_proxy_replica_state", state="down") == 0, "it is seen to be up")
    done = proxy.command("replica", "repair", "main", "--json")
    assert done.exit_code == 0, done.output
    assert [replica["pending"] for replica in json.loads(done.stdout)[0]["replicas"]] == [0, 0]
    equal = proxy.command("replica", "verify")
    assert (equal.exit_code, "no difference" in equal.stderr) == (0, True), equal.output
    assert proxy.command("replica", "repair", "none").exit_code == 1


def test_an_empty_registry_is_added_and_filled(
    registries: list[Server], start_registry: StartRegistry, start_proxy: StartProxy
) -> None:
    """A third replica that comes with a reload is not read until it is filled by itself; then it is good alone."""
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"])
    images = [make_image(random_bytes(MIB), label=str(number)) for number in range(3)]
    for number, image in enumerate(images):
        user.push(REPOSITORY, str(number), image)
    third = start_registry("third")
    settings = yaml.safe_load(proxy.config.read_text())
    settings["upstreams"]["main"]["replicas"].append({"url": third.url})
    proxy.config.write_text(yaml.safe_dump(settings))
    with proxy.admin() as admin:
        assert admin.post("/reload").status_code == 200
    for _ in range(20):
        for number, image in enumerate(images):
            head = user.head(REPOSITORY, f"manifests/{number}")
            assert head.headers["Docker-Content-Digest"] == image.digest
    wait_until(lambda: is_up(proxy, third) and pending(proxy, third) == 0, "it is filled")
    assert contents(third) == {str(number): image.digest for number, image in enumerate(images)}
    assert all(has_image(third, image) for image in images)


def test_two_registries_that_diverged_are_adopted(registries: list[Server], start_proxy: StartProxy) -> None:
    """`verify` lists the differences and ends with 1; `repair` sends missing contents, and asks about one tag."""
    first, second = registries
    alone, other = make_image(random_bytes(1000), label="alone"), make_image(random_bytes(1000), label="other")
    one, two = make_image(random_bytes(1000), label="1"), make_image(random_bytes(1000), label="2")
    for server, tag, image in ((first, "a", alone), (second, "b", other), (first, "both", one), (second, "both", two)):
        push_directly(server, REPOSITORY, tag, image)
    proxy = start(start_proxy, registries)
    result = proxy.command("replica", "verify", "--json")
    assert result.exit_code == 1
    (comparison,) = json.loads(result.stdout)
    assert {row["name"] for row in comparison["differences"] if row["kind"] == "tag"} == {"a", "b", "both"}
    assert comparison["undecided"] == 2
    asked = proxy.command("replica", "repair")
    assert (asked.exit_code, "--prefer" in asked.stderr) == (1, True), asked.output
    assert contents(first) == {"a": alone.digest, "b": other.digest, "both": one.digest}
    assert contents(second) == {"a": alone.digest, "b": other.digest, "both": two.digest}
    decided = proxy.command("replica", "repair", "--prefer", f"127.0.0.1:{second.port}")
    assert decided.exit_code == 0, decided.output
    assert contents(first) == contents(second) == {"a": alone.digest, "b": other.digest, "both": two.digest}
    assert proxy.command("replica", "verify").exit_code == 0
