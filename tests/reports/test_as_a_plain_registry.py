"""Behaviour of a plain docker-registry that clients rely on is ours too: each request is sent to both.

Reports: `docker manifest` and `cosign clean` that fail only behind a proxy; Go and Java clients that repeat a commit
whose answer was lost; clients that send empty credentials, or manifests with Go's null for a field without value.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import require_program
from tests.support.copied import Copies
from tests.support.product import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Image,
    Proxy,
    digest_of,
    make_image,
    proxy_server,
    random_bytes,
)
from tests.support.servers import docker_registry, running

REPOSITORY = "team/app"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
CONFIG, LAYER = b"{}", b"a layer"


@dataclass(frozen=True)
class Registry:
    """A repository as a client sees it, at the plain registry or at the proxy."""

    client: httpx.Client

    def start(self) -> httpx.URL:
        """Start an upload; return its location."""
        return self._location(self.client.post("blobs/uploads/"))

    def append(self, location: httpx.URL, content: bytes) -> httpx.URL:
        """Send a chunk."""
        return self._location(self.client.patch(location, content=content))

    def commit(self, location: httpx.URL, digest: str, content: bytes = b"") -> httpx.Response:
        """End an upload."""
        return self.client.put(location.copy_merge_params({"digest": digest}), content=content)

    def put(self, document: dict[str, Any], media_type: str, reference: str = "1") -> httpx.Response:
        """Push a manifest."""
        headers = {"Content-Type": media_type}
        return self.client.put(f"manifests/{reference}", content=json.dumps(document), headers=headers)

    def _location(self, response: httpx.Response) -> httpx.URL:
        assert response.status_code == 202, response.text
        return self.client.base_url.join(response.headers["Location"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the registry that is the standard."""
    require_program("docker-registry")
    with running(docker_registry(tmp_path_factory.mktemp("plain"))) as registry:
        yield registry.url


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start a proxy with two workers before two such registries, and two users of it."""
    root = tmp_path_factory.mktemp("proxy")
    with ExitStack() as stack:
        backends = [stack.enter_context(running(docker_registry(root / name))) for name in ("first", "second")]
        started = proxy_server(root / "proxy", backends, {"workers": 2}, copies=copies)
        stack.enter_context(running(started))
        for name in ("ann", "bob"):
            started.add_user(name, pull_push_delete=["**"])
        yield started


@pytest.fixture
def ours(proxy: Proxy) -> Iterator[Registry]:
    """The repository at the proxy."""
    with proxy_client(proxy, "ann") as client:
        yield Registry(client)


def proxy_client(proxy: Proxy, name: str) -> httpx.Client:
    """Return a client of the repository at the proxy, as some user."""
    query = {"scope": f"repository:{REPOSITORY}:pull,push,delete"}
    answer = httpx.get(f"{proxy.url}/auth/token", params=query, auth=(name, "password of a user"), verify=False)
    headers = {"Authorization": f"Bearer {answer.json()['token']}"}
    return httpx.Client(base_url=f"{proxy.url}/v2/{REPOSITORY}/", headers=headers, timeout=30, verify=False)


@pytest.fixture
def both(plain: str, ours: Registry) -> Iterator[tuple[Registry, Registry]]:
    """The same repository at the plain registry and at the proxy."""
    with httpx.Client(base_url=f"{plain}/v2/{REPOSITORY}/", timeout=30, verify=False) as client:
        yield Registry(client), ours


# ---------------------------------------------------------------- reads


IMPOSSIBLE_TAGS = [".a", "-a", "a" * 129, "a%20b", "latest%20", "%C3%A4", "a@b"]


@pytest.mark.parametrize("tag", IMPOSSIBLE_TAGS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_tag_that_nothing_can_have_is_absent(both: tuple[Registry, Registry], method: str, tag: str) -> None:
    """A tag outside the grammar is a 404 as any other absent tag: a client that only looks does not fail."""
    plain, ours = (each.client.request(method, f"manifests/{tag}") for each in both)
    assert (plain.status_code, ours.status_code) == (404, 404)
    if method == "GET":
        assert ours.json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"


def test_to_push_or_to_ask_without_a_token_is_another_matter(proxy: Proxy, ours: Registry) -> None:
    """A push to an impossible tag gets the reason; without a token there is no reason."""
    refused = ours.put({}, OCI_MANIFEST, ".a")
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (400, "TAG_INVALID")
    url = f"{proxy.url}/v2/{REPOSITORY}/manifests/.a"
    assert httpx.get(url, verify=False).status_code == 401


# ---------------------------------------------------------------- manifests


def image_of(media_type: str, **changes: Any) -> dict[str, Any]:
    """Return a manifest of the two blobs with fields changed; ``...`` leaves one out."""
    config = {"mediaType": OCI_CONFIG, "digest": digest_of(CONFIG), "size": len(CONFIG)}
    layer = {"mediaType": OCI_LAYER, "digest": digest_of(LAYER), "size": len(LAYER)}
    document = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer], **changes}
    return {field: value for field, value in document.items() if value is not ...}


def index_of(media_type: str, child: bytes, **changes: Any) -> dict[str, Any]:
    """Return an index of one manifest with fields changed; ``...`` leaves one out."""
    platform = {"architecture": "amd64", "os": "linux"}
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(child), "size": len(child), "platform": platform}
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": [entry], **changes}
    return {field: value for field, value in document.items() if value is not ...}


ODD_FIELDS: list[dict[str, Any]] = [
    {},
    {"mediaType": ""},
    {"mediaType": None},
    {"mediaType": ...},
    {"mediaType": 5},
    {"layers": ..., "manifests": ...},
    {"layers": {}, "manifests": {}},
]


@pytest.mark.parametrize("changes", ODD_FIELDS, ids=str)
@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_LIST])
def test_the_registry_judges_odd_manifests(
    both: tuple[Registry, Registry], media_type: str, changes: dict[str, Any]
) -> None:
    """Omitted lists, and an empty media type, are accepted and refused as by the registry itself."""
    is_index = media_type in {OCI_INDEX, DOCKER_LIST}
    statuses = []
    for registry in both:
        for blob in (CONFIG, LAYER):
            assert registry.commit(registry.start(), digest_of(blob), blob).status_code == 201
        image = image_of(OCI_MANIFEST)
        assert registry.put(image, OCI_MANIFEST).status_code == 201
        fields = {name: value for name, value in changes.items() if name != ("layers" if is_index else "manifests")}
        document = (
            index_of(media_type, json.dumps(image).encode(), **fields) if is_index else image_of(media_type, **fields)
        )
        pushed = registry.put(document, media_type, "odd")
        statuses.append(pushed.status_code)
        if pushed.status_code == 201:
            pulled = registry.client.get("manifests/odd", headers={"Accept": media_type})
            assert (pulled.json(), pulled.headers["Content-Type"]) == (document, media_type)
    assert statuses[0] == statuses[1]


def as_docker_image(image: Image) -> Image:
    """Return the image with the media types of Docker's schema 2."""
    text = image.manifest.decode().replace(OCI_MANIFEST, DOCKER_MANIFEST).replace(OCI_CONFIG, DOCKER_CONFIG)
    return replace(image, manifest=text.replace(OCI_LAYER, DOCKER_LAYER).encode(), media_type=DOCKER_MANIFEST)


