"""Moves of tags: stored with the write that moves the tag, numbered in its order, and taken back with it."""

import asyncio

import pytest

from registry_proxy.history.record import TagHistory
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.history import Move, MoveKind, next_number
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.store import Table
from registry_proxy.protocol.reference import Digest, Tag
from registry_proxy.replication.deletions import forget_deleted
from registry_proxy.replication.tag_records import choose
from tests.support.fakes.images import Parts, image
from tests.support.fakes.replicas import ROUTED, Bench
from tests.support.refusal import refused

ANN = Actor("user:ann", "192.0.2.1", "request-1")
LATEST = Tag("latest")


async def upload(setting: Bench, parts: Parts) -> Parts:
    """Push the blobs of an image."""
    for blob in parts.blobs:
        await setting.under_test.upload(blob)
    return parts


async def push(setting: Bench, parts: Parts, tag: Tag = LATEST, actor: Actor | None = ANN) -> str:
    """Push a whole image with a named actor; return its digest."""
    await upload(setting, parts)
    await setting.under_test.put(tag, parts.manifest, parts.media_type, actor=actor)
    return str(parts.digest)


async def moves(setting: Bench, tag: Tag = LATEST) -> list[Move]:
    """Return the moves of a tag, newest first."""
    return list(await TagHistory(setting.under_test.store).moves(ROUTED, tag))


async def shape(setting: Bench, tag: Tag = LATEST) -> list[tuple[str, str | None, str | None]]:
    """Return kind, digest and previous digest of the moves of a tag, newest first."""
    return [(move.kind, move.digest, move.previous) for move in await moves(setting, tag)]


async def test_each_move_is_on_record_with_who_and_what(setting: Bench) -> None:
    """A push is entered with the digest before, the caller, its address and request, and the size with all blobs."""
    parts = image(b"one")
    first, second = await push(setting, parts), await push(setting, image(b"two"))
    assert await shape(setting) == [("push", second, first), ("push", first, None)]
    oldest = (await moves(setting))[-1]
    assert (oldest.subject, oldest.address, oldest.request_id) == ("user:ann", "192.0.2.1", "request-1")
    assert oldest.size_bytes == len(parts.manifest) + sum(map(len, parts.blobs))


async def test_a_push_that_moves_nothing_is_no_move(setting: Bench) -> None:
    """A push of the same digest leaves the history unchanged, and the next move follows on the last one."""
    first = await push(setting, image(b"one"))
    await push(setting, image(b"one"))
    second = await push(setting, image(b"two"))
    assert await shape(setting) == [("push", second, first), ("push", first, None)]


async def test_a_write_of_our_own_is_no_move(setting: Bench) -> None:
    """A write without an actor, such as a list of referrers, has no history, nor does its delete."""
    await push(setting, image(b"one"), actor=None)
    await setting.under_test.manage.delete_manifest(ROUTED, LATEST)
    assert await setting.under_test.store.list(Table.MOVES) == []


async def test_a_refused_push_leaves_no_move(setting: Bench) -> None:
    """A push that every replica refuses is taken back with its move, and the next move follows on the one before."""
    first = await push(setting, image(b"one"))
    incomplete = image(b"not pushed")
    await refused(setting.under_test.put(LATEST, incomplete.manifest, incomplete.media_type, actor=ANN))
    assert await shape(setting) == [("push", first, None)]
    second = await push(setting, image(b"two"))
    assert await shape(setting) == [("push", second, first), ("push", first, None)]


