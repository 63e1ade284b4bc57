"""Owners of namespaces: they subscribe to events of what is theirs, and learn nothing about other subscriptions."""

from typing import Any

import pytest

from registry_proxy.admin import subscriptions
from registry_proxy.events.delivery import Delivery, Lane, delivery_id
from registry_proxy.events.subscription import SubscriptionInput
from registry_proxy.ports.outbox import EventType, RegistryEvent
from registry_proxy.ports.store import Change, Table
from tests.support.owners import Owners

URL = "https://ci.example/hook"
GIVEN = {"url": URL, "repository": "team/**"}
SECRET = "x" * 16


async def subscribe(owners: Owners, name: str, **fields: Any) -> None:
    """Make a subscription as an administrator."""
    await owners.node.directory.subscriptions.put(name, SubscriptionInput(url=URL, **fields))


async def deliver(owners: Owners, subscription: str, repository: str, number: int, *, is_dead: bool = True) -> str:
    """Put a delivery on record; return its id."""
    digest, table = f"sha256:{number:064x}", Table.DEAD_LETTERS if is_dead else Table.DELIVERIES
    event = RegistryEvent(id=f"e{number}", type=EventType.PUSH, at=1.0, repository=repository, tag="1", digest=digest)
    delivery = Delivery(event=event, queued_at=1.0, last_status=500, last_answer="an answer from inside")
    key = Lane(subscription, repository).key(number)
    await owners.node.store.commit([Change(table, key, delivery.stored())])
    return delivery_id(key)


async def seen(owners: Owners, path: str, field: str = "name") -> list[str]:
    """Return the names or ids that the owner sees in a list."""
    return [each[field] for each in (await owners.call("GET", path))[1]["items"]]


async def test_an_owner_subscribes_to_what_is_theirs(owners: Owners) -> None:
    """The owner makes, changes and removes it; an administrator sees it."""
    assert (await owners.call("PUT", "/subscriptions/ci", GIVEN))[0] == 201
    assert (await owners.call("PATCH", "/subscriptions/ci", {"tags": "v*"}))[1]["tags"] == "v*"
    assert await seen(owners, "/subscriptions") == ["ci"]
    assert (await owners.call("GET", "/subscriptions/ci"))[1]["repository"] == "team/**"
    assert (await owners.node.directory.subscriptions.get("ci")).tags == "v*"
    assert (await owners.call("DELETE", "/subscriptions/ci"))[0] == 204


async def test_a_subscription_that_reaches_outside_is_refused(owners: Owners) -> None:
    """Also by a change; events of replicas are for administrators."""
    await owners.call("PUT", "/subscriptions/ci", GIVEN)
    for repository in ("**", "other/app", "team*/app", "home/bob/**"):
        status, problem = await owners.call("PUT", "/subscriptions/new", {**GIVEN, "repository": repository})
        assert (status, problem["errors"][0]["pointer"]) == (403, "#/repository")
        assert (await owners.call("PATCH", "/subscriptions/ci", {"repository": repository}))[0] == 403
    status, problem = await owners.call("PATCH", "/subscriptions/ci", {"events": ["push", "replica_down"]})
    assert (status, problem["errors"][0]["pointer"]) == (403, "#/events")
    assert await seen(owners, "/subscriptions") == ["ci"]
    assert (await owners.call("PUT", "/subscriptions/mine", {"url": URL, "repository": "home/ann/**"}))[0] == 201


async def test_others_subscriptions_answer_as_absent_ones(owners: Owners) -> None:
    """Outside, wider, or with events of the service: neither seen nor changed; only the name is taken."""
    await subscribe(owners, "all")
    await subscribe(owners, "other", repository="other/**")
    await subscribe(owners, "replicas", repository="team/**", events=["push", "replica_down"])
    absent = await owners.call("GET", "/subscriptions/absent")
    for name in ("all", "other", "replicas"):
        for method, body in (("GET", None), ("PATCH", {"tags": "v*"}), ("DELETE", None)):
            status, problem = await owners.call(method, f"/subscriptions/{name}", body)
            hidden = {**problem, "detail": problem["detail"].replace(name, "absent")}
            assert (status, hidden) == absent, (method, name)
        assert (await owners.call("PUT", f"/subscriptions/{name}", GIVEN))[0] == 409
    assert await seen(owners, "/subscriptions") == []
    assert (await owners.call("POST", "/subscriptions/all/test", {}))[0] == 403
    assert len(await owners.node.directory.subscriptions.list()) == 3


