"""After an empty store: the knowledge of nodes is on record again, and the replicas are compared."""

import pytest

from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import ContentKind
from registry_proxy.ports.store import LOSS_KEY, Change, Table
from registry_proxy.protocol.reference import Digest, Repository
from registry_proxy.repair.inspection import SENTINELS, Inspection
from registry_proxy.repair.recovery import Recovery
from registry_proxy.repair.verify import Verifier
from registry_proxy.replication.intents import Intent, change_of
from tests.repair.test_inspection import put_back, state_of
from tests.repair.test_repair import Workshop, push
from tests.support.fakes.images import image
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench


def recovery(setting: Bench) -> Recovery:
    """Return the recovery of a bench's upstream, on a node that knows the pushes through it."""
    store, journal = setting.under_test.store, setting.under_test.journal

    def known(upstream: str) -> list[tuple[Repository, Digest]]:
        return list(setting.holdings.contents_of(upstream, ContentKind.MANIFEST))

    verifier = setting.verifier()
    return Recovery(
        replica_set=setting.replicas,
        store=store,
        journal=journal,
        verifier=verifier,
        upstreams=["main"],
        inspection=Inspection(store=store, journal=journal, recorded=["main"]),
        known=known,
    )


async def lose_store(setting: Bench, noticed_at: float = 1.0) -> None:
    """Empty the store, and note that a node has noticed it."""
    store = setting.under_test.store
    gone = [Change(table, record.key, None) for table in Table for record in await store.list(table)]
    loss = Change(Table.META, LOSS_KEY, {"noticed_at": noticed_at, "compared": []})
    await store.commit([*(one for one in gone if one.key != LOSS_KEY), loss])


def same(setting: Bench) -> bool:
    """Tell whether both replicas hold the same, apart from the product's own objects."""
    tables = [
        {key: value for key, value in table.items() if key[0] != SENTINELS}
        for one in (setting.a, setting.b)
        for table in (one.tags, one.manifests, one.blobs)
    ]
    return tables[:3] == tables[3:]


async def recorded(setting: Bench) -> set[str]:
    """Return the recorded manifests."""
    return {record.key for record in await setting.under_test.store.list(Table.MANIFESTS)}


async def is_lost(setting: Bench) -> bool:
    """Tell whether a comparison after a loss is due."""
    return await setting.under_test.store.get(Table.META, LOSS_KEY) is not None


async def test_a_manifest_whose_tag_has_moved_survives_the_loss_of_the_store_and_then_of_a_replica(
    setting: Bench,
) -> None:
    """No registry lists it: it is copied to a replica that is wiped later, since it is on record again."""
    await push(setting, image(b"1"), "latest")
    await push(setting, image(b"2"), "latest")
    await lose_store(setting)
    under_test = recovery(setting)
    await under_test.remember()
    assert await under_test.recover()
    assert not await is_lost(setting)
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await setting.under_test.store.commit([Change(Table.META, "members/main", {"names": ["a"]})])
    assert await Workshop(setting).repair()
    assert same(setting)


async def test_a_manifest_that_was_deleted_or_is_nowhere_is_not_on_record_again(setting: Bench) -> None:
    """Manifests that were deleted, or collected by all replicas, are not recorded by a node that does not know it."""
    deleted, missed, gone, held = [await push(setting, image(content)) for content in (b"1", b"2", b"3", b"4")]
    await lose_store(setting)
    await setting.under_test.store.commit(
        [
            Change(Table.DELETIONS, f"{ROUTED}|manifest|{deleted.digest}", {"deleted_at": 1.0}),
            change_of(IntentKey(ROUTED, IntentKind.MANIFEST, str(missed.digest)), Intent(None, "", ("b",))),
        ]
    )
    for replica in (setting.a, setting.b):
        del replica.manifests[REPOSITORY, gone.digest]
    await recovery(setting).remember()
    assert await recorded(setting) == {f"{ROUTED}|{held.digest}"}


async def test_knowledge_added_after_the_comparison_is_compared_too(setting: Bench) -> None:
    """A node that was away, or hung, while others compared, adds its knowledge at its return."""
    missing = await push(setting, image(b"1"))
    del setting.b.manifests[REPOSITORY, missing.digest]
    await lose_store(setting)
    elsewhere = recovery(setting)
    assert await elsewhere.recover()
    assert not await is_lost(setting)
    under_test = recovery(setting)
    await under_test.remember()
    assert await is_lost(setting)
    assert not same(setting)
    await under_test.remember()
    # As after the first comparison of ``recover``, which then waits for the repair.
    verifier = setting.verifier()
    await verifier.compare(verifier.new(), repair=True)
    assert await Workshop(setting).repair()
    assert same(setting)
    assert await under_test.recover()
    assert not await is_lost(setting)


async def test_a_comparison_does_not_answer_for_a_loss_that_came_after_it_began(
    setting: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison from before another loss proves nothing."""
    await push(setting, image(b"1"), "latest")
    await lose_store(setting, noticed_at=1.0)
    compare = Verifier.compare

    async def compare_and_lose(*arguments: object, **options: object) -> None:
        await compare(*arguments, **options)  # type: ignore[arg-type]
        await lose_store(setting, noticed_at=2.0)

    monkeypatch.setattr(Verifier, "compare", compare_and_lose)
    await recovery(setting).recover()
    assert await is_lost(setting)


@pytest.mark.parametrize("storage", ["older", "empty"])
async def test_a_storage_from_before_the_loss_is_distinct_from_its_replica_now(setting: Bench, storage: str) -> None:
    """No record contradicts the older storage, but each replica got a new sentinel."""
    await Inspection(
        store=setting.under_test.store, journal=setting.under_test.journal, recorded=["main"]
    ).leave_sentinels(setting.replicas)
    await push(setting, image(b"1"), "latest")
    before = state_of(setting.b) if storage == "older" else {"tags": {}, "manifests": {}, "blobs": {}}
    await push(setting, image(b"2"), "latest")
    await lose_store(setting)
    under_test = recovery(setting)
    await under_test.remember()
    assert await under_test.recover()
    put_back(setting.b, before)
    inspection = Inspection(store=setting.under_test.store, journal=setting.under_test.journal, recorded=["main"])
    for client in (setting.a, setting.b):
        await inspection.inspect(setting.replicas, client, is_returning=False)
    marks = await setting.under_test.journal.current.marks()
    assert [marks.is_newcomer("main", name) for name in "ab"] == [False, True]
