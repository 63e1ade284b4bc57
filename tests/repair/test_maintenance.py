"""Pauses: the writes that reach a paused replica, their end, and the replicas that cannot be paused."""

import asyncio
import time
from collections.abc import Callable

import pytest
import pytest_asyncio

from registry_proxy.ports.journal import IntentKey, IntentKind, PauseRefusedError
from registry_proxy.ports.replicas import StorageKind
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Tag, digest_of
from registry_proxy.repair.maintenance import KNOWN_SECONDS, Maintenance
from registry_proxy.replication.intents import WRITING_SECONDS
from registry_proxy.replication.pauses import repair_lease
from registry_proxy.tasks import spawn
from tests.repair.test_repair import Workshop, same
from tests.support.fakes.images import Parts, image
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench
from tests.support.refusal import refused
from tests.support.waiting import until

LATEST = Tag("latest")
MANIFEST_KEY = IntentKey(ROUTED, IntentKind.MANIFEST, str(digest_of(b"manifest")))


class Ward:
    """Maintenance of the replicas of a bench, with a clock that a test moves."""

    def __init__(self, setting: Bench) -> None:
        self.ahead_seconds = 0.0
        under_test = setting.under_test
        self.maintenance = Maintenance(
            replica_set=setting.replicas,
            store=under_test.store,
            journal=under_test.journal,
            clock=lambda: time.time() + self.ahead_seconds,
        )

    async def pause(self, replica: str = "a") -> None:
        """Pause a replica, and wait until all processes know of it."""
        await self.maintenance.pause(replica, "a test", "user:ann")
        self.ahead_seconds += KNOWN_SECONDS

    async def is_quiet(self) -> bool:
        """Tell whether no write to the paused replica is running any more."""
        pause = await self.maintenance.find()
        assert pause is not None
        return await self.maintenance.is_quiet(pause)


@pytest_asyncio.fixture
async def ward(setting: Bench) -> Ward:
    """Give the maintenance of the bench."""
    return Ward(setting)


async def push(setting: Bench, parts: Parts) -> None:
    """Push a whole image."""
    for blob in parts.blobs:
        await setting.under_test.upload(blob)
    await setting.under_test.put(LATEST, parts.manifest, parts.media_type)


async def test_a_manifest_does_not_reach_a_replica_paused_elsewhere_a_moment_ago(setting: Bench, ward: Ward) -> None:
    """A process that does not know of the pause yet records its write as missing, for a later repair."""
    await ward.pause()
    assert setting.replicas.is_writable("a")  # the view of health, which reads pauses once a second
    app = image(b"layer")
    await push(setting, app)
    assert not setting.a.manifests
    assert set(map(tuple, (await setting.under_test.intents()).values())) == {("a",)}
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    assert not [method for method, *_ in setting.a.requests if method.startswith("delete")]
    await push(setting, app)
    await ward.maintenance.resume("a", "user:ann")
    assert await Workshop(setting).repairer.repair(setting.a)
    assert same(setting)
    assert await setting.under_test.intents() == {}


async def test_a_pause_is_quiet_when_the_write_before_it_has_ended(setting: Bench, ward: Ward) -> None:
    """A manifest that was on its way when the replica was paused arrives, and only then the pause is quiet."""
    app, gate = image(b"layer"), asyncio.Event()
    for blob in app.blobs:
        await setting.under_test.upload(blob)
    setting.a.gates["put_manifest"] = gate
    writing = spawn(setting.under_test.put(LATEST, app.manifest, app.media_type), "push")
    await until(lambda: any(method == "put_manifest" for method, *_ in setting.a.requests))
    await ward.pause()
    assert not await ward.is_quiet()
    gate.set()
    await writing
    assert await ward.is_quiet()
    assert setting.a.tags == {(REPOSITORY, LATEST): app.digest}


async def test_writes_that_know_of_the_pause_are_not_waited_for(setting: Bench, ward: Ward) -> None:
    """Pushes never stop on a busy upstream, and the pause becomes quiet all the same."""
    await ward.pause()
    setting.b.gates["put_manifest"] = asyncio.Event()
    writing = spawn(push(setting, image(b"layer")), "push")
    await until(lambda: any(method == "put_manifest" for method, *_ in setting.b.requests))
    assert await ward.is_quiet()
    setting.b.gates["put_manifest"].set()
    await writing


async def test_a_write_of_a_node_that_died_is_waited_for_a_minute(setting: Bench, ward: Ward) -> None:
    """It is waited for also where a confirmation in between made the record of the write newer than the pause."""
    journal, digest = setting.under_test.journal, digest_of(b"manifest")
    await journal.begin({MANIFEST_KEY: (digest, "type")}, ["a", "b"])
    await ward.pause()
    assert not await ward.is_quiet()
    await journal.confirm(MANIFEST_KEY, digest, "b")
    assert not await ward.is_quiet()
    journal._clock = lambda: time.time() + WRITING_SECONDS
    assert await ward.is_quiet()


async def test_a_write_of_a_node_whose_clock_is_ahead_is_waited_for(setting: Bench, ward: Ward) -> None:
    """By the order of the store it began before the pause, whatever the clocks say."""
    setting.under_test.journal._clock = lambda: time.time() + WRITING_SECONDS / 2
    await setting.under_test.journal.begin({MANIFEST_KEY: (digest_of(b"manifest"), "type")}, ["a", "b"])
    await ward.pause()
    assert not await ward.is_quiet()


async def test_it_is_not_quiet_before_every_process_knows(setting: Bench, ward: Ward) -> None:
    """Processes that send blobs know of the pause within two seconds."""
    await ward.maintenance.pause("a", "", "user:ann")
    assert not await ward.is_quiet()
    ward.ahead_seconds += KNOWN_SECONDS
    assert await ward.is_quiet()
    assert setting.replicas.is_writable("a")


