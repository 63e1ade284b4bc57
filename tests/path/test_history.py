"""The history of tags of the running product: the author and content of each move, and the right to see it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy
from tests.support.product import OCI_MANIFEST, Proxy, User, digest_of, make_image, push_directly
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"
ROLLBACKS = int(os.environ.get("ROLLBACKS", "12"))


@pytest.fixture
def proxy(registries: list[Server], start_proxy: StartProxy) -> Proxy:
    """A proxy in front of two registries."""
    return start_proxy(registries)


def as_user(proxy: Proxy, user: User) -> httpx.Client:
    """Return a client of the admin API for a user."""
    auth = (user.name or "", user.password or "")
    return httpx.Client(base_url=f"{proxy.admin_url}/admin/v1", auth=auth, timeout=30)


def moves(proxy: Proxy, tag: str, repository: str = REPOSITORY, **query: str) -> list[dict[str, Any]]:
    """Return the moves of a tag as an administrator sees them."""
    with proxy.admin() as admin:
        answer = admin.get("/tags/history", params={"repository": repository, "tag": tag, **query})
        items: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
        return items


def test_a_tag_tells_how_it_came_to_be_what_it_is(proxy: Proxy) -> None:
    """Each push and delete has author, time, address and previous digest; the list has each tag with its last move."""
    ann, bob = (proxy.add_user(name, pull_push_delete=["team/**"]) for name in ("ann", "bob"))
    first, second = make_image(b"one", label="1"), make_image(b"two", label="2")
    ann.push(REPOSITORY, "v1", first)
    bob.push(REPOSITORY, "v1", second)
    bob.push(REPOSITORY, "v1", second)
    with ann.client(REPOSITORY, "delete") as client:
        assert client.delete("/manifests/v1").status_code == 202
    ann.push(REPOSITORY, "v1", first)
    ann.push(REPOSITORY, "other", second)
    found = moves(proxy, "v1")
    assert [(move["kind"], move["digest"], move["previous"], move["subject"]) for move in found] == [
        ("push", first.digest, None, "user:ann"),
        ("delete", None, second.digest, "user:ann"),
        ("push", second.digest, first.digest, "user:bob"),
        ("push", first.digest, None, "user:ann"),
    ]
    assert {move["address"] for move in found} == {"127.0.0.1"}
    assert all(move["request_id"] for move in found)
    assert [move["at"] for move in found] == sorted((move["at"] for move in found), reverse=True)
    assert moves(proxy, "v1", limit="1", after=found[1]["id"]) == [found[2]]
    with proxy.admin() as admin:
        tags = admin.get("/tags", params={"repository": REPOSITORY}).raise_for_status().json()["items"]
    assert [(tag["tag"], tag["digest"], tag["pushed_by"]) for tag in tags] == [
        ("other", second.digest, "user:ann"),
        ("v1", first.digest, "user:ann"),
    ]
    assert tags[1]["size_bytes"] == len(first.manifest) + sum(map(len, first.blobs.values()))


def test_history_needs_the_right_to_pull(proxy: Proxy) -> None:
    """Without it existing and absent repositories answer alike; addresses are only for administrators."""
    ann = proxy.add_user("ann", pull_push=["team/**"])
    ann.push(REPOSITORY, "v1", make_image(b"one"))
    with as_user(proxy, proxy.add_user("eve", pull=["elsewhere/**"])) as eve:
        for path, query in (
            ("/tags", {}),
            ("/tags/history", {"tag": "v1"}),
            ("/tags/image", {"reference": "v1"}),
        ):
            answers = [eve.get(path, params={"repository": name, **query}) for name in (REPOSITORY, "team/none")]
            assert [answer.status_code for answer in answers] == [403, 403]
            assert answers[0].text.replace(REPOSITORY, "team/none") == answers[1].text
    with as_user(proxy, ann) as client:
        (move,) = client.get("/tags/history", params={"repository": REPOSITORY, "tag": "v1"}).json()["items"]
        assert (move["subject"], move["address"], move["request_id"]) == ("user:ann", None, None)
        assert client.get("/tags", params={"repository": "team/none"}).json() == {"items": [], "next": None}
        absent = client.get("/tags/image", params={"repository": "team/none", "reference": "v1"})
        assert (absent.status_code, absent.json()["detail"]) == (404, "there is no image team/none:v1")
        assert client.get("/tags", params={"repository": "No"}).status_code == 400
        reserved = {"repository": REPOSITORY, "tag": "rp-keep-x"}
        assert client.get("/tags/history", params=reserved).status_code == 404


def test_the_command_shows_and_compares(proxy: Proxy) -> None:
    """`tag list`, `history`, `show` and `diff` name the changes; a tag is compared with its previous image."""
    ann = proxy.add_user("ann", pull_push=["team/**"])
    first, second = make_image(b"base", b"one", label="1"), make_image(b"base", b"two", label="2")
    ann.push(REPOSITORY, "v1", first)
    ann.push(REPOSITORY, "v1", second)
    assert second.digest in proxy.command("tag", "list", REPOSITORY).stdout
    assert first.digest in proxy.command("tag", "history", f"{REPOSITORY}:v1").stdout
    shown = json.loads(proxy.command("tag", "show", f"{REPOSITORY}@{first.digest}", "--json").stdout)
    assert (shown["platforms"], shown["labels"], len(shown["layers"])) == (["linux/amd64"], {"label": "1"}, 2)
    compared = proxy.command("tag", "diff", f"{REPOSITORY}:v1", "--json")
    differences = json.loads(compared.stdout)["differences"]
    assert {"field": "label label", "from": "1", "to": "2"} in differences
    assert [each["field"].split()[0] for each in differences] == ["label", "layer", "layer"]
    refused = proxy.command("tag", "diff", f"{REPOSITORY}:none")
    assert (refused.exit_code, "nothing else before" in refused.stderr) == (1, True)


def test_tags_that_were_there_before_are_listed(registries: list[Server], proxy: Proxy) -> None:
    """The list has each tag of the registries, and says how many are on no record; a hidden tag is left out."""
    image = make_image(b"one")
    ann, bob = proxy.add_user("ann", pull_push=["team/**"]), proxy.add_user("bob")
    for registry in registries:
        push_directly(registry, REPOSITORY, "before", image)
    ann.push(REPOSITORY, "v1", image)
    with proxy.admin() as admin:
        items = admin.get("/tags", params={"repository": REPOSITORY}).raise_for_status().json()["items"]
        grant = {"subject": "user:bob", "repository": REPOSITORY, "tags": "v*", "actions": ["pull"]}
        admin.post("/grants", json=grant).raise_for_status()
    assert [(item["tag"], item["digest"], item["kind"]) for item in items] == [
        ("before", None, None),
        ("v1", image.digest, "push"),
    ]
    shown = proxy.command("tag", "list", REPOSITORY)
    assert "1 tag is on no record" in shown.stderr
    with as_user(proxy, bob) as client:
        items = client.get("/tags", params={"repository": REPOSITORY}).raise_for_status().json()["items"]
    assert [item["tag"] for item in items] == ["v1"]


def test_a_push_past_us_is_entered_when_it_is_seen(registries: list[Server], start_proxy: StartProxy) -> None:
    """The next pull enters what the registries have, once, and a later push follows on it."""
    proxy = start_proxy(registries, {"upstreams": {"main": {"tag_ttl": "0s", "pushed_past_us": True}}})
    ann = proxy.add_user("ann", pull_push=["team/**"])
    first, second, third = (make_image(each) for each in (b"one", b"two", b"three"))
    ann.push(REPOSITORY, "v1", first)
    for registry in registries:
        push_directly(registry, REPOSITORY, "v1", second)
    for _ in range(3):
        assert ann.get(REPOSITORY, "manifests/v1").content == second.manifest
    wait_until(lambda: len(moves(proxy, "v1")) > 1, "it is entered")
    ann.push(REPOSITORY, "v1", third)
    assert [(move["kind"], move["digest"], move["previous"]) for move in moves(proxy, "v1")] == [
        ("push", third.digest, second.digest),
        ("seen", second.digest, first.digest),
        ("push", first.digest, None),
    ]


def roll_back(proxy: Proxy, tag: str = "v1", verb: str = "rollback", **fields: object) -> httpx.Response:
    """Ask for an earlier state of a tag, as an administrator."""
    with proxy.admin() as admin:
        return admin.post(f"/tags/{verb}", json={"repository": REPOSITORY, "tag": tag, **fields})


def at_registries(registries: list[Server], tag: str = "v1") -> set[str | None]:
    """Return what a tag is at each registry; None for absent."""
    url = f"/v2/{REPOSITORY}/manifests/{tag}"
    answers = [httpx.head(f"{each.url}{url}", headers={"Accept": OCI_MANIFEST}) for each in registries]
    return {answer.headers.get("Docker-Content-Digest") for answer in answers}


def test_a_tag_rolls_back_at_all_replicas(proxy: Proxy, registries: list[Server]) -> None:
    """One step is the digest before, a second one goes on, a dry run changes nothing; the history says who and why."""
    ann = proxy.add_user("ann", pull_push=["team/**"])
    images = [make_image(f"{number}".encode()) for number in range(3)]
    for image in images:
        ann.push(REPOSITORY, "v1", image)
    first, second, third = (image.digest for image in images)
    wanted = {"digest": second, "previous": third}
    assert roll_back(proxy, dry_run=True).json() == wanted
    assert at_registries(registries) == {third}
    assert roll_back(proxy, reason="it crashes").json() == wanted
    assert at_registries(registries) == {second}
    assert ann.head(REPOSITORY, "manifests/v1").headers["Docker-Content-Digest"] == second
    assert roll_back(proxy).json() == {"digest": first, "previous": second}
    refused = roll_back(proxy)
    assert (refused.status_code, "does not go 1 distinct" in refused.json()["detail"]) == (409, True)
    assert roll_back(proxy, digest=third).json() == {"digest": third, "previous": first}
    assert at_registries(registries) == {third}
    assert [(move["kind"], move["reason"], move["subject"]) for move in moves(proxy, "v1")[:3]] == [
        ("rollback", "", "user:admin"),
        ("rollback", "", "user:admin"),
        ("rollback", "it crashes", "user:admin"),
    ]
    command = proxy.command("tag", "rollback", f"{REPOSITORY}:v1", "--to", first, "--reason", "again", "--json")
    assert json.loads(command.stdout) == {"digest": first, "previous": third}


def test_a_state_that_is_not_whole_is_not_rolled_back_to(proxy: Proxy, registries: list[Server]) -> None:
    """A layer that both registries lost is named, and the tag stays; so is a manifest that was deleted."""
    ann = proxy.add_user("ann", pull_push_delete=["team/**"])
    first, second = make_image(b"lost layer"), make_image(b"two")
    ann.push(REPOSITORY, "v1", first)
    ann.push(REPOSITORY, "v1", second)
    layer = digest_of(b"lost layer")
    for registry in registries:
        assert httpx.delete(f"{registry.url}/v2/{REPOSITORY}/blobs/{layer}").status_code == 202
    for is_dry in (True, False):
        refused = roll_back(proxy, dry_run=is_dry)
        assert refused.status_code == 409
        assert [error["detail"] for error in refused.json()["errors"]] == [f"missing: blob {layer}"]
    with ann.client(REPOSITORY, "delete") as client:
        assert client.delete(f"/manifests/{first.digest}").status_code == 202
    assert [each["detail"] for each in roll_back(proxy).json()["errors"]] == [f"missing: manifest {first.digest}"]
    assert at_registries(registries) == {second.digest}


def test_moving_back_needs_the_right_to_push(proxy: Proxy) -> None:
    """A reader is refused, and so is a user who may only create tags, by the code that a push would get."""
    ann = proxy.add_user("ann", pull_push=["team/**"])
    for image in (make_image(b"one"), make_image(b"two")):
        ann.push(REPOSITORY, "v1", image)
    body = {"repository": REPOSITORY, "tag": "v1"}
    with as_user(proxy, proxy.add_user("reader", pull=["team/**"])) as client:
        assert client.post("/tags/rollback", json=body).status_code == 403
    with as_user(proxy, proxy.add_user("maker", pull_create=["team/**"])) as client:
        refused = client.post("/tags/rollback", json=body)
        assert (refused.status_code, "not to move them" in refused.json()["detail"]) == (403, True)
    with as_user(proxy, ann) as client:
        assert client.post("/tags/rollback", json={**body, "tag": "none"}).status_code == 409
        assert client.post("/tags/rollback", json=body).status_code == 200


def test_a_deleted_tag_restored_while_a_replica_was_away_stays(proxy: Proxy, registries: list[Server]) -> None:
    """The tombstone gives way: the replica that missed delete and restore has the tag in the end, and all keep it."""
    ann = proxy.add_user("ann", pull_push_delete=["team/**"])
    image = make_image(b"one")
    ann.push(REPOSITORY, "v1", image)
    assert roll_back(proxy, verb="restore").status_code == 409
    registries[1].stop()
    with ann.client(REPOSITORY, "delete") as client:
        assert client.delete(f"/manifests/{image.digest}").status_code == 202
    assert ann.get(REPOSITORY, "manifests/v1").status_code == 404
    assert roll_back(proxy, verb="restore", reason="needed").json() == {"digest": image.digest, "previous": None}
    assert ann.pull(REPOSITORY, "v1").digest == image.digest
    registries[1].start()
    query = {"upstream": "main"}
    wait_until(lambda: proxy.metric("registry_proxy_replica_pending", **query) == 0, "it is repaired", 60)
    assert at_registries(registries) == {image.digest}
    assert [move["kind"] for move in moves(proxy, "v1")] == ["restore", "delete", "push"]


def test_rollbacks_among_pushes_over_two_nodes(
    registries: list[Server], start_proxy: StartProxy, redis: Server
) -> None:
    """Each is whole: both replicas are equal in the end, and the history has every move once, in one order."""
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    nodes = [start_proxy(registries, extra, name=name) for name in ("one", "two")]
    ann = nodes[0].add_user("ann", pull_push=["team/**"])
    images = [make_image(f"{number}".encode()) for number in range(4)]
    for image in images:
        ann.push(REPOSITORY, "v1", image)

    def push(number: int) -> httpx.Response:
        return replace(ann, url=nodes[number % 2].url).push_manifest(REPOSITORY, "v1", images[number % 4])

    def back(number: int) -> httpx.Response:
        digest = images[number % 3].digest
        return roll_back(nodes[number % 2], digest=digest, reason=f"rollback {number}")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: (push if number % 2 else back)(number // 2), range(2 * ROLLBACKS)))
    assert [answer.text for answer in answers if answer.status_code not in {200, 201}] == []
    found = moves(nodes[0], "v1", limit="1000")
    assert at_registries(registries) == {found[0]["digest"]}
    assert ann.pull(REPOSITORY, "v1").digest == found[0]["digest"]
    assert [move["previous"] for move in found[:-1]] == [move["digest"] for move in found[1:]]
    assert all(move["digest"] != move["previous"] for move in found)
    assert [move["at"] for move in found] == sorted((move["at"] for move in found), reverse=True)
    reasons = [move["reason"] for move in found if move["kind"] == "rollback"]
    assert len(reasons) == len(set(reasons)) > 0
    assert moves(nodes[1], "v1", limit="1000") == found
