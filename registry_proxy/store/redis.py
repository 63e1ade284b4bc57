"""The shared store: Redis, for several nodes (ports.store.Store).

Keys, all under one prefix: ``table:<name>`` a hash of key -> ``<revision> <JSON>``; ``keys:<name>`` a sorted set of the
keys, for listing by prefix; ``versions`` a hash of table -> sequence number, with the sequence itself in ``sequence``.
"""

import asyncio
import builtins
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from redis.asyncio.lock import Lock
from redis.asyncio.sentinel import MasterNotFoundError
from redis.commands.core import AsyncScript
from redis.exceptions import LockError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.store import TRACED_COMMITS, TRACED_TABLES, Change, Difference, Record, Table
from registry_proxy.store.changes import ChangePage
from registry_proxy.store.failures import NOTE_SCRIPT, WAIT_SCRIPT, ClusterFailures
from registry_proxy.store.redis_connection import connect, parse_redis_url
from registry_proxy.store.schema import SCHEMA_KEY, SCHEMA_TABLE, SCHEMA_VERSION, check_schema
from registry_proxy.tasks import obeying_cancellation, spawn

LEASE_PATIENCE_SECONDS = 30.0
LEASE_SECONDS = 10.0

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_COPY_MS = 500
_LISTED_AT_ONCE = 5_000
"""Number of records that are one moment of a table; of a longer list what is read later may be newer."""

_PREFIX = "registry-proxy:"
_SEQUENCE_FIELD = "sequence"
_SILENCE_SECONDS = 0.5
"""How long a Redis that did not answer in time is not asked again, so that not every request waits for it."""

# What each commit changed in a traced table, and the version before it, lies in ``trace:<name>``, a sorted set by
# sequence number: a reader without a gap missed nothing.
# ARGV: prefix, then table, key, expected revision ("" for none), "1" to write or "0" to delete, value.
_COMMIT = """
local prefix = ARGV[1]
local traced = {TRACED}
local keys_of = {}
for i = 2, #ARGV, 5 do
  local expect = ARGV[i + 2]
  if ARGV[i + 3] == 'version' then
    local version = redis.call('HGET', prefix .. 'versions', ARGV[i]) or '0'
    if version ~= expect then return {'conflict', ARGV[i], '', version, expect} end
  elseif expect ~= '' then
    local stored = redis.call('HGET', prefix .. 'table:' .. ARGV[i], ARGV[i + 1])
    local revision = stored and string.match(stored, '^%d+') or '0'
    if revision ~= expect then return {'conflict', ARGV[i], ARGV[i + 1], revision, expect} end
  end
end
local sequence = string.format('%.0f', redis.call('HINCRBY', prefix .. 'versions', 'sequence', 1))
for i = 2, #ARGV, 5 do
  local records, keys = prefix .. 'table:' .. ARGV[i], prefix .. 'keys:' .. ARGV[i]
  if traced[ARGV[i]] and ARGV[i + 3] ~= 'version' then
    local previous = redis.call('HGET', prefix .. 'versions', ARGV[i]) or '0'
    keys_of[ARGV[i]] = keys_of[ARGV[i]] or {sequence, previous}
    table.insert(keys_of[ARGV[i]], ARGV[i + 1])
  end
  if ARGV[i + 3] == 'version' then
    -- compared above
  elseif ARGV[i + 3] == '1' then
    redis.call('HSET', records, ARGV[i + 1], sequence .. ' ' .. ARGV[i + 4])
    redis.call('ZADD', keys, 0, ARGV[i + 1])
  else
    redis.call('HDEL', records, ARGV[i + 1])
    redis.call('ZREM', keys, ARGV[i + 1])
  end
  if ARGV[i + 3] ~= 'version' then redis.call('HSET', prefix .. 'versions', ARGV[i], sequence) end
end
for name, entry in pairs(keys_of) do
  local trace = prefix .. 'trace:' .. name
  redis.call('ZADD', trace, sequence, cjson.encode(entry))
  redis.call('ZREMRANGEBYSCORE', trace, '-inf', tonumber(sequence) - {COMMITS})
end
return {'done', sequence}
""".replace("{TRACED}", "{" + ", ".join(f"{table.value} = true" for table in TRACED_TABLES) + "}").replace(
    "{COMMITS}", str(TRACED_COMMITS)
)

