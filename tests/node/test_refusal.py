"""Answers in place of workers: every request gets a reason, and the listener stays open."""

import asyncio

import httpx
import pytest

from registry_proxy.node.listeners import bind_listeners
from registry_proxy.node.refusal import refusing
from tests.support.servers import free_port


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_each_request_is_refused_with_the_reason(method: str) -> None:
    """The answer is 503 with Retry-After and our error, no body for HEAD; the socket still listens behind it."""
    port = free_port()
    (listener,) = bind_listeners("127.0.0.1", port, 1)
    with listener:
        async with refusing([listener], "the disk hangs"), httpx.AsyncClient() as client:
            answer = await client.request(method, f"http://127.0.0.1:{port}/healthz")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
        if method != "HEAD":
            assert answer.json()["errors"][0]["message"] == "the disk hangs"
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
