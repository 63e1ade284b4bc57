"""All subscriptions as a part of one document, against those that are stored: the differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields

from registry_proxy.directory.named_set import SetDifference, check_inputs, compare_named
from registry_proxy.directory.subscriptions import SUBSCRIPTIONS_MAX, subscription_faults
from registry_proxy.events.subscription import Subscription, SubscriptionInput
from registry_proxy.ports.store import Table

WantedSubscriptions = Mapping[str, Callable[[Subscription | None], SubscriptionInput]]
"""By name, the subscription that there will be, given the one on record: credentials that are left out stay."""


def changed_fields(before: Subscription, after: Subscription) -> list[str]:
    """Return the names of the fields in which two subscriptions differ; the order of types means nothing."""
    names = [each.name for each in fields(SubscriptionInput)]
    return [name for name in names if _comparable(before, name) != _comparable(after, name)]


def compare_subscriptions(stored: Sequence[Subscription], wanted: WantedSubscriptions) -> SetDifference[Subscription]:
    """Return the differences between the stored subscriptions and a whole set of wanted ones.

    Raises:
        InvalidError: with every fault of the set, each as ``subscriptions/ci/url``.
    """
    before = {each.name: each for each in stored}
    inputs = {name: content(before.get(name)) for name, content in wanted.items()}
    check_inputs(inputs, "subscriptions", SUBSCRIPTIONS_MAX, subscription_faults)
    after = {name: Subscription(name=name, **asdict(given)) for name, given in inputs.items()}
    return compare_named(Table.SUBSCRIPTIONS, stored, after, changed_fields)


def _comparable(subscription: Subscription, name: str) -> object:
    value = getattr(subscription, name)
    if name == "events":
        return sorted(set(value))
    return list(value) if name == "secrets" else value
