"""An admin listener with owners of namespaces."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pytest_aiohttp import AiohttpClient

from registry_proxy.directory.users import UserInput
from tests.support.admin_bench import admin_node, contract_of
from tests.support.owners import Owners


@pytest.fixture
async def owners(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[Owners]:
    """Start an admin listener with the users admin, ann and bob."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        await node.directory.users.put("ann", UserInput(password="the password of ann"))
        bench = Owners(node, http, await contract_of(node, http))
        await bench.grant("user:ann", "team/**", "manage")
        await bench.grant("anonymous", "home/{subject}/**", "manage")
        yield bench
