"""Images under sha512 through the running product, before real registries that know manifests by sha256 alone."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.path.test_import import run_import
from tests.path.test_referrers import is_equal
from tests.path.test_repair import REPOSITORY, start
from tests.support.fakes.images import Parts, image, index
from tests.support.product import Proxy, User, make_image, random_bytes
from tests.support.servers import Server, wait_until

ACCEPT = {"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"}


def sha512_of(content: bytes) -> str:
    """Return the sha512 digest of some bytes, as text."""
    return f"sha512:{hashlib.sha512(content).hexdigest()}"


def new_image() -> Parts:
    """Return an image in sha512 that no other test uses."""
    return image(random_bytes(1000), algorithm="sha512")


def put(user: User, parts: Parts, reference: str, *, repository: str = REPOSITORY) -> httpx.Response:
    """PUT the manifest of an image."""
    with user.client(repository, "pull,push") as client:
        return client.put(f"/manifests/{reference}", content=parts.manifest, headers={"Content-Type": parts.media_type})


def push(user: User, parts: Parts, query: str = "", *, repository: str = REPOSITORY) -> httpx.Response:
    """Push an image by its digest; return the answer."""
    for blob in parts.blobs:
        assert user.push_blob(repository, blob, sha512_of(blob)).status_code == 201
    answer = put(user, parts, f"{parts.digest}{query}", repository=repository)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Docker-Content-Digest"] == str(parts.digest)
    return answer


def delete(user: User, reference: object) -> int:
    """Delete a manifest; return the status."""
    with user.client(REPOSITORY, "pull,delete") as client:
        return client.delete(f"/manifests/{reference}").status_code


def status(user: User, reference: object) -> int:
    """Return the status of a GET of a manifest."""
    return user.get(REPOSITORY, f"manifests/{reference}", **ACCEPT).status_code


def check_pull(user: User, parts: Parts, reference: object = None) -> None:
    """Pull an image, and compare every digest with the bytes."""
    reference = reference or parts.digest
    for answer in (
        user.get(REPOSITORY, f"manifests/{reference}", **ACCEPT),
        user.head(REPOSITORY, f"manifests/{reference}", **ACCEPT),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.headers["Docker-Content-Digest"] == str(parts.digest)
        assert answer.headers["Content-Type"] == parts.media_type
        assert answer.request.method == "HEAD" or answer.content == parts.manifest
    for blob in parts.blobs:
        answer = user.get(REPOSITORY, f"blobs/{sha512_of(blob)}")
        assert (answer.content, answer.headers["Docker-Content-Digest"]) == (blob, sha512_of(blob))
        part = user.get(REPOSITORY, f"blobs/{sha512_of(blob)}", Range="bytes=1-3")
        assert (part.status_code, part.content) == (206, blob[1:4])


def purge(proxy: Proxy) -> None:
    """Empty the cache."""
    assert proxy.command("cache", "purge", "--all", "--yes").exit_code == 0


def only(server: Server, others: Sequence[Server], proxy: Proxy) -> None:
    """Leave one registry up, and the cache empty."""
    for other in others:
        if other is not server:
            other.stop(9)
    purge(proxy)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_index_of_images_is_pushed_and_pulled(
    registries: list[Server], start_proxy: StartProxy, workers: int
) -> None:
    """It is pulled by digest and by each tag of the push, cold and warm; lists show none of our own tags."""
    proxy = start_proxy(registries, {"workers": workers})
    user = proxy.add_user("ann", pull_push=["team/**"])
    children = new_image(), new_image()
    whole = index(*children, algorithm="sha512")
    for child in children:
        push(user, child)
    answer = push(user, whole, "?tag=1.0&tag=latest&tag=1.0")
    assert answer.headers["OCI-Tag"] == "1.0, latest"
    for _ in range(2):
        for reference in (whole.digest, "1.0", "latest"):
            check_pull(user, whole, reference)
        for child in children:
            check_pull(user, child)
        purge(proxy)
    assert user.get(REPOSITORY, "tags/list").json()["tags"] == ["1.0", "latest"]
    for server in registries:
        assert any(tag.startswith("rp-keep-") for tag in tags_of(server))


def tags_of(server: Server) -> list[str]:
    """Return the tags of a registry, asked past the proxy."""
    answer = httpx.get(f"{server.url}/v2/{REPOSITORY}/tags/list", verify=False).json()
    return sorted(answer.get("tags") or ())


def test_a_registry_that_was_away_gets_it(registries: list[Server], start_proxy: StartProxy) -> None:
    """After its return the registry serves the image pushed meanwhile, and does not restore the deleted one."""
    first, second = registries
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"], delete=["team/**"])
    gone, kept = new_image(), new_image()
    push(user, gone, "?tag=gone")
    second.stop(9)
    push(user, kept, "?tag=kept")
    assert delete(user, gone.digest) == 202
    second.start()
    for _ in range(20):  # from its return on, repaired or not
        assert status(user, gone.digest) == status(user, "gone") == 404
    wait_until(lambda: is_equal(proxy, second), "it is repaired")
    assert tags_of(first) == tags_of(second)
    verify = proxy.command("replica", "verify", "main", "--json")
    assert verify.exit_code == 0, verify.output
    only(second, registries, proxy)
    check_pull(user, kept)
    check_pull(user, kept, "kept")
    assert status(user, gone.digest) in {404, 503}


@pytest.mark.parametrize("by", ["sha512", "sha256"])
def test_a_delete_by_either_digest_deletes_the_content(
    registries: list[Server], start_proxy: StartProxy, by: str
) -> None:
    """An image pushed by its sha512 and by a tag is gone by both digests and all tags, immediately and for good."""
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"], delete=["team/**"])
    parts = new_image()
    push(user, parts, "?tag=long")
    assert put(user, parts, "short").status_code == 201
    digests = {"sha512": str(parts.digest), "sha256": f"sha256:{hashlib.sha256(parts.manifest).hexdigest()}"}
    references = [*digests.values(), "long", "short"]
    assert [status(user, one) for one in references] == [200] * 4
    assert delete(user, digests[by]) == 202
    assert [status(user, one) for one in references] == [404] * 4
    purge(proxy)
    assert [status(user, one) for one in references] == [404] * 4
    assert [tags_of(server) for server in registries] == [[], []]
    push(user, parts, "?tag=long")  # and may come again
    check_pull(user, parts, "long")


def test_it_is_found_again_after_the_loss_of_the_store(registries: list[Server], start_proxy: StartProxy) -> None:
    """With an empty store and an empty cache only the registries know it, and one of them misses it."""
    first, second = registries
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"])
    children = new_image(), new_image()
    whole = index(*children, algorithm="sha512")
    for child in children:
        push(user, child)
    push(user, whole, "?tag=latest")
    proxy.stop()
    (proxy.root / "store.db").unlink()
    proxy.start()
    user = proxy.add_user("ann", pull_push=["team/**"])
    purge(proxy)
    check_pull(user, whole, "latest")
    for parts in (whole, *children):
        check_pull(user, parts)
    wait_until(lambda: is_equal(proxy, second), "the registries were compared")
    assert tags_of(first) == tags_of(second)


def test_a_wrong_push_is_refused_and_leaves_nothing(registries: list[Server], start_proxy: StartProxy) -> None:
    """A wrong digest, an unknown algorithm, a missing blob, a reserved tag: 400, 404 or 403, and nothing is stored."""
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"])
    parts, other = new_image(), new_image()
    for blob in parts.blobs:
        assert user.push_blob(REPOSITORY, blob, sha512_of(blob)).status_code == 201
    wrong = [
        (parts, str(other.digest), 400, "DIGEST_INVALID"),
        (parts, "sha384:" + "0" * 96, 400, "DIGEST_INVALID"),
        (parts, "md5:" + "0" * 32, 400, "DIGEST_INVALID"),
        (parts, str(parts.digest).upper(), 400, "DIGEST_INVALID"),
        (other, str(other.digest), 400, "MANIFEST_BLOB_UNKNOWN"),
        (parts, f"{parts.digest}?tag=rp-keep-x", 403, "DENIED"),
        (parts, f"{parts.digest}?tag=ok&tag=rp-keep-x", 403, "DENIED"),
        (parts, f"{parts.digest}?tag=-", 400, "TAG_INVALID"),
    ]
    for pushed, reference, expected, code in wrong:
        answer = put(user, pushed, reference)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (expected, code), answer.text
    assert [status(user, one.digest) for one in (parts, other)] == [404, 404]
    assert [tags_of(server) for server in registries] == [[], []]
    assert user.push_blob(REPOSITORY, b"content", sha512_of(b"other")).status_code == 400


def filled(parts: Parts, filling: str, size_bytes: int) -> Parts:
    """Return an image with an annotation that gives its manifest the given size."""
    document = {**json.loads(parts.manifest), "annotations": {"filling": ""}}
    missing = size_bytes - len(json.dumps(document))
    document["annotations"]["filling"] = (filling * (missing // len(filling) + 1))[:missing]
    return replace(parts, manifest=json.dumps(document).encode())


def test_a_manifest_of_4_mib_is_taken_and_no_larger_one(registries: list[Server], start_proxy: StartProxy) -> None:
    """4 MiB come back; one byte more is 413, and so is a manifest with too large a wrapper: nothing is stored."""
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"])
    parts, limit = new_image(), 4 * 2**20
    noise = base64.b64encode(random_bytes(limit)).decode()
    largest = filled(parts, "x", limit)
    push(user, largest)
    for refused in (filled(parts, "x", limit + 1), filled(parts, noise, limit)):
        answer = put(user, refused, f"{refused.digest}?tag=refused")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (413, "SIZE_INVALID"), answer.text
        assert [status(user, reference) for reference in (refused.digest, "refused")] == [404, 404]
    purge(proxy)
    check_pull(user, largest)
    assert is_equal(proxy, registries[1])


def test_a_wrapper_is_nobodys_to_push(registries: list[Server], start_proxy: StartProxy) -> None:
    """A client that knows one from a registry cannot name it or push it, also with its annotation escaped."""
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"], delete=["team/**"])
    parts = new_image()
    push(user, parts)
    (tag,) = tags_of(registries[0])
    wrapper = httpx.get(f"{registries[0].url}/v2/{REPOSITORY}/manifests/{tag}", headers=ACCEPT, verify=False).content
    for body in (wrapper, wrapper.replace(b"registry-proxy.manifest", b"\\u0072egistry-proxy.manifest")):
        answer = put(user, Parts(body, ()), "mine")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "MANIFEST_INVALID")
    assert status(user, "mine") == 404
    digest = f"sha256:{hashlib.sha256(wrapper).hexdigest()}"
    assert [status(user, digest), delete(user, digest)] == [404, 404]
    purge(proxy)
    check_pull(user, parts)


def test_rights_hold_for_each_tag_and_repository(registries: list[Server], start_proxy: StartProxy) -> None:
    """A push by digest sets only tags that its user may push; a digest works only in repositories that hold it."""
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"])
    eve = proxy.add_user("eve", pull=["team/**"], pull_push=["eve/**"])
    with proxy.admin() as admin:
        grant = {"subject": "user:eve", "repository": REPOSITORY, "actions": ["create"], "tags": "eve-*"}
        admin.post("/grants", json=grant).raise_for_status()
    parts = new_image()
    push(user, parts, "?tag=eve-taken")
    assert put(eve, parts, f"{parts.digest}?tag=eve-1").status_code == 201
    assert put(eve, parts, f"{parts.digest}?tag=eve-2&tag=latest").status_code == 401
    assert status(user, "eve-2") == status(user, "latest") == 404
    moved = image(b"other", algorithm="sha512")
    for blob in moved.blobs:
        assert user.push_blob(REPOSITORY, blob, sha512_of(blob)).status_code == 201
    assert put(eve, moved, f"{moved.digest}?tag=eve-taken").status_code == 403
    for repository in ("eve/app", "team/other"):
        assert eve.get(repository, f"manifests/{parts.digest}").status_code == 404
    answer = put(eve, parts, str(parts.digest), repository="eve/app")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "MANIFEST_BLOB_UNKNOWN")


def test_referrers_of_a_sha512_subject(registries: list[Server], start_proxy: StartProxy) -> None:
    """The referrers of an image by its sha512 are listed there, named by either algorithm, also after a delete."""
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"], delete=["team/**"])
    subject = new_image()
    push(user, subject)
    attached = []
    for algorithm in ("sha256", "sha512"):
        parts = image(random_bytes(100), algorithm=algorithm)
        document = json.loads(parts.manifest)
        document["subject"] = {
            "mediaType": subject.media_type,
            "digest": str(subject.digest),
            "size": len(subject.manifest),
        }
        parts = Parts(json.dumps(document).encode(), parts.blobs, algorithm=algorithm)
        for blob in parts.blobs:
            hashed = hashlib.new(algorithm, blob).hexdigest()
            assert user.push_blob(REPOSITORY, blob, f"{algorithm}:{hashed}").status_code == 201
        answer = put(user, parts, str(parts.digest))
        assert (answer.status_code, answer.headers["OCI-Subject"]) == (201, str(subject.digest)), answer.text
        attached.append(str(parts.digest))

    def listed() -> set[str]:
        answer = user.get(REPOSITORY, f"referrers/{subject.digest}")
        return {entry["digest"] for entry in answer.json()["manifests"]}

    assert listed() == set(attached)
    purge(proxy)
    assert listed() == set(attached)
    assert delete(user, attached[1]) == 202
    assert listed() == {attached[0]}


def test_images_in_sha256_are_as_before(registries: list[Server], start_proxy: StartProxy) -> None:
    """A push by sha256 sets tags, too; the registries hold no tags of ours."""
    proxy = start(start_proxy, registries)
    user = proxy.add_user("ann", pull_push=["team/**"])
    plain = make_image(random_bytes(100))
    for blob in plain.blobs.values():
        assert user.push_blob(REPOSITORY, blob).status_code == 201
    answer = user.push_manifest(REPOSITORY, f"{plain.digest}?tag=a&tag=b", plain)
    assert (answer.status_code, answer.headers["OCI-Tag"]) == (201, "a, b")
    assert user.pull(REPOSITORY, "b") == plain
    assert [tags_of(server) for server in registries] == [["a", "b"], ["a", "b"]]


def test_an_import_and_a_warmed_cache_have_it(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """An import from a registry behind a proxy also brings untagged contents; the cache is filled by sha512."""
    source, target = start_registry("source"), start_registry("target")
    routes = [{"prefix": "new/", "upstream": "target", "strip_prefix": True}, {"prefix": "", "upstream": "main"}]
    upstreams = {"target": {"replicas": [{"url": target.url}]}}
    proxy = start_proxy([source], {"upstreams": upstreams, "routes": routes})
    user = proxy.add_user("ann", pull_push=["**"])
    child, untagged = new_image(), new_image()
    whole = index(child, algorithm="sha512")
    for parts in (child, untagged):
        push(user, parts)
    push(user, whole, "?tag=1.0")
    result = run_import(proxy, source, "--repository", REPOSITORY, "--prefix", "new/")
    assert result.exit_code == 0, result.output
    copied = user.head(f"new/{REPOSITORY}", "manifests/1.0", **ACCEPT)
    assert copied.headers["Docker-Content-Digest"] == str(whole.digest)
    for parts in (child, untagged):
        assert user.get(f"new/{REPOSITORY}", f"manifests/{parts.digest}", **ACCEPT).content == parts.manifest
    purge(proxy)
    warmed = proxy.command("cache", "warm", f"{REPOSITORY}:1.0", f"{REPOSITORY}@{untagged.digest}")
    assert warmed.exit_code == 0, warmed.output
    source.stop(9)
    check_pull(user, whole, "1.0")
    for parts in (child, untagged):
        check_pull(user, parts)
