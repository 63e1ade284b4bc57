"""The cache without what was purged through any node."""

from registry_proxy.history.purge import PurgedContent
from registry_proxy.history.record import TagHistory
from registry_proxy.ports.names import parse_routed
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.reference import Digest, digest_of
from registry_proxy.store.changes import StoreWatch

MANIFEST, BLOB = digest_of(b"manifest"), digest_of(b"blob")
ROUTED = parse_routed("main/team/app")
NOTE = Change(Table.PURGED, f"{ROUTED}|{MANIFEST}", {"at": 1.0, "blobs": [str(BLOB)]})


async def test_content_that_a_replica_needs_is_removed_later(opened: tuple[Store, StoreWatch]) -> None:
    """A manifest and its blobs are removed once each; a content that is pinned is tried again until it goes."""
    store, changes = opened
    pinned, dropped = {BLOB}, list[Digest]()

    def drop(digest: Digest) -> bool:
        if digest not in pinned:
            dropped.append(digest)
        return digest not in pinned

    content = PurgedContent(store, changes, drop)
    await content.follow()
    await store.commit([NOTE])
    await content.follow()
    assert dropped == [MANIFEST]
    pinned.clear()
    await content.follow()
    await content.follow()
    assert dropped == [MANIFEST, BLOB]


async def test_a_purged_manifest_counts_as_such_until_it_is_pushed_again(opened: tuple[Store, StoreWatch]) -> None:
    """A restore is refused by the record alone, whatever caches hold, and a push is a new beginning."""
    store, _ = opened
    record = TagHistory(store)
    await store.commit([NOTE])
    assert await record.purged(ROUTED, [BLOB, MANIFEST]) == [MANIFEST]
    await store.commit([Change(Table.MANIFESTS, f"{ROUTED}|{MANIFEST}", {})])
    assert await record.purged(ROUTED, [BLOB, MANIFEST]) == []