async def test_hidden_credentials_do_not_follow_a_new_receiver(owners: Owners) -> None:
    """The owner would read with a receiver of their own what an administrator has put there."""
    await subscribe(owners, "ci", repository="team/**", secrets=[SECRET], headers={"Authorization": "secret"})
    elsewhere = {**GIVEN, "url": "https://elsewhere.example/"}
    for method, body in (
        ("PUT", elsewhere),
        ("PATCH", {"url": elsewhere["url"]}),
        ("PATCH", {**elsewhere, "secrets": []}),
    ):
        status, problem = await owners.call(method, "/subscriptions/ci", body)
        assert (status, problem["errors"][0]["pointer"]) == (403, "#/url"), body
    assert (await owners.call("PATCH", "/subscriptions/ci", {"tags": "v*"}))[1]["secret_count"] == 1
    given = {**elsewhere, "secrets": [], "headers": {}}
    assert (await owners.call("PUT", "/subscriptions/ci", given))[1]["url"] == elsewhere["url"]


async def test_subscriptions_of_owners_are_bounded(owners: Owners, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many for an owner, and so many that administrators still have room."""
    monkeypatch.setattr(subscriptions, "_OWNERS_MAX", 1)
    await owners.call("PUT", "/subscriptions/one", GIVEN)
    status, problem = await owners.call("PUT", "/subscriptions/two", GIVEN)
    assert (status, "already" in problem["detail"]) == (409, True)
    monkeypatch.setattr(subscriptions, "OWNERS_SUBSCRIPTIONS_MAX", 1)
    given = {**GIVEN, "repository": "home/bob/**"}
    status, problem = await owners.call("PUT", "/subscriptions/two", given, caller="user:bob")
    assert (status, "no room" in problem["detail"]) == (409, True)


async def test_deliveries_of_others_answer_as_absent_ones(owners: Owners) -> None:
    """An owner sees those of their subscriptions and repositories, without the receivers' answers."""
    await subscribe(owners, "all")
    await subscribe(owners, "ci", repository="team/**")
    own = await deliver(owners, "ci", "team/app", 1)
    hidden = [await deliver(owners, "all", "team/app", 1), await deliver(owners, "ci", "other/app", 1)]
    assert await seen(owners, "/deliveries", "id") == [own]
    assert await seen(owners, "/deliveries?subscription=ci", "id") == [own]
    nothing = await owners.call("GET", "/deliveries?subscription=absent")
    assert await owners.call("GET", "/deliveries?subscription=all") == nothing
    absent = await owners.call("GET", "/deliveries/absent")
    for each in hidden:
        assert await owners.call("GET", f"/deliveries/{each}") == absent
        assert await owners.call("POST", f"/deliveries/{each}/replay", {}) == absent
        assert await owners.call("DELETE", f"/deliveries/{each}") == absent
    shown = (await owners.call("GET", f"/deliveries/{own}"))[1]
    assert (shown["last_status"], shown["last_answer"]) == (500, "")
    assert (await owners.call("POST", f"/deliveries/{own}/replay", {}))[0] == 202
    assert await seen(owners, "/deliveries", "id") == []


async def test_dead_letters_are_dismissed(owners: Owners) -> None:
    """A queued delivery is none."""
    await subscribe(owners, "ci", repository="team/**")
    dead = await deliver(owners, "ci", "team/app", 1)
    queued = await deliver(owners, "ci", "team/app", 2, is_dead=False)
    assert (await owners.call("DELETE", f"/deliveries/{dead}"))[0] == 204
    assert (await owners.call("DELETE", f"/deliveries/{dead}"))[0] == 404
    assert (await owners.call("DELETE", f"/deliveries/{queued}"))[0] == 409
    assert await seen(owners, "/deliveries", "id") == [queued]


async def test_deliveries_come_in_pages(owners: Owners) -> None:
    """Of all states, subscriptions and repositories, each once; also where most of them are hidden."""
    await subscribe(owners, "a", repository="team/**")
    await subscribe(owners, "a-b", repository="team/**")
    expected = []
    for number in range(1, 8):
        for name in ("a", "a-b"):
            expected.append(await deliver(owners, name, "team/app", number, is_dead=number % 2 == 0))
            await deliver(owners, name, "other/app", number)
    for caller, total in (("user:ann", 14), ("user:admin", 28)):
        found, after = [], ""
        while True:
            page = (await owners.call("GET", f"/deliveries?limit=3&after={after}", caller=caller))[1]
            found += [each["id"] for each in page["items"]]
            if (after := page["next"] or "") == "":
                break
        assert len(found) == len(set(found)) == total
        assert set(expected) <= set(found)
    assert (await owners.call("GET", "/deliveries?after=nothing"))[0] == 400
