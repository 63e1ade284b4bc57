"""Passwords and the limit on guesses."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from registry_proxy.access.credentials import LoginLimiter, LoginRefusedError, Passwords, TooManyLoginsError
from registry_proxy.access.turns import FairTurns
from registry_proxy.files.shared_page import SharedPage
from registry_proxy.store.failures import FAILURES_BYTES, NodeFailures
from tests.support.waiting import until


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the hasher and of the limiter."""
    return Clock()


@pytest.fixture
def passwords(clock: Clock) -> Iterator[Passwords]:
    """A password hasher that uses the test's clock."""
    passwords = Passwords(clock)
    yield passwords
    passwords.close()


@pytest.fixture
def limiter(clock: Clock) -> LoginLimiter:
    """A login limiter that uses the test's clock."""
    return LoginLimiter(NodeFailures(SharedPage.in_memory(FAILURES_BYTES), 0, clock))


@pytest.fixture
def slow_checks(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stored hashes that were compared in full, which is the slow part."""
    checked: list[str] = []
    is_right = passwords._is_right

    def counted(password: str, stored_hash: str) -> bool:
        checked.append(stored_hash)
        return is_right(password, stored_hash)

    monkeypatch.setattr(passwords, "_is_right", counted)
    return checked


async def test_only_the_password_is_right(passwords: Passwords) -> None:
    """The hash is argon2id with our parameters and its own salt; only the password matches it."""
    stored = await passwords.hash("p\u00e4ssword \U0001f433")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert stored != await passwords.hash("p\u00e4ssword \U0001f433")
    assert await passwords.verify("p\u00e4ssword \U0001f433", stored)
    for wrong in ("", "p", "P\u00e4ssword \U0001f433", "p\u00e4ssword \U0001f433\0", stored, "\ud800", "x" * 2000):
        assert not await passwords.verify(wrong, stored)


@pytest.mark.parametrize("stored", ["", "garbage", "$argon2id$v=19$m=1", "$2b$12$abc"])
async def test_a_broken_stored_hash_is_never_right(passwords: Passwords, stored: str) -> None:
    """A stored text that is no argon2 hash refuses every password, without an exception."""
    assert not await passwords.verify("password", stored)


async def test_a_right_password_is_remembered_for_a_minute(
    passwords: Passwords, clock: Clock, slow_checks: list[str]
) -> None:
    """The second login is free, a wrong password is never remembered, and after a minute the login is slow again."""
    stored = await passwords.hash("password")
    for _ in range(3):
        assert await passwords.verify("password", stored)
    assert len(slow_checks) == 1
    for _ in range(2):
        assert not await passwords.verify("passwort", stored)
    assert len(slow_checks) == 3
    clock.now += 59
    assert await passwords.verify("password", stored)
    assert len(slow_checks) == 3
    clock.now += 2
    assert await passwords.verify("password", stored)
    assert len(slow_checks) == 4


async def test_a_changed_password_ends_what_was_remembered(passwords: Passwords, slow_checks: list[str]) -> None:
    """The old password is refused at once after a change."""
    assert await passwords.verify("password", await passwords.hash("password"))
    assert not await passwords.verify("password", await passwords.hash("another1"))
    assert len(slow_checks) == 2


async def test_memory_holds_no_password(passwords: Passwords) -> None:
    """Memory holds a bounded number of keyed hashes."""
    await passwords.verify("password", await passwords.hash("password"))
    assert all(len(key) == 32 and b"password" not in key for key in passwords._remembered)


async def test_an_unknown_user_costs_as_much_as_a_known_one(passwords: Passwords, slow_checks: list[str]) -> None:
    """The password for an unknown user is compared with a hash of which nobody has the password."""
    for _ in range(2):
        assert not await passwords.verify("password", None)
    assert len(slow_checks) == 2


async def test_two_at_once_and_a_bounded_queue(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hashes run at once; beyond the queue logins are refused; a caller that leaves makes no room early."""
    monkeypatch.setattr(passwords, "_turns", FairTurns(2, 3))
    release, counting, running, most = threading.Event(), threading.Lock(), 0, 0

    def slow(_password: str, _stored: str) -> bool:
        nonlocal running, most
        with counting:
            running += 1
            most = max(most, running)
        release.wait(30)
        with counting:
            running -= 1
        return True

    monkeypatch.setattr(passwords, "_is_right", slow)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(passwords.verify(f"password {number}", "x")) for number in range(5)]
        await until(lambda: running == 2)
        with pytest.raises(TooManyLoginsError):
            await passwords.verify("one too many", "x")
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        with pytest.raises(TooManyLoginsError):
            await passwords.verify("still one too many", "x")
        release.set()
    assert most == 2
    assert await passwords.verify("again", "x")


