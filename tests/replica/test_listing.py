"""Lists over all their pages."""

import json

import pytest

from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Tag, digest_of
from registry_proxy.replica.failure import BadUpstreamError
from tests.conftest import StartRegistry
from tests.replica.test_client import in_pieces, manifest_of
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, open_client


async def test_the_tags_of_a_real_registry_are_all_there_and_sorted(start_registry: StartRegistry) -> None:
    """150 tags of a docker-registry come back complete, in order."""
    registry = start_registry()
    tags = [Tag(f"v{i}") for i in range(150)]
    async with open_client(registry.url) as client:
        await client.push_blob(REPOSITORY, Descriptor("a/b", digest_of(b"c"), 1), in_pieces(b"c"))
        for tag in reversed(tags):
            await client.put_manifest(REPOSITORY, tag, manifest_of(b"c"))
        assert await client.list_tags(REPOSITORY) == sorted(tags)


async def test_pages_are_followed_on_the_replica_itself() -> None:
    """Link headers are followed, relative or with any host; entries that are no tags are left out."""
    async with FakeRegistry(page_size=10) as registry, open_client(registry.url) as client:
        registry.add_manifest(REPOSITORY, b"{}", *(f"v{i}" for i in range(95)), "not a tag", "-no")
        assert len(await client.list_tags(REPOSITORY)) == 95
        assert registry.count("GET", "tags/list") == 10
        link = f'<http://registry.internal/v2/{REPOSITORY}/tags/list?n=9&last=a%2Bb>; rel="next"'
        registry.inject(Fault("n=1000", headers={"Link": link}, times=1))
        await client.list_tags(REPOSITORY)
        assert any(r.target == f"/v2/{REPOSITORY}/tags/list?n=9&last=a%2Bb" for r in registry.requests)


async def test_a_page_that_names_itself_is_no_list() -> None:
    """A loop of Link headers is an error, and its entries do not count as the list."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.add_manifest(REPOSITORY, b"{}", "1")
        registry.inject(Fault("tags", headers={"Link": f'</v2/{REPOSITORY}/tags/list?n=1000>; rel="next"'}))
        with pytest.raises(BadUpstreamError, match="does not answer as"):
            await client.list_tags(REPOSITORY)
    assert registry.count("GET") == 1


async def test_no_tags_is_an_empty_list() -> None:
    """A repository whose tags are null has none."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault("tags", status=200, body=b'{"name": "x", "tags": null}'))
        assert await client.list_tags(REPOSITORY) == []


async def test_a_long_list_is_read() -> None:
    """A list of many thousand names in one page is complete."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.add_manifest(REPOSITORY, b"{}", *(f"tag-with-a-long-name-{i:06}" for i in range(20_000)))
        assert len(await client.list_tags(REPOSITORY)) == 20_000


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"tags": 5}', b'{"tags": [', b"[" * 5000])
async def test_a_body_that_is_no_list_is_a_502(body: bytes) -> None:
    """Garbage with 200 is no empty list."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault(status=200, body=body))
        with pytest.raises(BadUpstreamError):
            await client.list_tags(REPOSITORY)


async def test_a_registry_without_a_catalog_says_so() -> None:
    """405 for _catalog is an error, never a list."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault("_catalog", status=405))
        with pytest.raises(RegistryError) as refused:
            await client.list_repositories()
    assert (refused.value.code, refused.value.status) == (ErrorCode.UNSUPPORTED, 405)


async def test_referrers_are_read_over_all_pages() -> None:
    """Descriptors of each page are unchanged; None where a registry has no such API; a 502 if it is no index."""
    digest = digest_of(b"subject")
    entries = [
        {"mediaType": "a/b", "digest": str(digest_of(b"%d" % i)), "size": 1, "artifactType": "x/y"} for i in (1, 2)
    ]
    bodies = [json.dumps({"manifests": [entry]}).encode() for entry in entries]
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        assert await client.fetch_referrers(REPOSITORY, digest) is None
        link = {"Link": f'</v2/{REPOSITORY}/referrers/{digest}?page=2>; rel="next"'}
        registry.inject(Fault("page=2", status=200, body=bodies[1]))
        registry.inject(Fault("referrers", status=200, body=bodies[0], headers=link, times=1))
        referrers = await client.fetch_referrers(REPOSITORY, digest)
        assert [referrer.fields for referrer in referrers or ()] == entries
    for body in (b"", b"[]", b"{}", b'{"manifests": [{}]}', b'{"manifests": [{"digest": "x"}]}'):
        async with FakeRegistry() as registry, open_client(registry.url) as client:
            registry.inject(Fault("referrers", status=200, body=body))
            with pytest.raises(BadUpstreamError):
                await client.fetch_referrers(REPOSITORY, digest)
