"""DELETE of a tag removes that tag and nothing else, as users of any other registry expect.

Reports: `crane delete REPO:TAG`, `regctl tag delete` and clean-up jobs that get 405 from registries which delete only
manifests; and registries where a tag's delete took every other tag of the image with it.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from tests.clients.test_skopeo import run
from tests.conftest import StartProxy, StartRegistry, require_program
from tests.path.test_repair import contents, is_up, pending
from tests.support.product import Image, Proxy, User, make_image, push_directly, random_bytes
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"


def delete(user: User, tag_or_digest: str) -> httpx.Response:
    """DELETE a tag or a digest as crane does."""
    with user.client(REPOSITORY, "delete") as client:
        return client.delete(f"/manifests/{tag_or_digest}")


def cleaner(proxy: Proxy) -> User:
    """Make a user who may do everything in team."""
    return proxy.add_user("ann", pull_push_delete=["team/**"])


def tags(user: User) -> list[str]:
    """Return the listed tags."""
    return list(user.get(REPOSITORY, "tags/list").json()["tags"])


def test_the_tag_goes_and_the_image_stays(registries: list[Server], start_proxy: StartProxy) -> None:
    """The answer is 202, then 404; other tags and the digest serve; registries are equal; the audit log has it."""
    proxy = start_proxy(registries)
    user, image = cleaner(proxy), make_image(b"layer")
    for tag in ("v1", "latest"):
        user.push(REPOSITORY, tag, image)
    assert delete(user, "v1").status_code == 202
    assert user.get(REPOSITORY, "manifests/v1").status_code == 404
    again = delete(user, "v1")
    assert (again.status_code, again.json()["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")
    assert tags(user) == ["latest"]
    assert user.pull(REPOSITORY, "latest") == user.pull(REPOSITORY, image.digest) == image
    assert contents(registries[0]) == contents(registries[1]) == {"latest": image.digest}
    assert proxy.command("replica", "verify").exit_code == 0
    output = proxy.command("audit", "search", "--repository", REPOSITORY, "--json").stdout
    events = [event for event in map(json.loads, output.splitlines()) if event["action"] == "delete"]
    assert {(event["outcome"], event["subject"], event["tag"]) for event in events} == {
        ("ok", "user:ann", "v1"),
        ("failed", "user:ann", "v1"),
    }
    assert image.digest in {event.get("digest") for event in events}


def test_rights_to_delete_are_by_tag(registries: list[Server], start_proxy: StartProxy) -> None:
    """A grant for `dev-*` deletes those tags; no other one, and no digest, which would take all tags along."""
    proxy = start_proxy(registries)
    image, ann = make_image(b"layer"), proxy.add_user("ann", pull_push=["team/**"])
    with proxy.admin() as admin:
        grant = {"subject": "user:ann", "repository": "team/**", "tags": "dev-*", "actions": ["delete"]}
        admin.post("/grants", json=grant).raise_for_status()
    for tag in ("dev-1", "prod"):
        ann.push(REPOSITORY, tag, image)
    refused = [delete(ann, what) for what in ("prod", image.digest, "absent")]
    assert {(answer.status_code, answer.json()["errors"][0]["code"]) for answer in refused} == {(401, "DENIED")}
    assert delete(ann, "dev-1").status_code == 202
    assert tags(ann) == ["prod"]


def test_a_delete_is_405_with_deletes_off(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """The tag is served as before, also when one of the registries is down, and no registry is behind."""
    registries = [start_registry(name, delete_enabled=False) for name in ("first", "second")]
    proxy = start_proxy(registries)
    user, image = cleaner(proxy), make_image(b"layer")
    user.push(REPOSITORY, "v1", image)
    for _ in range(2):
        answer = delete(user, "v1")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (405, "UNSUPPORTED")
        assert user.pull(REPOSITORY, "v1") == image
        assert sum(pending(proxy, server) for server in registries) == 0
        registries[1].stop(9)
    registries[1].start()
    assert contents(registries[0]) == contents(registries[1]) == {"v1": image.digest}


def test_a_registry_that_is_away_deletes_on_its_return(registries: list[Server], start_proxy: StartProxy) -> None:
    """A tag deleted meanwhile never shows again; one pushed again after its delete has the pushed digest."""
    first, second = registries
    proxy = start_proxy(registries)
    user, old, new = cleaner(proxy), make_image(random_bytes(1000)), make_image(random_bytes(1000))
    for tag in ("gone", "again", "kept"):
        user.push(REPOSITORY, tag, old)
    second.stop(9)
    assert [delete(user, tag).status_code for tag in ("gone", "again")] == [202, 202]
    user.push(REPOSITORY, "again", new)
    second.start()
    for _ in range(30):  # from its return on, repaired or not
        assert user.get(REPOSITORY, "manifests/gone").status_code == 404
        assert user.head(REPOSITORY, "manifests/again").headers["Docker-Content-Digest"] == new.digest
        assert tags(user) == ["again", "kept"]
    wait_until(lambda: is_up(proxy, second) and pending(proxy, second) == 0, "the registry is repaired")
    assert contents(first) == contents(second) == {"again": new.digest, "kept": old.digest}


def test_nobody_sees_what_stands_for_a_deleted_tag(registries: list[Server], start_proxy: StartProxy) -> None:
    """Readers during deletes and pushes of a tag get one of the pushed images, or 404; nothing else."""
    proxy = start_proxy(registries, {"upstreams": {"main": {"tag_ttl": "0s"}}})
    user, images = cleaner(proxy), [make_image(f"{number}".encode()) for number in range(6)]
    for image in images:
        user.push(REPOSITORY, image.digest, image)
    known, is_over = {image.manifest for image in images}, False

    def read() -> Iterator[httpx.Response]:
        with user.client(REPOSITORY) as client:
            while not is_over:
                yield client.get("/manifests/moved")

    with ThreadPoolExecutor(2) as readers:
        seen = [readers.submit(lambda: {(a.status_code, a.content) for a in read()}) for _ in range(2)]
        try:
            for image in images:
                assert user.push_manifest(REPOSITORY, "moved", image).status_code == 201
                assert delete(user, "moved").status_code == 202
                assert user.get(REPOSITORY, "manifests/moved").status_code == 404
        finally:
            is_over = True
        for status, body in seen[0].result() | seen[1].result():
            assert status == 404 or body in known, body


def push_or_delete(user: User, image: Image | None) -> tuple[Image | None, int]:
    """Push the manifest of an image as a tag, or delete the tag; return the image and the answer's status."""
    answer = delete(user, "moved") if image is None else user.push_manifest(REPOSITORY, "moved", image)
    return image, answer.status_code


