"""Rules of images in the running product: each refuses one image and takes another, at the PUT of a tagged manifest."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.conftest import require_program
from tests.support.copied import Copies
from tests.support.product import OCI_MANIFEST, Image, Proxy, User, digest_of, make_image, proxy_server, push_directly
from tests.support.servers import Server, docker_registry, running, wait_until

PASSWORD = "password of a user"
SOURCE = "org.opencontainers.image.source"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
GIT = {SOURCE: "https://git.example/team/app"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Start two registries for all rules."""
    root = tmp_path_factory.mktemp("registries")
    require_program("docker-registry")
    with ExitStack() as stack:
        yield [stack.enter_context(running(docker_registry(root / name))) for name in ("first", "second")]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, pair: list[Server], copies: Copies) -> Iterator[Proxy]:
    """Start one proxy for all rules, in front of the registries; each test has a repository of its own."""
    proxy = proxy_server(tmp_path_factory.mktemp("rules") / "proxy", pair, copies=copies)
    with running(proxy):
        yield proxy


@pytest.fixture(scope="module")
def ann(proxy: Proxy) -> User:
    """A user who may do everything below t/."""
    return proxy.add_user("ann", pull_push_delete=["t/**"])


def make_rule(proxy: Proxy, repository: str, **fields: Any) -> None:
    """Make a rule for one repository, under the name of its last component."""
    with proxy.admin() as admin:
        name = repository.rpartition("/")[2]
        admin.put(f"/rules/{name}", json={"repository": repository, **fields}).raise_for_status()


def image(**fields: Any) -> Image:
    """Return an image of one layer whose configuration has these fields."""
    plain = make_image(b"layer")
    manifest = json.loads(plain.manifest)
    config = json.loads(plain.blobs[manifest["config"]["digest"]])
    body = json.dumps({**config, **fields}).encode()
    manifest["config"] |= {"digest": digest_of(body), "size": len(body)}
    blobs = {digest: blob for digest, blob in plain.blobs.items() if blob == b"layer"}
    return Image(json.dumps(manifest).encode(), {**blobs, digest_of(body): body})


def labelled(**labels: str) -> Image:
    """Return an image with these labels."""
    return image(config={"Labels": labels})


def annotated(base: Image, annotations: dict[str, str]) -> Image:
    """Return an image whose manifest has annotations."""
    return replace(base, manifest=json.dumps({**json.loads(base.manifest), "annotations": annotations}).encode())


def index_of(*images: Image, attested: Image | None = None) -> Image:
    """Return an index of images, and of an attestation."""
    children = [{"mediaType": OCI_MANIFEST, "digest": one.digest, "size": len(one.manifest)} for one in images]
    if attested is not None:
        note = {"vnd.docker.reference.type": "attestation-manifest"}
        child = {"mediaType": OCI_MANIFEST, "digest": attested.digest, "size": len(attested.manifest)}
        children.append({**child, "annotations": note})
    return Image(json.dumps({"schemaVersion": 2, "manifests": children}).encode(), {}, OCI_INDEX)


def put(user: User, repository: str, tag: str, pushed: Image) -> httpx.Response:
    """Push the blobs of an image, which no rule refuses, and return the answer to its manifest."""
    for blob in pushed.blobs.values():
        assert user.push_blob(repository, blob).status_code == 201
    return user.push_manifest(repository, tag, pushed)


def check_refused(answer: httpx.Response, condition: str) -> dict[str, Any]:
    """Fail unless an answer is the refusal of a rule by this condition alone; return its error."""
    assert answer.status_code == 403, answer.text
    (error,) = answer.json()["errors"]
    assert error["code"] == "DENIED"
    assert f", {condition}: " in error["message"]
    assert [each["condition"] for each in error["detail"]["violations"]] == [condition]
    found: dict[str, Any] = error
    return found


def audited(proxy: Proxy, **fields: str) -> list[dict[str, Any]]:
    """Return the events of the audit log with these fields."""
    with proxy.admin() as admin:
        items = admin.get("/audit", params={"repository": fields["repository"]}).raise_for_status().json()["items"]
    return [each for each in items if {**each, **fields} == each]


