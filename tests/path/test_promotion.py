"""Promotion through the running product: between repositories of one upstream, and from one upstream to another."""

import json
from collections.abc import Sequence

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.path.test_history import as_user, moves
from tests.path.test_keepers import OCI_INDEX, REPOSITORY, push_all
from tests.support.product import OCI_MANIFEST, Image, Proxy, User, digest_of, make_image
from tests.support.servers import Server

ANY = f"{OCI_MANIFEST}, {OCI_INDEX}"
NEAR, FAR = "prod/app", "far/app"


@pytest.fixture
def far(start_registry: StartRegistry) -> Server:
    """A registry of another upstream."""
    return start_registry("far")


@pytest.fixture
def proxy(registries: list[Server], far: Server, start_proxy: StartProxy) -> Proxy:
    """A proxy in front of two registries, and of a third one under the prefix far/."""
    upstreams = {"far": {"replicas": [{"url": far.url}]}}
    routes = [{"prefix": "far/", "upstream": "far"}, {"prefix": "", "upstream": "main"}]
    return start_proxy(registries, {"upstreams": upstreams, "routes": routes})


def promote(proxy: Proxy, user: User, source: str, target: str, **fields: object) -> httpx.Response:
    """Ask for a promotion as a user."""
    with as_user(proxy, user) as client:
        return client.post("/tags/promote", json={"source": source, "target": target, **fields})


def at_registry(server: Server, repository: str, manifests: Sequence[Image]) -> set[int]:
    """Return the statuses of manifests and their blobs at a registry, asked past the proxy."""
    paths = [f"manifests/{each.digest}" for each in manifests]
    paths += [f"blobs/{digest}" for each in manifests for digest in each.blobs]
    head = {"Accept": ANY}
    return {httpx.head(f"{server.url}/v2/{repository}/{path}", headers=head).status_code for path in paths}


def test_an_image_is_promoted_with_all_that_belongs_to_it(proxy: Proxy, registries: list[Server], far: Server) -> None:
    """Both platforms and the signature are whole at each registry of the target, and the history says why."""
    ann = proxy.add_user("ann", pull_push=["team/**", "prod/**", "far/**"])
    manifests = push_all(ann, "v1", [make_image(b"arm", label="arm"), make_image(b"amd", label="amd")])
    index, signature = manifests[0].digest, manifests[1].digest
    wanted = {"digest": index, "previous": None}
    for target, servers in ((NEAR, registries), (FAR, [far])):
        asked = promote(proxy, ann, f"{REPOSITORY}:v1", f"{target}:1.2", dry_run=True)
        assert (asked.status_code, asked.json()) == (200, wanted), asked.text
        assert {at for server in servers for at in at_registry(server, target, manifests)} == {404}
        done = promote(proxy, ann, f"{REPOSITORY}@{index}", f"{target}:1.2", reason="release")
        assert (done.status_code, done.json()) == (200, wanted), done.text
        assert {at for server in servers for at in at_registry(server, target, manifests)} == {200}
        assert ann.head(target, "manifests/1.2", Accept=ANY).headers["Docker-Content-Digest"] == index
        referrers = ann.get(target, f"referrers/{index}", Accept=OCI_INDEX).json()["manifests"]
        assert [each["digest"] for each in referrers] == [signature]
        (move,) = moves(proxy, "1.2", target)
        assert (move["kind"], move["reason"], move["subject"]) == ("promotion", "release", "user:ann")


def test_a_promotion_moves_a_tag(proxy: Proxy) -> None:
    """The command does the same, names the digest before, and a copy of a manifest in one repository is a new tag."""
    ann = proxy.add_user("ann", pull_push=["team/**", "prod/**"])
    first, second = make_image(b"one"), make_image(b"two")
    ann.push(NEAR, "1.2", first)
    ann.push(REPOSITORY, "v2", second)
    command = proxy.command("tag", "promote", f"{REPOSITORY}:v2", f"{NEAR}:1.2", "--reason", "release", "--json")
    assert json.loads(command.stdout) == {"digest": second.digest, "previous": first.digest}
    assert ann.pull(NEAR, "1.2").digest == second.digest
    assert promote(proxy, ann, f"{NEAR}:1.2", f"{NEAR}:stable").json() == {"digest": second.digest, "previous": None}
    assert ann.pull(NEAR, "stable").digest == second.digest
    assert proxy.command("tag", "rollback", f"{NEAR}:1.2").exit_code == 0
    assert ann.pull(NEAR, "1.2").digest == first.digest


def test_a_promotion_needs_rights_on_both_sides(proxy: Proxy) -> None:
    """Without pull on the source hidden and absent are one answer; a right to create tags moves none; rules apply."""
    ann = proxy.add_user("ann", pull_push=["team/**", "prod/**"])
    image, other = make_image(b"one"), make_image(b"two")
    ann.push(REPOSITORY, "v1", image)
    ann.push(NEAR, "taken", other)
    blind = proxy.add_user("blind", pull_push=["prod/**"])
    for form in (":v1", f"@{image.digest}"):
        answers = [promote(proxy, blind, f"{name}{form}", f"{NEAR}:1.2") for name in (REPOSITORY, "team/none")]
        assert [answer.status_code for answer in answers] == [403, 403]
        assert answers[0].text.replace(REPOSITORY, "team/none") == answers[1].text
    reader = proxy.add_user("reader", pull=["team/**", "prod/**"])
    assert promote(proxy, reader, f"{REPOSITORY}:v1", f"{NEAR}:1.2").status_code == 403
    maker = proxy.add_user("maker", pull_create=["team/**", "prod/**"])
    for is_dry in (True, False):
        refused = promote(proxy, maker, f"{REPOSITORY}:v1", f"{NEAR}:taken", dry_run=is_dry)
        assert (refused.status_code, "not to move them" in refused.json()["detail"]) == (403, True)
    assert promote(proxy, maker, f"{REPOSITORY}:v1", f"{NEAR}:new").status_code == 200
    assert promote(proxy, ann, f"{REPOSITORY}:none", f"{NEAR}:1.2").status_code == 404
    assert promote(proxy, ann, REPOSITORY, f"{NEAR}:1.2").status_code == 400
    assert promote(proxy, ann, f"{REPOSITORY}:v1", f"{NEAR}@{image.digest}").status_code == 400
    assert promote(proxy, ann, f"{REPOSITORY}:v1", f"{NEAR}:rp-keep-x").status_code == 404


def test_an_image_that_is_not_whole_is_not_promoted(proxy: Proxy, registries: list[Server]) -> None:
    """The missing layer is named, and the target gets nothing."""
    ann = proxy.add_user("ann", pull_push=["team/**", "prod/**"])
    image = make_image(b"lost layer")
    ann.push(REPOSITORY, "v1", image)
    layer = digest_of(b"lost layer")
    for registry in registries:
        assert httpx.delete(f"{registry.url}/v2/{REPOSITORY}/blobs/{layer}").status_code == 202
    with proxy.admin() as admin:
        admin.post("/cache/purge", json={"repository": REPOSITORY}).raise_for_status()
    refused = promote(proxy, ann, f"{REPOSITORY}:v1", f"{NEAR}:1.2")
    assert refused.status_code == 409, refused.text
    assert [error["detail"] for error in refused.json()["errors"]] == [f"missing: blob {layer}"]
    assert {at for server in registries for at in at_registry(server, NEAR, [image])} == {404}
