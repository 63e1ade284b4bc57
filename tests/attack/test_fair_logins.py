"""A flood of wrong passwords locks nobody out at other addresses: turns at hashing are shared by address."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from registry_proxy.access.control import AccessControl
from registry_proxy.access.credentials import LoginRefusedError, TooManyLoginsError
from registry_proxy.access.logins import LoginResult
from registry_proxy.access.tokens import TokenVerifier
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.users import UserInput
from registry_proxy.store.open import open_store
from registry_proxy.tasks import spawn
from tests.support.passwords import quick_passwords
from tests.support.waiting import until

PASSWORD = "password of ann"
ABUSER = "192.0.2.66"
HOME = "192.0.2.1"


@dataclass
class Hashing:
    """The threads that hash: ``held`` of them wait at the gate; ``done`` holds the compared passwords."""

    gate: threading.Event = field(default_factory=threading.Event)
    held: int = 0
    done: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """Logins of the user ann, with hashing that a test can hold."""

    control: AccessControl
    hashing: Hashing

    def attempt(self, name: str, password: str, address: str) -> asyncio.Task[LoginResult]:
        """Start a login without waiting for its outcome."""
        return spawn(self.control.login(name, password, address), "login")

    async def wait_in_line(self, name: str, password: str, address: str) -> asyncio.Task[LoginResult]:
        """Start a login; return when the attempt waits for a thread."""
        task, turns = self.attempt(name, password, address), self.control._logins.passwords._turns
        await until(lambda: turns._known.count(address) + turns._unknown.count(address) == 1)
        return task

    async def flood(self, *addresses: str) -> list[asyncio.Task[LoginResult]]:
        """Send a wrong password for a new name from each address, until all of them wait for a thread."""
        names = [f"guess{number}" for number in range(len(addresses))]
        tasks = [self.attempt(name, "wrong", address) for name, address in zip(names, addresses, strict=True)]
        turns = self.control._logins.passwords._turns

        def are_settled() -> bool:
            waiting = len(turns._known) + len(turns._unknown)
            return self.hashing.held == 2 and sum(task.done() for task in tasks) + waiting + 2 == len(tasks)

        await until(are_settled)
        return tasks


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Give the bench; the gate is open at the end."""
    async with AsyncExitStack() as stack:
        store, watch = await stack.enter_async_context(
            open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page"))
        )
        with quick_passwords():
            directory = Directory(store)
            control = AccessControl(store, watch, TokenVerifier("registry-proxy"), outage_max_age_seconds=None)
        stack.push_async_callback(directory.aclose)
        stack.push_async_callback(control.aclose)
        await directory.users.put("ann", UserInput(password=PASSWORD))
        counting, hashing, is_right = threading.Lock(), Hashing(), control._logins.passwords._is_right

        def held_up(password: str, stored_hash: str) -> bool:
            with counting:
                hashing.held += 1
            hashing.gate.wait(60)
            with counting:
                hashing.held -= 1
            hashing.done.append(password)
            return is_right(password, stored_hash)

        monkeypatch.setattr(control._logins.passwords, "_is_right", held_up)
        stack.callback(hashing.gate.set)
        yield Bench(control, hashing)


def outcomes(answers: list[LoginResult | BaseException]) -> set[type]:
    """Return the kinds of answers."""
    return {type(answer) for answer in answers}


async def test_a_right_password_passes_a_flood_from_another_address(bench: Bench) -> None:
    """While two hundred guesses of one address wait, the user at another address is served next."""
    flood = await bench.flood(*[ABUSER] * 200)
    right = await bench.wait_in_line("ann", PASSWORD, HOME)
    bench.hashing.gate.set()
    assert (await right).subject == "user:ann"
    assert bench.hashing.done.index(PASSWORD) <= 4, "it waited behind the flood"
    assert outcomes(await asyncio.gather(*flood, return_exceptions=True)) == {LoginRefusedError, TooManyLoginsError}


async def test_a_known_user_passes_a_flood_from_many_addresses(bench: Bench) -> None:
    """In a flood from as many addresses as there are places, a user known at their address is served first."""
    bench.hashing.gate.set()
    await bench.control.login("ann", PASSWORD, HOME)
    bench.hashing.gate.clear()
    bench.hashing.done.clear()
    bench.control._logins.passwords._remembered.clear()
    flood = await bench.flood(*(f"198.51.100.{number}" for number in range(200)))
    right = await bench.wait_in_line("ann", PASSWORD, HOME)
    bench.hashing.gate.set()
    assert (await right).subject == "user:ann"
    assert bench.hashing.done.index(PASSWORD) <= 4, "it waited behind the flood"
    await asyncio.gather(*flood, return_exceptions=True)


async def test_a_site_with_ipv6_is_one_address(bench: Bench) -> None:
    """Guesses from two hundred addresses of one /64 share one queue."""
    flood = await bench.flood(*(f"2001:db8::{number:x}" for number in range(200)))
    right = await bench.wait_in_line("ann", PASSWORD, HOME)
    bench.hashing.gate.set()
    assert (await right).subject == "user:ann"
    assert bench.hashing.done.index(PASSWORD) <= 4, "it waited behind the flood"
    await asyncio.gather(*flood, return_exceptions=True)


async def test_one_site_with_many_networks_takes_no_more_than_its_places(bench: Bench) -> None:
    """Guesses from two hundred /64 of one /48, one place each, do not lock out a user elsewhere."""
    flood = await bench.flood(*(f"2001:db8:0:{number:x}::1" for number in range(200)))
    right = bench.attempt("ann", PASSWORD, HOME)
    await until(lambda: right.done() or bench.control._logins.passwords._turns._unknown.count(HOME) == 1)
    bench.hashing.gate.set()
    assert (await right).subject == "user:ann"
    await asyncio.gather(*flood, return_exceptions=True)
