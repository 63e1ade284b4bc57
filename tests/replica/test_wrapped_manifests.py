"""Manifests that a real registry refuses as they are, through its client."""

import json
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from registry_proxy.protocol.descriptor import Descriptor, Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Repository, Tag, digest_of, kept_tag
from registry_proxy.replica.client import HttpReplicaClient
from tests.conftest import StartRegistry
from tests.support.fakes.images import Parts, image, index
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, open_client, read_all

CHILDREN = image(b"one", algorithm="sha512"), image(b"two", algorithm="sha512")
INDEX = index(*CHILDREN, algorithm="sha512")
TAG = Tag("1")


def whole(content: bytes) -> Callable[[], AsyncIterator[bytes]]:
    """Return a function that gives the content as a body."""

    async def body() -> AsyncIterator[bytes]:
        yield content

    return body


async def push(client: HttpReplicaClient, parts: Parts, tag: Tag | None = None) -> Manifest:
    """Push an image with its blobs, by digest or under a tag."""
    for blob in parts.blobs:
        descriptor = Descriptor("application/octet-stream", digest_of(blob, parts.algorithm), len(blob))
        await client.push_blob(REPOSITORY, descriptor, whole(blob))
    manifest = Manifest(parts.descriptor, parts.manifest)
    await client.put_manifest(REPOSITORY, tag or parts.digest, manifest)
    return manifest


async def push_index(client: HttpReplicaClient) -> list[Manifest]:
    """Push an index of two images, with a tag on it; return all three."""
    return [*[await push(client, child) for child in CHILDREN], await push(client, INDEX, TAG)]


async def test_manifests_are_read_by_their_sha512(start_registry: StartRegistry) -> None:
    """Images and indexes of them are served with their bytes and types; a tag leads to its sha512."""
    async with open_client(start_registry().url, may_wrap=True) as client:
        for manifest in await push_index(client):
            assert await client.fetch_manifest(REPOSITORY, manifest.descriptor.digest) == manifest
        assert await client.resolve_tag(REPOSITORY, TAG) == INDEX.descriptor
        await client.put_manifest(REPOSITORY, TAG, Manifest(CHILDREN[0].descriptor, CHILDREN[0].manifest))
        assert await client.resolve_tag(REPOSITORY, TAG) == CHILDREN[0].descriptor


async def test_a_garbage_collection_keeps_everything(start_registry: StartRegistry) -> None:
    """All manifests and blobs survive the removal of untagged manifests: the registry counts blobs by sha256."""
    registry = start_registry()
    async with open_client(registry.url, may_wrap=True) as client:
        pushed = await push_index(client)
        command = ["docker-registry", "garbage-collect", "--delete-untagged", registry.arguments[-1]]
        subprocess.run(command, check=True, capture_output=True, timeout=60)  # noqa: ASYNC221 - nothing else runs
        registry.stop()  # it remembers blobs
        registry.start()
        for manifest in pushed:
            assert await client.fetch_manifest(REPOSITORY, manifest.descriptor.digest) == manifest
        for blob in (blob for child in CHILDREN for blob in child.blobs):
            async with client.open_blob(REPOSITORY, digest_of(blob, "sha512")) as stream:
                assert await read_all(stream) == blob


async def test_a_deleted_manifest_is_gone_with_its_tags(start_registry: StartRegistry) -> None:
    """Neither the digest nor a tag leads to it any more, and a second delete is no error."""
    async with open_client(start_registry().url, may_wrap=True) as client:
        await push_index(client)
        for _ in range(2):
            await client.delete_manifest(REPOSITORY, INDEX.digest)
        with pytest.raises(RegistryError) as error:
            await client.fetch_manifest(REPOSITORY, INDEX.digest)
        assert error.value.code is ErrorCode.MANIFEST_UNKNOWN
        with pytest.raises(RegistryError):
            await client.resolve_tag(REPOSITORY, TAG)
        assert await client.list_tags(REPOSITORY) == sorted(kept_tag(child.digest) for child in CHILDREN)


async def test_a_tag_is_deleted_alone(start_registry: StartRegistry) -> None:
    """The manifest of the deleted tag stays."""
    async with open_client(start_registry().url, may_wrap=True) as client:
        manifest = await push(client, CHILDREN[0], TAG)
        await client.delete_tag(REPOSITORY, TAG)
        with pytest.raises(RegistryError):
            await client.resolve_tag(REPOSITORY, TAG)
        assert await client.fetch_manifest(REPOSITORY, manifest.descriptor.digest) == manifest


async def test_a_missing_part_is_reported_as_of_the_manifest(start_registry: StartRegistry) -> None:
    """A manifest whose blobs the registry misses is refused with that reason, and nothing of it is stored."""
    async with open_client(start_registry().url, may_wrap=True) as client:
        with pytest.raises(RegistryError) as error:
            await client.put_manifest(REPOSITORY, TAG, Manifest(CHILDREN[0].descriptor, CHILDREN[0].manifest))
        assert error.value.code is ErrorCode.MANIFEST_BLOB_UNKNOWN
        for question in (client.resolve_tag(REPOSITORY, TAG), client.fetch_manifest(REPOSITORY, CHILDREN[0].digest)):
            with pytest.raises(RegistryError):
                await question


