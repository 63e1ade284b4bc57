"""GET /admin/v1/repositories: repositories in the store and in the node's cache, under the names of today's routes."""

import time
from pathlib import Path
from typing import Any

from pytest_aiohttp import AiohttpClient

from registry_proxy.cache.holdings import FileHoldings
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.store import Change, Table
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.reference import Repository, Tag, digest_of
from registry_proxy.replication.manifests import manifest_record_key
from registry_proxy.replication.tag_records import tag_record_key
from tests.support.admin_bench import admin_node, contract_of

D = digest_of(b"content")


def _routed(name: str, upstream: str = "main") -> RoutedRepository:
    return RoutedRepository(upstream, Repository(name))


async def test_known_repositories_are_listed_by_name_in_pages(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    """Pushed and cached repositories are listed once each and sorted; a prefix filters, and pages follow each other."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        contract = await contract_of(node, http)
        headers = {"Authorization": f"Bearer {node.signer.issue('user:admin', 0, (), time.time()).token}"}

        async def listed(query: str = "") -> tuple[int, Any]:
            async with http.get(f"/admin/v1/repositories{query}", headers=headers) as response:
                document = await response.json()
                contract.check("GET", "/admin/v1/repositories", response.status, response.content_type, document)
                return response.status, document

        assert await listed() == (200, {"items": [], "next": None})
        tags = [Change(Table.TAGS, tag_record_key(_routed("team/app"), Tag(tag)), {}) for tag in ("v1", "v2")]
        pushed = Change(Table.MANIFESTS, manifest_record_key(_routed("team/untagged"), D), {})
        elsewhere = Change(Table.TAGS, tag_record_key(_routed("gone", "no-more"), Tag("v1")), {})
        await node.store.commit([*tags, pushed, elsewhere])
        holdings = FileHoldings(tmp_path / "cache")
        for name in ("team/app", "library/alpine"):
            holdings.remember(_routed(name), ContentKind.BLOB, Descriptor("x/y", D, 7))
        alpine = {"name": "library/alpine", "upstream": "main", "tags_on_record": 0, "cached": True}
        app = {"name": "team/app", "upstream": "main", "tags_on_record": 2, "cached": True}
        untagged = {"name": "team/untagged", "upstream": "main", "tags_on_record": 0, "cached": False}
        assert (await listed())[1]["items"] == [alpine, app, untagged]
        assert (await listed("?prefix=team/"))[1]["items"] == [app, untagged]
        assert (await listed("?prefix=team/&limit=1"))[1] == {"items": [app], "next": "team/app"}
        assert (await listed("?prefix=team/&limit=1&after=team/app"))[1] == {"items": [untagged], "next": None}
        assert (await listed("?name=team"))[0] == 400
