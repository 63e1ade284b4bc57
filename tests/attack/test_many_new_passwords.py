"""A user who changes their password again and again takes no turn at hashing from an administrator."""

import asyncio
import threading
from pathlib import Path

import pytest
from aiohttp import encode_basic_auth
from pytest_aiohttp import AiohttpClient

from registry_proxy.tasks import spawn
from tests.support.admin_bench import ADMIN, BOB, admin_node
from tests.support.waiting import until

FLOOD = 80


async def test_an_administrator_sets_a_password_beside_a_flood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aiohttp_client: AiohttpClient
) -> None:
    """With every place in the queue taken by one user's changes, an administrator's change gets one and succeeds."""
    gate = threading.Event()
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        passwords = node.directory._passwords
        is_right = passwords._is_right
        monkeypatch.setattr(passwords, "_is_right", lambda *given: gate.wait(60) and is_right(*given))

        async def ask(method: str, path: str, user: tuple[str, str], body: dict[str, str]) -> int:
            headers = {"Authorization": encode_basic_auth(*user)}
            async with http.request(method, f"/admin/v1{path}", json=body, headers=headers) as answer:
                return answer.status

        try:
            again = {"current": BOB[1], "new": BOB[1]}
            flood = [spawn(ask("POST", "/me/password", BOB, again), "flood") for _ in range(FLOOD)]
            turns = passwords._turns
            await until(lambda: sum(map(len, (turns._known, turns._unknown))) == 64)
            new = spawn(ask("PUT", "/users/carol", ADMIN, {"password": "password of carol"}), "new user")
            await until(lambda: new.done() or len(turns._known) == 1)
        finally:
            gate.set()
        assert await new == 201
        assert set(await asyncio.gather(*flood)) <= {204, 400, 401, 412, 429, 503}