async def test_a_wrapper_from_elsewhere_is_an_ordinary_manifest(start_registry: StartRegistry) -> None:
    """A wrapper under a tag, which the repository does not keep, gives nobody the manifest that it carries."""
    async with open_client(start_registry().url, may_wrap=True) as client:
        await push(client, CHILDREN[0], TAG)
        kept = await client._stored.get(REPOSITORY, TAG)
        other = Repository("team/other")
        for blob in CHILDREN[0].blobs:
            await client.push_blob(other, Descriptor("", digest_of(blob), len(blob)), whole(blob))
        await client._stored.put(other, TAG, kept)
        assert await client.resolve_tag(other, TAG) == kept.descriptor
        with pytest.raises(RegistryError):
            await client.fetch_manifest(other, CHILDREN[0].digest)


async def test_a_reserved_tag_on_something_else_leads_nowhere(start_registry: StartRegistry) -> None:
    """The bytes are compared with the digest, whatever the tag says."""
    async with open_client(start_registry().url, may_wrap=True) as client:
        await push(client, CHILDREN[0])
        other = await client._stored.get(REPOSITORY, kept_tag(CHILDREN[0].digest))
        await client._stored.put(REPOSITORY, kept_tag(CHILDREN[1].digest), other)
        with pytest.raises(RegistryError) as error:
            await client.fetch_manifest(REPOSITORY, CHILDREN[1].digest)
        assert error.value.code is ErrorCode.MANIFEST_UNKNOWN


async def test_manifests_in_sha256_cost_nothing_more() -> None:
    """A push costs one PUT, a tag one HEAD, a manifest one GET; only an absent one costs a second request."""
    async with FakeRegistry() as registry, open_client(registry.url, may_wrap=True) as client:
        parts = image(b"1")
        await client.put_manifest(REPOSITORY, TAG, Manifest(parts.descriptor, parts.manifest))
        await client.resolve_tag(REPOSITORY, TAG)
        await client.fetch_manifest(REPOSITORY, parts.digest)
        with pytest.raises(RegistryError):
            await client.fetch_manifest(REPOSITORY, digest_of(b"absent"))
        assert [request.method for request in registry.requests if "/manifests/" in request.target] == [
            "PUT",
            "HEAD",
            "GET",
            "GET",
            "GET",
        ]


async def test_a_registry_that_knows_sha512_keeps_it_itself() -> None:
    """Where the registry stores the manifest by its digest and sets the tag, nothing else is pushed."""
    fault = Fault(r"/manifests/sha512:", "PUT", status=201, headers={"OCI-Tag": TAG})
    async with FakeRegistry() as registry, open_client(registry.url, may_wrap=True) as client:
        registry.inject(fault)
        await client.put_manifest(REPOSITORY, TAG, Manifest(CHILDREN[0].descriptor, CHILDREN[0].manifest))
        puts = [request.target for request in registry.requests if request.method == "PUT"]
        assert puts == [f"/v2/{REPOSITORY}/manifests/{CHILDREN[0].digest}?tag={TAG}"]


def foreign(*layers: bytes) -> Parts:
    """Return an image of layers, and of one that lies elsewhere."""
    parts = image(*layers)
    document = json.loads(parts.manifest)
    media_type = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    away = {"mediaType": media_type, "digest": str(digest_of(b"away")), "size": 4, "urls": ["https://a.example/1"]}
    return replace(parts, manifest=json.dumps(document | {"layers": [away, *document["layers"]]}).encode())


async def test_a_layer_elsewhere_costs_only_where_it_is_refused(start_registry: StartRegistry) -> None:
    """A registry that accepts the manifest stores it unchanged; one that refuses it has one wrapper under every tag."""
    parts, other = foreign(b"layer"), Tag("2")
    manifest = Manifest(parts.descriptor, parts.manifest)
    async with FakeRegistry() as registry, open_client(registry.url, may_wrap=True) as client:
        await client.put_manifest(REPOSITORY, TAG, manifest)
        assert [request.method for request in registry.requests if "/manifests/" in request.target] == ["PUT"]
    async with open_client(start_registry().url, may_wrap=True) as client:
        await push(client, parts, TAG)
        await client.push_blob(REPOSITORY, Descriptor("", digest_of(b"away"), 4), whole(b"away"))
        await client.put_manifest(REPOSITORY, other, manifest)
        stored = {(await client._stored.get(REPOSITORY, tag)).descriptor.digest for tag in (TAG, other)}
        assert len(stored) == 1
        await client.delete_manifest(REPOSITORY, parts.digest)
        assert await client.list_tags(REPOSITORY) == []


async def test_another_refusal_is_passed_on(start_registry: StartRegistry) -> None:
    """No wrapper is made for a layer that lies nowhere, nor after a refusal for another reason."""
    async with open_client(start_registry().url, may_wrap=True) as client:
        for parts in (image(b"nowhere"), foreign(b"nowhere"), index(image(b"nowhere"))):
            with pytest.raises(RegistryError) as error:
                await client.put_manifest(REPOSITORY, TAG, Manifest(parts.descriptor, parts.manifest))
            assert error.value.code is ErrorCode.MANIFEST_BLOB_UNKNOWN
            assert str(digest_of(b"away")) not in str(error.value.detail)
        with pytest.raises(RegistryError):
            await client.list_tags(REPOSITORY)