async def test_repair_of_a_paused_replica_ends_and_does_not_begin(setting: Bench, ward: Ward) -> None:
    """The pause waits for a running repair; later missing writes are left until the end of the pause."""
    await ward.pause()
    async with repair_lease(setting.under_test.store, "main", "a"):
        assert not await ward.is_quiet()
    assert await ward.is_quiet()
    await push(setting, image(b"layer"))
    assert await Workshop(setting).repairer.repair(setting.a)
    assert not setting.a.manifests


async def test_sending_blobs_for_longer_than_a_write_counts_ends_before_the_manifest(setting: Bench) -> None:
    """A manifest that waited for its blobs to be sent is not sent to a replica that was paused meanwhile."""
    app, gate = image(b"layer"), asyncio.Event()
    await push(setting, app)
    setting.a.blobs.clear()
    setting.a.manifests.clear()
    setting.a.gates["push_blob"] = gate
    writing = spawn(setting.under_test.put(LATEST, app.manifest, app.media_type), "push")
    await until(lambda: any(method == "push_blob" for method, *_ in setting.a.requests))
    setting.replicas.down.add("a")  # as when a process learns of the pause
    gate.set()
    await writing
    assert not setting.a.manifests
    assert {("a",)} == set(map(tuple, (await setting.under_test.intents()).values()))


Arrange = Callable[[Bench], object]


def miss(replica: str) -> Arrange:
    """Make a replica miss a write."""
    return lambda setting: setting.under_test.journal.miss(MANIFEST_KEY, digest_of(b"manifest"), "type", replica)


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (lambda setting: setattr(setting.replicas, "read_only", True), "read-only"),
        (lambda setting: setattr(setting.replicas, "storage", StorageKind.SHARED), "share one storage"),
        (lambda setting: setattr(setting.replicas, "write_quorum", 2), "1 of write_quorum 2"),
        (lambda setting: setting.replicas.down.add("a"), "a of main is not up"),
        (lambda setting: setting.replicas.down.add("b"), "0 of write_quorum 1"),
        (miss("a"), "a of main is behind"),
        (miss("b"), "no other replica of main is current"),
    ],
    ids=["read-only", "shared", "quorum", "down", "other down", "behind", "other behind"],
)
async def test_a_replica_that_is_needed_is_not_paused(
    setting: Bench, ward: Ward, arrange: Arrange, reason: str
) -> None:
    """The refusal says why, and nothing is paused."""
    if asyncio.iscoroutine(arranging := arrange(setting)):
        await arranging
    with pytest.raises(PauseRefusedError, match=reason):
        await ward.pause()
    assert await ward.maintenance.find() is None


async def test_one_replica_at_a_time(setting: Bench, ward: Ward) -> None:
    """A second pause is refused, for either replica; a resume without a pause too; then the first one ends."""
    await ward.pause("a")
    for replica in ("a", "b"):
        with pytest.raises(PauseRefusedError, match="a of main is paused already, by user:ann"):
            await ward.pause(replica)
    with pytest.raises(PauseRefusedError, match="b of main is not paused"):
        await ward.maintenance.resume("b", "user:ann")
    await ward.maintenance.resume("a", "user:ann")
    await ward.pause("b")
    assert (await setting.under_test.journal.current.marks()).pause("main") == await ward.maintenance.find()


async def test_the_pause_of_a_replica_that_is_configured_no_more_ends_with_it(setting: Bench, ward: Ward) -> None:
    """The pause of a removed replica does not prevent the pause of another."""
    await ward.pause("a")
    setting.replicas.replicas = [setting.b, setting.a.__class__(name="c")]
    assert await ward.maintenance.find() is None
    await ward.pause("b")


async def test_a_refusal_of_all_is_still_taken_back_during_a_pause(setting: Bench, ward: Ward) -> None:
    """The writable replicas decide, and no part of a refused push stays on record."""
    app = image(b"layer")
    await ward.pause()
    setting.b.errors["put_manifest"] = RegistryError(ErrorCode.MANIFEST_INVALID, "no")
    for blob in app.blobs:
        await setting.under_test.upload(blob)
    error = await refused(setting.under_test.put(LATEST, app.manifest, app.media_type))
    assert error.code is ErrorCode.MANIFEST_INVALID
    assert not [key for key in await setting.under_test.intents() if "|manifest|" in key or "|tag|" in key]


async def test_a_registry_that_remembers_what_is_gone_stays_paused(setting: Bench, ward: Ward) -> None:
    """A registry that answers for a deleted blob, and cannot serve it, is resumed only by force."""
    await ward.pause()
    setting.a.cuts.append(3)
    with pytest.raises(PauseRefusedError, match="restart the registry"):
        await ward.maintenance.resume("a", "user:ann")
    assert await ward.maintenance.find() is not None
    await ward.maintenance.resume("a", "user:ann", force=True)
    assert await ward.maintenance.find() is None


@pytest.mark.parametrize("fate", ["collected", "kept", "away", "refused"])
async def test_a_registry_is_resumed_unless_it_is_known_to_remember(setting: Bench, ward: Ward, fate: str) -> None:
    """It is resumed if it collected the blob, kept it, did not answer, or never took one; a kept blob is deleted."""
    if fate == "refused":
        setting.a.errors["push_blob"] = RegistryError(ErrorCode.DENIED, "no", status=403)
    await ward.pause()
    assert len(setting.a.blobs) == int(fate != "refused")
    if fate == "collected":
        setting.a.blobs.clear()
    setting.a.is_down = fate == "away"
    await ward.maintenance.resume("a", "user:ann")
    assert await ward.maintenance.find() is None
    assert len(setting.a.blobs) == int(fate == "away")
