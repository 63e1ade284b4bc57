"""Proofs that silent replicas miss a fallback tag, and facts that prove nothing."""

import asyncio
from dataclasses import dataclass

import pytest
import pytest_asyncio

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.store import Change, Table
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Tag
from registry_proxy.repair.fallback_tags import FallbackTagComparison
from registry_proxy.replication.absence import AbsenceProof, forget_comparison
from registry_proxy.replication.journal import Journal
from registry_proxy.tasks import end, spawn
from tests.support.fakes.images import image
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, MemoryReplica
from tests.support.waiting import until

APP = image(b"1")
FALLBACK = Tag(f"sha256-{APP.digest.hex}")


@dataclass
class Desk:
    """The comparison and the proof over the two replicas of a bench."""

    bench: Bench
    comparison: FallbackTagComparison
    proof: AbsenceProof

    async def is_absent(self, *silent: str, tag: Tag = FALLBACK) -> bool:
        """Tell whether the silent replicas are proved to miss the tag."""
        return await self.proof(ROUTED, tag, silent)

    async def push(self, tag: Tag = FALLBACK) -> None:
        """Push the image's blobs and its manifest under a tag."""
        for blob in APP.blobs:
            await self.bench.under_test.upload(blob)
        await self.bench.under_test.put(tag, APP.manifest, APP.media_type)


def desk_over(setting: Bench) -> Desk:
    """Return a new comparison and proof, as of a process that has just started."""
    store, journal = setting.under_test.store, setting.under_test.journal
    verifier = setting.verifier()
    comparison = FallbackTagComparison(replica_set=setting.replicas, store=store, journal=journal, verifier=verifier)
    return Desk(setting, comparison, AbsenceProof(store, setting.under_test.changes, journal))


@pytest_asyncio.fixture
async def desk(setting: Bench) -> Desk:
    """Give a comparison and a proof over the bench, whose members are on record."""
    await setting.under_test.journal.roster.note()
    return desk_over(setting)


async def test_replicas_that_were_never_compared_prove_nothing(desk: Desk) -> None:
    """A proof holds only after the comparison, and only for replicas in it."""
    assert not await desk.is_absent("b")
    assert await desk.comparison.compare()
    assert await desk.is_absent("a")
    assert await desk.is_absent("b")
    assert not await desk.is_absent("b", "stranger")
    assert await desk_over(desk.bench).is_absent("b")  # another worker, or after a restart


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
async def test_only_fallback_tags_are_proved_absent(desk: Desk, suffix: str) -> None:
    """Tags that clients derive from a sha256 digest, also with the endings of cosign, count; look-alikes do not."""
    await desk.comparison.compare()
    assert await desk.is_absent("b", tag=Tag(FALLBACK + suffix))
    others = ["latest", f"{FALLBACK}.txt", f"{FALLBACK}0", FALLBACK[:-1], FALLBACK.upper(), f"sha512-{APP.digest.hex}"]
    assert [tag for tag in others if await desk.is_absent("b", tag=Tag(tag + suffix))] == []


async def test_a_tag_on_record_is_not_absent(desk: Desk) -> None:
    """A recorded push is not absent, even if its node died before its answer; after a delete it is absent."""
    await desk.comparison.compare()
    desk.bench.replicas.down.add("a")
    await desk.push()
    assert not await desk.is_absent("b")
    await desk.bench.under_test.manage.delete_manifest(ROUTED, FALLBACK)
    assert await desk.is_absent("b")
    await desk.bench.under_test.journal.begin(
        {IntentKey(ROUTED, IntentKind.TAG, FALLBACK): (APP.digest, APP.media_type)}, ["a", "b"]
    )
    assert not await desk.is_absent("b")


async def test_a_replica_with_a_tag_of_its_own_proves_nothing(desk: Desk) -> None:
    """For an old tag pushed past the proxy only its holder is in doubt, until all hold it or it is on record."""
    desk.bench.b.add_manifest(REPOSITORY, APP.manifest, FALLBACK)
    assert not await desk.comparison.compare()
    assert await desk.is_absent("a")
    assert not await desk.is_absent("b", tag=Tag(f"{FALLBACK}.sig"))
    desk.bench.a.add_manifest(REPOSITORY, APP.manifest, FALLBACK)
    assert await desk.comparison.compare()
    assert await desk.is_absent("b", tag=Tag(f"{FALLBACK}.sig"))


