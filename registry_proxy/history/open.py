"""The history of tags of a worker."""

from registry_proxy.history.bounds import HistoryBounds, HistoryLimits
from registry_proxy.history.images import ImageReader
from registry_proxy.history.record import TagHistory
from registry_proxy.operations.pull import Pull
from registry_proxy.ports.store import Store, StoreChanges


class History:
    """The record of moves, its bounds, and the images that tags are and were.

    Args:
        store: holds the record of moves.
        changes: tells when it has grown.
        pull: reads images.
    """

    def __init__(self, store: Store, changes: StoreChanges, pull: Pull) -> None:
        self.record = TagHistory(store)
        self.images = ImageReader(pull)
        self.bounds = HistoryBounds(store, changes, HistoryLimits())
