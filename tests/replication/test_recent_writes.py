"""Knowledge of the writes since a moment, with and without intents."""

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Table
from registry_proxy.protocol.reference import Repository
from registry_proxy.replication import recent_writes
from registry_proxy.replication.recent_writes import RecentWrites

NAMES = (("main", "app"), ("main", "other"), ("b", "app"))
APP, OTHER, ELSEWHERE = (
    RoutedRepository(upstream, Repository(name))
    for upstream, name in (("main", "app"), ("main", "other"), ("b", "app"))
)


class Changes:
    """``StoreChanges`` whose numbers a test sets."""

    def __init__(self) -> None:
        self.numbers = dict.fromkeys(Table, 0)

    def version(self, table: Table) -> int:
        return self.numbers[table]

    def losses(self) -> int:
        return 0

    async def check(self) -> None: ...


def test_writes_are_known_by_repository() -> None:
    """A list may miss the writes to its own repository since then, and no others."""
    writes = RecentWrites(Changes())
    writes.note([APP])
    moment = writes.now()
    assert writes.since(moment, "main", leave_intents=True) == set()
    writes.note([OTHER, ELSEWHERE])
    assert writes.since(moment, "main", leave_intents=True) == {"other"}
    assert writes.since(moment, "b", leave_intents=True) == {"app"}
    writes.note([APP])
    assert writes.since(moment, "main", leave_intents=True) == {"app", "other"}


def test_many_writes_are_any_writes() -> None:
    """From a moment that is too old nothing is known; from a later one all writes are."""
    writes = RecentWrites(Changes())
    before = writes.now()
    for number in range(recent_writes._REPOSITORIES_MAX):
        writes.note([RoutedRepository("main", Repository(f"r{number}"))])
    assert len(writes.since(before, "main", leave_intents=True) or ()) == recent_writes._REPOSITORIES_MAX
    writes.note([APP])
    assert writes.since(before, "main", leave_intents=True) is None
    after = writes.now()
    writes.note([OTHER])
    assert writes.since(after, "main", leave_intents=True) == {"other"}
    writes.note_all()
    assert writes.since(after, "main", leave_intents=True) is None


def test_over_shared_storage_the_records_tell() -> None:
    """Without intents any commit to the records of tags, manifests or deletions may have been a write."""
    changes = Changes()
    writes = RecentWrites(changes)
    moment = writes.now()
    writes.note_all()
    assert writes.since(moment, "main", leave_intents=False) == ()
    for table in (Table.TAGS, Table.MANIFESTS, Table.DELETIONS):
        changes.numbers[table] += 1
        assert writes.since(moment, "main", leave_intents=False) is None
        moment = writes.now()