CASES: list[tuple[str, dict[str, Any], Image, Image]] = [
    ("labels", {"labels": {SOURCE: "https://git.example/*"}}, labelled(a="b"), labelled(**GIT)),
    ("max_size_bytes", {"max_size_bytes": 5000}, make_image(b"x" * 5000), make_image(b"x")),
    ("max_layers", {"max_layers": 1}, make_image(b"1", b"2"), make_image(b"1")),
    (
        "media_types",
        {"media_types": ["application/vnd.oci.image.*"]},
        Image(
            make_image(b"1").manifest.replace(b"application/vnd.oci.image.layer.v1.tar", b"application/x-chart"),
            make_image(b"1").blobs,
        ),
        make_image(b"1"),
    ),
    ("platforms", {"platforms": ["linux/*"]}, image(os="windows"), image(os="linux")),
    ("not_root", {"not_root": True}, image(config={"User": "0:0"}), image(config={"User": "app"})),
    (
        "max_age_seconds",
        {"max_age_seconds": 86_400},
        image(created="2001-01-01T00:00:00Z"),
        image(created="2999-01-01T00:00:00.123456789Z"),
    ),
]


@pytest.mark.parametrize(("condition", "fields", "bad", "good"), CASES, ids=[case[0] for case in CASES])
def test_a_rule_refuses_one_image_and_takes_another(
    proxy: Proxy, ann: User, condition: str, fields: dict[str, Any], bad: Image, good: Image
) -> None:
    """The bad image is 403 at its manifest with a tag, and nothing is tagged; by digest it is no business of a rule."""
    repository = f"t/{condition}".replace("_", "-")
    make_rule(proxy, repository, **fields, advice="See the wiki.", except_tags=["dev-*"])
    error = check_refused(put(ann, repository, "v1", bad), condition)
    assert error["message"].endswith("See the wiki.")
    assert ann.head(repository, "manifests/v1").status_code == 404
    assert ann.push_manifest(repository, bad.digest, bad).status_code == 201
    check_refused(ann.push_manifest(repository, f"{bad.digest}?tag=dev-0&tag=v1", bad), condition)
    assert ann.head(repository, "manifests/v1").status_code == 404
    assert ann.push_manifest(repository, "dev-1", bad).status_code == 201
    check_refused(ann.push_manifest(repository, "v1", bad), condition)
    assert put(ann, repository, "v1", good).status_code == 201


def test_an_index_is_judged_by_its_images(proxy: Proxy, ann: User) -> None:
    """One bad image refuses an index, one that is absent as well; attestations are left out, unless they are images."""
    repository = "t/index"
    make_rule(proxy, repository, labels={SOURCE: "*"})
    good, bad = labelled(**GIT), labelled(a="b")
    attestation = Image(
        bad.manifest.replace(b"application/vnd.oci.image.layer.v1.tar", b"application/vnd.in-toto+json"), bad.blobs
    )
    for one in (good, bad, attestation):
        assert put(ann, repository, one.digest, one).status_code == 201
    check_refused(put(ann, repository, "v1", index_of(good, bad)), "labels")
    check_refused(put(ann, repository, "v1", index_of(good, attested=bad)), "labels")
    assert put(ann, repository, "v1", index_of(good, attested=attestation)).status_code == 201
    bare = annotated(index_of(bad), GIT)
    assert put(ann, repository, "v2", bare).status_code == 201
    answer = put(ann, repository, "v3", index_of(good, labelled(absent="x")))
    check_refused(answer, "readable")


def test_a_large_configuration_is_refused(proxy: Proxy, ann: User) -> None:
    """A configuration of more than 1 MiB is not read, and its image not taken."""
    make_rule(proxy, "t/large", not_root=True)
    large = image(config={"User": "app", "Env": ["x" * 2**20]})
    check_refused(put(ann, "t/large", "v1", large), "readable")
    stated = json.loads(large.manifest)
    lying = replace(large, manifest=json.dumps({**stated, "config": {**stated["config"], "size": 100}}).encode())
    check_refused(put(ann, "t/large", "v1", lying), "readable")
    children = [image(config={"User": "app", "Env": [f"{number}" * 10**6]}) for number in range(1, 4)]
    for child in children:
        assert put(ann, "t/large", child.digest, child).status_code == 201
    assert put(ann, "t/large", "few", index_of(*children)).status_code == 201


def test_a_configuration_of_another_repository_is_not_shown(proxy: Proxy, ann: User) -> None:
    """To name the digest of a foreign configuration shows nothing of its content."""
    make_rule(proxy, "t/foreign", labels={"secret": "expected"})
    hidden = labelled(secret="of another repository")
    eve = proxy.add_user("eve", pull_push=["t/foreign"])
    ann.push("t/hidden", "v1", hidden)
    assert eve.push_blob("t/foreign", b"layer").status_code == 201
    answer = eve.push_manifest("t/foreign", "v1", hidden)
    assert answer.status_code == 400, answer.text
    assert "of another repository" not in answer.text


