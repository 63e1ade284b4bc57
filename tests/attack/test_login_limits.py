"""The limit on failed logins cannot be evaded, and refuses nobody who does not guess."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from registry_proxy.access.control import AccessControl
from registry_proxy.access.credentials import LoginRefusedError, TooManyLoginsError
from registry_proxy.access.secrets import SecretKind
from registry_proxy.access.tokens import TokenVerifier
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.directory.users import UserInput
from registry_proxy.store.open import open_store
from tests.support.passwords import quick_passwords
from tests.support.servers import Server

PASSWORD = "password of ann"
HOME = "192.0.2.1"

Open = Callable[..., Awaitable[AccessControl]]


@pytest.fixture
async def open_worker(tmp_path: Path) -> AsyncIterator[Open]:
    """Return a function that opens a worker of a node, over one SQLite file or the store of a URL; ann is a user."""
    async with AsyncExitStack() as stack:

        async def open_(node: str = "one", url: str | None = None) -> AccessControl:
            url = url or f"sqlite:///{tmp_path / 'store.db'}"
            store, watch = await stack.enter_async_context(open_store(url, str(tmp_path / f"{node}.page")))
            with quick_passwords():
                directory = Directory(store)
                control = AccessControl(store, watch, TokenVerifier("registry-proxy"), outage_max_age_seconds=3600)
            stack.push_async_callback(directory.aclose)
            stack.push_async_callback(control.aclose)
            await directory.users.put("ann", UserInput(password=PASSWORD))
            await control.policy()
            return control

        yield open_


async def fail(control: AccessControl, address: str = HOME, name: str = "ann") -> None:
    """Try a wrong password; it is compared and refused."""
    with pytest.raises(LoginRefusedError):
        await control.login(name, "wrong", address)


async def is_limited(control: AccessControl, address: str = HOME) -> bool:
    """Tell whether even the right password must wait."""
    try:
        await control.login("ann", PASSWORD, address)
    except TooManyLoginsError:
        return True
    return False


async def test_attempts_at_other_names_free_nobody(open_worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures at a thousand other names, which cost the attacker no wait, do not displace those at one name."""
    control = await open_worker()
    for _ in range(10):
        await fail(control)
    assert await is_limited(control)

    async def full(*_: object) -> bool:
        raise TooManyLoginsError(2)

    monkeypatch.setattr(control._logins.passwords, "verify", full)
    for number in range(1000):
        with pytest.raises(TooManyLoginsError):
            await control.login(f"name{number}", "wrong", HOME)
    monkeypatch.undo()
    assert await is_limited(control)


async def test_passwords_that_cannot_be_right_free_nobody(open_worker: Open) -> None:
    """Nor do failures at a thousand names with passwords that are too long to be compared."""
    control = await open_worker()
    for _ in range(10):
        await fail(control)
    for number in range(1000):
        with pytest.raises(LoginRefusedError):
            await control.login(f"name{number}", "x" * 1025, HOME)
    assert await is_limited(control)


@pytest.mark.parametrize(
    ("addresses", "other"),
    [
        ([f"2001:db8:0:1::{number:x}" for number in range(11)], "2001:db8:0:2::1"),
        (["192.0.2.1", "::ffff:192.0.2.1"] * 6, "::ffff:192.0.2.2"),
    ],
)
async def test_the_addresses_of_one_owner_count_as_one(open_worker: Open, addresses: list[str], other: str) -> None:
    """The addresses of a /64 are one, as are an IPv4 address and its mapped form; their neighbours are not."""
    control = await open_worker()
    for address in addresses[:10]:
        await fail(control, address)
    assert await is_limited(control, addresses[10])
    assert not await is_limited(control, other)


async def test_the_workers_of_a_node_count_together(open_worker: Open) -> None:
    """Failures at each of three workers are failures of the node."""
    workers = [await open_worker() for _ in range(3)]
    for number in range(10):
        await fail(workers[number % 3])
    assert [await is_limited(worker) for worker in workers] == [True, True, True]


async def test_the_nodes_of_a_redis_count_together(open_worker: Open, redis: Server) -> None:
    """Failures at two nodes count together; while Redis is away each node counts by itself."""
    url = f"redis://127.0.0.1:{redis.port}/0"
    nodes = [await open_worker(name, url) for name in ("one", "two")]
    for number in range(10):
        await fail(nodes[number % 2])
    assert [await is_limited(node) for node in nodes] == [True, True]
    redis.stop()
    for _ in range(10):
        await fail(nodes[0], "192.0.2.2")
    assert [await is_limited(node, "192.0.2.2") for node in nodes] == [True, False]


async def test_dead_refresh_tokens_lock_nobody_out(open_worker: Open, tmp_path: Path) -> None:
    """Thirty removed refresh tokens and unknown secrets lock out no right one from the same address."""
    control = await open_worker()
    directory = Directory(control.snapshots._store)
    _, token = await directory.secrets.add("user:ann", SecretKind.REFRESH, SecretInput())
    await directory.robots.put("ci", None, [])
    _, secret = await directory.secrets.add("robot:ci", SecretKind.ROBOT, SecretInput())
    await directory.aclose()

    def other(text: str) -> str:
        return text[:-43] + secrets.token_urlsafe(32)

    for _ in range(30):
        with pytest.raises(LoginRefusedError):
            await control.refresh(other(token))
        with pytest.raises(LoginRefusedError):
            await control.login("robot$ci", other(secret), HOME)
    assert (await control.refresh(token)).subject == "user:ann"
    assert (await control.login("robot$ci", secret, HOME)).subject == "robot:ci"


async def test_guesses_at_once_are_ten(open_worker: Open) -> None:
    """Of a hundred guesses at one user at the same moment ten are compared."""
    control = await open_worker()
    guesses = (control.login("ann", f"guess {number}", HOME) for number in range(100))
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    assert sum(isinstance(answer, LoginRefusedError) for answer in answers) == 10
