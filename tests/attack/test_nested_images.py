"""Indexes that somebody builds to cost time: nested, wide, and with children of another repository.

A user who may push can make each of them with a few requests.
"""

import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from registry_proxy.history.images import ImageReader
from registry_proxy.history.keepers import Keepers, KeeperTools, KeepLimits
from registry_proxy.history.record import TagHistory
from registry_proxy.history.ways_back import NoWayBackError, WayBack, WaysBack
from registry_proxy.operations.warm import Warmer, WarmProgress
from registry_proxy.ports.history import Cause, MoveKind
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.store import Table
from registry_proxy.protocol.descriptor import OCI_INDEX, Manifest
from registry_proxy.protocol.reference import KEEPER_PREFIX, Digest, Repository, Tag
from tests.operations.test_warm import Bench as PullBench
from tests.repair.test_repair import push
from tests.repair.test_verify import put_past
from tests.reports.test_nested_indexes import labelled
from tests.support.fakes.images import Parts, image, index
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, bench

V1 = Tag("v1")
ANN = Actor("user:ann", request_id="of-the-test")
APP = RoutedRepository("main", REPOSITORY)


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Two replicas in memory."""
    async with bench(tmp_path) as under_test:
        yield under_test


def doubled(bottom: Parts, depth: int) -> list[Parts]:
    """Return levels of two indexes each, over both of the level below; the last one is the top."""
    levels, found = [bottom], [bottom]
    for level in range(depth):
        levels = [labelled(f"{level}{side}", levels) for side in "xy"]
        found += levels
    return found


def chain(bottom: Parts, depth: int) -> list[Parts]:
    """Return indexes that each name the one before alone."""
    found = [bottom]
    for level in range(depth):
        found.append(labelled(str(level), found[-1:]))
    return found


async def test_an_index_shows_its_own_children_alone() -> None:
    """Of an index in an index only the manifest is read: by each way through thirty levels it would be 2^30."""
    setting = PullBench()
    for parts in (built := doubled(image(b"layer"), 30)):
        setting.add(parts)
    facts = await ImageReader(setting.pull).read(APP, built[-1].digest)
    assert setting.reader.count("fetch_manifest") <= 3
    assert facts.size_bytes == sum(len(each.manifest) for each in built[-4:-2]) + len(built[-1].manifest)


async def test_a_child_that_is_named_often_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that names one image 5,000 times is parsed a few times, and its image counts once."""
    setting = PullBench()
    child = setting.add(image(b"layer"))
    wide = setting.add(index(*[child] * 5000))
    parsed, load = list[int](), json.loads

    def counted(text: bytes) -> object:
        parsed.append(len(text))
        return load(text)

    monkeypatch.setattr(json, "loads", counted)
    facts = await ImageReader(setting.pull).read(APP, wide.digest)
    assert len(parsed) < 20
    assert setting.reader.count("fetch_manifest") == 2
    assert len(facts.children) == 1


async def test_only_the_first_image_is_asked_for_its_labels() -> None:
    """A wide index costs one manifest for each of its images, a hundred at most, and one configuration."""
    setting = PullBench()
    children = [setting.add(image(b"layer", label=str(number))) for number in range(150)]
    facts = await ImageReader(setting.pull).read(APP, setting.add(index(*children)).digest)
    assert (setting.reader.count("fetch_manifest"), setting.reader.count("open_blob")) == (101, 1)
    assert len(facts.children) == 150


def keepers(setting: Bench) -> Keepers:
    """Return the keepers over a bench."""
    under_test = setting.under_test

    tools = KeeperTools(
        store=under_test.store,
        changes=under_test.changes,
        pull=under_test.referrers.pull,
        find_referrers=under_test.referrers.digests,
        writer=under_test.push.writer,
        deletions=under_test.manage.deletions,
    )
    return Keepers(tools, KeepLimits(3, 0))


async def push_all(setting: Bench, built: Sequence[Parts]) -> None:
    """Push manifests, each by its digest and the last one under a tag, as a client does."""
    for parts in built[:-1]:
        await push(setting, parts)
    await setting.under_test.put(V1, built[-1].manifest, OCI_INDEX, actor=ANN)


async def push_chain(setting: Bench) -> Parts:
    """Push an index that begins a chain as long as the limit of manifests; the others are at the replicas already."""
    built = chain(image(b"layer"), 999)
    for replica in (setting.a, setting.b):
        put_past(replica, built[0])
        replica.manifests |= {(REPOSITORY, each.digest): Manifest(each.descriptor, each.manifest) for each in built}
    await push_all(setting, built[-1:])
    return built[-1]