def test_a_warning_lets_through(proxy: Proxy, ann: User) -> None:
    """A rule that warns takes the image, and says so in a header, the log, the metric and the audit log."""
    make_rule(proxy, "t/warned", mode="warn", labels={SOURCE: '*"*'}, immutable=["overwrite"])
    before = proxy.metric("registry_proxy_rule_violations_total", condition="labels", mode="warn")
    answer = put(ann, "t/warned", "v1", labelled(a="b"))
    assert answer.status_code == 201
    assert answer.headers["Warning"].startswith('299 - "rule warned, labels: ')
    assert proxy.metric("registry_proxy_rule_violations_total", condition="labels", mode="warn") == before + 1
    assert "let through t/warned:v1 by user:ann: rule warned, labels" in proxy.log_text()
    moved = put(ann, "t/warned", "v1", annotated(labelled(a="b"), {SOURCE: 'a"b'}))
    assert (moved.status_code, "immutable" in moved.headers["Warning"]) == (201, True)
    wait_until(lambda: len(audited(proxy, repository="t/warned", tag="v1")) == 2, "both pushes are in the audit log")
    found = audited(proxy, repository="t/warned", tag="v1")
    assert [len(each["detail"]["warnings"]) for each in found] == [1, 1]


def test_a_refusal_is_audited_and_counted(proxy: Proxy, ann: User) -> None:
    """The audit log has the refusal with the rule."""
    make_rule(proxy, "t/audited", max_layers=1)
    bad = make_image(b"1", b"2")
    assert put(ann, "t/audited", bad.digest, bad).status_code == 201
    with ann.client("t/audited", "pull,push") as client:  # refusals of one address share 20 lines a minute
        headers = {"Content-Type": bad.media_type, "X-Forwarded-For": "192.0.2.7"}
        check_refused(client.put("/manifests/v1", content=bad.manifest, headers=headers), "max_layers")
    assert proxy.metric("registry_proxy_rule_violations_total", condition="max_layers", mode="enforce") >= 1
    wait_until(
        lambda: bool(audited(proxy, repository="t/audited", outcome="denied")), "the refusal is in the audit log"
    )
    found = audited(proxy, repository="t/audited", outcome="denied")
    assert [each["rule"].partition(":")[0] for each in found] == ["rule audited, max_layers"]


def test_immutable_tags_stay(proxy: Proxy, ann: User) -> None:
    """The same digest is 201 again, another one 403; a deletion is apart, and so are excepted tags."""
    make_rule(proxy, "t/fixed", immutable=["overwrite"], except_tags=["latest"])
    first, second = make_image(b"1"), make_image(b"2")
    for tag in ("v1", "latest"):
        assert put(ann, "t/fixed", tag, first).status_code == 201
        assert put(ann, "t/fixed", tag, first).status_code == 201
    check_refused(put(ann, "t/fixed", "v1", second), "immutable")
    with ThreadPoolExecutor() as pool:
        for round_ in range(3):
            answers = list(pool.map(lambda one: put(ann, "t/fixed", f"new{round_}", one), (first, second)))  # noqa: B023
            assert sorted(answer.status_code for answer in answers) == [201, 403]
    assert put(ann, "t/fixed", "latest", second).status_code == 201
    assert ann.pull("t/fixed", "v1").digest == first.digest
    with ann.client("t/fixed", "delete") as client:
        assert client.delete("/manifests/v1").status_code == 202
    assert put(ann, "t/fixed", "v1", second).status_code == 201


def test_tags_that_are_never_deleted(proxy: Proxy, ann: User) -> None:
    """Neither the tag nor its manifest can be deleted; the tag can be moved, and other tags go."""
    make_rule(proxy, "t/kept", tags="v*", immutable=["delete"])
    first, second = make_image(b"1"), make_image(b"2")
    ann.push("t/kept", "v1", first)
    ann.push("t/kept", "other", second)
    with ann.client("t/kept", "delete") as client:
        check_refused(client.delete("/manifests/v1"), "immutable")
        check_refused(client.delete(f"/manifests/{first.digest}"), "immutable")
        assert client.delete("/manifests/other").status_code == 202
        assert put(ann, "t/kept", "v1", second).status_code == 201
        assert client.delete(f"/manifests/{first.digest}").status_code == 202


