"""Keepers against deletions: they are no tags of clients, and one image that is broken stops no others."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry_proxy.ports.names import ContentKind
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.rules import RuleMode
from registry_proxy.ports.store import Change, Table
from registry_proxy.protocol.descriptor import OCI_MANIFEST
from registry_proxy.protocol.reference import KEEPER_PREFIX, digest_of, keeper_tag
from tests.attack.test_nested_images import V1, keepers
from tests.repair.test_repair import push
from tests.support.fakes.images import Parts, image
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, bench

ANN = Actor("user:ann")


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Two replicas in memory."""
    async with bench(tmp_path) as under_test:
        yield under_test


async def push_as_ann(setting: Bench, *images: Parts) -> None:
    """Push images under one tag, one after the other."""
    for each in images:
        await push(setting, each)
        await setting.under_test.put(V1, each.manifest, OCI_MANIFEST, actor=ANN)


async def kept(setting: Bench) -> set[str]:
    """Return the digests that have a keeper on record."""
    found = await setting.under_test.store.list(Table.TAGS, f"{ROUTED}|{KEEPER_PREFIX}")
    return {record.value["digest"] for record in found}


async def test_a_deleted_manifest_leaves_no_history_of_its_keeper(setting: Bench) -> None:
    """A move of a reserved tag would count against the bound of the repository, and nobody could see it."""
    first, second = image(b"one"), image(b"two")
    await push_as_ann(setting, first, second)
    await keepers(setting).follow()
    await setting.under_test.manage.delete_manifest(ROUTED, first.digest, actor=ANN)
    moves = await setting.under_test.store.list(Table.MOVES)
    assert {record.key.split("|")[1] for record in moves} == {V1}
    assert (REPOSITORY, keeper_tag(first.digest)) not in setting.a.tags


async def test_a_rule_protects_no_keeper(setting: Bench) -> None:
    """A manifest that no tag of a client names can be deleted where a rule keeps all tags."""
    first, second = image(b"one"), image(b"two")
    await push_as_ann(setting, first, second)
    await keepers(setting).follow()
    assert await kept(setting) == {str(first.digest), str(second.digest)}
    rule = {"repository": "**", "tags": "*", "immutable": ["delete"], "mode": RuleMode.ENFORCE}
    await setting.under_test.store.commit([Change(Table.RULES, "fixed", rule)])
    await setting.under_test.manage.delete_manifest(ROUTED, first.digest, actor=ANN)
    assert await kept(setting) == {str(second.digest)}


async def test_an_image_that_lost_a_layer_stops_no_others(setting: Bench) -> None:
    """The keepers of other states are written, and those of old states are removed."""
    broken, *others = (image(label.encode(), label=label) for label in "abcdef")
    await push_as_ann(setting, *others[:1])
    looking = keepers(setting)
    await looking.follow()
    await push_as_ann(setting, *others[1:4], broken, others[4])
    lost = digest_of(b"a")
    for replica in (setting.a, setting.b):
        del replica.blobs[REPOSITORY, lost]
    setting.holdings.end(ROUTED, ContentKind.BLOB, lost)
    setting.cache.drop(lost)
    await looking.review()
    assert str(others[0].digest) not in await kept(setting)
    assert {str(others[3].digest), str(others[4].digest)} <= await kept(setting)