@pytest.mark.timeout(120)
def test_deletes_and_pushes_through_two_nodes_take_turns(
    registries: list[Server], start_proxy: StartProxy, redis: Server
) -> None:
    """In any order both nodes and both registries agree on one state, which an answered request made."""
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0", "upstreams": {"main": {"tag_ttl": "1h"}}}
    one, two = (start_proxy(registries, extra, name=name) for name in ("one", "two"))
    ann = cleaner(one)
    users = [ann, replace(ann, url=two.url)]
    images = [make_image(f"{number}".encode()) for number in range(3)]
    for image in images:
        ann.push(REPOSITORY, image.digest, image)
    with ThreadPoolExecutor(6) as clients:
        for _ in range(3):
            work = [(users[number % 2], [*images, None, None, None][number]) for number in range(6)]
            answers = list(clients.map(lambda each: push_or_delete(*each), work))
            assert all(status == 201 if image else status in {202, 404} for image, status in answers), answers
            views = [user.get(REPOSITORY, "manifests/moved") for user in users]
            assert views[0].content == views[1].content or {answer.status_code for answer in views} == {404}
            found = [contents(server).get("moved") for server in registries]
            digest = views[0].headers.get("Docker-Content-Digest")
            assert found == [digest, digest]
    # A tag that no push through the proxy made, remembered by the other node for an hour.
    for server in registries:
        push_directly(server, REPOSITORY, "past", images[0])
    assert users[1].pull(REPOSITORY, "past") == images[0]
    assert delete(users[0], "past").status_code == 202
    assert [user.get(REPOSITORY, "manifests/past").status_code for user in users] == [404, 404]


def test_skopeo_deletes_the_image_of_a_tag(registries: list[Server], start_proxy: StartProxy) -> None:
    """`skopeo delete` resolves the tag and deletes the digest: every tag on it is removed, others stay."""
    require_program("skopeo")
    proxy = start_proxy(registries)
    user, image, other = cleaner(proxy), make_image(b"1"), make_image(b"2")
    for tag, pushed in (("v1", image), ("latest", image), ("v2", other)):
        user.push(REPOSITORY, tag, pushed)
    run(
        "skopeo",
        "delete",
        "--tls-verify=false",
        "--creds",
        f"ann:{user.password}",
        f"docker://{proxy.host}/{REPOSITORY}:v1",
    )
    assert tags(user) == ["v2"]
    assert contents(registries[0]) == contents(registries[1]) == {"v2": other.digest}