def test_tags_that_were_there_before_are_never_deleted(proxy: Proxy, ann: User, pair: list[Server]) -> None:
    """A tag that the registries had before the proxy is kept from a delete by its digest, too."""
    make_rule(proxy, "t/before", immutable=["delete"])
    before = make_image(b"before")
    for registry in pair:
        push_directly(registry, "t/before", "v1", before)
    with ann.client("t/before", "delete") as client:
        check_refused(client.delete(f"/manifests/{before.digest}"), "immutable")
        make_rule(proxy, "t/before", immutable=["delete"], mode="warn")
        assert ann.pull("t/before", "v1").digest == before.digest
        assert client.delete(f"/manifests/{before.digest}").status_code == 202
    with proxy.admin() as admin:
        asked = {"repository": "t/before", "tag": "v1"}
        moves = admin.get("/tags/history", params=asked).raise_for_status().json()["items"]
        assert (moves[0]["kind"], moves[0]["previous"]) == ("delete", before.digest)


def test_a_purge_takes_tags_that_are_never_deleted(proxy: Proxy, ann: User) -> None:
    """A pushed secret goes although a rule protects its tag."""
    make_rule(proxy, "t/purged", tags="v*", immutable=["delete"])
    leaky = make_image(b"1")
    ann.push("t/purged", "v1", leaky)
    with proxy.admin() as admin:
        asked = {"repository": "t/purged", "digest": leaky.digest, "reason": "a secret"}
        assert admin.post("/manifests/purge", json=asked).status_code == 200
    assert ann.head("t/purged", "manifests/v1").status_code == 404


def test_a_rollback_respects_immutable_tags(proxy: Proxy, ann: User) -> None:
    """A rollback of an immutable tag is refused; the other conditions are not judged again."""
    first, second = labelled(a="1"), labelled(a="2")
    for one in (first, second):
        ann.push("t/back", "v1", one)
    make_rule(proxy, "t/back", labels={SOURCE: "*"})
    with proxy.admin() as admin:
        asked = {"repository": "t/back", "tag": "v1"}
        assert admin.post("/tags/rollback", json=asked).status_code == 200
        make_rule(proxy, "t/back", immutable=["overwrite"])
        refused = admin.post("/tags/rollback", json={**asked, "digest": second.digest})
        assert (refused.status_code, "rule back, immutable" in refused.json()["detail"]) == (403, True)
        override = {**asked, "digest": second.digest, "override_rules": True}
        assert httpx.post(f"{admin.base_url}tags/rollback", json=override, auth=("ann", PASSWORD)).status_code == 403
        assert admin.post("/tags/rollback", json=override).status_code == 200
    assert ann.pull("t/back", "v1").digest == second.digest


def test_a_promotion_is_judged_by_the_rules_of_the_target(proxy: Proxy, ann: User) -> None:
    """An image that its own repository may have is refused, unless an administrator overrides the rule."""
    ann.push("t/dev", "v1", labelled(a="1"))
    make_rule(proxy, "t/release", labels={SOURCE: "*"})
    with proxy.admin() as admin:
        asked = {"source": "t/dev:v1", "target": "t/release:v1"}
        refused = admin.post("/tags/promote", json=asked)
        assert (refused.status_code, "rule release" in refused.json()["detail"]) == (403, True)
        assert ann.head("t/release", "manifests/v1").status_code == 404
        assert admin.post("/tags/promote", json={**asked, "override_rules": True}).status_code == 200


def test_explain_names_the_rules(proxy: Proxy, ann: User) -> None:
    """A question about a push lists the rules for its tag, one about a deletion those that forbid it."""
    make_rule(proxy, "t/explained", tags="v*", immutable=["overwrite"], not_root=True)

    def rules(action: str, tag: str) -> list[Any]:
        arguments = ("explain", "user:ann", f"t/explained:{tag}", action, "--json")
        found: list[Any] = json.loads(proxy.command(*arguments).stdout)["rules"]
        return found

    expected = {"name": "explained", "mode": "enforce", "conditions": ["not_root", "immutable"]}
    assert rules("push", "v1") == [expected]
    assert rules("push", "other") == rules("delete", "v1") == rules("pull", "v1") == []
    make_rule(proxy, "t/explained", immutable=["delete"])
    assert [each["name"] for each in rules("delete", "v1")] == ["explained"]
    assert rules("create", "v1") == []


