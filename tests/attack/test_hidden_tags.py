"""A grant for some tags: other tags are not listed, in pages neither; a known digest is no secret."""

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import require_program
from tests.support.copied import Copies
from tests.support.product import Image, Proxy, User, make_image, proxy_server, random_bytes
from tests.support.servers import docker_registry, running

SHOWN = ["v1", "v2", "v3"]
HIDDEN = ["a-secret", "v", "zz-secret"]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start a proxy before a registry."""
    require_program("docker-registry")
    root = tmp_path_factory.mktemp("tags")
    with running(docker_registry(root / "registry")) as registry:
        proxy = proxy_server(root / "proxy", [registry], copies=copies)
        with running(proxy):
            yield proxy


@pytest.fixture(scope="module")
def hidden(proxy: Proxy) -> Image:
    """Push shown and hidden tags; return the image under the hidden ones."""
    admin = User(proxy, "admin", "correct horse battery")
    shown, hidden = make_image(random_bytes(100)), make_image(random_bytes(100))
    for image, tags in ((shown, SHOWN), (hidden, HIDDEN)):
        for tag in tags:
            admin.push("team/app", tag, image)
    return hidden


def user(proxy: Proxy, name: str, *tags: str) -> User:
    """Make a user who may pull the given tags."""
    made = proxy.add_user(name)
    with proxy.admin() as admin:
        for pattern in tags:
            grant = {"subject": f"user:{name}", "repository": "team/**", "tags": pattern, "actions": ["pull"]}
            admin.post("/grants", json=grant).raise_for_status()
    return made


def pages(caller: User, size: int) -> list[list[str]]:
    """Return the tags that a caller sees, following the links of the pages."""
    found, path = [], f"/v2/team/app/tags/list?n={size}"
    with caller.client("team/app") as client:
        while path:
            answer = client.get(f"{caller.base_url}{path}").raise_for_status()
            found.append(answer.json()["tags"])
            path = answer.links["next"]["url"] if "next" in answer.links else ""
    return found


def test_the_list_of_tags_shows_what_may_be_pulled(proxy: Proxy, hidden: Image) -> None:
    """Only tags that a grant allows are listed; no page ends in a hidden one, or is shorter because of it."""
    ann = user(proxy, "ann", "v*", "x")
    assert hidden.digest
    assert pages(ann, 100) == [["v", *SHOWN]]
    bob = user(proxy, "bob", "v2", "v3")
    assert pages(bob, 1) == [["v2"], ["v3"]]
    none = user(proxy, "none", "nothing-like-it")
    assert pages(none, 100) == [[]]
    assert pages(user(proxy, "all", "*", "v1"), 2) == [["a-secret", "v"], ["v1", "v2"], ["v3", "zz-secret"]]


def test_a_hidden_tag_answers_as_one_that_is_absent(proxy: Proxy, hidden: Image) -> None:
    """A hidden tag is 401 like an absent one; its digest is served, as documented."""
    carl = user(proxy, "carl", "v1")
    for tag in ("zz-secret", "never-there"):
        answer = carl.get("team/app", f"manifests/{tag}")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (401, "DENIED")
    assert carl.get("team/app", f"manifests/{hidden.digest}").status_code == 200


def test_explain_says_that_digests_are_not_hidden(proxy: Proxy, hidden: Image) -> None:
    """For a repository without a tag `explain` names the allowed tags and says that any digest is served."""
    user(proxy, "dora", "v1")
    assert hidden.digest
    output = proxy.command("explain", "user:dora", "team/app", "pull").stdout
    assert "tags v1" in output
    assert "digest" in output
    assert proxy.command("explain", "user:dora", "team/app", "pull", "--tag", "zz-secret").exit_code == 1


def test_everybody_may_ask_about_themselves(proxy: Proxy, hidden: Image) -> None:
    """`explain` about the caller needs no right; about others it is refused, and the message says who may ask."""
    user(proxy, "erin", "v1")
    assert hidden.digest
    with httpx.Client(
        base_url=f"{proxy.admin_url}/admin/v1", auth=("erin", "password of a user"), verify=False
    ) as client:
        question = {"subject": "user:erin", "repository": "team/app", "action": "pull", "tag": "v1"}
        own = client.post("/explain", json=question)
        assert (own.status_code, own.json()["allowed"]) == (200, True)
        for subject in ("user:ann", "user:nobody", "anonymous", "group:dev"):
            other = client.post("/explain", json={**question, "subject": subject})
            assert other.status_code == 403
            assert "user:erin" in other.text
