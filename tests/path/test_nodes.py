"""Two nodes of the product on one Redis before two real registries."""

from dataclasses import dataclass, replace
from functools import partial

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import OCI_MANIFEST, Proxy, User, digest_of, make_image, random_bytes
from tests.support.servers import Server, wait_until

LAYER = random_bytes(3 * 1024 * 1024 + 17)


@dataclass
class Pair:
    """Two nodes, their servers, and a user who may pull and push at team."""

    one: Proxy
    two: Proxy
    redis: Server
    registries: tuple[Server, Server]
    ann: User

    def client(self, node: Proxy, user: User | None = None) -> httpx.Client:
        """Return a client of a node; tokens of either node are good at both."""
        user = user or self.ann
        token = user.token("repository:team/app:pull,push")
        return httpx.Client(base_url=node.url, headers={"Authorization": f"Bearer {token}"}, timeout=30, verify=False)

    def user(self, node: Proxy) -> User:
        """Return ann at a node."""
        return replace(self.ann, url=node.url)

    def send(self, node: Proxy, method: str, location: str, content: bytes = b"", **query: str) -> httpx.Response:
        """Send a request of an upload to a node, whatever host its Location names."""
        url = httpx.URL(location)
        path = httpx.URL(url.raw_path.decode()).copy_merge_params(query)
        with self.client(node) as client:
            return client.request(method, path, content=content)

    def start(self, node: Proxy) -> str:
        """Start an upload, return its Location."""
        answer = self.send(node, "POST", "/v2/team/app/blobs/uploads/")
        assert answer.status_code == 202, answer.text
        return answer.headers["Location"]


@pytest.fixture
def pair(start_registry: StartRegistry, start_proxy: StartProxy, redis: Server) -> Pair:
    """Start everything, with grants that are in force on both nodes."""
    registries = start_registry("first"), start_registry("second")
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    one, two = start_proxy(registries, extra, name="one"), start_proxy(registries, extra, name="two")
    pair = Pair(one, two, redis, registries, one.add_user("ann", pull_push=["team/**"]))
    absent = f"/v2/team/app/blobs/{digest_of(b'absent')}"
    wait_until(lambda: pair.send(two, "HEAD", absent).status_code == 404, "the grants are in force on the other node")
    return pair


def test_an_upload_goes_on_at_any_node(pair: Pair) -> None:
    """POST, PATCH, GET, PATCH and two PUT through alternating nodes; a Location of another one or changed is a 404."""
    location = pair.start(pair.one)
    answer = pair.send(pair.two, "PATCH", location, LAYER[:1_000_000])
    assert answer.status_code == 202, answer.text
    answer = pair.send(pair.one, "GET", answer.headers["Location"])
    assert (answer.status_code, answer.headers["Range"]) == (204, "0-999999")
    answer = pair.send(pair.one, "PATCH", answer.headers["Location"], LAYER[1_000_000:])
    assert answer.status_code == 202, answer.text
    location = answer.headers["Location"]
    forged = location.replace("_state=", "_state=1")
    assert pair.send(pair.two, "PUT", forged, digest=digest_of(LAYER)).status_code == 404
    eve = pair.two.add_user("eve", pull_push=["team/**"])
    with pair.client(pair.two, eve) as client:
        assert client.put(httpx.URL(location).raw_path.decode(), params={"digest": digest_of(LAYER)}).status_code == 404
    for node in (pair.two, pair.one):  # the second time as nginx repeats it when a node dies before its answer
        answer = pair.send(node, "PUT", location, digest=digest_of(LAYER))
        assert answer.status_code == 201, answer.text
    for server in pair.registries:
        assert httpx.get(f"{server.url}/v2/team/app/blobs/{digest_of(LAYER)}", verify=False).content == LAYER
    other = digest_of(b"never pushed")
    assert pair.send(pair.one, "PUT", location, digest=other).status_code == 404
    for node in (pair.one, pair.two):
        with pair.client(node) as client:
            assert client.get(f"/v2/team/app/blobs/{digest_of(LAYER)}").content == LAYER


