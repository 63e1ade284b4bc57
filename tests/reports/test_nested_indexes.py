"""The repair of nested indexes costs in proportion to their number, however they share their children.

Reports: none; a user who may push and delete can build sixty small indexes whose repair, by each way through them,
would outlast the registry, or a chain of them that is deeper than the stack of a program.
"""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from registry_proxy.ports.names import ContentKind
from registry_proxy.protocol.descriptor import OCI_INDEX, Manifest
from registry_proxy.repair.exceptions import Exceptions
from tests.repair.test_repair import Workshop, push, same
from tests.repair.test_verify import make_newcomer, put_past
from tests.support.fakes.images import Parts, image, index
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, bench


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Two replicas in memory."""
    async with bench(tmp_path) as under_test:
        yield under_test


def labelled(label: str, parts: Sequence[Parts]) -> Parts:
    """Return an index that differs from others over the same manifests."""
    document = {**json.loads(index(*parts).manifest), "annotations": {"label": label}}
    return Parts(json.dumps(document).encode(), (), OCI_INDEX)


async def lose(setting: Bench, *lost: Parts) -> None:
    """Delete manifests at both replicas and in the cache, and start again with b as a newcomer."""
    for parts in lost:
        for replica in (setting.a, setting.b):
            del replica.manifests[REPOSITORY, parts.digest]
        setting.holdings.end(ROUTED, ContentKind.MANIFEST, parts.digest)
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await make_newcomer(setting)


async def test_shared_children_are_dealt_with_once(setting: Bench) -> None:
    """With two indexes a level, each over both of the level below, over a lost image, no path is walked twice."""
    gone = await push(setting, image(b"gone"))
    level = [gone]
    for depth in range(8):
        level = [await push(setting, labelled(f"{depth}{side}", level)) for side in "xy"]
    await lose(setting, gone)
    setting.b.requests.clear()
    assert await Workshop(setting).repair()
    assert not (await setting.under_test.journal.current.marks()).is_newcomer("main", "b")
    assert len(setting.b.requests) < 16 * 16 * 3, "by each way it would be twice as many with each level"


async def test_a_deep_chain_is_repaired_in_rounds(setting: Bench) -> None:
    """Each round copies more of it, nothing is refused on the way, and the replica has all of it in the end."""
    parts = put_past(setting.a, image(b"bottom"))
    for depth in range(40):
        parts = labelled(str(depth), [parts])
        setting.a.manifests[REPOSITORY, parts.digest] = Manifest(parts.descriptor, parts.manifest)
    setting.a.tags[REPOSITORY, "top"] = parts.digest
    await make_newcomer(setting)
    workshop, counts = Workshop(setting), [0]
    while not await workshop.repair():
        counts.append(len(setting.b.manifests))
        assert counts[-1] > counts[-2], "a round that brings nothing would be repeated for ever"
    assert len(counts) > 1, "it is not followed to its end at once: it may be deeper than the stack"
    assert same(setting)
    assert await Exceptions(setting.under_test.store).list("main") == []


async def test_a_reason_names_the_first_of_many(setting: Bench) -> None:
    """The refusal of an index with hundreds of lost children is one line, with their number."""
    children = [await push(setting, image(b"layer", label=str(number))) for number in range(100)]
    await push(setting, index(*children), "wide")
    await lose(setting, *children)
    assert await Workshop(setting).repair()
    reasons = [why for one in await Exceptions(setting.under_test.store).list("main") for why in one.refused.values()]
    assert reasons
    assert all("97 more are missing" in why and len(why) < 1000 for why in reasons)
