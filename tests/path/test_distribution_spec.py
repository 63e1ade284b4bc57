"""Every endpoint of the distribution specification 1.1, with each status that it defines.

The rows are those of its section "Endpoints", end-1 to end-13; the quoted words are the specification's. Each test runs
over one real registry, over two, and over two of which one is down; contents are pulled cold and warm.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import pytest

from tests.conftest import require_program
from tests.path.test_referrers import attached_to
from tests.support.copied import Copies
from tests.support.product import (
    OCI_MANIFEST,
    Image,
    User,
    digest_of,
    make_image,
    notice_down,
    proxy_server,
    push_directly,
    random_bytes,
)
from tests.support.servers import Server, docker_registry, running, wait_until

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
ABSENT = digest_of(b"nobody has this")
BLOB = random_bytes(10_000)
DOWN = "one of two replicas is down"
CASES = ["one replica", "two replicas", DOWN]
_numbers = itertools.count()


@dataclass(frozen=True)
class Service:
    """The product before its registries, and a user who may do everything in ``spec``."""

    user: User
    up: list[Server]

    def seed(self, image: Image | None = None, tags: tuple[str, ...] = ("1",)) -> tuple[str, Image]:
        """Push an image past the product, so that its cache is cold; return its new repository, and the image."""
        repository, image = new_repository(), image or make_image(random_bytes(1000))
        for registry, tag in itertools.product(self.up, tags):
            push_directly(registry, repository, tag, image)
        return repository, image

    def ask(self, method: str, repository: str, path: str, content: bytes = b"", **headers: str) -> httpx.Response:
        """Send one request about a repository."""
        with self.user.client(repository, "pull,push,delete") as client:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            return client.request(method, path, content=content, headers={"Accept": OCI_MANIFEST, **headers})

    def go_on(
        self, method: str, location: str, content: bytes = b"", *, repository: str, **more: str
    ) -> httpx.Response:
        """Send one request to the address in a Location; ``digest`` goes into the query, all else is a header."""
        url = httpx.URL(self.user.proxy.url).join(location)
        if "digest" in more:
            url = url.copy_merge_params({"digest": more.pop("digest")})
        with self.user.client(repository, "pull,push") as client:
            headers = {name.replace("_", "-"): value for name, value in more.items()}
            return client.request(method, url, content=content, headers=headers)


def new_repository() -> str:
    """Return a repository name that no other test uses."""
    return f"spec/app{next(_numbers)}"


def lose_one(user: User, registries: list[Server]) -> None:
    """Stop the last of the registries after its comparison with the others: without, its contents are unknown."""
    wait_until(lambda: "fallback tags of its replicas were compared" in user.proxy.log_text(), "replicas are compared")
    registries.pop().stop()
    notice_down(user, new_repository())


StartService = Callable[[str], Service]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[StartService]:
    """Give the product over a number of registries; each is started at its first use."""
    require_program("docker-registry")
    root = tmp_path_factory.mktemp("specification")
    with ExitStack() as stack:

        @cache
        def start_service(case: str) -> Service:
            number = CASES.index(case)
            names = "ab"[: 1 if case == CASES[0] else 2]
            registries = [docker_registry(root / f"{number}{name}", delete_enabled=True) for name in names]
            for registry in registries:
                stack.enter_context(running(registry))
            proxy = proxy_server(root / f"proxy{number}", registries, copies=copies)
            stack.enter_context(running(proxy))
            user = proxy.add_user("ann", pull_push_delete=["spec/**"])
            if case == DOWN:
                lose_one(user, registries)
            return Service(user, registries)

        yield start_service


@pytest.fixture(scope="module", params=CASES)
def service(services: StartService, request: pytest.FixtureRequest) -> Service:
    """Give the product over one registry, over two, and over two of which one is down.

    Its scope is the module, so that tests of one case follow each other, and two workers start only their own cases.
    """
    return services(request.param)


@pytest.fixture(scope="module", params=CASES[:2])
def whole(services: StartService, request: pytest.FixtureRequest) -> Service:
    """Give the product over registries that are all up, so that an object that none of them has is absent."""
    return services(request.param)


def code(answer: httpx.Response) -> str:
    """Return the code of an error, whose body must have the form of the section "Error Codes"."""
    (error,) = answer.json()["errors"]
    assert error.keys() >= {"code", "message", "detail"}
    return str(error["code"])


def start(service: Service, repository: str) -> str:
    """Open an upload session; return its Location."""
    answer = service.ask("POST", repository, "/blobs/uploads/", Content_Length="0")
    assert answer.status_code == 202, answer.text
    return answer.headers["Location"]


# ---------------------------------------------------------------- end-1


def test_end_1_determines_support(service: Service) -> None:
    """GET /v2/ is 200 for a caller with a token, and 401 with a challenge for one without."""
    url = f"{service.user.proxy.url}/v2/"
    headers = {"Authorization": f"Bearer {service.user.token()}"}
    assert httpx.get(url, headers=headers, verify=False).status_code == 200
    answer = httpx.get(url, verify=False)
    assert (answer.status_code, code(answer)) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer realm=")


# ---------------------------------------------------------------- end-2, end-3: pull


@pytest.mark.parametrize("order", [("GET", "HEAD", "GET"), ("HEAD", "GET", "HEAD")])
def test_end_2_gives_a_blob_cold_and_warm(service: Service, order: tuple[str, ...]) -> None:
    """GET and HEAD of a blob are 200 with its digest and length; the body "MUST match" the digest."""
    repository, image = service.seed()
    for digest, blob in image.blobs.items():
        for method in order:
            answer = service.ask(method, repository, f"/blobs/{digest}")
            assert answer.status_code == 200
            assert answer.headers["Docker-Content-Digest"] == digest
            assert answer.headers["Content-Length"] == str(len(blob))
            assert answer.content == (blob if method == "GET" else b"")


def test_end_2_gives_a_range_cold_and_warm(service: Service) -> None:
    """A Range request is 206 with Content-Range, and 416 where it begins beyond the end."""
    repository, image = service.seed()
    digest, blob = max(image.blobs.items(), key=lambda item: len(item[1]))
    for _ in range(2):
        answer = service.ask("GET", repository, f"/blobs/{digest}", Range="bytes=10-19")
        assert (answer.status_code, answer.content) == (206, blob[10:20])
        assert answer.headers["Content-Range"] == f"bytes 10-19/{len(blob)}"
        assert service.ask("GET", repository, f"/blobs/{digest}", Range=f"bytes={len(blob)}-").status_code == 416


@pytest.mark.parametrize("by_tag", [True, False])
@pytest.mark.parametrize("order", [("GET", "HEAD", "GET"), ("HEAD", "GET", "HEAD")])
def test_end_3_gives_a_manifest_cold_and_warm(service: Service, order: tuple[str, ...], *, by_tag: bool) -> None:
    """GET and HEAD of a manifest are 200 with its media type, length and digest, and the pushed bytes."""
    repository, image = service.seed()
    for method in order:
        answer = service.ask(method, repository, f"/manifests/{'1' if by_tag else image.digest}")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == OCI_MANIFEST
        assert answer.headers["Docker-Content-Digest"] == image.digest
        assert answer.headers["Content-Length"] == str(len(image.manifest))
        assert answer.content == (image.manifest if method == "GET" else b"")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "unknown"),
    [
        (f"/blobs/{ABSENT}", "BLOB_UNKNOWN"),
        (f"/manifests/{ABSENT}", "MANIFEST_UNKNOWN"),
        ("/manifests/absent", "MANIFEST_UNKNOWN"),
    ],
)
def test_end_2_and_3_say_404_for_what_is_not_there(whole: Service, method: str, path: str, unknown: str) -> None:
    """An object that "is not found in the repository" is 404 with its code, also where the repository is absent."""
    repository, _ = whole.seed()
    for name in (repository, new_repository()):
        answer = whole.ask(method, name, path)
        assert answer.status_code == 404
        assert method == "HEAD" or code(answer) == unknown


@pytest.mark.parametrize("service", [DOWN], indirect=True)
def test_an_object_that_a_replica_that_is_down_may_hold_is_not_called_absent(service: Service) -> None:
    """While its absence is uncertain the answer is 503 with Retry-After, and never 404."""
    answer = service.ask("GET", new_repository(), f"/blobs/{ABSENT}")
    assert (answer.status_code, code(answer)) == (503, "UNAVAILABLE")
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize("path", ["/blobs/sha256:0", "/blobs/nothing", "/manifests/sha256:0", "/manifests/-"])
def test_a_reference_that_cannot_be_is_a_400_or_404(service: Service, path: str) -> None:
    """A digest or tag against the grammar is refused immediately, with a body in the form of an error."""
    answer = service.ask("GET", new_repository(), path)
    assert answer.status_code in {400, 404}
    assert code(answer) in {"DIGEST_INVALID", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "TAG_INVALID", "NAME_UNKNOWN"}


# ---------------------------------------------------------------- end-4 to end-6, end-11, end-13: blobs


def test_end_4a_and_6_push_a_blob_by_post_then_put(service: Service) -> None:
    """POST is 202 with a Location, PUT with the digest 201 with the Location of the blob, which can be pulled there."""
    repository = new_repository()
    location = start(service, repository)
    answer = service.go_on("PUT", location, BLOB, repository=repository, digest=digest_of(BLOB))
    assert answer.status_code == 201, answer.text
    found = service.go_on("GET", answer.headers["Location"], repository=repository)
    assert (found.status_code, found.content) == (200, BLOB)


def test_end_4b_pushes_a_blob_by_a_single_post(service: Service) -> None:
    """POST with a digest and the blob is 201, or 202 with a session that the client goes on with."""
    repository = new_repository()
    answer = service.ask("POST", repository, f"/blobs/uploads/?digest={digest_of(BLOB)}", BLOB)
    assert answer.status_code in {201, 202}
    if answer.status_code == 202:
        location = answer.headers["Location"]
        answer = service.go_on("PUT", location, BLOB, repository=repository, digest=digest_of(BLOB))
    assert answer.status_code == 201
    assert service.ask("GET", repository, f"/blobs/{digest_of(BLOB)}").content == BLOB


@pytest.mark.parametrize("digest", [ABSENT, "sha256:0", "nonsense"])
def test_end_4b_and_6_refuse_a_wrong_digest(service: Service, digest: str) -> None:
    """A wrong digest, or none at all, is 400 with DIGEST_INVALID, and nothing is stored."""
    repository = new_repository()
    answer = service.ask("POST", repository, f"/blobs/uploads/?digest={digest}", BLOB)
    if answer.status_code == 202:
        answer = service.go_on("PUT", answer.headers["Location"], BLOB, repository=repository, digest=digest)
    assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")
    answer = service.go_on("PUT", start(service, repository), BLOB, repository=repository, digest=digest)
    assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")


def test_end_5_and_13_push_in_chunks_and_tell_how_far(service: Service) -> None:
    """Each PATCH is 202 with Location and Range, GET of the session 204 with the same, and the last PUT 201."""
    repository, half = new_repository(), len(BLOB) // 2
    location = start(service, repository)
    answer = service.go_on("PATCH", location, BLOB[:half], repository=repository, Content_Range=f"0-{half - 1}")
    assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{half - 1}")
    status = service.go_on("GET", answer.headers["Location"], repository=repository)
    assert (status.status_code, status.headers["Range"]) == (204, f"0-{half - 1}")
    rest = f"{half}-{len(BLOB) - 1}"
    answer = service.go_on("PATCH", status.headers["Location"], BLOB[half:], repository=repository, Content_Range=rest)
    assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{len(BLOB) - 1}")
    answer = service.go_on("PUT", answer.headers["Location"], repository=repository, digest=digest_of(BLOB))
    assert answer.status_code == 201
    assert service.ask("GET", repository, f"/blobs/{digest_of(BLOB)}").content == BLOB


def test_end_5_refuses_a_chunk_out_of_order(service: Service) -> None:
    """Chunks "MUST be uploaded in order": another one is 416, and the session continues from its offset."""
    repository, half = new_repository(), len(BLOB) // 2
    location = start(service, repository)
    late = f"{half}-{len(BLOB) - 1}"
    answer = service.go_on("PATCH", location, BLOB[half:], repository=repository, Content_Range=late)
    assert answer.status_code == 416
    status = service.go_on("GET", location, repository=repository)
    assert status.status_code == 204
    answer = service.go_on("PUT", status.headers["Location"], BLOB, repository=repository, digest=digest_of(BLOB))
    assert answer.status_code == 201


@pytest.mark.parametrize("method", ["PATCH", "PUT", "GET", "DELETE"])
def test_end_5_6_and_13_say_404_for_an_unknown_session(service: Service, method: str) -> None:
    """A session that was never opened is 404 with BLOB_UPLOAD_UNKNOWN."""
    repository = new_repository()
    answer = service.go_on(
        method,
        f"/v2/{repository}/blobs/uploads/3b9e3c4c-5a5c-4f3f-9a4f-0123456789ab",
        BLOB if method in {"PATCH", "PUT"} else b"",
        repository=repository,
        **({"digest": digest_of(BLOB)} if method == "PUT" else {}),
    )
    assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_a_session_that_was_cancelled_is_unknown(service: Service) -> None:
    """DELETE of a session is 204, and the session is 404 from then on."""
    repository = new_repository()
    location = start(service, repository)
    assert service.go_on("DELETE", location, repository=repository).status_code == 204
    assert service.go_on("GET", location, repository=repository).status_code == 404


def test_end_11_mounts_a_blob(service: Service) -> None:
    """POST with mount and from is 201 with the Location of the blob, or 202 with that of a session."""
    source, image = service.seed()
    digest, blob = next(iter(image.blobs.items()))
    target = new_repository()
    token = service.user.token(f"repository:{target}:pull,push", f"repository:{source}:pull")
    url = f"{service.user.proxy.url}/v2/{target}/blobs/uploads/?mount={digest}&from={source}"
    answer = httpx.post(url, headers={"Authorization": f"Bearer {token}"}, verify=False, timeout=30)
    if answer.status_code == 202 and len(service.up) == 1:
        answer = service.go_on("PUT", answer.headers["Location"], blob, repository=target, digest=digest)
    assert answer.status_code == 201, answer.text
    found = service.go_on("GET", answer.headers["Location"], repository=target)
    assert (found.status_code, found.content) == (200, blob)


@pytest.mark.parametrize("source", ["&from=spec/nowhere", ""])
def test_end_11_opens_a_session_where_nothing_can_be_mounted(service: Service, source: str) -> None:
    """POST with mount of an absent blob is 202 with the Location of an ordinary session."""
    repository = new_repository()
    token = service.user.token(f"repository:{repository}:pull,push", "repository:spec/nowhere:pull")
    url = f"{service.user.proxy.url}/v2/{repository}/blobs/uploads/?mount={ABSENT}{source}"
    answer = httpx.post(url, headers={"Authorization": f"Bearer {token}"}, verify=False, timeout=30)
    assert answer.status_code == 202, answer.text
    done = service.go_on("PUT", answer.headers["Location"], BLOB, repository=repository, digest=digest_of(BLOB))
    assert done.status_code == 201


# ---------------------------------------------------------------- end-7: manifests


@pytest.mark.parametrize("by_tag", [True, False])
def test_end_7_pushes_a_manifest(service: Service, *, by_tag: bool) -> None:
    """PUT is 201 with Location and digest, and the manifest is there at once, byte for byte."""
    repository, image = new_repository(), make_image(random_bytes(1000))
    for blob in image.blobs.values():
        assert service.user.push_blob(repository, blob).status_code == 201
    reference = "1" if by_tag else image.digest
    answer = service.ask("PUT", repository, f"/manifests/{reference}", image.manifest, Content_Type=OCI_MANIFEST)
    assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, image.digest)
    found = service.go_on("GET", answer.headers["Location"], repository=repository)
    assert (found.status_code, found.content) == (200, image.manifest)


EMPTY: dict[str, Any] = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
NO_BYTES: dict[str, Any] = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(b""), "size": 0}


@pytest.mark.parametrize(
    "fields",
    [
        {"config": EMPTY | {"data": "e30="}, "layers": [EMPTY | {"data": "e30="}], "artifactType": "text/example"},
        {"config": EMPTY, "layers": [NO_BYTES]},
        {"config": EMPTY, "layers": []},
        {"config": EMPTY | {"org.example.new": [1, None]}, "layers": [EMPTY], "org.example.too": {"é": 1.50}},
    ],
    ids=["data", "an empty blob", "no layers", "unknown fields"],
)
def test_end_7_keeps_a_manifest_byte_for_byte(service: Service, fields: dict[str, Any]) -> None:
    """Clients read the "exact byte representation" that was pushed, with embedded data and fields nobody knows."""
    repository = new_repository()
    for blob in (b"{}", b""):
        assert service.user.push_blob(repository, blob).status_code == 201
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **fields}, indent=3, ensure_ascii=False).encode()
    answer = service.ask("PUT", repository, "/manifests/1", body, Content_Type=OCI_MANIFEST)
    assert answer.status_code == 201, answer.text
    for reference in ("1", digest_of(body)):
        assert service.ask("GET", repository, f"/manifests/{reference}").content == body
    assert service.ask("GET", repository, f"/blobs/{digest_of(b'')}").content == b""


def test_end_7_refuses_a_manifest_whose_blobs_are_not_there(whole: Service) -> None:
    """A manifest that names an absent blob is 404 or 400 with MANIFEST_BLOB_UNKNOWN, and stores no tag."""
    repository, image = new_repository(), make_image(random_bytes(1000))
    answer = whole.ask("PUT", repository, "/manifests/1", image.manifest, Content_Type=OCI_MANIFEST)
    assert answer.status_code in {400, 404}
    assert code(answer) in {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]"])
def test_end_7_refuses_what_is_no_manifest(service: Service, body: bytes) -> None:
    """A body that cannot be read as a manifest is 400 with MANIFEST_INVALID."""
    answer = service.ask("PUT", new_repository(), "/manifests/1", body, Content_Type=OCI_MANIFEST)
    assert (answer.status_code, code(answer)) == (400, "MANIFEST_INVALID")


def test_end_7_refuses_a_manifest_that_is_not_its_digest(service: Service) -> None:
    """A push by another digest is 400 with DIGEST_INVALID."""
    repository, image = service.seed()
    answer = service.ask("PUT", repository, f"/manifests/{ABSENT}", image.manifest, Content_Type=OCI_MANIFEST)
    assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")


def test_end_7_takes_manifests_of_4_mib_and_no_larger_ones(service: Service) -> None:
    """A registry "SHOULD" take 4 MiB; a larger manifest is 413."""
    repository, image = service.seed()
    document = {**json.loads(image.manifest), "annotations": {"filling": ""}}
    missing = 4 * 1024 * 1024 - len(json.dumps(document))
    document["annotations"]["filling"] = "x" * missing
    body = json.dumps(document).encode()
    answer = service.ask("PUT", repository, "/manifests/large", body, Content_Type=OCI_MANIFEST)
    assert answer.status_code == 201, answer.text
    answer = service.ask("PUT", repository, "/manifests/larger", body + b" ", Content_Type=OCI_MANIFEST)
    assert answer.status_code == 413


# ---------------------------------------------------------------- end-8: tags


def test_end_8_lists_tags_in_pages(service: Service) -> None:
    """Tags are 200 in lexical order; n limits a page, last starts it, and a Link leads to the next."""
    repository, _ = service.seed(tags=("b", "A", "a", "1"))
    for _ in range(2):
        assert service.ask("GET", repository, "/tags/list").json() == {"name": repository, "tags": ["1", "A", "a", "b"]}
    first = service.ask("GET", repository, "/tags/list?n=3")
    assert (first.status_code, first.json()["tags"]) == (200, ["1", "A", "a"])
    second = service.go_on("GET", first.links["next"]["url"], repository=repository)
    assert (second.status_code, second.json()["tags"], second.links) == (200, ["b"], {})
    assert service.ask("GET", repository, "/tags/list?n=2&last=1x").json()["tags"] == ["A", "a"]
    empty = service.ask("GET", repository, "/tags/list?n=0")
    assert (empty.status_code, empty.json()["tags"], empty.links) == (200, [], {})


def test_end_8_says_404_for_an_unknown_repository(whole: Service) -> None:
    """The tags of an absent repository are 404 with NAME_UNKNOWN."""
    answer = whole.ask("GET", new_repository(), "/tags/list")
    assert (answer.status_code, code(answer)) == (404, "NAME_UNKNOWN")


# ---------------------------------------------------------------- end-9, end-10: deletes


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("by_tag", [True, False])
def test_end_9_deletes_a_manifest_or_a_tag(service: Service, *, by_tag: bool, is_warm: bool) -> None:
    """DELETE is 202, and the object is absent immediately; a deleted tag leaves its manifest."""
    repository, image = service.seed()
    if is_warm:
        assert service.ask("GET", repository, "/manifests/1").status_code == 200
        assert service.ask("GET", repository, f"/manifests/{image.digest}").status_code == 200
    reference = "1" if by_tag else image.digest
    assert service.ask("DELETE", repository, f"/manifests/{reference}").status_code == 202
    assert service.ask("HEAD", repository, f"/manifests/{reference}").status_code in {404, 503}
    assert "1" not in (service.ask("GET", repository, "/tags/list").json().get("tags") or [])
    if by_tag:
        assert service.ask("GET", repository, f"/manifests/{image.digest}").status_code == 200


@pytest.mark.parametrize("path", [f"/manifests/{ABSENT}", "/manifests/absent", f"/blobs/{ABSENT}"])
def test_end_9_and_10_say_404_for_what_is_not_there(whole: Service, path: str) -> None:
    """A delete of an absent object is 404 with its code."""
    repository, _ = whole.seed()
    answer = whole.ask("DELETE", repository, path)
    assert (answer.status_code, code(answer)) == (404, "BLOB_UNKNOWN" if "blobs" in path else "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("is_warm", [True, False])
def test_end_10_deletes_a_blob(whole: Service, *, is_warm: bool) -> None:
    """DELETE of a blob is 202, and it is 404 from then on."""
    repository, image = whole.seed()
    digest = next(iter(image.blobs))
    if is_warm:
        assert whole.ask("GET", repository, f"/blobs/{digest}").status_code == 200
    assert whole.ask("DELETE", repository, f"/blobs/{digest}").status_code == 202
    assert whole.ask("GET", repository, f"/blobs/{digest}").status_code == 404


# ---------------------------------------------------------------- end-12: referrers


def referrers(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the entries of an answer, which must be an image index."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, OCI_INDEX), answer.text
    index = answer.json()
    assert (index["schemaVersion"], index["mediaType"]) == (2, OCI_INDEX)
    found: list[dict[str, Any]] = index["manifests"]
    return found


def test_end_12_lists_referrers_and_filters_them(service: Service) -> None:
    """Referrers are 200 in an index; artifactType filters, and OCI-Filters-Applied says so; a delete ends an entry."""
    repository, image = service.seed()
    for kind in ("a", "b"):
        artifact = attached_to(image.digest, kind, f"application/vnd.example.{kind}")
        for blob in artifact.blobs.values():
            assert service.user.push_blob(repository, blob).status_code == 201
        answer = service.ask(
            "PUT", repository, f"/manifests/{artifact.digest}", artifact.manifest, Content_Type=OCI_MANIFEST
        )
        assert (answer.status_code, answer.headers["OCI-Subject"]) == (201, image.digest)
    path, deleted = f"/referrers/{image.digest}", ""
    for _ in range(2):
        assert len(referrers(service.ask("GET", repository, path))) == 2
        answer = service.ask("GET", repository, f"{path}?artifactType=application/vnd.example.b")
        (entry,) = referrers(answer)
        assert answer.headers["OCI-Filters-Applied"] == "artifactType"
        deleted = entry["digest"]
        assert (entry["artifactType"], entry["annotations"]) == ("application/vnd.example.b", {"about": "b"})
    assert service.ask("DELETE", repository, f"/manifests/{deleted}").status_code == 202
    assert [one["artifactType"] for one in referrers(service.ask("GET", repository, path))] == [
        "application/vnd.example.a"
    ]


def test_end_12_gives_an_empty_index_for_an_unknown_subject(whole: Service) -> None:
    """A registry with the API "MUST NOT" answer 404 for a subject without referrers."""
    repository, image = whole.seed()
    for digest in (image.digest, ABSENT):
        assert referrers(whole.ask("GET", repository, f"/referrers/{digest}")) == []


def test_end_12_refuses_what_is_no_digest(service: Service) -> None:
    """An invalid request, such as one with a malformed digest, is 400."""
    repository, _ = service.seed()
    assert service.ask("GET", repository, "/referrers/sha256:0").status_code == 400
