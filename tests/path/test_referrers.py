"""Signatures and other referrers through the running product before registries without the referrers API."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.path.test_repair import is_up, pending
from tests.support.product import OCI_MANIFEST, Image, Proxy, User, digest_of, make_image, push_directly
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
SBOM, SIGNATURE = "application/vnd.example.sbom", "application/vnd.example.signature"
EMPTY = b"{}"


def attached_to(subject: str, about: str, kind: str = SBOM) -> Image:
    """Return an artifact that refers to a manifest."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(EMPTY), "size": len(EMPTY)},
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 100},
        "annotations": {"about": about},
    }
    return Image(json.dumps(document).encode(), {digest_of(EMPTY): EMPTY})


def attach(user: User, artifact: Image) -> str:
    """Push an artifact by its digest; return the digest."""
    assert user.push_blob(REPOSITORY, EMPTY).status_code == 201
    answer = user.push_manifest(REPOSITORY, artifact.digest, artifact)
    assert answer.status_code == 201, answer.text
    assert answer.headers["OCI-Subject"] == json.loads(artifact.manifest)["subject"]["digest"]
    return artifact.digest


def delete(user: User, digest: str) -> None:
    """Delete a manifest."""
    with user.client(REPOSITORY, "delete") as client:
        assert client.delete(f"/manifests/{digest}").status_code == 202


def entries(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the descriptors of an answer with referrers."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, OCI_INDEX), answer.text
    index = answer.json()
    assert (index["schemaVersion"], index["mediaType"]) == (2, OCI_INDEX)
    return list(index["manifests"])


def listed(user: User, subject: str, query: str = "") -> set[str]:
    """Return the digests of all referrers of a manifest, of one page."""
    return {entry["digest"] for entry in entries(user.get(REPOSITORY, f"referrers/{subject}{query}"))}


def tagged(server: Server, subject: str) -> set[str]:
    """Return the entries under a registry's fallback tag, asked past the proxy."""
    url = f"{server.url}/v2/{REPOSITORY}/manifests/{subject.replace(':', '-')}"
    answer = httpx.get(url, headers={"Accept": OCI_INDEX}, verify=False)
    return {entry["digest"] for entry in answer.json()["manifests"]} if answer.status_code == 200 else set()


def is_equal(proxy: Proxy, server: Server) -> bool:
    """Tell whether a registry misses nothing."""
    return is_up(proxy, server) and pending(proxy, server) == 0


def put_past_us(servers: Sequence[Server], artifacts: Sequence[Image], *, tag: str | None = None) -> None:
    """Push artifacts to registries, and an index of them as older clients do."""
    descriptors = [
        {"mediaType": OCI_MANIFEST, "digest": one.digest, "size": len(one.manifest), "artifactType": SBOM}
        for one in artifacts
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}
    for server in servers:
        for one in artifacts:
            push_directly(server, REPOSITORY, one.digest, one)
        if tag is not None:
            push_directly(server, REPOSITORY, tag, Image(json.dumps(index).encode(), {}, OCI_INDEX))


def test_an_attached_artifact_is_listed_until_it_is_deleted(registries: list[Server], start_proxy: StartProxy) -> None:
    """Immediately, by type and in pages, also where the subject comes later or never; and at each registry."""
    proxy = start_proxy(registries)
    user = proxy.add_user("ann", pull_push_delete=["team/**"])
    image = make_image(b"layer")
    assert listed(user, image.digest) == set()
    first, second = (attach(user, attached_to(image.digest, about)) for about in "12")
    signature = attach(user, attached_to(image.digest, "3", SIGNATURE))
    everything = {first, second, signature}
    assert listed(user, image.digest) == everything
    user.push(REPOSITORY, "v1", image)
    assert listed(user, image.digest) == everything
    for server in registries:
        assert tagged(server, image.digest) == everything
    answer = user.get(REPOSITORY, f"referrers/{image.digest}?artifactType={SIGNATURE}")
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    [entry] = entries(answer)
    assert (entry["digest"], entry["artifactType"], entry["annotations"]) == (signature, SIGNATURE, {"about": "3"})

    page = user.get(REPOSITORY, f"referrers/{image.digest}?artifactType={SBOM}&n=1")
    seen = [one["digest"] for one in entries(page)]
    link = page.headers["Link"].partition(">")[0].removeprefix("<")
    with user.client(REPOSITORY) as client:
        page = client.get(httpx.URL(user.base_url).join(link))
    assert sorted([*seen, *(one["digest"] for one in entries(page))]) == sorted([first, second])
    assert "Link" not in page.headers

    delete(user, first)
    delete(user, signature)
    assert listed(user, image.digest) == {second}
    for server in registries:
        assert tagged(server, image.digest) == {second}


def test_answers_to_other_questions(registries: list[Server], start_proxy: StartProxy) -> None:
    """400 for an invalid digest; 401 without the right to pull, whatever exists; 503 while no registry answers."""
    proxy = start_proxy(registries)
    user = proxy.add_user("ann", pull_push=["team/**"])
    eve = proxy.add_user("eve", pull=["eve/**"])
    subject = digest_of(b"never pushed")
    attach(user, attached_to(subject, "1"))
    for word in ("latest", "sha256:abc", "sha256:" + "A" * 64):
        answer = user.get(REPOSITORY, f"referrers/{word}")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    refusals = [
        eve.get(name, f"referrers/{one}")
        for name in (REPOSITORY, "team/none")
        for one in (subject, "sha256:" + "0" * 64)
    ]
    assert {answer.status_code for answer in refusals} == {401}
    assert {answer.json()["errors"][0]["code"] for answer in refusals} == {"DENIED"}
    assert user.get("registry-proxy-internal/x", f"referrers/{subject}").status_code in {401, 403, 404}
    for server in registries:
        server.stop(9)
    answer = user.get(REPOSITORY, f"referrers/{subject}")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, "UNAVAILABLE")


