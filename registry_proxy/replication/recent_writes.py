"""The repositories that were written to lately, through any node: a kept list may miss these writes."""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Final

from registry_proxy.ports.journal import Moment
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import StoreChanges, Table
from registry_proxy.protocol.reference import Repository

_REPOSITORIES_MAX: Final = 1000
_TABLES: Final = (Table.TAGS, Table.MANIFESTS, Table.DELETIONS)


class RecentWrites:
    """Numbers the changes of the journal by repository.

    Over shared storage a write leaves no intent. There the tables of records tell that there was one, not where.

    Args:
        changes: counts the commits to each table.
    """

    def __init__(self, changes: StoreChanges) -> None:
        self._changes = changes
        self._numbers: OrderedDict[RoutedRepository, int] = OrderedDict()
        self._number = 0
        self._known_since = 0

    def note(self, repositories: Iterable[RoutedRepository]) -> None:
        """Count a change of these repositories; of the longest unchanged ones nothing is known any more."""
        self._number += 1
        for routed in repositories:
            self._numbers[routed] = self._number
            self._numbers.move_to_end(routed)
        while len(self._numbers) > _REPOSITORIES_MAX:
            _, self._known_since = self._numbers.popitem(last=False)

    def note_all(self) -> None:
        """Count a change of any repository."""
        self._numbers.clear()
        self._number += 1
        self._known_since = self._number

    def now(self) -> Moment:
        """Return the present moment."""
        return Moment(self._number, tuple(map(self._changes.version, _TABLES)))

    def since(self, moment: Moment, upstream: str, *, leave_intents: bool) -> Collection[Repository] | None:
        """Return what was written to since a moment; see ``ports.journal.MarkSource``."""
        if not leave_intents:
            return () if moment.records == self.now().records else None
        if moment.number < self._known_since:
            return None
        return {
            routed.repository
            for routed, number in self._numbers.items()
            if number > moment.number and routed.upstream == upstream
        }