# Returns nothing where there is a gap, else the version, then each key and what is stored, "" for nothing. ARGV:
# prefix, table, version.
_CHANGED_SINCE = """
local version = ARGV[3]
local keys, found = {}, {}
local since = '(' .. version
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', ARGV[1] .. 'trace:' .. ARGV[2], since, '+inf')) do
  local fields = cjson.decode(entry)
  if fields[2] ~= version then return {} end
  version = fields[1]
  for i = 3, #fields do
    if not found[fields[i]] then
      found[fields[i]] = true
      table.insert(keys, fields[i])
    end
  end
end
if version ~= (redis.call('HGET', ARGV[1] .. 'versions', ARGV[2]) or '0') then return {} end
local answer = {version}
for _, key in ipairs(keys) do
  table.insert(answer, key)
  table.insert(answer, redis.call('HGET', ARGV[1] .. 'table:' .. ARGV[2], key) or '')
end
return answer
"""

# One script, so that no commit comes between the keys and their values. ARGV: prefix, table, prefix of the keys, the
# key behind which it begins ("" for none), how many keys at most: Redis serves nobody else meanwhile.
_LIST = """
local first = ARGV[4] ~= '' and '(' .. ARGV[4] or ARGV[3] == '' and '-' or '[' .. ARGV[3]
local last = ARGV[3] == '' and '+' or '[' .. ARGV[3] .. string.char(255)
local found = {}
for _, key in ipairs(redis.call('ZRANGEBYLEX', ARGV[1] .. 'keys:' .. ARGV[2], first, last, 'LIMIT', 0, ARGV[5])) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('HGET', ARGV[1] .. 'table:' .. ARGV[2], key)
end
return found
"""

# From one head to the next: the first key behind all that begin with the head and "|", which "}" follows.
_HEADS = """
local first = ARGV[3] == '' and '-' or '[' .. ARGV[3]
local last = ARGV[3] == '' and '+' or '[' .. ARGV[3] .. string.char(255)
local found = {}
while true do
  local key = redis.call('ZRANGEBYLEX', ARGV[1] .. 'keys:' .. ARGV[2], first, last, 'LIMIT', 0, 1)[1]
  if not key then return found end
  found[#found + 1] = string.match(key, '^[^|]*')
  first = '[' .. found[#found] .. '}'
end
"""


