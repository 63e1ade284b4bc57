"""The refresh token that docker keeps in a file is a login to the registry, and no key to the admin API."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import encode_basic_auth
from pytest_aiohttp import AiohttpClient

from registry_proxy.access.grant import GrantInput
from registry_proxy.access.secrets import SecretKind
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.directory.users import UserInput
from tests.support.admin_bench import ADMIN, Node, admin_node

HOME = "192.0.2.1"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """Open an admin node; eve owns the namespace team/**."""
    async with admin_node(tmp_path) as node:
        await node.directory.users.put("eve", UserInput(password="password of eve"))
        await node.directory.grants.add(GrantInput(subject="user:eve", repository="team/**", actions=["manage"]))
        yield node


async def refreshed(node: Node, subject: str) -> tuple[dict[str, str], str]:
    """Log in as docker does with its stored secret; return the header with the new token, and the refresh token."""
    _, text = await node.directory.secrets.add(subject, SecretKind.REFRESH, SecretInput())
    login = await node.control.refresh(text)
    generation = (await node.control.policy()).generation(login.subject)
    assert generation is not None
    token = node.signer.issue(login.subject, generation, (), time.time(), secret_id=login.secret_id).token
    await node.control.authenticate(token, time.time())
    return {"Authorization": f"Bearer {token}"}, text


async def test_a_token_from_a_refresh_token_manages_nothing(node: Node, aiohttp_client: AiohttpClient) -> None:
    """The token creates no administrator, reads no admin resource and gives no grants, as Bearer and as Basic."""
    grant = {"subject": "user:bob", "repository": "team/app", "actions": ["pull"]}
    attempts: list[tuple[str, str, str, Any]] = [
        ("user:admin", "PUT", "/users/mallory", {"password": "password of mallory", "admin": True}),
        ("user:admin", "GET", "/users", None),
        ("user:admin", "POST", "/grants", grant),
        ("user:eve", "POST", "/grants", grant),
        ("user:eve", "GET", "/grants", None),
    ]
    http = await aiohttp_client(node.app)
    for subject, method, path, body in attempts:
        bearer, text = await refreshed(node, subject)
        name = subject.partition(":")[2]
        for headers, status in ((bearer, 403), ({"Authorization": encode_basic_auth(name, text)}, 401)):
            async with http.request(method, f"/admin/v1{path}", headers=headers, json=body) as answer:
                assert answer.status == status, (subject, method, path, await answer.text())
    headers, _ = await refreshed(node, "user:admin")
    async with http.get("/admin/v1/me", headers=headers) as answer:
        assert (answer.status, (await answer.json())["subject"]) == (200, "user:admin")
    with_password = {"Authorization": encode_basic_auth(*ADMIN)}
    async with http.get("/admin/v1/users", headers=with_password) as answer:
        assert (answer.status, "mallory" in await answer.text()) == (200, False)
