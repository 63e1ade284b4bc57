"""The digest of a blob, requested as a manifest, is an unknown manifest, and no fault of the replica.

Reports: registries that answer 500 to it (docker-registry 2.8.2), behind proxies that then take them for dead.
"""

import asyncio
import json

import pytest

from registry_proxy.protocol.descriptor import OCI_MANIFEST
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, digest_of
from registry_proxy.replica.failure import ReplicaFailedError
from tests.conftest import StartProxy
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, open_client
from tests.support.product import make_image, random_bytes
from tests.support.servers import Server

MANIFEST = make_image(b"layer").manifest


def test_a_blob_is_an_unknown_manifest(start_proxy: StartProxy, registries: list[Server]) -> None:
    """404 MANIFEST_UNKNOWN for GET and HEAD, of configuration and layer, small or large; both replicas stay up."""
    proxy = start_proxy(registries)
    ann = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(1000), random_bytes(5 << 20), b"{}", b"[]")
    ann.push("team/app", "1", image)
    for digest in image.blobs:
        answer = ann.get("team/app", f"manifests/{digest}")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")
        assert ann.head("team/app", f"manifests/{digest}").status_code == 404
    assert ann.pull("team/app", image.digest) == image
    assert ": down" not in proxy.log_text()


async def test_a_failure_is_no_absence() -> None:
    """500 stays a failure where the repository has no such blob, or the blob is a manifest, which others may serve."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault("manifests", status=500))

        async def ask(digest: Digest) -> None:
            with pytest.raises(ReplicaFailedError) as failed:
                await client.fetch_manifest(REPOSITORY, digest)
            assert failed.value.outcome == "5xx"

        await ask(digest_of(b"absent"))
        await ask(registry.add_blob(REPOSITORY, MANIFEST))
        await ask(registry.add_blob(REPOSITORY, json.dumps({"mediaType": OCI_MANIFEST}).encode()))
        lie = registry.add_blob(REPOSITORY, b"blob")
        registry.inject(Fault("blobs", body=b"lie!"))
        await ask(lie)
        assert registry.count("GET") == 8


async def test_of_a_large_blob_nothing_is_read() -> None:
    """A blob larger than any manifest is none, by its length or, without a length, at the limit."""
    content = random_bytes(9 << 20)
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_blob(REPOSITORY, content)
        registry.inject(Fault("manifests", status=500))
        for fault in (Fault("blobs", stall_after=1), Fault("blobs", omit=("Content-Length",), stall_after=6 << 20)):
            registry.inject(fault)
            with pytest.raises(RegistryError) as unknown:
                await asyncio.wait_for(client.fetch_manifest(REPOSITORY, digest), 30)
            assert unknown.value.code is ErrorCode.MANIFEST_UNKNOWN
