"""A real admin listener in a thread, and the program run against it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from registry_proxy.cli.main import app
from tests.support.admin_bench import ADMIN, Node, admin_node

Run = Callable[..., Result]


async def _serve(root: Path, started: Callable[[asyncio.Event, str, Node], None]) -> None:
    stop = asyncio.Event()
    async with admin_node(root) as node:
        runner = web.AppRunner(node.app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            started(stop, f"http://127.0.0.1:{runner.addresses[0][1]}", node)
            await stop.wait()
        finally:
            await runner.cleanup()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[str, Node]]:
    """Run an admin listener; give its URL and its node."""
    ready = threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, str, Node]] = []

    def started(stop: asyncio.Event, url: str, node: Node) -> None:
        running.append((asyncio.get_running_loop(), stop, url, node))
        ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(_serve(tmp_path, started)))
    thread.start()
    assert ready.wait(20)
    loop, stop, url, node = running[0]
    yield url, node
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove all credentials from the environment and the home."""
    for name in ("URL", "USER", "PASSWORD"):
        monkeypatch.delenv(f"REGISTRY_PROXY_ADMIN_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return monkeypatch


@pytest.fixture
def run(environment: pytest.MonkeyPatch, listener: tuple[str, Node]) -> Run:
    """Return a function that runs the program as the admin: ``run("user", "list", stdin="")``."""
    environment.setenv("REGISTRY_PROXY_ADMIN_URL", listener[0])
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", ADMIN[1])

    def invoke(*arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(app, arguments, input=stdin)

    return invoke
