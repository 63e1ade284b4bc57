"""Header values of an upstream never reach a client unchecked: a bad one is replaced by a computed value.

Reports: containerd's "unsupported manifest media type" for registries on static hosting, which send no Content-Type or
a general one; Go's "net/http: invalid header field value" from proxies that pass on received values.
"""

import asyncio
import json
from pathlib import Path

import httpx

from registry_proxy.protocol.descriptor import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1_SIGNED,
    OCI_INDEX,
    OCI_MANIFEST,
)
from tests.conftest import StartProxy
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.product import digest_of, make_image
from tests.support.servers import Server

REPOSITORY = "team/app"
IMAGE = json.loads(make_image(b"layer").manifest)
CHILD = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"child"), "size": 5}
UNNAMED = {key: value for key, value in IMAGE.items() if key != "mediaType"}

BODIES = [
    (IMAGE, OCI_MANIFEST),
    ({**IMAGE, "mediaType": DOCKER_MANIFEST}, DOCKER_MANIFEST),
    (UNNAMED, OCI_MANIFEST),
    ({**UNNAMED, "mediaType": ""}, OCI_MANIFEST),
    ({**UNNAMED, "mediaType": "application/\x0bx"}, OCI_MANIFEST),
    ({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [CHILD]}, DOCKER_LIST),
    ({"schemaVersion": 2, "manifests": [CHILD]}, OCI_INDEX),
    ({"schemaVersion": 1, "fsLayers": [], "signatures": [{}]}, DOCKER_SCHEMA1_SIGNED),
    ({"schemaVersion": 2, "number": 1}, "application/octet-stream"),
    ("no manifest", "application/octet-stream"),
]

GOOD_HEADER = "application/vnd.x+json ; charset=utf-8"
HEADERS = [
    "",
    "application/\x0bvnd.oci.image.manifest.v1+json",
    "application/vnd.oci\x1b[31m",
    "application/vnd.oci.image.manifest.v1+json\x7f",
    "application/ünbekannt",
    "manifest",
    "a/" + "b" * 5000,
    "text/plain; charset=utf-8",
    "application/octet-stream",
    "application/json",
]


async def start(start_proxy: StartProxy, tmp_path: Path, registry: FakeRegistry) -> httpx.Client:
    """Start the product in front of a registry; return a client of a user who may read the repository."""
    proxy = await asyncio.to_thread(start_proxy, [Server([], registry.port, tmp_path / "none")])
    user = await asyncio.to_thread(lambda: proxy.add_user("ann", pull=["**"]))
    return await asyncio.to_thread(user.client, REPOSITORY)


async def ask_in_every_way(client: httpx.Client, registry: FakeRegistry, body: bytes, fault: Fault) -> set[str]:
    """Serve a manifest with a fault; return the types that clients get: by tag and digest, HEAD and GET, twice."""
    digest = digest_of(body)
    tag = f"t-{digest[7:]}"
    registry.add_manifest(REPOSITORY, body, tag)
    registry.faults = [fault]
    types = set()
    for path in (f"manifests/{tag}", f"manifests/{digest}"):
        for method in ("HEAD", "GET", "HEAD", "GET"):
            answer = await asyncio.to_thread(client.request, method, path)
            assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (200, digest)
            types.add(answer.headers["Content-Type"])
    return types


async def test_the_media_type_of_a_manifest_is_one(start_proxy: StartProxy, tmp_path: Path) -> None:
    """Without a good Content-Type a manifest gets the type in its body, else that of its shape; cached ones too."""
    async with FakeRegistry() as registry:
        with await start(start_proxy, tmp_path, registry) as client:
            for document, wanted in BODIES:
                fault = Fault(omit=("Content-Type",))
                types = await ask_in_every_way(client, registry, json.dumps(document).encode(), fault)
                assert types == {wanted}, document


async def test_a_content_type_that_is_none_is_as_none(start_proxy: StartProxy, tmp_path: Path) -> None:
    """A malformed, general or endless Content-Type counts as absent; of a good one only the type is passed on."""
    async with FakeRegistry() as registry:
        with await start(start_proxy, tmp_path, registry) as client:
            for number, header in enumerate([*HEADERS, GOOD_HEADER]):
                fault = Fault(headers={"Content-Type": header}, is_raw=True)
                body = json.dumps({**IMAGE, "annotations": {"n": str(number)}}).encode()
                types = await ask_in_every_way(client, registry, body, fault)
                assert types == {"application/vnd.x+json" if header is GOOD_HEADER else OCI_MANIFEST}, header


async def test_a_digest_or_length_that_is_none_is_worked_out(start_proxy: StartProxy, tmp_path: Path) -> None:
    """An unknown Docker-Content-Digest counts as absent; other headers of the upstream are not passed on."""
    foreign = {"ETag": '"x\x1b"', "Warning": "299 - \x0b", "Link": "<\x0b>", "Location": "\x1b", "Retry-After": "\x0b"}
    async with FakeRegistry() as registry:
        with await start(start_proxy, tmp_path, registry) as client:
            for number, digest in enumerate(["sha256:\x1b", "", "sha256:ab", "blake3:" + "a" * 64]):
                fault = Fault(headers={"Docker-Content-Digest": digest, **foreign}, is_raw=True)
                body = json.dumps({**IMAGE, "annotations": {"n": str(number)}}).encode()
                assert await ask_in_every_way(client, registry, body, fault) == {OCI_MANIFEST}
                blob = registry.add_blob(REPOSITORY, body)
                for method in ("HEAD", "GET"):
                    answer = await asyncio.to_thread(client.request, method, f"blobs/{blob}")
                    assert (answer.status_code, answer.headers["Content-Length"]) == (200, str(len(body)))
