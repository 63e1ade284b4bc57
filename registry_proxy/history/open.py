"""The history of tags of a worker."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from registry_proxy.history.bounds import HistoryBounds, HistoryLimits
from registry_proxy.history.images import ImageReader
from registry_proxy.history.keepers import Keepers, KeeperTools, KeepLimits
from registry_proxy.history.promotions import Promotions
from registry_proxy.history.purge import Purge, PurgedContent, dropping
from registry_proxy.history.record import TagHistory
from registry_proxy.history.ways_back import WaysBack
from registry_proxy.operations.fallback_tags import FallbackTags
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.manifests import ManifestWriter
from registry_proxy.operations.proofs import HoldingProofs
from registry_proxy.operations.push import Push
from registry_proxy.operations.referrers import Referrers
from registry_proxy.operations.warm import Warmer
from registry_proxy.ports.deletions import Deletions
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.ports.store import Store, StoreChanges
from registry_proxy.ports.uploads import BlobReplicas, UploadSessions


class Writes(Protocol):
    """Writes to the replicas."""

    @property
    def manifests(self) -> ManifestWriter: ...
    @property
    def uploads(self) -> BlobReplicas: ...
    @property
    def deletions(self) -> Deletions: ...
    @property
    def proofs(self) -> HoldingProofs: ...
    @property
    def sessions(self) -> UploadSessions: ...
    @property
    def fallback_tags(self) -> FallbackTags: ...


@dataclass(frozen=True, slots=True)
class History:
    """The record of moves and its bounds, images, what keeps them, the ways back, promotions, and purges."""

    record: TagHistory
    bounds: HistoryBounds
    keepers: Keepers
    images: ImageReader
    ways: WaysBack
    promotions: Promotions
    purge: Purge
    purged: PurgedContent

    async def run(self) -> None:
        """Keep the record within its bounds, the newest content, and the cache free of what was purged."""
        await asyncio.gather(self.bounds.run(), self.keepers.run(), self.purged.run())


def open_history(
    store: Store,
    changes: StoreChanges,
    keep: KeepLimits,
    *,
    warmer: Warmer,
    readers: Mapping[str, RegistryReader],
    writes: Writes,
) -> History:
    """Return the history over a store.

    Args:
        store: holds the record of moves.
        changes: tells when it has grown.
        keep: how much content is kept.
        warmer: reads images, and what refers to them.
        readers: by upstream.
        writes: moves tags at the replicas.
    """
    record = TagHistory(store)
    pull = warmer.pull
    tools = KeeperTools(
        store=store,
        changes=changes,
        pull=pull,
        find_referrers=warmer.find_referrers,
        writer=writes.manifests,
        deletions=writes.deletions,
    )
    ways = WaysBack(
        record=record,
        pull=pull,
        readers=readers,
        writer=writes.manifests,
        check_writable=writes.uploads.check_writable,
    )
    bounds = HistoryBounds(store, changes, HistoryLimits())
    push = _push(warmer, writes)
    promotions = Promotions(record=record, warmer=warmer, push=push)
    manage = Manage(holdings=push.holdings, proofs=push.proofs, deletions=writes.deletions, referrers=push.referrers)
    purge = Purge(store=store, record=record, pull=pull, manage=manage, writer=writes.manifests)
    purged = PurgedContent(store, changes, dropping(writes.manifests))
    keepers = Keepers(tools, keep)
    return History(record, bounds, keepers, ImageReader(pull), ways, promotions, purge, purged)


def _push(warmer: Warmer, writes: Writes) -> Push:
    writer = writes.manifests
    return Push(
        spool=writer.spool,
        cache=writer.cache,
        holdings=writer.holdings,
        proofs=writes.proofs,
        sessions=writes.sessions,
        blobs=writes.uploads,
        writer=writer,
        referrers=Referrers(pull=warmer.pull, tags=writes.fallback_tags),
    )