async def test_a_chain_that_is_deeper_than_the_stack_is_kept(setting: Bench) -> None:
    """Keepers follow it, keep what is on record of it, and go on."""
    top = await push_chain(setting)
    await keepers(setting).follow()
    kept = await setting.under_test.store.list(Table.TAGS, f"{ROUTED}|{KEEPER_PREFIX}")
    assert [record.value["digest"] for record in kept] == [str(top.digest)]


def ways(setting: Bench) -> WaysBack:
    """Return the ways back over a bench."""
    under_test = setting.under_test
    return WaysBack(
        record=TagHistory(under_test.store),
        pull=under_test.referrers.pull,
        readers={"main": under_test.manage.deletions.readers["main"]},  # type: ignore[attr-defined]
        writer=under_test.push.writer,
        check_writable=lambda _: None,
    )


async def test_a_deep_chain_is_rolled_back_to(setting: Bench) -> None:
    """A state of a thousand manifests, one in the other, is no error of the program."""
    top = await push_chain(setting)
    await push(setting, image(b"now"), V1)
    way = WayBack(ROUTED, V1, top.digest, is_dry=True)
    assert (await ways(setting).roll_back(way, Cause(ANN, MoveKind.ROLLBACK))).digest == top.digest


async def test_missing_parts_are_looked_for_once_and_listed_in_part(setting: Bench) -> None:
    """A lost image below levels of two indexes is asked for once, and no list of faults is longer than a page."""
    layers = [f"layer {number}".encode() for number in range(300)]
    gone = image(*layers)
    await push_all(setting, built := doubled(gone, 6))
    await push(setting, image(b"now"), V1)
    for replica in (setting.a, setting.b):
        replica.blobs.clear()
        replica.requests.clear()
    with pytest.raises(NoWayBackError) as refused:
        await ways(setting).roll_back(WayBack(ROUTED, V1, built[-1].digest), Cause(ANN, MoveKind.ROLLBACK))
    assert len(refused.value.missing) == 101
    assert "201 more" in refused.value.missing[-1]
    assert setting.a.count("stat_blob") == 301


async def test_a_restore_takes_nothing_of_another_repository(setting: Bench) -> None:
    """A sparse index that names a digest of a hidden repository brings neither it nor its layers to light."""
    hidden, theirs = image(b"secret layer"), Repository("hidden/app")
    for replica in (setting.a, setting.b):
        replica.is_sparse = True
        replica.manifests[theirs, hidden.digest] = Manifest(hidden.descriptor, hidden.manifest)
        for blob in hidden.blobs:
            replica.add_blob(theirs, blob)
    await setting.cache.store(hidden.digest, hidden.manifest)
    await setting.under_test.put(V1, (top := index(hidden)).manifest, OCI_INDEX, actor=ANN)
    await setting.under_test.manage.delete_manifest(ROUTED, V1, actor=ANN)
    with pytest.raises(NoWayBackError) as refused:
        await ways(setting).restore(WayBack(ROUTED, V1, top.digest), Cause(ANN, MoveKind.RESTORE))
    assert refused.value.missing == (f"manifest {hidden.digest}",)
    assert (REPOSITORY, hidden.digest) not in setting.a.manifests


async def test_a_deleted_child_is_restored_with_its_index(setting: Bench) -> None:
    """A manifest that this repository is on record to have held comes back out of the cache."""
    await push_all(setting, (child := image(b"layer"), top := index(child)))
    for digest in (top.digest, child.digest):
        await setting.under_test.manage.delete_manifest(ROUTED, digest, actor=ANN)
    assert setting.holdings.find(ROUTED, ContentKind.MANIFEST, child.digest) is None
    moved = await ways(setting).restore(WayBack(ROUTED, V1, None), Cause(ANN, MoveKind.RESTORE))
    assert moved.digest == top.digest
    assert setting.a.tags[REPOSITORY, V1] == top.digest
    assert (REPOSITORY, child.digest) in setting.b.manifests


async def test_warming_walks_no_path_twice(caplog: pytest.LogCaptureFixture) -> None:
    """Shared levels are read once, a chain is followed to its end, and each blob is filled."""
    for built in (doubled(image(b"layer"), 12), chain(image(b"layer"), 1200)):
        setting = PullBench()
        for parts in built:
            setting.add(parts)
        looked_up: list[Digest] = []
        warmer = Warmer(setting.pull, partial(_no_referrers, looked_up))
        await warmer.warm(APP, built[-1].digest, frozenset(), progress := WarmProgress("deep"))
        assert (progress.error, progress.blobs_done) == ("", 2)
        assert len(looked_up) <= len(built)
    assert caplog.messages == []


async def _no_referrers(looked_up: list[Digest], _: RoutedRepository, subject: Digest) -> Sequence[Digest]:
    looked_up.append(subject)
    return ()