def test_a_node_killed_between_patch_and_put(pair: Pair) -> None:
    """The other node completes the upload at both registries, from where the dead one left it."""
    answer = pair.send(pair.one, "PATCH", pair.start(pair.one), LAYER)
    pair.one.kill_everything()
    answer = pair.send(pair.two, "PUT", answer.headers["Location"], digest=digest_of(LAYER))
    assert answer.status_code == 201, answer.text
    for server in pair.registries:
        assert httpx.get(f"{server.url}/v2/team/app/blobs/{digest_of(LAYER)}", verify=False).content == LAYER
    assert all(server.log_text().count('"POST ') == 1 for server in pair.registries)


def test_a_registry_and_a_node_die_in_one_upload(pair: Pair) -> None:
    """The copy of the living node counts as the second one, and the missing writes are on record."""
    answer = pair.send(pair.one, "PATCH", pair.start(pair.one), LAYER)
    pair.one.kill_everything()
    pair.registries[1].stop(9)
    answer = pair.send(pair.two, "PUT", answer.headers["Location"], digest=digest_of(LAYER))
    assert answer.status_code == 201, answer.text
    pair.registries[0].stop(9)
    with pair.client(pair.two) as client:
        assert client.get(f"/v2/team/app/blobs/{digest_of(LAYER)}").content == LAYER
    assert len(list(pair.two.pins.iterdir())) == 1


def test_no_older_tag_after_a_push_through_another_node(pair: Pair) -> None:
    """A tag cached by a node is never served there once a push through the other node has been acknowledged."""
    for number in range(8):
        pusher, reader = (pair.one, pair.two) if number % 2 else (pair.two, pair.one)
        image = make_image(f"{number}".encode())
        pair.user(pusher).push("team/app", "latest", image)
        with pair.client(reader) as client:
            head = client.head("/v2/team/app/manifests/latest", headers={"Accept": OCI_MANIFEST})
            got = client.get("/v2/team/app/manifests/latest", headers={"Accept": OCI_MANIFEST})
        assert head.headers["Docker-Content-Digest"] == image.digest
        assert got.content == image.manifest
    with pair.client(pair.one) as client:  # within the TTL, and nobody moved it: no new request
        before = sum(server.log_text().count('"HEAD /v2/team/app/manifests/latest') for server in pair.registries)
        for _ in range(5):
            assert client.head("/v2/team/app/manifests/latest").headers["X-Cache"] == "HIT"
    after = sum(server.log_text().count('"HEAD /v2/team/app/manifests/latest') for server in pair.registries)
    assert after == before


def is_gone(client: httpx.Client, path: str) -> bool:
    """Tell whether a node answers 404 for it."""
    return client.get(path).status_code == 404


def test_content_that_is_deleted_through_one_node_is_gone_at_the_other(pair: Pair) -> None:
    """The tag is gone immediately, manifest and blob within two seconds, though the other node has both cached."""
    image = make_image(LAYER)
    pair.user(pair.one).push("team/app", "latest", image)
    blob = f"/v2/team/app/blobs/{digest_of(LAYER)}"
    manifest = f"/v2/team/app/manifests/{image.digest}"
    with pair.client(pair.two) as client:
        assert client.get("/v2/team/app/manifests/latest").status_code == 200
        assert client.get(blob).status_code == 200
        with pair.one.admin() as admin:
            admin.post("/grants", json={"subject": "user:ann", "repository": "**", "actions": ["delete"]})
        token = pair.ann.token("repository:team/app:delete")
        headers = {"Authorization": f"Bearer {token}"}
        for path in (manifest, blob):
            assert httpx.delete(pair.one.url + path, headers=headers, verify=False).status_code == 202
        assert client.get("/v2/team/app/manifests/latest").status_code == 404
        for path in (manifest, blob):
            wait_until(partial(is_gone, client, path), f"{path} is gone", 2)
