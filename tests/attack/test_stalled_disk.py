"""A stalled cache disk: calls to it neither return nor fail. The node goes on without it, and says so."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.support.disks import mounted_by_program, mounted_disk
from tests.support.product import Image, Proxy, User, make_image, random_bytes
from tests.support.servers import wait_until

REPOSITORY = "team/app"
LIMIT_SECONDS = 90.0
"""The time limit of every wait: far above the delays of a busy machine."""


class Stalls(Protocol):
    """A disk that stalls for the length of a with block."""

    @property
    def path(self) -> Path: ...
    def stalled(self) -> AbstractContextManager[None]: ...


@pytest.fixture(params=["writes", "everything"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stalls]:
    """Mount a disk on which writes stall, or every call."""
    if request.param == "writes":
        with mounted_disk(tmp_path / "disk", 64) as frozen:
            yield frozen
    else:
        with mounted_by_program(tmp_path / "disk") as hung:
            yield hung


def says(proxy: Proxy) -> dict[str, Any] | None:
    """Return the answer of /readyz; both health checks must answer soon."""
    with suppress(httpx.TransportError):
        if httpx.get(f"{proxy.url}/healthz", timeout=5).status_code == 200:
            answer: dict[str, Any] = httpx.get(f"{proxy.admin_url}/readyz", timeout=5).json()
            return answer
    return None


def is_stalled(proxy: Proxy) -> bool:
    """Tell whether the node serves, and reports that the disk of its cache does not answer."""
    state = says(proxy)
    return state is not None and state["ready"] and any("does not answer" in text for text in state["warnings"])


def ask_on(user: User, path: str, ended: list[int | None]) -> None:
    """Send a request repeatedly; note each answer, None for a connection that was cut."""
    with user.client(REPOSITORY) as client:
        while len(ended) < 1000 and (not ended or ended[-1] == 200):
            try:
                ended.append(client.get(path).status_code)
            except httpx.TimeoutException:
                ended.append(0)
            except httpx.TransportError:
                ended.append(None)


def test_a_node_goes_on_without_the_disk_of_its_cache(
    start_proxy: StartProxy, start_registry: StartRegistry, disk: Stalls
) -> None:
    """Health checks answer, no client hangs, pulls and pushes pass through, and the cache returns with its disk."""
    registry = start_registry()
    proxy = start_proxy([registry], {"workers": 2, "cache": {"path": str(disk.path / "cache"), "min_free": "0"}})
    user = proxy.add_user("ann", pull_push=["team/**"])
    user.timeout_seconds = LIMIT_SECONDS
    old = make_image(random_bytes(20_000), random_bytes(3_000_000))
    user.push(REPOSITORY, "old", old)
    user.pull(REPOSITORY, "old")
    digest = next(iter(old.blobs))
    ended: list[list[int | None]] = [[] for _ in range(4)]
    callers = [threading.Thread(target=ask_on, args=(user, f"/blobs/{digest}", each)) for each in ended]
    with disk.stalled():
        for caller in callers:
            caller.start()
        wait_until(lambda: is_stalled(proxy), "the node goes on", timeout_seconds=LIMIT_SECONDS)
        assert proxy.metric("registry_proxy_cache_disk_stalled") == 1
        assert "replaced in" not in proxy.log_text(), "a worker that would hang, too, was started"
        assert user.pull(REPOSITORY, "old").blobs == old.blobs
        new: Image = make_image(random_bytes(30_000))
        user.push(REPOSITORY, "new", new)
        assert user.pull(REPOSITORY, "new").blobs == new.blobs
        for caller in callers:
            caller.join(LIMIT_SECONDS)
        assert all(each[-1] != 0 for each in ended), "a caller was left hanging"
        assert not any(caller.is_alive() for caller in callers)
    wait_until(
        lambda: (says(proxy) or {}).get("warnings") == [], "the disk is used again", timeout_seconds=LIMIT_SECONDS
    )
    assert user.get(REPOSITORY, f"blobs/{digest}").headers["X-Cache"] == "HIT"
    assert proxy.metric("registry_proxy_cache_disk_stalled") == 0
    assert user.pull(REPOSITORY, "new").blobs == new.blobs


def test_a_push_that_waits_for_the_disk_is_let_go(
    start_proxy: StartProxy, start_registry: StartRegistry, tmp_path: Path
) -> None:
    """A push also ends where only a thread of its worker hangs: its client pushes again and succeeds."""
    with mounted_by_program(tmp_path / "disk") as disk:
        settings = {"workers": 1, "cache": {"path": str(disk.path / "cache"), "min_free": "0"}}
        proxy = start_proxy([start_registry()], settings)
        user = proxy.add_user("ann", pull_push=["team/**"])
        user.timeout_seconds = LIMIT_SECONDS
        image = make_image(random_bytes(20_000))
        user.push(REPOSITORY, "1", image)
        (worker,) = proxy.workers()
        with disk.stalled():
            with suppress(httpx.TransportError):
                user.push_manifest(REPOSITORY, "2", image)
            wait_until(lambda: is_stalled(proxy), "the node goes on", timeout_seconds=LIMIT_SECONDS)
            assert user.push_manifest(REPOSITORY, "2", image).status_code == 201
        wait_until(lambda: not worker.is_running(), "the worker has ended", timeout_seconds=LIMIT_SECONDS)


def test_a_node_whose_store_hangs_too_says_so(
    start_proxy: StartProxy, start_registry: StartRegistry, tmp_path: Path
) -> None:
    """With store and cache on one disk no worker can start: every request gets a reason, until the disk answers."""
    with mounted_disk(tmp_path / "disk", 64) as disk:
        on_disk = {"cache": {"path": f"{disk.path}/cache", "min_free": "0"}, "store": f"sqlite:///{disk.path}/store.db"}
        proxy = start_proxy([start_registry()], on_disk)

        def refusal(url: str) -> str:
            with suppress(httpx.TransportError):
                answer = httpx.get(f"{url}/healthz", timeout=5)
                if answer.status_code == 503:
                    return str(answer.json()["errors"][0]["message"])
            return ""

        with disk.stalled():
            for url in (proxy.url, proxy.admin_url):
                wait_until(lambda: "has not answered" in refusal(url), "it is reported", timeout_seconds=LIMIT_SECONDS)  # noqa: B023 - called at once
        wait_until(lambda: (says(proxy) or {}).get("warnings") == [], "it serves", timeout_seconds=LIMIT_SECONDS)
