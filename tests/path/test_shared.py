"""Two real registries over one directory: each of them answers, and continues the other's uploads."""

import httpx

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import Proxy, User, digest_of, make_image, random_bytes
from tests.support.servers import Server, wait_until

LAYER = random_bytes(3 * 1024 * 1024 + 17)
SHARED = {"storage": "shared"}


def both(start_registry: StartRegistry) -> list[Server]:
    """Start two registries over one store."""
    first = start_registry("first")
    return [first, start_registry("second", storage=first.log.parent / "data")]


def send(proxy: Proxy, user: User, method: str, location: str, content: bytes = b"", **query: str) -> httpx.Response:
    """Send a request of an upload to a node, whatever host its Location names."""
    path = httpx.URL(httpx.URL(location).raw_path.decode()).copy_merge_params(query)
    headers = {"Authorization": f"Bearer {user.token('repository:team/app:pull,push')}"}
    with httpx.Client(base_url=proxy.url, headers=headers, timeout=60, verify=False) as client:
        return client.request(method, path, content=content)


def holder_of(registries: list[Server]) -> tuple[Server, Server]:
    """Return the registry that has the one upload, and the other one."""
    first, second = sorted(registries, key=lambda server: -server.log_text().count('"POST '))
    assert [server.log_text().count('"POST ') for server in (first, second)] == [1, 0]
    return first, second


def test_either_answers_when_the_other_one_is_dead(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """A push is stored once; with either registry dead it can be pulled, and the next push is accepted."""
    registries = both(start_registry)
    proxy = start_proxy(registries, {"upstreams": {"main": SHARED}})
    user = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(200_000))
    user.push("team/app", "1", image)
    assert sum(server.log_text().count('"PUT /v2/team/app/manifests/1') for server in registries) == 1
    for number, server in enumerate(registries):
        fresh = start_proxy(registries, {"upstreams": {"main": SHARED}}, name=f"fresh-{number}")
        reader = fresh.add_user("ann", pull_push=["team/**"])
        server.stop(9)
        assert reader.pull("team/app", "1").manifest == image.manifest
        reader.push("team/app", f"after-{number}", make_image(random_bytes(1000)))
        server.start()


def test_an_upload_is_taken_over_by_the_other_registry(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """An upload stays with the registry that opened it; when that dies, the other one completes it."""
    registries = both(start_registry)
    proxy = start_proxy(registries, {"upstreams": {"main": SHARED}})
    user = proxy.add_user("ann", pull_push=["team/**"])
    location = send(proxy, user, "POST", "/v2/team/app/blobs/uploads/").headers["Location"]
    for begin, end in ((0, 1_000_000), (1_000_000, 2_000_000)):
        answer = send(proxy, user, "PATCH", location, LAYER[begin:end])
        assert answer.status_code == 202, answer.text
        location = answer.headers["Location"]
    holder, other = holder_of(registries)
    assert '"PATCH ' not in other.log_text()
    holder.stop(9)
    wait_until(lambda: proxy.metric("registry_proxy_replica_state", state="up") == 1, "it is known to be down")
    answer = send(proxy, user, "PATCH", location, LAYER[2_000_000:])
    assert answer.status_code == 202, answer.text
    answer = send(proxy, user, "PUT", answer.headers["Location"], digest=digest_of(LAYER))
    assert answer.status_code == 201, answer.text
    assert '"POST ' not in other.log_text(), "it went on with the session of the dead one"
    assert httpx.get(f"{other.url}/v2/team/app/blobs/{digest_of(LAYER)}", verify=False).content == LAYER


def test_a_registry_and_a_node_die_in_one_upload(
    start_registry: StartRegistry, start_proxy: StartProxy, redis: Server
) -> None:
    """The other node continues at the other registry: the bytes so far are in the shared store."""
    registries = both(start_registry)
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0", "upstreams": {"main": SHARED}}
    one, two = start_proxy(registries, extra, name="one"), start_proxy(registries, extra, name="two")
    user = one.add_user("ann", pull_push=["team/**"])
    location = send(one, user, "POST", "/v2/team/app/blobs/uploads/").headers["Location"]
    answer = send(one, user, "PATCH", location, LAYER[:2_000_000])
    assert answer.status_code == 202, answer.text
    holder, other = holder_of(registries)
    one.kill_everything()
    holder.stop(9)
    wait_until(lambda: two.metric("registry_proxy_replica_state", state="up") == 1, "it is known to be down")
    answer = send(two, user, "PATCH", answer.headers["Location"], LAYER[2_000_000:])
    assert answer.status_code == 202, answer.text
    answer = send(two, user, "PUT", answer.headers["Location"], digest=digest_of(LAYER))
    assert answer.status_code == 201, answer.text
    assert httpx.get(f"{other.url}/v2/team/app/blobs/{digest_of(LAYER)}", verify=False).content == LAYER