class RedisStore:
    """Records in a Redis; nothing is sent before the first use, so that a node starts while Redis is away.

    Args:
        url: as ``redis_connection.parse_redis_url`` takes it.
        page: receives every commit before ``commit`` returns.
        timeout_seconds: how long one answer may take.
    """

    def __init__(self, url: str, page: ChangePage, *, timeout_seconds: float = 2.0) -> None:
        address = parse_redis_url(url)
        self._where = str(address)  # the URL may hold a password
        self._page = page
        self._timeout_seconds = timeout_seconds
        self._redis, self._sentinel = connect(address, timeout_seconds)
        self._silent = False
        self._asked_again_at = 0.0
        self._copied = True
        self._commit_script = self._redis.register_script(_COMMIT)
        self._list_script = self._redis.register_script(_LIST)
        self._heads_script = self._redis.register_script(_HEADS)
        self._changed_script = self._redis.register_script(_CHANGED_SINCE)
        wait, note = self._redis.register_script(WAIT_SCRIPT), self._redis.register_script(NOTE_SCRIPT)
        self.failures = ClusterFailures(self._failure_script(wait), self._failure_script(note), page.failures)
        self._schema_checked = False
        self._checking_schema = asyncio.Lock()

    async def get(self, table: Table, key: str) -> Record | None:
        await self._check_schema()
        stored = await self._stored(table, key)
        return None if stored is None else _record(key, stored)

    async def get_all(self, keys: Sequence[tuple[Table, str]]) -> Sequence[Record | None]:
        await self._check_schema()
        found = await self._ask(lambda: self._get_all(keys))
        return [None if stored is None else _record(key, stored) for (_, key), stored in zip(keys, found, strict=True)]

    async def _get_all(self, keys: Sequence[tuple[Table, str]]) -> "builtins.list[str | None]":
        async with self._redis.pipeline() as pipeline:
            for table, key in keys:
                _ = pipeline.hget(f"{_PREFIX}table:{table}", key)  # is asked with the others, below
            found: list[str | None] = await pipeline.execute()
            return found

    async def list(self, table: Table, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[Record]:
        records: list[Record] = []
        while True:
            after = records[-1].key if records else after if after > prefix else ""
            at_once = _LISTED_AT_ONCE if limit is None else min(_LISTED_AT_ONCE, limit - len(records))
            found = await self._run(self._list_script, table, prefix, after, str(at_once))
            records += [_record(key, stored) for key, stored in zip(found[::2], found[1::2], strict=True)]
            if len(found) < 2 * at_once or len(records) == limit:
                return records

    async def changed_since(self, table: Table, version: int) -> Difference | None:
        found = await self._run(self._changed_script, table, str(version))
        if not found:
            return None
        pairs = zip(found[1::2], found[2::2], strict=True)
        return Difference(int(found[0]), {key: _record(key, stored) if stored else None for key, stored in pairs})

    async def heads(self, table: Table, prefix: str = "") -> Sequence[str]:
        return await self._run(self._heads_script, table, prefix)

    async def count(self, table: Table, prefix: str = "") -> int:
        await self._check_schema()
        first, last = (f"[{prefix}".encode(), f"[{prefix}".encode() + b"\xff") if prefix else (b"-", b"+")
        return int(await self._ask(lambda: self._redis.zlexcount(f"{_PREFIX}keys:{table.value}", first, last)))

    async def commit(self, changes: Sequence[Change], *, versions: Mapping[Table, int] = MappingProxyType({})) -> int:
        await self._check_schema()
        return await self._commit(changes, versions)

    async def versions(self) -> Mapping[Table, int]:
        await self._check_schema()
        stored = await self._stored_versions()
        self._schema_checked = bool(stored)  # one that was emptied gets its schema again
        return {table: int(stored[table.value]) for table in Table if table.value in stored}

    @contextlib.asynccontextmanager
    async def lease(self, key: str) -> AsyncIterator[None]:
        """Hold an exclusive lease over all nodes; see ports.store.Store.

        It is extended while it is held. Should Redis be away for longer than the lease lasts it is lost, and another
        may get it: what is written under a lease is therefore committed with an ``expect``.
        """
        lock = Lock(self._redis, f"{_PREFIX}lease:{key}", timeout=LEASE_SECONDS, sleep=0.02, thread_local=False)
        token = uuid.uuid4().hex
        try:
            obtained = await self._ask(lambda: lock.acquire(blocking_timeout=LEASE_PATIENCE_SECONDS, token=token))
        except asyncio.CancelledError:
            # Redis may have given it all the same: then nobody would hold it, and all would wait for its end.
            await asyncio.shield(spawn(self._release(lock, token, held=False), "lease release"))
            raise
        if not obtained:
            raise StoreUnavailableError(f"the lease on {key} was not obtained within {LEASE_PATIENCE_SECONDS:g} s")
        extending = spawn(self._extend(lock, key), "lease extension")
        try:
            yield
        finally:
            extending.cancel()
            # In a task of its own: a caller that is cancelled twice must not leave the others waiting for the expiry.
            await asyncio.shield(spawn(self._release(lock, token, held=True), "lease release"))

    async def check_durability(self) -> builtins.list[str]:
        """Return warnings, in words for the operator, where Redis may lose what it acknowledged; [] when it keeps all.

        Raises:
            StoreUnavailableError: it does not answer.
        """
        try:
            found = await self._redis.config_get("appendonly", "appendfsync")
        except (RedisError, OSError) as error:
            await self._ask(self._redis.ping)
            return [
                f"{self._where} does not show its settings ({_reason(error)}): make sure of appendonly and appendfsync"
            ]
        wanted = {"appendonly": "yes", "appendfsync": "always"}
        return [
            f"{self._where} has {name} {found.get(name)}, not {value}: a power cut may lose acknowledged writes"
            for name, value in wanted.items()
            if found.get(name) != value
        ]

    async def aclose(self) -> None:
        """Close all connections; twice is fine."""
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    # ------------------------------------------------------------ inside

    def _failure_script(self, script: AsyncScript) -> Callable[[str, int, int], Awaitable[int]]:
        """Return a function that runs a script of ``failures`` for a key, with the store's deadlines."""
        return lambda key, *arguments: self._ask(
            lambda: script(keys=[f"{_PREFIX}failures:{key}"], args=list(arguments))
        )

    async def _run(self, script: AsyncScript, table: Table, *arguments: str) -> "builtins.list[str]":
        await self._check_schema()
        return await self._ask(lambda: script(args=[_PREFIX, table.value, *arguments]))

    async def _ask(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        loop = asyncio.get_running_loop()
        if self._silent:
            if loop.time() < self._asked_again_at:
                raise StoreUnavailableError(f"{self._where} cannot be used: it did not answer in time a moment ago")
            self._asked_again_at = loop.time() + self._timeout_seconds  # the others do not wait with this one
        try:
            answer = await obeying_cancellation(ask())
        except (RedisError, OSError) as error:
            self._silent = isinstance(error, RedisTimeoutError | TimeoutError)
            self._asked_again_at = loop.time() + _SILENCE_SECONDS
            raise StoreUnavailableError(f"{self._where} cannot be used: {_reason(error)}") from error
        self._silent = False
        return answer

    async def _commit(self, changes: Sequence[Change], versions: Mapping[Table, int] = MappingProxyType({})) -> int:
        arguments = [_PREFIX]
        for table, version in versions.items():
            arguments += [table.value, "", str(version), "version", ""]
        for change in changes:
            expect = "" if change.expect is None else str(change.expect)
            write, value = ("0", "") if change.value is None else ("1", json.dumps(change.value))
            arguments += [change.table.value, change.key, expect, write, value]
        if not changes:
            return int((await self._stored_versions()).get(_SEQUENCE_FIELD, 0))
        known = self._page.known()
        outcome, *details = await self._ask(lambda: self._run_commit(arguments))
        if outcome == "conflict":
            name, key, revision, expect = details
            what = f"{name} {key} has revision" if key else f"{name} has version"
            raise ConflictError(f"{what} {revision}, expected {expect}")
        sequence = int(details[0])
        if any(sequence <= known[change.table] for change in changes):
            self._page.note_loss()  # the note below would hide it from those who compare
        self._page.note_commit({change.table for change in changes}, sequence)
        return sequence

    async def _run_commit(self, arguments: builtins.list[str]) -> builtins.list[str]:
        """Commit; with Sentinels also wait until a Redis replica has it, which a fail-over may make the primary."""
        committed: builtins.list[str]
        if self._sentinel is None:
            committed = await self._commit_script(args=arguments)
            return committed
        patience_ms = _COPY_MS if self._copied else 1
        async with self._redis.pipeline(transaction=False) as pipeline:
            await self._commit_script(args=arguments, client=pipeline)
            await pipeline.wait(1, patience_ms)
            committed, copies = await pipeline.execute()
        if self._copied and not copies:
            _log.warning("no Redis replica has the last write within %d ms: a fail-over now may lose it", _COPY_MS)
        self._copied = copies > 0
        return committed

    async def _stored(self, table: Table, key: str) -> str | None:
        stored = await self._ask(lambda: self._redis.hget(f"{_PREFIX}table:{table}", key))
        return stored.decode() if isinstance(stored, bytes) else stored

    async def _stored_versions(self) -> Mapping[str, str]:
        stored = await self._ask(lambda: self._redis.hgetall(f"{_PREFIX}versions"))
        return {str(table): str(version) for table, version in stored.items()}

    async def _check_schema(self) -> None:
        if not self._schema_checked:
            async with self._checking_schema:
                if not self._schema_checked:
                    await self._read_schema()

    async def _read_schema(self) -> None:
        with contextlib.suppress(ConflictError):  # it has one already
            await self._commit([Change(SCHEMA_TABLE, SCHEMA_KEY, {"version": SCHEMA_VERSION}, expect=0)])
        stored = await self._stored(SCHEMA_TABLE, SCHEMA_KEY)
        if stored is not None:
            check_schema(_record(SCHEMA_KEY, stored).value["version"], self._where)
            self._schema_checked = True

    async def _extend(self, lock: Lock, key: str) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                await lock.reacquire()
            except LockError:
                _log.warning("the lease on %s was lost: %s was away for too long", key, self._where)
                return
            except (RedisError, OSError):
                continue  # there is time for another try before it ends

    async def _release(self, lock: Lock, token: str, *, held: bool) -> None:
        try:
            await lock.do_release(token.encode())
        except (RedisError, OSError) as error:
            if held:
                _log.warning("a lease could not be given back and ends by itself: %s", _reason(error))


def _record(key: str, stored: str) -> Record:
    revision, _, value = stored.partition(" ")
    content: dict[str, Any] = json.loads(value)
    return Record(key, content, int(revision))


def _reason(error: Exception) -> str:
    if isinstance(error, MasterNotFoundError):  # whose text shows the insides of the client
        return "no Sentinel that answers knows a primary that is up"
    return f"{type(error).__name__} {error}".rstrip()
