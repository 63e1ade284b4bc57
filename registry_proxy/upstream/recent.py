"""A mapping within a bound: what was set longest ago is forgotten first."""

from collections import OrderedDict
from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """The last entries of a mapping, at most ``max_entries``."""

    def __init__(self, max_entries: int = 1000) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[_K, _V] = OrderedDict()

    def get(self, key: _K) -> _V | None:
        """Return the value of a key, None where it has none, or none any more."""
        return self._entries.get(key)

    def set(self, key: _K, value: _V) -> None:
        """Set the value of a key, which is the newest entry then."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def forget(self, key: _K) -> None:
        """Remove a key, if it is there."""
        self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)
