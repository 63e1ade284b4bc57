"""The known images on record: by the chain of their layers, the tags under which they were pushed."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from registry_proxy.ports.store import Change, Store, Table, retried, revision_of

_KNOWN_MAX = 20_000
_NAMES_MAX = 20
_REMOVED_AT_ONCE = 1000
_STALE_SECONDS = 86_400.0


class KnownImages:
    """Remembers images on which others may stand; the oldest of the namespace with most give way to new ones.

    Its methods raise StoreUnavailableError.

    Args:
        store: holds the records.
        clock: seconds since the epoch.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def find(self, chains: Collection[str]) -> Mapping[str, Sequence[str]]:
        """Return the names of those chains that are on record, by one question."""
        keys = list(dict.fromkeys(chains))
        records = await self._store.get_all([(Table.BASES, key) for key in keys]) if keys else []
        return {record.key: record.value["names"] for record in records if record is not None}

    async def remember(self, chain: str, name: str) -> None:
        """Put an image on record under a name; the newest names of a chain are kept."""

        async def attempt() -> None:
            record = await self._store.get(Table.BASES, chain)
            names = [] if record is None else list(record.value["names"])
            now = self._clock()
            if record is not None and names[:1] == [name] and now - record.value["at"] < _STALE_SECONDS:
                return
            kept = _without_excess([name, *(each for each in names if each != name)])
            change = Change(Table.BASES, chain, {"names": kept, "at": now}, revision_of(record))
            await self._store.commit([change, *(await self._excess() if record is None else ())])

        await retried(attempt)

    async def _excess(self) -> Sequence[Change]:
        """Return the removal of the oldest records where there are as many as may be."""
        if await self._store.count(Table.BASES) < _KNOWN_MAX:
            return []
        records = sorted(await self._store.list(Table.BASES), key=lambda record: record.value["at"])
        largest = _most_frequent(_namespace(each.value["names"][-1]) for each in records)
        records = [each for each in records if _namespace(each.value["names"][-1]) == largest]
        return [Change(Table.BASES, each.key, None, each.revision) for each in records[:_REMOVED_AT_ONCE]]


def _without_excess(names: list[str]) -> Sequence[str]:
    """Return the newest names: those of one namespace, the first part of a name, push out none of another one."""
    while len(names) > _NAMES_MAX:
        largest = _most_frequent(map(_namespace, reversed(names)))  # of equals the one with the oldest
        names.remove(next(each for each in reversed(names) if _namespace(each) == largest))
    return names


def _namespace(name: str) -> str:
    return name.partition("/")[0]


def _most_frequent(namespaces: Iterable[str]) -> str:
    return Counter(namespaces).most_common(1)[0][0]
