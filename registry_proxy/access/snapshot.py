"""The snapshot that decides: policy, users and keys, replaced when a table that it is made of has changed."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from registry_proxy.access.grant import Grant, grant_of
from registry_proxy.access.grants import CompiledGrants
from registry_proxy.access.policy import Policy
from registry_proxy.access.records import User, group_of, robot_of, user_of
from registry_proxy.access.secrets import secret_of
from registry_proxy.access.signing_keys import SigningKeys
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Record, Store, StoreChanges, Table
from registry_proxy.tasks import spawn

_TABLES = (
    Table.USERS,
    Table.GROUPS,
    Table.GRANTS,
    Table.SUBJECTS,
    Table.KEYS,
    Table.ROBOTS,
    Table.SECRETS,
    Table.REVOKED_TOKENS,
)
_PARSERS: Mapping[Table, Callable[[Record], Any]] = {
    Table.USERS: user_of,
    Table.GROUPS: group_of,
    Table.GRANTS: grant_of,
    Table.ROBOTS: robot_of,
    Table.SECRETS: secret_of,
}
_CLOSED_AFTER_SECONDS = 5.0  # an outage begins here: a restart of Redis is no reason to refuse everybody
_PAUSE_AFTER_FAILURE_SECONDS = 1.0
_SNAPSHOT_MAX_AGE_SECONDS = 600.0  # keys expire without any commit
_READS_UNTIL_STABLE = 3
_CHECK_PAUSE_SECONDS = 0.02  # no token of somebody else's costs the store more
_CHECK_PATIENCE_SECONDS = 5.0  # a store on a disk that hangs never fails


class WatchedChanges(StoreChanges, Protocol):
    """Changes that also know when the store last answered, and whether it failed to when it was last asked."""

    def seconds_since_contact(self) -> float: ...
    def is_silent(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The policy, the users and the accepted keys of one moment."""

    policy: Policy
    users: Mapping[str, User]
    jwks: Mapping[str, Mapping[str, str]]
    versions: tuple[int, ...]
    loaded_at: float = field(default_factory=time.monotonic)


class _Content(NamedTuple):
    """The values of a table, and the version that it had before it was read."""

    version: int
    values: list[Any]
    loaded_at: float


