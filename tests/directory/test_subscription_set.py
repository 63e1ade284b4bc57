"""All subscriptions as a part of the policy: the differences, and every fault with its place."""

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory.subscription_set import changed_fields, compare_subscriptions
from registry_proxy.events.subscription import Subscription, SubscriptionInput

URL = "https://ci.example/"


def stored(name: str, **fields: object) -> Subscription:
    """Return a subscription on record."""
    return Subscription(name=name, revision=7, **{"url": URL, **fields})  # type: ignore[arg-type]  # any fields


def test_a_set_takes_the_place_of_another() -> None:
    """The order of types is no change, and a content may keep the credentials on record."""
    before = [stored("gone"), stored("same", events=["push", "delete"]), stored("other", secrets=["x" * 16])]
    same, new = SubscriptionInput(url=URL, events=["delete", "push"]), SubscriptionInput(url=URL)
    difference = compare_subscriptions(
        before,
        {
            "same": lambda _: same,
            "new": lambda _: new,
            "other": lambda current: SubscriptionInput(url="http://b/", secrets=current.secrets if current else ()),
        },
    )
    assert [each.name for each in difference.added] == ["new"]
    assert [each.name for each in difference.removed] == ["gone"]
    assert [changed_fields(*each) for each in difference.changed] == [["url"]]
    assert [(change.key, change.expect) for change in difference.changes()] == [("new", 0), ("gone", 7), ("other", 7)]
    assert not compare_subscriptions(before[1:2], {"same": lambda _: same})


def test_every_fault_is_named_with_its_place() -> None:
    """The name of the subscription and of the field."""
    with pytest.raises(InvalidError) as caught:
        compare_subscriptions(
            [], {"ci": lambda _: SubscriptionInput(url="x", tags="a/b"), "a b": lambda _: SubscriptionInput(url=URL)}
        )
    assert [place for place, _ in caught.value.faults] == [
        "subscriptions/ci/url",
        "subscriptions/ci/tags",
        "subscriptions/a b",
    ]
