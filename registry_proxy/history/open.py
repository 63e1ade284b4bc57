"""The history of tags of a worker."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from registry_proxy.history.bounds import HistoryBounds, HistoryLimits
from registry_proxy.history.images import ImageReader
from registry_proxy.history.record import TagHistory
from registry_proxy.history.ways_back import WaysBack
from registry_proxy.operations.manifests import ManifestWriter
from registry_proxy.operations.pull import Pull
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.ports.store import Store, StoreChanges
from registry_proxy.ports.uploads import BlobReplicas


class Writes(Protocol):
    """Writes to the replicas."""

    @property
    def manifests(self) -> ManifestWriter: ...
    @property
    def uploads(self) -> BlobReplicas: ...


@dataclass(frozen=True, slots=True)
class History:
    """The record of moves and its bounds, the images that tags are and were, and the ways back to them."""

    record: TagHistory
    bounds: HistoryBounds
    images: ImageReader
    ways: WaysBack


def open_history(
    store: Store,
    changes: StoreChanges,
    *,
    pull: Pull,
    readers: Mapping[str, RegistryReader],
    writes: Writes,
) -> History:
    """Return the history over a store.

    Args:
        store: holds the record of moves.
        changes: tells when it has grown.
        pull: reads images.
        readers: by upstream.
        writes: moves tags at the replicas.
    """
    record = TagHistory(store)
    ways = WaysBack(
        record=record,
        pull=pull,
        readers=readers,
        writer=writes.manifests,
        check_writable=writes.uploads.check_writable,
    )
    return History(record, HistoryBounds(store, changes, HistoryLimits()), ImageReader(pull), ways)
