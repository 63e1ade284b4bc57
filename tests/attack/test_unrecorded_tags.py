"""Tags at the registries that are on no record, as behind a new store: a delete by digest takes them as well."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry_proxy.history.record import TagHistory
from registry_proxy.history.ways_back import WayBack
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.history import Cause, MoveKind
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.rules import RuleMode
from registry_proxy.ports.store import Change, Table
from registry_proxy.protocol.reference import Digest, Tag
from tests.attack.test_nested_images import ways
from tests.repair.test_repair import push
from tests.support.fakes.images import image
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, bench
from tests.support.refusal import refused

ANN = Actor("user:ann")
V1, OLD = Tag("v1"), Tag("old")


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Two replicas in memory."""
    async with bench(tmp_path) as under_test:
        yield under_test


def lay(setting: Bench, *tags: Tag) -> Digest:
    """Put one image under some tags at both replicas, past the proxy; return its digest."""
    parts = image(b"1")
    for replica in (setting.a, setting.b):
        for tag in tags:
            replica.add_manifest(REPOSITORY, parts.manifest, tag)
    return parts.digest


async def make_rule(setting: Bench, tags: str = "*", mode: RuleMode = RuleMode.ENFORCE) -> None:
    """Have a rule keep tags."""
    rule = {"repository": "**", "tags": tags, "immutable": ["delete"], "mode": mode}
    await setting.under_test.store.commit([Change(Table.RULES, "kept", rule)])


async def test_a_rule_keeps_tags_that_are_on_no_record(setting: Bench) -> None:
    """The delete by digest is 403 by each covered tag at the registries, and nothing is deleted."""
    digest = lay(setting, OLD, V1)
    await make_rule(setting, "v*")
    error = await refused(setting.under_test.manage.delete_manifest(ROUTED, digest, ANN))
    assert (error.status, "the tag v1 is never deleted" in error.message) == (403, True)
    assert setting.a.tags == setting.b.tags == {(REPOSITORY, OLD): digest, (REPOSITORY, V1): digest}


async def test_tags_that_cannot_be_known_are_kept(setting: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a replica is away, or the tags are too many, the delete by digest is refused, unless rules only warn."""
    digest = lay(setting, OLD, V1)
    await make_rule(setting)
    setting.replicas.down.add("a")
    with pytest.raises(UpstreamUnavailableError):
        await setting.under_test.manage.delete_manifest(ROUTED, digest, ANN)
    setting.replicas.down.clear()
    monkeypatch.setattr("registry_proxy.operations.contents._TAGS_MAX", 1)
    error = await refused(setting.under_test.manage.delete_manifest(ROUTED, digest, ANN))
    assert (error.status, "more than 1 tags" in error.message) == (403, True)
    assert len(setting.a.tags) == len(setting.b.tags) == 2
    await make_rule(setting, mode=RuleMode.WARN)
    await setting.under_test.manage.delete_manifest(ROUTED, digest, ANN)
    assert setting.a.tags == setting.b.tags == {}


async def test_no_registry_is_asked_without_a_rule(setting: Bench) -> None:
    """A repository without a rule that keeps tags costs no question more."""
    digest = lay(setting, V1)
    await setting.under_test.manage.delete_manifest(ROUTED, digest, ANN)
    assert setting.a.count("list_tags") == setting.b.count("list_tags") == 0


async def test_a_delete_of_unrecorded_tags_is_in_their_history(setting: Bench) -> None:
    """Each tag that the registries had on the manifest has its delete; a replica that was away deletes it later."""
    digest = lay(setting, OLD, V1)
    await make_rule(setting, mode=RuleMode.WARN)
    await setting.under_test.manage.delete_manifest(ROUTED, digest, ANN)
    for tag in (OLD, V1):
        (move,) = await TagHistory(setting.under_test.store).moves(ROUTED, tag)
        assert (move.kind, move.digest, move.previous, move.subject) == (
            MoveKind.DELETE,
            None,
            str(digest),
            "user:ann",
        )
    assert setting.a.tags == setting.b.tags == {}
    assert await setting.under_test.intents() == {}


async def test_a_restore_says_that_the_tag_did_not_exist(setting: Bench) -> None:
    """The state before is none also where the end of the tag is not in its history: not the restored digest."""
    await push(setting, parts := image(b"1"))
    await setting.under_test.put(V1, parts.manifest, parts.media_type, actor=ANN)
    store = setting.under_test.store
    (record,) = await store.list(Table.TAGS)
    await store.commit([Change(Table.TAGS, record.key, None)])
    for replica in (setting.a, setting.b):
        replica.tags.clear()
    actor = Actor("user:ann", request_id="of-the-restore")
    moved = await ways(setting).restore(WayBack(ROUTED, V1, None), Cause(actor, MoveKind.RESTORE))
    assert (moved.digest, moved.previous) == (parts.digest, None)
    assert setting.a.tags == setting.b.tags == {(REPOSITORY, V1): parts.digest}
