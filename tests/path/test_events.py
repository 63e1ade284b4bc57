"""Events of the running product: from a push, through nodes that die, to a receiver."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy
from tests.support.product import Proxy, make_image
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"


class Receiver(ThreadingHTTPServer):
    """A receiver on loopback: ``status`` and ``body`` are its answer, ``events`` holds the accepted events."""

    daemon_threads = True
    status = 200
    body = b""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}/hook"

    def tags(self) -> list[str]:
        """Return the tags of the accepted events, in order."""
        return [event["data"]["tag"] for event in self.events]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.status == 200:
            self.server.events.append(event)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that accepts every event."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(registries: list[Server], start_proxy: StartProxy) -> Proxy:
    """A proxy whose events may go to loopback."""
    return start_proxy(registries, {"events": {"allowed_hosts": ["127.0.0.1"]}})


def subscribe(proxy: Proxy, url: str, **fields: object) -> None:
    """Make a subscription."""
    with proxy.admin() as admin:
        admin.put("/subscriptions/ci", json={"url": url, **fields}).raise_for_status()


def test_a_push_and_a_delete_reach_the_receiver(proxy: Proxy, receiver: Receiver) -> None:
    """The event has the user, the tag, its digests before and after; the record says that it arrived."""
    user = proxy.add_user("ann", pull_push_delete=["team/**"])
    subscribe(proxy, receiver.url, secrets=["a secret of 16 characters"])
    first, second = make_image(b"one"), make_image(b"two")
    user.push(REPOSITORY, "v1", first)
    user.push(REPOSITORY, "v1", second)
    with user.client(REPOSITORY, "delete") as client:
        assert client.delete("/manifests/v1").status_code == 202
    wait_until(lambda: len(receiver.events) == 3, "three events")
    created, moved, deleted = receiver.events
    assert [event["type"].rpartition(".")[2] for event in receiver.events] == ["push", "push", "delete"]
    assert [event["sequence"][-1] for event in receiver.events] == ["1", "2", "3"]
    assert (moved["data"]["digest"], moved["data"]["previous"]) == (second.digest, created["data"]["digest"])
    assert (moved["data"]["subject"], deleted["data"]["digest"]) == ("user:ann", second.digest)
    with proxy.admin() as admin:

        def delivered() -> list[dict[str, Any]]:
            query = {"subscription": "ci", "state": "delivered"}
            items: list[dict[str, Any]] = admin.get("/deliveries", params=query).raise_for_status().json()["items"]
            return items

        wait_until(lambda: len(delivered()) == 3, "all are on record")
        last = delivered()[-1]
        assert admin.post(f"/deliveries/{last['id']}/replay").status_code == 202
        wait_until(lambda: len(receiver.events) == 4, "the replay")
        assert admin.post("/subscriptions/ci/test").status_code == 202
        wait_until(lambda: len(receiver.events) == 5, "the test")
    assert (receiver.events[3]["id"], receiver.events[3]["data"]["replay"]) == (deleted["id"], True)
    assert receiver.events[4]["data"]["test"] is True


def test_a_receiver_reports_what_it_deployed(proxy: Proxy, receiver: Receiver) -> None:
    """The answer to a push is a receipt, and causes an event; a later push of the tag shows as running nowhere."""
    user = proxy.add_user("ann", pull_push=["team/**"])
    subscribe(proxy, receiver.url, events=["push", "deployment"])
    receiver.body = json.dumps({"deployment": {"environment": "production", "outcome": "succeeded"}}).encode()
    image = make_image(b"one")
    user.push(REPOSITORY, "v1", image)
    wait_until(lambda: len(receiver.events) == 2, "the push and the deployment")
    receiver.body = b""
    user.push(REPOSITORY, "v1", make_image(b"two"))
    assert receiver.events[1]["type"] == "registry-proxy.deployment"
    assert receiver.events[1]["data"]["environment"] == "production"
    with httpx.Client(base_url=proxy.admin_url, auth=("ann", "password of a user")) as client:
        (receipt,) = client.get("/admin/v1/deployments").raise_for_status().json()["items"]
    expected = {"digest": image.digest, "tag": "v1", "runs": True, "behind": 1, "subject": "subscription:ci"}
    assert expected.items() <= receipt.items()


def test_each_format_arrives_with_the_name_of_the_registry(proxy: Proxy, receiver: Receiver) -> None:
    """One push makes four bodies, each with the host that the client pushed to."""
    user = proxy.add_user("ann", pull_push=["team/**"])
    with proxy.admin() as admin:
        for name in ("cloudevents", "distribution", "harbor", "template"):
            template = {"template": '{"ours": "{image}"}'} if name == "template" else {}
            body = {"url": receiver.url, "format": name, **template}
            admin.put(f"/subscriptions/{name}", json=body).raise_for_status()
    image = make_image(b"one")
    user.push(REPOSITORY, "v1", image)
    wait_until(lambda: len(receiver.events) == 4, "four events")
    host = proxy.url.partition("://")[2]
    bodies = {name: event for event in receiver.events for name in event}
    assert bodies["data"]["data"]["registry"] == host
    (notification,) = bodies["events"]["events"]
    assert notification["request"]["host"] == host
    assert notification["target"]["url"] == f"{proxy.url}/v2/{REPOSITORY}/manifests/{image.digest}"
    assert bodies["event_data"]["event_data"]["resources"][0]["resource_url"] == f"{host}/{REPOSITORY}:v1"
    assert bodies["ours"] == {"ours": f"{host}/{REPOSITORY}@{image.digest}"}
    with proxy.admin() as admin:
        admin.put("/subscriptions/pulls", json={"url": receiver.url, "events": ["pull"]}).raise_for_status()

    def pulled() -> list[dict[str, Any]]:
        with user.client(REPOSITORY) as client:
            client.get("/manifests/v1").raise_for_status()
        return [event for event in receiver.events if event.get("type") == "registry-proxy.pull"]

    wait_until(lambda: bool(pulled()), "a pull, a second after it is asked for")
    data = pulled()[0]["data"]
    assert (data["tag"], data["digest"], data["subject"]) == ("v1", image.digest, "user:ann")


def test_events_survive_the_death_of_the_service(proxy: Proxy, receiver: Receiver) -> None:
    """Events pushed while the receiver failed arrive after kill -9 and a restart, once, in order."""
    user = proxy.add_user("ann", pull_push=["team/**"])
    subscribe(proxy, receiver.url)
    receiver.status = 503
    tags = [f"v{number}" for number in range(4)]
    for tag in tags:
        user.push(REPOSITORY, tag, make_image(tag.encode()))
    proxy.kill_everything()
    receiver.status = 200
    proxy.start()
    wait_until(lambda: len(receiver.events) >= len(tags), "all events")
    assert receiver.tags() == tags


def test_another_node_delivers_when_one_dies(
    registries: list[Server], start_proxy: StartProxy, redis: Server, receiver: Receiver
) -> None:
    """After a kill of the delivering node the other delivers the events of both, with continuous numbers."""
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0", "events": {"allowed_hosts": ["127.0.0.1"]}}
    one = start_proxy(registries, extra, name="one")
    subscribe(one, receiver.url)
    at_one = one.add_user("ann", pull_push=["team/**"])
    two = start_proxy(registries, extra, name="two")
    at_two = replace(at_one, url=two.url, tokens={})
    at_one.push(REPOSITORY, "v0", make_image(b"0"))
    at_two.push(REPOSITORY, "v1", make_image(b"1"))
    wait_until(lambda: len(receiver.events) == 2, "the events of both nodes")
    one.kill_everything()
    at_two.push(REPOSITORY, "v2", make_image(b"2"))
    wait_until(lambda: len(receiver.events) == 3, "the event by the other node", timeout_seconds=60)
    assert receiver.tags() == ["v0", "v1", "v2"]
    assert [event["sequence"][-1] for event in receiver.events] == ["1", "2", "3"]


@pytest.mark.soak
def test_a_replica_that_is_away_is_reported_once(registries: list[Server], proxy: Proxy, receiver: Receiver) -> None:
    """Down after some seconds, and repaired once it has the push that it missed; a start in between is no event."""
    user = proxy.add_user("ann", pull_push=["team/**"])
    subscribe(proxy, receiver.url, events=["replica_down", "replica_repaired"])
    registries[1].stop()
    wait_until(lambda: len(receiver.events) == 1, "it is reported as down", timeout_seconds=60)
    user.push(REPOSITORY, "v1", make_image(b"one"))
    proxy.kill_everything()
    proxy.start()
    registries[1].start()
    wait_until(lambda: len(receiver.events) == 2, "it is reported as repaired", timeout_seconds=90)
    down, repaired = receiver.events
    assert [event["type"] for event in receiver.events] == [
        "registry-proxy.replica_down",
        "registry-proxy.replica_repaired",
    ]
    assert (down["data"]["upstream"], down["data"]["state"]) == ("main", "down")
    assert (repaired["data"]["replica"], repaired["data"]["state"]) == (down["data"]["replica"], "up")
    assert proxy.metric("registry_proxy_replica_pending") == 0


def test_secrets_and_headers_are_never_shown(proxy: Proxy) -> None:
    """Neither the API nor the audit log repeats a secret or the value of a header."""
    subscribe(
        proxy, "https://ci.example/hook", secrets=["never to be shown 1"], headers={"Authorization": "never shown 2"}
    )
    with proxy.admin() as admin:
        shown = admin.get("/subscriptions/ci").text + admin.get("/subscriptions").text
        admin.patch("/subscriptions/ci", json={"headers": {"X-Token": "never shown 3"}}).raise_for_status()
        kept = admin.get("/subscriptions/ci").json()
        audited = admin.get("/audit", params={"action": "subscriptions.put"}).text
        audited += admin.get("/audit", params={"action": "subscriptions.patch"}).text
    assert "never" not in shown + audited
    assert (kept["secret_count"], kept["header_names"]) == (1, ["X-Token"])
    assert "X-Token" in audited
