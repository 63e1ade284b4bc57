"""Passwords: hashed slowly, a few at a time, and not guessed at (RFC 9106; OWASP's parameters for argon2id)."""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

PASSWORD_MIN_LENGTH = 8
PASSWORD_MAX_LENGTH = 1024

_T = TypeVar("_T")
_HASHES_AT_ONCE = 2  # each takes 19 MiB and a core
_HASHES_WAITING_MAX = 64
_REMEMBER_SECONDS = 60.0
_REMEMBERED_MAX = 10_000
_FAILURES_FREE = 10
_WINDOW_SECONDS = 60.0
_WINDOWS_MAX = 10_000


class LoginRefusedError(Exception):
    """The name or the password is wrong; which of them is never said.

    Args:
        message: for whoever tries to log in.
        reason: which of them, and why, for the audit log alone; the message where that says all.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


class LoginUnavailableError(Exception):
    """Whoever knows whether credentials are right cannot be asked now; the message says who, and why."""


class TooManyLoginsError(Exception):
    """Too many failures from this address for this user, or too many logins at once; ``reason`` says which."""

    def __init__(self, retry_after_seconds: int, reason: str = "too many logins at once") -> None:
        super().__init__(f"{reason}, try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason


class Passwords:
    """Hashes and verifies passwords in threads of its own, with a bounded queue.

    A password that was right is remembered for a minute under a keyed hash of it and of the stored hash: when the
    stored hash changes, what was remembered no longer fits anything.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._executor = ThreadPoolExecutor(_HASHES_AT_ONCE, thread_name_prefix="password")
        self._waiting = 0
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._remembered: OrderedDict[bytes, float] = OrderedDict()
        self._dummy_hash: str | None = None

    async def hash(self, password: str) -> str:
        """Return the argon2id hash to store.

        Raises:
            TooManyLoginsError: the queue is full.
        """
        return await self._in_thread(lambda: self._hasher.hash(_encode(password)))

    async def verify(self, password: str, stored_hash: str | None) -> bool:
        """Tell whether the password is the one that was hashed.

        Args:
            password: what was given.
            stored_hash: None for a user that is not there: takes the same time, and is never right.

        Raises:
            TooManyLoginsError: the queue is full.
        """
        if len(password) > PASSWORD_MAX_LENGTH:
            return False
        if stored_hash is None:
            if self._dummy_hash is None:
                self._dummy_hash = await self.hash(secrets.token_hex(16))
            await self._in_thread(lambda: self._is_right(password, str(self._dummy_hash)))
            return False
        key = hmac.digest(self._key, f"{stored_hash}\0".encode() + _encode(password), hashlib.sha256)
        if self._remembered.get(key, float("-inf")) > self._clock():
            return True
        right = await self._in_thread(lambda: self._is_right(password, stored_hash))
        if right:
            self._remembered[key] = self._clock() + _REMEMBER_SECONDS
            self._remembered.move_to_end(key)
            if len(self._remembered) > _REMEMBERED_MAX:
                self._remembered.popitem(last=False)
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

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        if self._waiting >= _HASHES_WAITING_MAX:
            raise TooManyLoginsError(retry_after_seconds=2)
        self._waiting += 1
        # Counted until the thread is done with it: a caller that leaves does not make room.
        future = self._executor.submit(work)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: _call_if_running(loop, self._done))
        return await asyncio.wrap_future(future)

    def _done(self) -> None:
        self._waiting -= 1


@dataclass
class _Window:
    """The recent failures of one user from one address, and the lock that makes their attempts take turns."""

    failures: deque[float] = field(default_factory=lambda: deque(maxlen=_FAILURES_FREE))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class LoginLimiter:
    """Refuses a (user, address) that failed ten times within a minute, until the first of these is a minute old.

    Attempts of one pair take turns, else a hundred at once would all be within the first ten; a right password is
    remembered, so that those behind it do not wait long.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[tuple[str, str], _Window] = OrderedDict()

    @asynccontextmanager
    async def attempt(self, user: str, address: str) -> AsyncIterator[None]:
        """Make one attempt: leaving the block by LoginRefusedError is a failure.

        Raises:
            TooManyLoginsError: there were too many failures; nothing may be tried now.
        """
        key = (user, address)
        window = self._windows.setdefault(key, _Window())
        self._windows.move_to_end(key)
        while len(self._windows) > _WINDOWS_MAX:
            self._windows.popitem(last=False)
        async with window.lock:
            self._check(window)
            try:
                yield
            except LoginRefusedError:
                window.failures.append(self._clock())
                raise

    def _check(self, window: _Window) -> None:
        now = self._clock()
        if len(window.failures) == _FAILURES_FREE and window.failures[0] + _WINDOW_SECONDS > now:
            reason = f"{_FAILURES_FREE} failures within a minute from this address: nothing was looked at"
            raise TooManyLoginsError(int(window.failures[0] + _WINDOW_SECONDS - now) + 1, reason)


def _encode(password: str) -> bytes:
    # What came as undecodable bytes is still a password, only never a right one.
    return password.encode(errors="surrogatepass")


def _call_if_running(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