async def fail(limiter: LoginLimiter, user: str = "ann", address: str = "192.0.2.1") -> None:
    """Make one attempt that is refused."""
    with pytest.raises(LoginRefusedError):
        async with limiter.attempt(user, address):
            raise LoginRefusedError("no")


async def test_ten_failures_a_minute_are_free(limiter: LoginLimiter, clock: Clock) -> None:
    """The eleventh attempt is refused with the time to wait; a minute after the first failure one more is free."""
    for _ in range(10):
        await fail(limiter)
        clock.now += 1
    with pytest.raises(TooManyLoginsError) as caught:
        await fail(limiter)
    assert 50 <= caught.value.retry_after_seconds <= 51
    clock.now += 50
    await fail(limiter)
    with pytest.raises(TooManyLoginsError):
        await fail(limiter)


async def test_other_addresses_and_users_are_not_refused(limiter: LoginLimiter) -> None:
    """Failures count for one user from one address: nobody can lock another out."""
    for _ in range(10):
        await fail(limiter)
    async with limiter.attempt("ann", "192.0.2.2"):
        pass
    async with limiter.attempt("bob", "192.0.2.1"):
        pass


async def test_successes_and_other_errors_do_not_count(limiter: LoginLimiter) -> None:
    """A CI system that logs in all day, or meets a store that is away, is not limited."""
    for _ in range(30):
        async with limiter.attempt("ci", "192.0.2.1"):
            pass
        with pytest.raises(KeyError):
            async with limiter.attempt("ci", "192.0.2.1"):
                raise KeyError


async def test_a_hundred_guesses_at_once_are_ten(limiter: LoginLimiter) -> None:
    """Attempts of one pair take turns: guesses in parallel gain nothing."""
    tried = 0

    async def guess() -> None:
        nonlocal tried
        async with limiter.attempt("ann", "192.0.2.1"):
            tried += 1
            await asyncio.sleep(0)
            raise LoginRefusedError("no")

    answers = await asyncio.gather(*(guess() for _ in range(100)), return_exceptions=True)
    assert tried == 10
    assert sum(isinstance(answer, TooManyLoginsError) for answer in answers) == 90


async def test_a_login_makes_a_user_known_at_its_address(limiter: LoginLimiter) -> None:
    """A user is known at an address after a login from there; failures, other users and addresses stay unknown."""
    await fail(limiter, "eve", "here")
    async with limiter.attempt("ann", "here") as caller:
        assert not caller.is_known
    known = {}
    for user, owner in (("ann", "here"), ("ann", "there"), ("eve", "here")):
        async with limiter.attempt(user, owner) as caller:
            known[user, owner] = caller.is_known
    assert known == {("ann", "here"): True, ("ann", "there"): False, ("eve", "here"): False}


async def test_no_lock_outlives_its_attempts(limiter: LoginLimiter) -> None:
    """User names come from callers: memory does not grow with names that fail."""
    for number in range(100):
        await fail(limiter, user=str(number))
    assert (len(limiter._turns), len(limiter._known)) == (0, 0)