def test_floors_are_counted_by_layers(proxy: Proxy, ann: User) -> None:
    """System, middleware and application are taken; a fourth floor is refused, and so is an image on no known base."""
    with proxy.admin() as admin:
        rule = {"repository": "t/floors/**", "max_floors": 3}
        admin.put("/rules/floors", json=rule).raise_for_status()
    for name, layers in (("system", [b"1"]), ("middle", [b"1", b"2"]), ("app", [b"1", b"2", b"3"])):
        assert put(ann, f"t/floors/{name}", "v1", make_image(*layers)).status_code == 201
    error = check_refused(put(ann, "t/floors/fourth", "v1", make_image(b"1", b"2", b"3", b"4")), "max_floors")
    assert "is floor 4: others end at layer 1, 2, 3; 3 are allowed" in error["message"]
    assert "t/floors/app" not in json.dumps(error)
    stack = "It stands on t/floors/app:v1 on t/floors/middle:v1 on t/floors/system:v1."
    wait_until(lambda: stack in proxy.log_text(), "the log has their names")
    assert put(ann, "t/floors/app", "v2", make_image(b"1", b"2", b"3", b"4")).status_code == 201
    assert put(ann, "t/floors/other", "v1", make_image(b"1", b"2", b"5", b"6")).status_code == 201
    with proxy.admin() as admin:
        rule = {"repository": "t/based/**", "bases": ["t/based/base:*", "t/floors/middle"]}
        admin.put("/rules/based", json=rule).raise_for_status()
    check_refused(put(ann, "t/based/app", "v1", make_image(b"base", b"app")), "bases")
    assert put(ann, "t/based/base", "v1", make_image(b"base")).status_code == 201
    assert put(ann, "t/based/app", "v1", make_image(b"base", b"app")).status_code == 201
    assert put(ann, "t/based/app", "v1", make_image(b"1", b"2", b"app")).status_code == 201
    check_refused(put(ann, "t/based/app", "v1", make_image(b"1", b"app")), "bases")


def test_a_violation_is_an_event(proxy: Proxy, ann: User) -> None:
    """A subscription to rule_violated has an event with tag, digest, subject and reasons, for refusals and warnings."""
    make_rule(proxy, "t/announced", max_layers=1)
    with proxy.admin() as admin:
        body = {"url": "http://127.0.0.1:1/", "events": ["rule_violated"], "repository": "t/announced"}
        admin.put("/subscriptions/rules", json=body).raise_for_status()
        bad = make_image(b"1", b"2")
        check_refused(put(ann, "t/announced", "v1", bad), "max_layers")
        make_rule(proxy, "t/announced", max_layers=1, mode="warn")
        assert put(ann, "t/announced", "v1", bad).status_code == 201

        def queued() -> list[dict[str, Any]]:
            items: list[dict[str, Any]] = admin.get("/deliveries", params={"subscription": "rules"}).json()["items"]
            return items

        wait_until(lambda: len(queued()) == 2, "both events are queued")
        events = [admin.get(f"/deliveries/{each['id']}").json()["event"] for each in queued()]
        admin.delete("/subscriptions/rules").raise_for_status()
    assert [each["detail"]["refused"] for each in events] == [True, False]
    assert {(each["type"], each["tag"], each["digest"]) for each in events} == {("rule_violated", "v1", bad.digest)}
    assert {each["actor"]["subject"] for each in events} == {"user:ann"}
    assert [each["detail"]["violations"][0]["condition"] for each in events] == ["max_layers", "max_layers"]


def test_a_base_is_registered(proxy: Proxy, ann: User) -> None:
    """An image from before the rule is known once it is registered, by its tag or a digest that the tag was."""
    ann.push("t/old/base", "1", make_image(b"old base"))
    first = ann.pull("t/old/base", "1").digest
    ann.push("t/old/base", "1", make_image(b"newer base"))
    with proxy.admin() as admin:
        rule = {"repository": "t/new/**", "bases": ["t/old/base:1"]}
        admin.put("/rules/registered", json=rule).raise_for_status()
    check_refused(put(ann, "t/new/app", "v1", make_image(b"old base", b"app")), "bases")
    assert proxy.command("rule", "base", "t/old/base:1", "--digest", first).exit_code == 0
    assert put(ann, "t/new/app", "v1", make_image(b"old base", b"app")).status_code == 201
    check_refused(put(ann, "t/new/app", "v1", make_image(b"newer base", b"app")), "bases")
    assert "is known as a base, 1 platform" in proxy.command("rule", "base", "t/old/base:1").output
    assert put(ann, "t/new/app", "v1", make_image(b"newer base", b"app")).status_code == 201
    assert proxy.command("rule", "base", "t/old/none:1").exit_code == 1