async def test_a_write_that_a_replica_missed_leaves_no_doubt(desk: Desk) -> None:
    """Recorded tags, and deleted ones that a replica still has, are known to the journal and leave no doubt."""
    await desk.push()
    for name, tag in (("a", Tag(f"{FALLBACK}.sig")), ("b", FALLBACK)):
        desk.bench.replicas.down = {name}
        await (desk.push(tag) if name == "a" else desk.bench.under_test.manage.delete_manifest(ROUTED, tag))
    desk.bench.replicas.down.clear()
    assert desk.bench.a.tags != desk.bench.b.tags
    assert await desk.comparison.compare()


@pytest.mark.parametrize("error", [RegistryError(ErrorCode.UNAVAILABLE, "no list"), UpstreamUnavailableError("gone")])
async def test_a_list_that_cannot_be_had_proves_nothing(
    desk: Desk, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry without a catalog, or one that goes down meanwhile, is not put on record."""

    async def refuse(_: MemoryReplica) -> None:
        raise error

    monkeypatch.setattr(MemoryReplica, "list_repositories", refuse)
    with pytest.raises(type(error)):
        await desk.comparison.compare()
    assert not await desk.is_absent("a")


async def test_a_replica_that_is_new_is_compared_when_it_has_been_taken_in(desk: Desk) -> None:
    """An added replica is not part of an earlier comparison; one that is removed and comes back is not either."""
    await desk.comparison.compare()
    store, changes = desk.bench.under_test.store, desk.bench.under_test.changes

    async def roster(*names: str) -> Journal:
        journal = Journal(store, changes, RecordingObserver(), {"main": names}, guarded=["main"])
        await journal.roster.note()
        return journal

    await roster("a")
    journal = await roster("a", "b")
    assert not await desk.is_absent("a")
    assert not await desk.comparison.compare()  # b is new
    assert [await desk.is_absent(name) for name in ("a", "b")] == [True, False]
    await journal.roster.admit("main", "b")
    assert await desk.comparison.compare()
    assert await desk.is_absent("b")


async def test_a_roster_that_changes_meanwhile_invalidates_a_comparison(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that starts with other replicas while the lists are read invalidates the comparison."""
    store, listed = desk.bench.under_test.store, MemoryReplica.list_repositories

    async def change(replica: MemoryReplica) -> object:
        await store.commit([Change(Table.META, "members/main", {"names": ["a"]})])
        return await listed(replica)

    monkeypatch.setattr(MemoryReplica, "list_repositories", change)
    assert not await desk.comparison.compare()
    assert not await desk.is_absent("b")


async def test_others_may_push_there_from_now_on(desk: Desk) -> None:
    """`pushed_past_us` removes the record, and without the setting nothing is proved before a new comparison."""
    await desk.comparison.compare()
    for _ in range(2):
        await forget_comparison(desk.bench.under_test.store, "main")
        assert not await desk.is_absent("b")


async def test_it_compares_by_itself(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubts are reported with the next step, and compared again; a lost record is made again."""
    module = "registry_proxy.repair.fallback_tags"
    monkeypatch.setattr(f"{module}._LOOK_SECONDS", 0.01)
    monkeypatch.setattr(f"{module}._PAUSE_WHILE_DOUBTFUL_SECONDS", 0.01)
    store, b = desk.bench.under_test.store, desk.bench.b
    b.add_manifest(REPOSITORY, APP.manifest, FALLBACK)
    task = spawn(desk.comparison.run(), "comparison")
    try:
        doubt = f"b holds main/team/app:{FALLBACK}, which another one does not hold"
        await until(lambda: doubt in caplog.text)
        assert "`registry-proxy replica repair main`" in caplog.text
        del b.tags[REPOSITORY, FALLBACK]
        assert caplog.text.count(doubt) == 1
        async with asyncio.timeout(10):
            for _ in range(2):
                while not await desk.is_absent("a", "b"):  # noqa: ASYNC110 - only the store tells of it
                    await asyncio.sleep(0)
                await forget_comparison(store, "main")
    finally:
        await end(task)