def test_docker_manifest_works(proxy: Proxy, tmp_path: Path) -> None:
    """`docker manifest create`, `push` and `inspect` of a list of an OCI image and one of another repository."""
    require_program("docker")
    user = proxy.add_user("list-maker", pull_push=["lists/**"])
    user.push("lists/app", "1", make_image(random_bytes(1000)))
    user.push("lists/amd64", "1", as_docker_image(make_image(random_bytes(1000))))
    environment = {**os.environ, "DOCKER_CONFIG": str(tmp_path), "DOCKER_CLI_EXPERIMENTAL": "enabled"}
    login = json.dumps(
        {"auths": {proxy.host: {"auth": httpx.BasicAuth("list-maker", "password of a user")._auth_header[6:]}}}
    )
    (tmp_path / "config.json").write_text(login)

    def docker(*arguments: str) -> str:
        done = subprocess.run(
            ["docker", "manifest", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    target, images = f"{proxy.host}/lists/app:all", [f"{proxy.host}/lists/{name}:1" for name in ("amd64", "app")]
    docker("create", "--insecure", target, *images)
    docker("annotate", target, images[0], "--arch", "arm64", "--os", "linux")
    docker("push", "--insecure", target)
    document = json.loads(docker("inspect", "--insecure", target))
    assert sorted(each["platform"]["architecture"] for each in document["manifests"]) == ["amd64", "arm64"]
    for image in images:
        assert json.loads(docker("inspect", "--insecure", image))["layers"]
    for child in document["manifests"]:
        assert user.get("lists/app", f"manifests/{child['digest']}").status_code == 200


# ---------------------------------------------------------------- uploads


AFTER_ITS_END: dict[str, Callable[[Registry, httpx.URL], httpx.Response]] = {
    "PATCH": lambda registry, location: registry.client.patch(location, content=b"x"),
    "PUT": lambda registry, location: registry.commit(location, digest_of(LAYER), LAYER),
    "GET": lambda registry, location: registry.client.get(location),
    "DELETE": lambda registry, location: registry.client.delete(location),
}


@pytest.mark.parametrize("content", [b"", b"some bytes"], ids=["empty", "begun"])
@pytest.mark.parametrize("method", list(AFTER_ITS_END))
def test_a_cancelled_upload_is_over(both: tuple[Registry, Registry], method: str, content: bytes) -> None:
    """After POST and DELETE any request of that upload is 404 BLOB_UPLOAD_UNKNOWN, at whichever worker."""
    for registry in both:
        location = registry.start()
        if content:
            location = registry.append(location, content)
        assert registry.client.delete(location).status_code == 204
        for _ in range(3):
            with httpx.Client(headers=registry.client.headers, timeout=30, verify=False) as another_connection:
                response = AFTER_ITS_END[method](Registry(another_connection), location)
            assert response.status_code == 404, response.text
            if response.content:
                assert response.json()["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"


def finished_upload(registry: Registry, content: bytes) -> httpx.URL:
    """Push a blob as docker, jib and crane do; return the location of its commit."""
    location = registry.append(registry.start(), content)
    assert registry.commit(location, digest_of(content)).status_code == 201
    return location


def test_a_commit_that_is_repeated_succeeds_again(ours: Registry) -> None:
    """A PUT repeated after a lost answer is 201 with the digest and the same Location."""
    content = random_bytes(1000)
    location = finished_upload(ours, content)
    for _ in range(3):
        again = ours.commit(location, digest_of(content))
        assert (again.status_code, again.headers["Docker-Content-Digest"]) == (201, digest_of(content))
        assert again.headers["Location"] == f"/v2/{REPOSITORY}/blobs/{digest_of(content)}"
    at_once = ours.start()
    for _ in range(2):
        assert ours.commit(at_once, digest_of(content), content).status_code == 201


def test_a_repeated_commit_proves_nothing_more(proxy: Proxy, ours: Registry) -> None:
    """With another digest, another subject or a removed blob it is 404, as for any upload that ended."""
    content, other = random_bytes(1000), random_bytes(1000)
    finished_upload(ours, other)
    location = finished_upload(ours, content)
    assert ours.commit(location, digest_of(other)).status_code == 404
    with proxy_client(proxy, "bob") as client:
        assert Registry(client).commit(location, digest_of(content)).status_code == 404
    assert ours.client.delete(f"blobs/{digest_of(content)}").status_code == 202
    assert ours.commit(location, digest_of(content)).status_code == 404


# ---------------------------------------------------------------- tokens


def test_empty_credentials_are_no_credentials(proxy: Proxy) -> None:
    """`Basic Og==`, an empty name with an empty password, is answered as a request without Authorization."""
    for headers in ({}, {"Authorization": "Basic Og=="}):
        answer = httpx.get(f"{proxy.url}/auth/token", headers=headers, verify=False)
        assert answer.status_code == 200
        bearer = {"Authorization": f"Bearer {answer.json()['token']}"}
        assert httpx.get(f"{proxy.url}/v2/", headers=bearer, verify=False).status_code == 200
    for credentials in (("", "x"), ("x", "")):
        assert httpx.get(f"{proxy.url}/auth/token", auth=credentials, verify=False).status_code == 401
