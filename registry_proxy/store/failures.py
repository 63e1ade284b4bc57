"""Recent failures by key: counted over the workers of a node, or over all nodes of a Redis (ports.store.Failures)."""

import hashlib
import secrets
import struct
import time
from collections.abc import Awaitable, Callable

from registry_proxy.files.shared_page import SharedPage
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Failures

_SECRET_BYTES = 16
_BUCKETS = 256
_PLACES = 128
_ENTRY = struct.Struct("=16sd")  # hash of the key, when it failed
_COUNT = struct.Struct("=Q")  # failures that were ever written into the bucket
_BUCKET_BYTES = _COUNT.size + _PLACES * _ENTRY.size
FAILURES_BYTES = _SECRET_BYTES + _BUCKETS * _BUCKET_BYTES


class NodeFailures:
    """Failures in memory that the workers of a node share: 0.8 MB for any number of keys.

    The hash of a key chooses its bucket, in which the oldest failure gives way to the newest. Nobody outside knows the
    secret of the hash, so nobody can aim at a bucket: to push a failure out takes thousands of others.

    Args:
        page: shared, and zero when it is new.
        start: the offset in it; ``FAILURES_BYTES`` from there are ours.
        clock: in seconds, the same for all workers.
    """

    def __init__(
        self,
        page: SharedPage,
        start: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._page, self._memory = page, page.memory
        self._start = start + _SECRET_BYTES
        self._clock = clock
        with page.locked():
            if not any(self._memory[start : self._start]):
                page.write(start, secrets.token_bytes(_SECRET_BYTES))
        self._secret = self._memory[start : self._start]

    async def wait_seconds(self, key: str, limit: int, window_seconds: float) -> float:
        name, start = self._find(key)
        now, end = self._clock(), start + _BUCKET_BYTES
        times, found = [], self._memory.find(name, start + _COUNT.size, end)
        while found != -1:
            failed_at: float = _ENTRY.unpack_from(self._memory, found)[1]
            if now - window_seconds < failed_at <= now:  # a later one is of before a restart of the machine
                times.append(failed_at)
            found = self._memory.find(name, found + _ENTRY.size, end)
        return sorted(times)[-limit] + window_seconds - now if len(times) >= limit else 0.0

    async def note(self, key: str, limit: int, window_seconds: float) -> None:  # noqa: ARG002 - Redis needs to know
        name, start = self._find(key)
        with self._page.locked():
            (count,) = _COUNT.unpack_from(self._memory, start)
            place = start + _COUNT.size + count % _PLACES * _ENTRY.size
            self._page.write(place, _ENTRY.pack(name, self._clock()))
            self._page.write(start, _COUNT.pack(count + 1))

    def _find(self, key: str) -> tuple[bytes, int]:
        """Return the hash of a key, and where its bucket starts."""
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), key=self._secret, digest_size=17).digest()
        return digest[:16], self._start + digest[16] * _BUCKET_BYTES


# The newest failures of a key are a list, which ends with the window of its newest. ARGV: limit, window in
# microseconds. Redis' own clock counts: those of the nodes may differ.
WAIT_SCRIPT = """
local time = redis.call('TIME')
local failed_at = redis.call('LINDEX', KEYS[1], ARGV[1] - 1)
if not failed_at then return 0 end
return math.max(0, failed_at + ARGV[2] - (time[1] * 1000000 + time[2]))
"""
NOTE_SCRIPT = """
local time = redis.call('TIME')
redis.call('LPUSH', KEYS[1], string.format('%.0f', time[1] * 1000000 + time[2]))
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 1)
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] / 1000))
"""

_Script = Callable[[str, int, int], Awaitable[int]]


class ClusterFailures:
    """Failures that all nodes count in one Redis, and each node by itself for the time that Redis is away.

    A key takes some 200 bytes of Redis for the length of the window.

    Args:
        wait: runs ``WAIT_SCRIPT`` for a key, with the other arguments.
        note: runs ``NOTE_SCRIPT`` likewise.
        local: those of this node.
    """

    def __init__(self, wait: _Script, note: _Script, local: Failures) -> None:
        self._wait = wait
        self._note = note
        self._local = local

    async def wait_seconds(self, key: str, limit: int, window_seconds: float) -> float:
        wait_seconds = await self._local.wait_seconds(key, limit, window_seconds)
        try:
            wait_microseconds = await self._wait(_name(key), limit, round(window_seconds * 1e6))
        except StoreUnavailableError:
            return wait_seconds
        return max(wait_seconds, wait_microseconds / 1e6)

    async def note(self, key: str, limit: int, window_seconds: float) -> None:
        await self._local.note(key, limit, window_seconds)
        try:
            await self._note(_name(key), limit, round(window_seconds * 1e6))
        except StoreUnavailableError:
            return


def _name(key: str) -> str:
    """Return the name of a key in Redis: short, and no place for the names that callers give."""
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
