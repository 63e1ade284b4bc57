"""Third-party registries serve through the product with their known peculiarities.

Reports: pull-through proxies and mirrors that fail before GHCR, ECR Public, Harbor, Quay and Artifactory, one manner at
a time; each of the five is a fake after its documentation and its issues
(tests/support/fakes/manners.py).
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.conftest import StartProxy
from tests.support.fakes.manners import MANNERS, registry_with
from tests.support.fakes.registry import FakeRegistry
from tests.support.product import Image, Proxy, digest_of, make_image, random_bytes
from tests.support.servers import Server

TAGS = [f"v{number:04d}" for number in range(120)]
BASE = random_bytes(200_000)
FIRST, SECOND = make_image(BASE, b"first"), make_image(BASE, b"second")
OTHER = make_image(b"other")


def add_image(registry: FakeRegistry, repository: str, image: Image, *tags: str) -> None:
    """Put an image into a registry."""
    for blob in image.blobs.values():
        registry.add_blob(repository, blob)
    registry.add_manifest(repository, image.manifest, *tags)


def use(proxy: Proxy, name: str) -> None:
    """Use one upstream as clients and operators do."""
    ann = proxy.add_user(name, pull=[f"{name}/**"])
    assert ann.pull(f"{name}/team/first", "1") == FIRST
    assert ann.head(f"{name}/team/second", f"blobs/{digest_of(BASE)}").headers["Content-Length"] == str(len(BASE))
    assert ann.pull(f"{name}/team/second", "v0001") == SECOND
    assert ann.head(f"{name}/team/second", "manifests/v0002").headers["Docker-Content-Digest"] == SECOND.digest
    assert ann.get(f"{name}/team/second", "tags/list").json()["tags"] == TAGS
    assert ann.get(f"{name}/team/second", "manifests/absent").status_code == 404
    for method in (ann.head, ann.get):
        assert method(f"{name}/team/other", f"blobs/{digest_of(BASE)}").status_code == 404
    with ann.client(f"{name}/team/first") as client:
        catalog = client.get(f"{proxy.url}/v2/_catalog")
    names = [f"{name}/team/{one}" for one in ("first", "other", "second")]
    if MANNERS[name].has_catalog:
        assert catalog.json()["repositories"] == names
    verified = proxy.command("replica", "verify", name)
    assert verified.exit_code == 0, verified.output
    assert ann.get(f"{name}/team/first", "manifests/1").status_code == 200


async def test_each_serves_pulls_lists_and_comparisons(start_proxy: StartProxy, tmp_path: Path) -> None:
    """Two images on one base, lists over pages, absent objects and `replica verify` work; all registries stay up."""
    async with AsyncExitStack() as stack:
        upstreams: dict[str, Any] = {}
        for name, manners in MANNERS.items():
            # Without a list of repositories two of them cannot be compared.
            replicas = [registry_with(manners) for _ in range(1 + manners.has_catalog)]
            registries = [await stack.enter_async_context(replica) for replica in replicas]
            for registry in registries:
                add_image(registry, "team/first", FIRST, "1")
                add_image(registry, "team/second", SECOND, *TAGS)
                add_image(registry, "team/other", OTHER, "1")
            upstreams[name] = {"read_only": True, "replicas": [{"url": registry.url} for registry in registries]}
        plain = await stack.enter_async_context(FakeRegistry())
        routes: list[Any] = [{"prefix": f"{name}/", "upstream": name, "strip_prefix": True} for name in MANNERS]
        settings = {"upstreams": upstreams, "routes": [*routes, {"prefix": "", "upstream": "main"}]}
        servers = [Server([], plain.port, tmp_path / "none")]
        proxy = await asyncio.to_thread(start_proxy, servers, settings)
        for name in MANNERS:
            await asyncio.to_thread(use, proxy, name)
        states = await asyncio.to_thread(proxy.command, "replica", "list", "--json")
        assert "credentials_refused" not in states.output
        assert "not_a_registry" not in states.output
        assert '"down"' not in states.output