async def test_a_push_whose_node_dies_is_on_record(setting: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The move is on record before the first replica is touched: the push is rolled forward, so it happened."""
    parts = await upload(setting, image(b"one"))

    async def die(*_: object) -> int:
        raise UpstreamUnavailableError("the node dies")

    monkeypatch.setattr(setting.under_test.journal, "conclude", die)
    with pytest.raises(UpstreamUnavailableError):
        await setting.under_test.put(LATEST, parts.manifest, parts.media_type, actor=ANN)
    assert await shape(setting) == [("push", str(parts.digest), None)]


async def test_a_deleted_tag_and_its_return_are_moves(setting: Bench) -> None:
    """The delete has the tag's last digest and its author; a later push follows on it, as for a new tag."""
    first = await push(setting, image(b"one"))
    await setting.under_test.manage.delete_manifest(ROUTED, LATEST, ANN)
    second = await push(setting, image(b"two"))
    assert await shape(setting) == [("push", second, None), ("delete", None, first), ("push", first, None)]
    assert (await moves(setting))[1].subject == "user:ann"


async def test_a_deleted_manifest_moves_every_tag_on_it(setting: Bench) -> None:
    """Each tag that is removed with a digest has a separate delete; the others have none."""
    first = await push(setting, image(b"one"), Tag("v1"))
    await push(setting, image(b"one"), Tag("v2"))
    other = await push(setting, image(b"two"), Tag("v3"))
    await setting.under_test.manage.delete_manifest(ROUTED, Digest("sha256", first.partition(":")[2]), ANN)
    for tag in ("v1", "v2"):
        assert await shape(setting, Tag(tag)) == [("delete", None, first), ("push", first, None)]
        assert (await moves(setting, Tag(tag)))[0].subject == "user:ann"
    assert await shape(setting, Tag("v3")) == [("push", other, None)]


async def test_a_delete_that_another_node_ends_is_entered_once(setting: Bench) -> None:
    """If the node dies before it has forgotten the tag, another one forgets it, with the same move."""
    first = await push(setting, image(b"one"))
    setting.replicas.down.add("b")
    await setting.under_test.manage.delete_manifest(ROUTED, LATEST, ANN)
    for _ in range(2):
        await forget_deleted(setting.under_test.store, IntentKey(ROUTED, IntentKind.TAG, LATEST), ["b"])
    assert await shape(setting) == [("delete", None, first), ("push", first, None)]


async def test_a_choice_where_replicas_differ_is_seen(setting: Bench) -> None:
    """The choice of an administrator is entered in the commit that records it."""
    first, second = await push(setting, image(b"one")), await push(setting, image(b"two"))
    key = IntentKey(ROUTED, IntentKind.TAG, LATEST)
    await choose(setting.under_test.store, key, Digest("sha256", first.partition(":")[2]))
    assert (await shape(setting))[0] == (MoveKind.SEEN, first, second)


async def test_pushes_of_one_tag_at_once_are_one_chain(setting: Bench) -> None:
    """Each move follows on the one before, and both replicas have the newest."""
    images = [await upload(setting, image(f"{number}".encode())) for number in range(8)]
    put = setting.under_test.put
    await asyncio.gather(*(put(LATEST, parts.manifest, parts.media_type, actor=ANN) for parts in images))
    chain = await moves(setting)
    stored = [Move.of(record) for record in await setting.under_test.store.list(Table.MOVES)]
    assert [move.previous for move in stored] == [move.previous for move in chain]
    assert {move.digest for move in chain} == {str(parts.digest) for parts in images}
    assert setting.a.tags == setting.b.tags
    assert {str(digest) for digest in setting.a.tags.values()} == {chain[0].digest}


async def test_a_push_costs_one_record_more_in_the_same_commit(setting: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history adds one record to the commit that begins a push: no read, and no commit."""
    await push(setting, image(b"one"))
    parts, store, calls = await upload(setting, image(b"two")), setting.under_test.store, []
    for name in ("get", "list", "get_all", "commit"):
        ask = getattr(store, name)

        async def counted(*arguments: object, _ask: object = ask, _name: str = name, **options: object) -> object:
            changes = [each.table for each in arguments[0]] if _name == "commit" else []  # type: ignore[attr-defined]
            calls.append((_name, changes))
            return await _ask(*arguments, **options)  # type: ignore[operator]

        monkeypatch.setattr(store, name, counted)
    await setting.under_test.put(LATEST, parts.manifest, parts.media_type, actor=ANN)
    with_history = [(name, [table for table in tables if table is not Table.MOVES]) for name, tables in calls]
    assert sum(tables.count(Table.MOVES) for _, tables in calls) == 1
    calls.clear()
    other = await upload(setting, image(b"three"))
    calls.clear()
    await setting.under_test.put(LATEST, other.manifest, other.media_type)
    assert with_history == calls


def test_a_clock_that_is_behind_keeps_the_order() -> None:
    """A number is the time in microseconds, and always above that of the move before."""
    assert next_number(2.0, 1_000_000) == 2_000_000
    assert next_number(2.0, 5_000_000) == 5_000_001
