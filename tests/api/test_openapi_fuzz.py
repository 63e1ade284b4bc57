"""The admin API under requests that schemathesis generates from its OpenAPI document, right ones and wrong ones.

A failed run prints its seed; ``FUZZ_SEED=… make test`` sends the same requests again.
"""

import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from pytest_aiohttp import AiohttpClient

from registry_proxy.directory.users import UserInput
from tests.support.admin_bench import admin_node, contract_of

SOAK_SECONDS = 300


async def _fuzz(
    root: Path, aiohttp_client: AiohttpClient, *, seconds: float, examples: int
) -> Counter[tuple[str, int]]:
    """Send rounds of requests until the time is over, at least one."""
    from tests.support.fuzz import PASSWORD, ROOT, Fuzz  # noqa: PLC0415

    seed = int(os.environ.get("FUZZ_SEED") or random.randrange(1 << 32))
    async with admin_node(root) as node:
        http = await aiohttp_client(node.app)
        await node.directory.users.put(ROOT, UserInput(password=PASSWORD, is_admin=True))
        await node.directory.groups.put("dev", ["bob"])
        await node.directory.robots.put("ci", None, [])
        node.verifier.gate.set()
        fuzz = Fuzz(node, (await contract_of(node, http)).document, str(http.make_url("/")).rstrip("/"))
        ends_at = time.monotonic() + seconds
        while True:
            print(f"FUZZ_SEED={seed}")
            await asyncio.to_thread(fuzz.round, seed, examples)
            if time.monotonic() > ends_at:
                break
            seed += 1
    return fuzz.statuses


async def test_no_request_gets_an_answer_that_is_not_described(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    """Any request gets no 5xx and nothing beside the schema; wrong ones are refused, most others understood."""
    statuses = await _fuzz(tmp_path, aiohttp_client, seconds=0, examples=2)
    understood = {operation for operation, status in statuses if status < 300}
    assert len(understood) > len({operation for operation, _ in statuses}) / 2
    assert not {status for _, status in statuses} & {401, 403}


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS * 2)
async def test_no_request_gets_an_answer_that_is_not_described_in_five_minutes(
    tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    """Five minutes of such requests give no answer beside the schema."""
    statuses = await _fuzz(tmp_path, aiohttp_client, seconds=SOAK_SECONDS, examples=30)
    print(statuses)
