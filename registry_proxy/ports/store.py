"""The store of records, shared by workers and nodes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from registry_proxy.ports.errors import ConflictError, StoreUnavailableError

_T = TypeVar("_T")
_ATTEMPTS = 20


class Table(StrEnum):
    """The kinds of record in the store."""

    META = "meta"
    USERS = "users"
    GROUPS = "groups"
    GRANTS = "grants"
    SUBJECTS = "subjects"  # generations: survive the user, so that an old token never becomes good again
    KEYS = "keys"  # public halves of the token keys
    LOCATION_KEYS = "location_keys"  # HMAC keys of upload locations
    INTENTS = "intents"  # open writes: the journal
    MANIFESTS = "manifests"  # every manifest acknowledged through us
    TAGS = "tags"  # what each tag was last made through us
    ROBOTS = "robots"
    SECRETS = "secrets"  # of robots and personal tokens, and refresh tokens of earlier versions: hashes only
    REVOKED_TOKENS = "revoked_tokens"  # by token id, until they would have expired
    AUDIT_HEADS = "audit_heads"  # the signed ends of the audit logs, by node and process
    PUSHED_BLOBS = "pushed_blobs"  # where replicas mix repositories: what no manifest may name yet
    DELETIONS = "deletions"  # of content: until every node has surely forgotten that a repository held it
    WITNESSES = "witnesses"  # by upstream and slot: keys of late writes, by which an older storage is recognised
    COMPARED = (
        "compared"  # by upstream: replicas whose fallback tags are on record, or at all others; see store.changes
    )
    REFRESH_TOKENS = "refresh_tokens"  # hashes; apart from the others, as logins make them
    SUBSCRIPTIONS = "subscriptions"
    OUTBOX = "outbox"  # events, from the commit that caused them until each subscription that wants one has it queued
    DELIVERIES = "deliveries"  # queued, in the order of a lane: see the room events
    LANES = "lanes"  # by subscription and repository: the number of its last event
    DELIVERED = "delivered"  # the last deliveries of each lane that arrived
    DEAD_LETTERS = "dead_letters"  # deliveries that were given up
    MOVES = "moves"  # the history of tags, the newest of each first: see ports.history
    RULES = "rules"  # of images
    BASES = "bases"  # images on which others may stand, by the chain of their layers: see the room rules
    PURGED = "purged"  # by repository and digest: manifests that no restore brings back, with the blobs that went along
    DEPLOYMENTS = "deployments"  # by repository and environment: the receipts of the last deployments


LOSS_KEY = "loss"
"""The key in META of the record that the store came back without what it held: ``noticed_at`` in seconds since the
epoch, and in ``compared`` the upstreams whose replicas were compared since."""


@dataclass(frozen=True, slots=True)
class Record:
    """A stored value. ``revision`` is the sequence number of the commit that wrote it: it only ever rises."""

    key: str
    value: Mapping[str, Any]
    revision: int


def revision_of(record: Record | None) -> int:
    """Return the revision of what was read, as a ``Change`` expects it: 0 where there is no record."""
    return 0 if record is None else record.revision


TRACED_TABLES = frozenset({Table.INTENTS, Table.DELETIONS})
"""Tables whose changes in each of the last ``TRACED_COMMITS`` commits to any table are known to the store."""

TRACED_COMMITS = 1000


@dataclass(frozen=True, slots=True)
class Difference:
    """Records of a table that were written since a version of it, None for those removed; and its version now."""

    version: int
    records: Mapping[str, Record | None]


@dataclass(frozen=True, slots=True)
class Change:
    """One write of a commit. ``value`` None deletes.

    ``expect`` is a precondition: None for none, 0 for "must not exist", else the revision it must have.
    """

    table: Table
    key: str
    value: Mapping[str, Any] | None
    expect: int | None = None


class Failures(Protocol):
    """Recent failures by key, counted over all that share the store; none raises where it is away.

    ``limit`` and ``window_seconds`` are the same at all calls for a key.
    """

    async def wait_seconds(self, key: str, limit: int, window_seconds: float) -> float:
        """Return how long until fewer than ``limit`` failures are within the window; 0 where it is so now."""

    async def note(self, key: str, limit: int, window_seconds: float) -> None:
        """Count a failure."""


class Store(Protocol):
    """Records in tables, changed several at a time, atomically and durably.

    Every method raises StoreUnavailableError when it cannot be reached.
    """

    @property
    def failures(self) -> Failures:
        """Failures that all workers and nodes with this store count together."""

    async def get(self, table: Table, key: str) -> Record | None: ...
    async def get_all(self, keys: Sequence[tuple[Table, str]]) -> Sequence[Record | None]:
        """Return a record or None for each key, as they are at one moment, by one question."""

    async def list(self, table: Table, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[Record]:
        """Return the records whose key starts with ``prefix``, by key.

        With ``after`` only those behind this key, with ``limit`` only the first ones.

        Thousands are not those of one moment: a caller that needs that compares ``versions`` before and after.
        """

    async def changed_since(self, table: Table, version: int) -> Difference | None:
        """Return how a table in ``TRACED_TABLES`` differs from what it was at a version; None where that is not known.

        Costs a look-up for each commit and record since then, however many records there are.
        """

    async def heads(self, table: Table, prefix: str = "") -> Sequence[str]:
        """Return what stands before the first ``|`` in the keys that ``list`` would return, each once.

        Costs a look-up for each of them, however many keys begin with it.
        """

    async def count(self, table: Table, prefix: str = "") -> int:
        """Return how many records ``list`` would return."""

    async def commit(self, changes: Sequence[Change], *, versions: Mapping[Table, int] = MappingProxyType({})) -> int:
        """Apply all changes or none; return the new sequence number, the revision of every record written.

        Args:
            changes: what is written; where there are none, nothing is compared either.
            versions: of tables that may not have changed, from ``versions``; 0 for one that it did not contain.

        Raises:
            ConflictError: an ``expect`` does not hold, or a table has another version.
        """

    async def versions(self) -> Mapping[Table, int]:
        """Return for each table the sequence number of its last change; 0 or absent where there was none."""

    def lease(self, key: str) -> AbstractAsyncContextManager[None]:
        """Hold an exclusive lease on ``key``, over all workers (SQLite) or all nodes (Redis); waits for it.

        Raises:
            StoreUnavailableError: not obtained within 30 s.
        """

    async def aclose(self) -> None: ...


class StoreChanges(Protocol):
    """Knows cheaply when a table may have changed, in this worker, another one, or another node."""

    def version(self, table: Table) -> int:
        """Return a number that differs from an earlier one whenever the table may have changed; costs under 1 us."""

    def losses(self) -> int:
        """Return a number that rises when the store turns out to be empty, or older than it was."""

    async def check(self) -> None:
        """Have ``version`` know what every node committed until now. Raises StoreUnavailableError."""


async def retried(attempt: Callable[[], Awaitable[_T]], conflict: type[Exception] = ConflictError) -> _T:
    """Repeat an attempt that lost a race: each one reads anew what it expects of the store.

    Raises:
        StoreUnavailableError: also when it goes on losing races.
    """
    for _ in range(_ATTEMPTS):
        try:
            return await attempt()
        except conflict:
            continue
    raise StoreUnavailableError("too many others change the same records at the same time")


async def read_since(store: Store, table: Table, version: int | None) -> tuple[Difference, bool]:
    """Return how a table differs from a version where the store knows that, else all of it; and whether it is all."""
    if version is not None and (changed := await store.changed_since(table, version)) is not None:
        return changed, False
    now = (await store.versions()).get(table, 0)
    return Difference(now, {record.key: record for record in await store.list(table)}), True
