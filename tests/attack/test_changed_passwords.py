"""A login with the old password that runs while the password changes ends with it, and changes nothing."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pytest_aiohttp import AiohttpClient

from registry_proxy.access.credentials import LoginRefusedError
from registry_proxy.access.secrets import SecretKind
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.directory.users import UserInput
from tests.support.admin_bench import Node, admin_node

HOME = "192.0.2.1"
OLD, NEW, THIEFS = "the old password", "the new password", "password of a thief"


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """Open an admin node with the user ann, whose password is changed while the first login with it is judged."""
    async with admin_node(tmp_path) as node:
        await node.directory.users.put("ann", UserInput(password=OLD))
        passwords, changes = node.control._logins.passwords, [NEW]
        verify = passwords.verify

        async def late(*given: object) -> bool:
            is_right = await verify(*given)  # type: ignore[arg-type]  # as they were given
            if changes:
                await node.directory.users.put("ann", UserInput(password=changes.pop()))
            return is_right

        monkeypatch.setattr(passwords, "verify", late)
        yield node


async def test_a_login_ends_with_the_password(node: Node) -> None:
    """A running login with the old password is refused; one with the new password has the next generation."""
    with pytest.raises(LoginRefusedError):
        await node.control.login("ann", OLD, HOME)
    assert (await node.control.login("ann", NEW, HOME)).generation == 1


async def test_a_refresh_token_ends_with_the_password_that_it_was_made_for(node: Node) -> None:
    """A refresh token stored after the change is refused too: it has the generation of its login."""
    with pytest.raises(LoginRefusedError):
        await node.control.login("ann", OLD, HOME)
    _, text = await node.directory.secrets.add("user:ann", SecretKind.REFRESH, SecretInput(), generation=0)
    with pytest.raises(LoginRefusedError):
        await node.control.refresh(text)


async def test_the_old_password_puts_no_other_in_the_place_of_the_new_one(
    node: Node, aiohttp_client: AiohttpClient
) -> None:
    """A change with the old password, during another change, is refused: it is not the current one any more."""
    token = node.signer.issue("user:ann", 0, (), time.time()).token
    headers = {"Authorization": f"Bearer {token}"}
    http = await aiohttp_client(node.app)
    asked = {"current": OLD, "new": THIEFS}
    async with http.post("/admin/v1/me/password", json=asked, headers=headers) as answer:
        assert (answer.status, (await answer.json())["errors"][0]["pointer"]) == (400, "#/current")
    assert await node.directory.users.has_password("ann", NEW)
