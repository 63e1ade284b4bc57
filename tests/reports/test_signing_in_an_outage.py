"""Signing and attaching go on while either of two registries is down.

Reports: `cosign sign`, `cosign attest`, `oras attach`, `regctl artifact put --subject`, `notation sign` that end with
503, because they first ask for a tag, or a blob, that normally does not exist and that the registry which is down might
hold. The requests here are those of the clients.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from tests.conftest import StartProxy
from tests.path.test_repair import contents, is_up, pending
from tests.support.product import OCI_MANIFEST, Image, Proxy, User, digest_of, make_image, push_directly
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def fallback_tag(digest: str) -> str:
    """Return the tag that lists the referrers of a digest."""
    return digest.replace(":", "-")


def descriptor_of(content: bytes, media_type: str = OCI_MANIFEST) -> dict[str, Any]:
    """Return the descriptor of some content."""
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def signature_of(subject: Image, about: str) -> Image:
    """Return an image as cosign pushes it, whose one layer describes another image."""
    return make_image(json.dumps({"about": about, "digest": subject.digest}).encode())


def artifact_for(subject: Image, about: str) -> Image:
    """Return a manifest with a subject, as oras and regctl push it."""
    empty, layer = b"{}", about.encode()
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.about",
        "config": descriptor_of(empty, "application/vnd.oci.empty.v1+json"),
        "layers": [descriptor_of(layer, "text/plain")],
        "subject": descriptor_of(subject.manifest),
    }
    return Image(json.dumps(document).encode(), {digest_of(blob): blob for blob in (empty, layer)})


@dataclass
class Pipeline:
    """A CI job with one of the clients; every unexpected answer fails it, as the clients would."""

    user: User

    def upload(self, image: Image) -> None:
        """HEAD each blob, and push the absent ones."""
        with self.user.client(REPOSITORY, "pull,push") as client:
            missing = [blob for digest, blob in image.blobs.items() if client.head(f"/blobs/{digest}").is_error]
        assert [self.user.push_blob(REPOSITORY, blob).status_code for blob in missing] == [201] * len(missing)

    def put(self, reference: str, image: Image) -> None:
        """PUT a manifest."""
        assert self.user.push_manifest(REPOSITORY, reference, image).status_code == 201

    def cosign(self, subject: Image, end: str) -> None:
        """Sign (`.sig`), attest (`.att`) or attach an SBOM (`.sbom`): the existing one is read first."""
        assert self.user.head(REPOSITORY, f"manifests/{subject.digest}").status_code == 200
        assert self.user.get(REPOSITORY, f"manifests/{fallback_tag(subject.digest)}{end}").status_code == 404
        signature = signature_of(subject, end)
        self.upload(signature)
        self.put(f"{fallback_tag(subject.digest)}{end}", signature)
        assert self.user.pull(REPOSITORY, f"{fallback_tag(subject.digest)}{end}") == signature  # cosign verify

    def referrers(self, subject: Image) -> list[dict[str, Any]]:
        """Ask for the referrers, and for the fallback tag: `oras discover`, `regctl artifact list`."""
        listed = self.user.get(REPOSITORY, f"referrers/{subject.digest}", Accept=OCI_INDEX)
        assert listed.status_code == 200, listed.text
        assert listed.headers["Content-Type"] == OCI_INDEX
        path = f"manifests/{fallback_tag(subject.digest)}"
        answer = self.user.get(REPOSITORY, path, Accept=OCI_INDEX)
        assert answer.status_code in {200, 404}, answer.text
        tagged = list(answer.json()["manifests"]) if answer.status_code == 200 else []
        assert {one["digest"] for one in listed.json()["manifests"]} == {one["digest"] for one in tagged}
        return tagged

    def attach(self, subject: Image, about: str) -> None:
        """`oras attach`, `regctl artifact put --subject`: push the artifact; the answer names its subject."""
        artifact, before = artifact_for(subject, about), self.referrers(subject)
        self.upload(artifact)
        answer = self.user.push_manifest(REPOSITORY, artifact.digest, artifact)
        assert (answer.status_code, answer.headers["OCI-Subject"]) == (201, subject.digest)
        assert len(self.referrers(subject)) == len(before) + 1

    def attach_by_tag(self, subject: Image, about: str) -> None:
        """Attach as an older client, which reads, extends and pushes the index itself."""
        artifact, before = artifact_for(subject, about), self.referrers(subject)
        self.upload(artifact)
        self.put(artifact.digest, artifact)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [*before, descriptor_of(artifact.manifest)],
        }
        self.put(fallback_tag(subject.digest), Image(json.dumps(document).encode(), {}, OCI_INDEX))
        assert len(self.referrers(subject)) == len(before) + 1

    def notation(self, subject: Image) -> None:
        """`notation sign`: attach, but ask for the blobs with a token that may only pull."""
        blobs = artifact_for(subject, "notation").blobs
        assert {self.user.head(REPOSITORY, f"blobs/{digest}").status_code for digest in blobs} <= {200, 404}
        self.attach(subject, "notation")

    def run(self, subject: Image) -> None:
        """Sign, attest and attach several times."""
        self.notation(subject)
        for end in (".sig", ".att", ".sbom"):
            self.cosign(subject, end)
        self.attach(subject, "first")
        self.attach_by_tag(subject, "second")


def is_compared(proxy: Proxy) -> bool:
    """Tell whether a GET of an absent fallback tag can be answered with either registry down."""
    return "the fallback tags of its replicas were compared" in proxy.log_text()


def start(start_proxy: StartProxy, registries: Sequence[Server], name: str = "proxy", **extra: Any) -> Proxy:
    """Start a proxy before both registries, and wait until it has compared them."""
    proxy = start_proxy(registries, extra, name=name)
    wait_until(lambda: is_compared(proxy), "the registries are compared")
    return proxy


def is_down(proxy: Proxy, server: Server) -> bool:
    """Tell whether the proxy marks a registry as down."""
    return proxy.metric("registry_proxy_replica_state", state="down", replica=f"127.0.0.1:{server.port}") == 1


def down(proxy: Proxy, server: Server) -> None:
    """Kill a registry, and wait until the proxy knows: a list asks all of them."""
    server.stop(9)
    User(proxy, "reader", "password of a user").get(REPOSITORY, "tags/list")
    wait_until(lambda: is_down(proxy, server), "it is down")


def up(proxy: Proxy, server: Server) -> None:
    """Start a registry if it does not run, and wait until the proxy knows."""
    if server.process is None:
        server.start()
    wait_until(lambda: not is_down(proxy, server), "it is up")


def is_equal(proxy: Proxy, server: Server) -> bool:
    """Tell whether a registry misses nothing."""
    return is_up(proxy, server) and pending(proxy, server) == 0


def absent(user: User, tag: str) -> int:
    """Return the status of a GET of a tag by a user who may only read."""
    return user.get(REPOSITORY, f"manifests/{tag}").status_code


NEVER = fallback_tag(digest_of(b"never pushed"))


@pytest.mark.timeout(120)
def test_a_pipeline_goes_on_with_either_registry_down(registries: list[Server], start_proxy: StartProxy) -> None:
    """After an outage of each in turn both hold everything. Other tags are 503: their absence is uncertain."""
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ci", pull_push=["team/**"])
    reader = proxy.add_user("reader", pull=["team/**"])
    images = [make_image(f"{number}".encode()) for number in range(2)]
    for number, image in enumerate(images):
        user.push(REPOSITORY, f"v{number}", image)
    for server, image in zip(registries, images, strict=True):
        down(proxy, server)
        Pipeline(user).run(image)
        assert [absent(reader, tag) for tag in (NEVER, f"{NEVER}.sig")] == [404, 404]
        if server is registries[0]:
            assert absent(reader, "never") == 503
        up(proxy, server)
        wait_until(partial(is_equal, proxy, server), "it is repaired")
    held = [contents(server) for server in registries]
    assert held[0].keys() == held[1].keys()
    assert len(held[0]) == 2 + 2 * 4


@pytest.mark.timeout(120)
def test_a_tag_that_only_the_dead_registry_holds_is_not_called_absent(
    registries: list[Server], start_proxy: StartProxy, redis: Server
) -> None:
    """A signature acknowledged while the other was away is 503 at every node, also after a restart."""
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    one, two = (start(start_proxy, registries, name, **extra) for name in ("one", "two"))
    first, second = registries
    ci = one.add_user("ci", pull_push=["team/**"])
    one.add_user("reader", pull=["team/**"])
    image = make_image(b"layer")
    ci.push(REPOSITORY, "v1", image)
    down(one, first)
    Pipeline(ci).cosign(image, ".sig")
    second.stop(9)
    tag = f"{fallback_tag(image.digest)}.sig"
    users = [ci, replace(ci, url=two.url)]
    for proxy in (one, two):
        (proxy.cache / "repositories").rename(proxy.root / "lost")  # nothing is remembered of any tag
        up(proxy, first)
    with ThreadPoolExecutor() as clients:
        assert list(clients.map(absent, users, [tag, tag])) == [503, 503]
    assert [absent(user, NEVER) for user in users] == [404, 404]
    one.stop()
    one.start()
    assert (absent(ci, tag), absent(ci, NEVER)) == (503, 404)


@pytest.mark.timeout(120)
def test_nothing_is_proved_where_others_push_or_the_record_is_not_what_it_was(
    registries: list[Server], start_proxy: StartProxy
) -> None:
    """With `pushed_past_us`, or a restored store, it is 503; a tag that one registry alone has is reported."""
    _, second = registries
    past = start_proxy(registries, {"upstreams": {"main": {"pushed_past_us": True}}}, name="past")
    proxy = start(start_proxy, registries)
    readers = [each.add_user("reader", pull=["team/**"]) for each in (proxy, past)]
    proxy.add_user("ci", pull_push=["team/**"]).push(REPOSITORY, "v1", make_image(b"layer"))
    proxy.stop()
    store = proxy.root / "store.db"
    copy = store.read_bytes()
    proxy.start()
    proxy.add_user("later")
    down(proxy, second)
    assert absent(readers[0], NEVER) == 404
    proxy.stop()
    store.write_bytes(copy)
    proxy.start()
    with ThreadPoolExecutor() as clients:
        assert list(clients.map(absent, readers, [NEVER, NEVER])) == [503, 503]
    proxy.stop()
    second.start()
    push_directly(second, REPOSITORY, f"{NEVER}.att", make_image(b"past"))
    proxy.start()
    doubt = f"holds main/{REPOSITORY}:{NEVER}.att, which another one does not hold"
    wait_until(lambda: doubt in proxy.log_text(), "the difference is reported")