class Snapshots:
    """Keeps the current snapshot.

    Args:
        store: holds users, groups, grants, generations and public keys.
        changes: knows when a table has changed.
        keys: receives the published keys.
        outage_max_age_seconds: how long the last snapshot serves while the store is away; None ends it with the
            outage, after a few seconds.
        oidc_groups: returns the groups of the rules on ID tokens.
    """

    def __init__(
        self,
        store: Store,
        changes: WatchedChanges,
        keys: SigningKeys,
        *,
        outage_max_age_seconds: float | None,
        oidc_groups: Callable[[], Mapping[str, Collection[str]]],
    ) -> None:
        self._store = store
        self._changes = changes
        self._keys = keys
        self._max_age_seconds = _CLOSED_AFTER_SECONDS if outage_max_age_seconds is None else outage_max_age_seconds
        self._oidc_groups = oidc_groups
        self._snapshot: Snapshot | None = None
        self._tables: dict[Table, _Content] = {}
        self._compiled: tuple[list[Grant], CompiledGrants] | None = None  # of the thread
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._loading = asyncio.Lock()
        self._checking = asyncio.Lock()
        self._next_check: asyncio.Task[None] | None = None
        self._failed_at = float("-inf")
        self._failure: StoreUnavailableError | None = None

    def close(self) -> None:
        """End the thread that builds the policy."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def drop(self) -> None:
        """Have the next snapshot read anew."""
        self._snapshot = None

    def current_now(self) -> Snapshot | None:
        """Return the current snapshot; None where it has to be waited for."""
        snapshot = self._snapshot
        if snapshot is None or not self._is_current(snapshot) or self._is_too_old():
            return None
        return snapshot

    def _versions(self) -> tuple[int, ...]:
        version = self._changes.version
        return tuple([version(table) for table in _TABLES])

    def _is_current(self, snapshot: Snapshot) -> bool:
        return snapshot.versions == self._versions() and _age_seconds(snapshot) <= _SNAPSHOT_MAX_AGE_SECONDS

    def _is_too_old(self) -> bool:
        return self._changes.seconds_since_contact() > self._max_age_seconds

    async def current(self) -> Snapshot:
        """Return a snapshot with all that was committed on this node.

        Raises:
            StoreUnavailableError: it cannot be known, or is older than an outage may make it.
        """
        if self._is_too_old() and not self._changes.is_silent():  # perhaps it was this process that was held up
            await self.check_in_turn()
        if self._is_too_old():
            raise StoreUnavailableError("the store has been away for longer than permissions may be served without it")
        snapshot = self._snapshot
        if snapshot is None or not self._is_current(snapshot):
            snapshot = await self._renew()
        return snapshot

    async def policy(self) -> Policy:
        """Return the policy of the current snapshot. Raises StoreUnavailableError."""
        return (await self.current()).policy

    async def _renew(self) -> Snapshot:
        """Load a snapshot, one caller for all; while the store fails, try once a second and serve the last one."""
        async with self._loading:
            snapshot = self._snapshot
            if snapshot is not None and self._is_current(snapshot):
                return snapshot
            if self._failure is None or time.monotonic() - self._failed_at >= _PAUSE_AFTER_FAILURE_SECONDS:
                try:
                    self._snapshot = await self._load()
                    self._failure = None
                    return self._snapshot
                except StoreUnavailableError as error:
                    self._failure, self._failed_at = error, time.monotonic()
            if snapshot is None:
                raise StoreUnavailableError(str(self._failure))
            return snapshot

    async def _load(self) -> Snapshot:
        """Read all tables; again when one changed meanwhile, so that no commit is seen by half."""
        versions, tables = await self._read()
        for _ in range(_READS_UNTIL_STABLE - 1):
            if versions == self._versions():
                break
            versions, tables = await self._read()
        jwks = self._keys.accept(tables[Table.KEYS])
        # In a thread: ten thousand grants take a second, in which requests that need no new policy go on.
        policy = await asyncio.get_running_loop().run_in_executor(self._thread, self._build, tables)
        return Snapshot(policy, {user.name: user for user in tables[Table.USERS]}, jwks, versions)

    def _build(self, tables: Mapping[Table, list[Any]]) -> Policy:
        now, grants = time.time(), tables[Table.GRANTS]
        if self._compiled is None or self._compiled[0] is not grants:  # most changes are of something else
            self._compiled = grants, CompiledGrants(grants)
        return Policy(
            tables[Table.USERS],
            tables[Table.GROUPS],
            self._compiled[1],
            {record.key: int(record.value["generation"]) for record in tables[Table.SUBJECTS]},
            robots=tables[Table.ROBOTS],
            secrets=tables[Table.SECRETS],
            revoked_tokens=[r.key for r in tables[Table.REVOKED_TOKENS] if r.value["expires_at"] > now],
            oidc_groups=self._oidc_groups(),
        )

    async def _read(self) -> tuple[tuple[int, ...], dict[Table, list[Any]]]:
        """Return the versions of the tables, and their values; a table that has not changed is not read again."""
        versions = self._versions()
        for table, version in zip(_TABLES, versions, strict=True):
            known = self._tables.get(table)
            if known is None or known.version != version or _age_seconds(known) > _SNAPSHOT_MAX_AGE_SECONDS:
                self._tables[table] = await self._read_table(table, version)
        return versions, {table: content.values for table, content in self._tables.items()}

    async def _read_table(self, table: Table, version: int) -> "_Content":
        read_at, records = time.monotonic(), await self._store.list(table)
        parse = _PARSERS.get(table)
        if parse is None:
            return _Content(version, records, read_at)
        parsing = asyncio.get_running_loop().run_in_executor(self._thread, lambda: list(map(parse, records)))
        return _Content(version, await parsing, read_at)

    async def check(self) -> None:
        """Look for a change that the watch has not noticed yet; in an outage the last snapshot stands."""
        with contextlib.suppress(StoreUnavailableError):
            await self._changes.check()

    async def check_in_turn(self) -> None:
        """Check the store, together with all callers of the same moment: anybody can send tokens with unknown keys."""
        if self._next_check is None:
            self._next_check = spawn(self._check_next(), "store check")
        await asyncio.wait([self._next_check], timeout=_CHECK_PATIENCE_SECONDS)

    async def _check_next(self) -> None:
        async with self._checking:
            await asyncio.sleep(_CHECK_PAUSE_SECONDS - self._changes.seconds_since_contact())
            self._next_check = None
            await self.check()


def _age_seconds(loaded: Snapshot | _Content) -> float:
    return time.monotonic() - loaded.loaded_at
