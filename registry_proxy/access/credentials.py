"""Passwords: hashed slowly, a few at a time, and not guessed at (RFC 9106; OWASP's parameters for argon2id)."""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from cachetools import FIFOCache, TTLCache

from registry_proxy.access.turns import OPERATOR, Caller, FairTurns, QueueFullError
from registry_proxy.ports.store import Failures

PASSWORD_MIN_LENGTH = 8
PASSWORD_MAX_LENGTH = 1024
QUEUE_RETRY_SECONDS = 2
"""Retry-After of a caller who found no place in a queue."""

_T = TypeVar("_T")
_HASHES_AT_ONCE = 2  # each takes 19 MiB and a core
_HASHES_WAITING_MAX = 64
_REMEMBER_SECONDS = 60.0
_REMEMBERED_MAX = 10_000
_FAILURES_FREE = 10
_WINDOW_SECONDS = 60.0


class LoginRefusedError(Exception):
    """The name or the password is wrong; which of them is never said.

    Args:
        message: for the person who logs in.
        reason: which of them, and why, for the audit log alone; the message where that says all.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


class LoginUnavailableError(Exception):
    """The authority over credentials does not answer now; the message names it, and the cause."""


class TooManyLoginsError(Exception):
    """Too many failures from this address for this user, or too many logins at once; ``reason`` says which."""

    def __init__(self, retry_after_seconds: int, reason: str = "too many logins at once") -> None:
        super().__init__(f"{reason}, try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason


class Passwords:
    """Hashes and verifies passwords in threads of its own, with a bounded queue that owners of addresses share fairly.

    A password that was right is remembered for a minute under a keyed hash of it and of the stored hash: when the
    stored hash changes, what was remembered no longer fits anything.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._executor = ThreadPoolExecutor(_HASHES_AT_ONCE, thread_name_prefix="password")
        self._turns = FairTurns(_HASHES_AT_ONCE, _HASHES_WAITING_MAX)
        self._key = secrets.token_bytes(32)
        self._remembered: TTLCache[bytes, None] = TTLCache(_REMEMBERED_MAX, _REMEMBER_SECONDS, clock)
        self._dummy_hash: str | None = None

    async def hash(self, password: str, caller: Caller = OPERATOR) -> str:
        """Return the argon2id hash to store.

        Raises:
            TooManyLoginsError: the queue is full.
        """
        return await self._in_thread(lambda: self._hasher.hash(_encode(password)), caller)

    async def verify(self, password: str, stored_hash: str | None, caller: Caller = OPERATOR) -> bool:
        """Tell whether the password is the one that was hashed.

        Args:
            password: what was given.
            stored_hash: None for a user that is not there: takes the same time, and is never right.
            caller: whose turn it takes.

        Raises:
            TooManyLoginsError: the queue is full.
        """
        if len(password) > PASSWORD_MAX_LENGTH:
            return False
        if stored_hash is None:
            if self._dummy_hash is None:
                self._dummy_hash = await self.hash(secrets.token_hex(16), caller)
            await self._in_thread(lambda: self._is_right(password, str(self._dummy_hash)), caller)
            return False
        key = hmac.digest(self._key, f"{stored_hash}\0".encode() + _encode(password), hashlib.sha256)
        if key in self._remembered:
            return True
        right = await self._in_thread(lambda: self._is_right(password, stored_hash), caller)
        if right:
            self._remembered[key] = None
        return right

    def is_outdated(self, stored_hash: str) -> bool:
        """Tell whether a hash was made with weaker parameters than those of today."""
        return self._hasher.check_needs_rehash(stored_hash)

    def close(self) -> None:
        """End the threads once they are idle."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _is_right(self, password: str, stored_hash: str) -> bool:
        try:
            return self._hasher.verify(stored_hash, _encode(password))
        except (VerificationError, InvalidHashError):
            return False

    async def _in_thread(self, work: Callable[[], _T], caller: Caller) -> _T:
        try:
            await self._turns.begin(caller)
        except QueueFullError:
            raise TooManyLoginsError(QUEUE_RETRY_SECONDS) from None
        # It ends when the thread is done with it: a caller that leaves does not make room.
        future = self._executor.submit(work)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: _call_if_running(loop, self._turns.end))
        return await asyncio.wrap_future(future)


class LoginLimiter:
    """Refuses a user of an address that failed ten times within a minute, until the first of these is a minute old.

    Only passwords that were compared are failures: names alone change nothing. Attempts of one pair take turns in a
    worker, so that a hundred at once are not all within the first ten; other workers may let one more through each. A
    right password is remembered, so those behind it do not wait long.

    Args:
        failures: counts them, over all that share the store.
    """

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._turns = WeakValueDictionary[str, asyncio.Lock]()
        self._known: FIFOCache[str, None] = FIFOCache(_REMEMBERED_MAX)

    @asynccontextmanager
    async def attempt(self, user: str, owner: str) -> AsyncIterator[Caller]:
        """Make one attempt: a block that ends without an error is a login, LoginRefusedError is a failure.

        Args:
            user: the name given.
            owner: of the address that it comes from.

        Raises:
            TooManyLoginsError: there were too many failures; nothing may be tried now.
        """
        key = f"{user}\0{owner}"
        async with self._turns.setdefault(key, asyncio.Lock()):
            wait_seconds = await self._failures.wait_seconds(key, _FAILURES_FREE, _WINDOW_SECONDS)
            if wait_seconds > 0:
                reason = f"{_FAILURES_FREE} wrong passwords of this user within a minute from this address"
                raise TooManyLoginsError(int(wait_seconds) + 1, reason)
            try:
                yield Caller(owner, is_known=key in self._known)
            except LoginRefusedError:
                await self._failures.note(key, _FAILURES_FREE, _WINDOW_SECONDS)
                raise
            self._known[key] = None


def _encode(password: str) -> bytes:
    # What came as undecodable bytes is still a password, only never a right one.
    return password.encode(errors="surrogatepass")


def _call_if_running(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