@pytest.mark.timeout(180)
def test_a_registry_that_was_away_is_given_the_referrers(registries: list[Server], start_proxy: StartProxy) -> None:
    """After changes while the second was down the list is right at once, and from the second alone after its repair."""
    first, second = registries
    proxy = start_proxy(registries)
    wait_until(lambda: "fallback tags of its replicas were compared" in proxy.log_text(), "replicas are compared")
    user = proxy.add_user("ann", pull_push_delete=["team/**"])
    image = make_image(b"layer")
    user.push(REPOSITORY, "v1", image)
    gone, stays = (attach(user, attached_to(image.digest, about)) for about in ("gone", "stays"))
    second.stop(9)
    meanwhile = attach(user, attached_to(image.digest, "meanwhile"))
    delete(user, gone)
    other = make_image(b"other")
    attach(user, attached_to(other.digest, "first of its subject"))
    assert listed(user, image.digest) == {stays, meanwhile}
    second.start()
    for _ in range(20):  # from its return on, repaired or not
        assert listed(user, image.digest) == {stays, meanwhile}
    wait_until(lambda: is_equal(proxy, second), "the registry is repaired")
    assert tagged(second, image.digest) == tagged(first, image.digest) == {stays, meanwhile}
    first.stop(9)
    assert listed(user, image.digest) == {stays, meanwhile}
    assert len(listed(user, other.digest)) == 1
    assert user.get(REPOSITORY, f"manifests/{meanwhile}").status_code == 200


@pytest.mark.timeout(180)
def test_referrers_from_before_are_listed_and_lost_by_nothing(
    registries: list[Server], start_proxy: StartProxy, redis: Server
) -> None:
    """Different fallback tags of both registries are merged, kept by pushes of two nodes, and without a store."""
    subject = make_image(b"layer")
    tag = subject.digest.replace(":", "-")
    older = [attached_to(subject.digest, about) for about in ("at the first", "at the second", "at both")]
    for server, artifacts in zip(registries, (older[::2], older[1:]), strict=True):
        put_past_us([server], artifacts, tag=tag)
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    nodes = [start_proxy(registries, extra, name=name) for name in ("one", "two")]
    users = [nodes[0].add_user("ann", pull_push_delete=["team/**"])]
    users += [User(nodes[1], "ann", users[0].password)]
    before = {one.digest for one in older}
    asked = f"referrers/{subject.digest}"
    wait_until(lambda: users[1].get(REPOSITORY, asked).status_code == 200, "the other node knows the grant")
    assert listed(users[1], subject.digest) == before
    new = [attached_to(subject.digest, str(number)) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        attached = set(pool.map(attach, users * 3, new))
    everything = before | attached
    assert [listed(user, subject.digest) for user in users] == [everything] * 2
    wait_until(lambda: all(tagged(one, subject.digest) == everything for one in registries), "both have all of it")
    fresh = start_proxy(registries, name="fresh")  # with an empty store and cache
    assert listed(fresh.add_user("ann", pull=["team/**"]), subject.digest) == everything


def test_one_registry_is_as_good(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """With a single registry, referrers attached through the proxy and past it are listed; 503 while it is down."""
    server = start_registry()
    user = start_proxy([server]).add_user("ann", pull_push_delete=["team/**"])
    subject = make_image(b"layer")
    mine = attach(user, attached_to(subject.digest, "mine"))
    theirs = attached_to(subject.digest, "theirs")
    mine_and_theirs = [attached_to(subject.digest, "mine"), theirs]
    put_past_us([server], mine_and_theirs, tag=subject.digest.replace(":", "-"))
    assert listed(user, subject.digest) == {mine, theirs.digest}
    server.stop(9)
    assert user.get(REPOSITORY, f"referrers/{subject.digest}").status_code == 503
