"""The history of tags of the running product: the author and content of each move, and the right to see it."""

import json
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy
from tests.support.product import Proxy, User, make_image
from tests.support.servers import Server

REPOSITORY = "team/app"


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
        assert client.get("/tags/image", params={"repository": "team/none", "reference": "v1"}).status_code == 404
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
