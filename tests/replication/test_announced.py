"""Events of writes: in the outbox with the write that caused them, and only after a change."""

from typing import Any

import pytest

from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.outbox import Actor, EventType, OutboxEntry, RegistryEvent
from registry_proxy.ports.store import Change, Record, Table
from registry_proxy.protocol.reference import Tag, digest_of
from tests.support.fakes.images import Parts, image
from tests.support.fakes.replicas import ROUTED, Bench
from tests.support.refusal import refused

ANN = Actor("user:ann", "192.0.2.1", "request-1")
LATEST = Tag("latest")


@pytest.fixture
async def subscribed(setting: Bench) -> Bench:
    """Two replicas, and a subscription for everything."""
    types = [each.value for each in EventType]
    subscription = Subscription(name="ci", url="http://127.0.0.1:9/", events=types)
    await setting.under_test.store.commit([Change(Table.SUBSCRIPTIONS, "ci", subscription.stored())])
    return setting


async def upload(setting: Bench, parts: Parts) -> Parts:
    """Push the blobs of an image."""
    for blob in parts.blobs:
        await setting.under_test.upload(blob)
    return parts


async def push(setting: Bench, parts: Parts, **options: Any) -> Parts:
    """Push a whole image as ``latest`` with a named actor."""
    await upload(setting, parts)
    await setting.under_test.put(LATEST, parts.manifest, parts.media_type, actor=ANN, **options)
    return parts


async def entries(setting: Bench) -> list[OutboxEntry]:
    """Return the outbox, oldest commit first."""
    records = await setting.under_test.store.list(Table.OUTBOX)
    return [OutboxEntry.of(record.value) for record in sorted(records, key=lambda record: record.revision)]


async def events(setting: Bench) -> list[RegistryEvent]:
    """Return the events that may be delivered."""
    return [entry.event for entry in await entries(setting) if not entry.writing_until]


async def test_a_push_announces_the_move_of_its_tag(subscribed: Bench) -> None:
    """The event has the tag's new and old digest, the actor, and the type of the manifest."""
    first = await push(subscribed, image(b"one"))
    second = await push(subscribed, image(b"two"))
    before, after = await events(subscribed)
    assert (before.digest, before.previous) == (str(digest_of(first.manifest)), "")
    assert (after.digest, after.previous) == (str(digest_of(second.manifest)), before.digest)
    assert (after.type, after.repository, after.tag, after.actor) == (EventType.PUSH, ROUTED.repository, LATEST, ANN)
    assert (after.media_type, after.size_bytes) == (second.media_type, len(second.manifest))


async def test_a_push_that_moves_nothing_announces_nothing(subscribed: Bench) -> None:
    """A push of the same digest is no move."""
    parts = await push(subscribed, image(b"one"))
    await push(subscribed, parts)
    assert len(await entries(subscribed)) == 1


async def test_a_manifest_by_digest_is_an_event_of_its_own(subscribed: Bench) -> None:
    """A child of an index announces itself once, without a tag."""
    parts = await upload(subscribed, image(b"one"))
    for _ in range(2):
        await subscribed.under_test.put(digest_of(parts.manifest), parts.manifest, parts.media_type, actor=ANN)
    (event,) = await events(subscribed)
    assert (event.type, event.tag, event.digest) == (EventType.MANIFEST, "", str(digest_of(parts.manifest)))


async def test_a_refused_push_announces_nothing(subscribed: Bench) -> None:
    """A push that every replica refuses is taken back with its event."""
    parts = image(b"one")
    await refused(subscribed.under_test.put(LATEST, parts.manifest, parts.media_type, actor=ANN))
    assert await entries(subscribed) == []


async def test_a_push_under_way_is_not_announced_yet(subscribed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that dies between the first replica and the end leaves the event, to be delivered after its time."""
    parts = await upload(subscribed, image(b"one"))

    async def die(*_: object) -> int:
        raise UpstreamUnavailableError("the node dies")

    monkeypatch.setattr(subscribed.under_test.journal, "conclude", die)
    with pytest.raises(UpstreamUnavailableError):
        await subscribed.under_test.put(LATEST, parts.manifest, parts.media_type, actor=ANN)
    (entry,) = await entries(subscribed)
    assert entry.writing_until > 0
    store = subscribed.under_test.store
    assert await store.get(Table.INTENTS, entry.intent) is not None
    monkeypatch.undo()
    await subscribed.under_test.put(LATEST, parts.manifest, parts.media_type, actor=ANN)
    assert await entries(subscribed) == [entry]
    assert await store.get(Table.INTENTS, entry.intent) is None  # the end of the write, as others can see it


async def test_a_delete_announces_the_tag_or_the_digest(subscribed: Bench) -> None:
    """A deleted tag is named with its last digest, a deleted manifest by its digest."""
    parts = await push(subscribed, image(b"one"))
    digest = digest_of(parts.manifest)
    await subscribed.under_test.manage.delete_manifest(ROUTED, LATEST, ANN)
    await subscribed.under_test.manage.delete_manifest(ROUTED, digest, ANN)
    _, tag, manifest = await events(subscribed)
    assert (tag.type, tag.tag, tag.digest) == (EventType.DELETE, LATEST, str(digest))
    assert (manifest.type, manifest.tag, manifest.digest) == (EventType.DELETE, "", str(digest))


async def test_a_write_of_our_own_announces_nothing(subscribed: Bench) -> None:
    """A write without an actor, such as a fallback tag, is no client's."""
    parts = await upload(subscribed, image(b"one"))
    await subscribed.under_test.put(LATEST, parts.manifest, parts.media_type)
    assert await entries(subscribed) == []


async def test_without_a_subscription_nothing_is_stored(setting: Bench) -> None:
    """Without a subscription no event is stored."""
    await push(setting, image(b"one"))
    assert await entries(setting) == []


async def test_a_new_entry_is_not_looked_for(subscribed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other node can have stored its id before: a push with an event asks the store no more than one without."""
    store, tables = subscribed.under_test.store, []
    get = store.get

    async def noted(table: Table, key: str) -> Record | None:
        tables.append(table)
        return await get(table, key)

    monkeypatch.setattr(store, "get", noted)
    await push(subscribed, image(b"one"))
    assert len(await entries(subscribed)) == 1
    assert Table.TAGS in tables
    assert Table.OUTBOX not in tables
