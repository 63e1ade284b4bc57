"""All subscriptions as a part of one document, against those that are stored: the differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from registry_proxy.access.faults import InvalidError
from registry_proxy.access.subject import NAME_FAULT, is_name
from registry_proxy.directory.subscriptions import SUBSCRIPTIONS_MAX, subscription_faults
from registry_proxy.events.subscription import Subscription, SubscriptionInput
from registry_proxy.ports.store import Change, Table

WantedSubscriptions = Mapping[str, Callable[[Subscription | None], SubscriptionInput]]
"""By name, the subscription that there will be, given the one on record: credentials that are left out stay."""


@dataclass(frozen=True, slots=True)
class SubscriptionsDifference:
    """The changes that a document makes in the stored subscriptions; ``changed`` holds each before and after."""

    added: Sequence[Subscription] = ()
    removed: Sequence[Subscription] = ()
    changed: Sequence[tuple[Subscription, Subscription]] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.changed))

    def changes(self) -> list[Change]:
        """Return the writes that make it so, each with the revision that it expects."""
        changes = [Change(Table.SUBSCRIPTIONS, each.name, each.stored(), 0) for each in self.added]
        changes += [Change(Table.SUBSCRIPTIONS, each.name, None, each.revision) for each in self.removed]
        return changes + [
            Change(Table.SUBSCRIPTIONS, after.name, after.stored(), b.revision) for b, after in self.changed
        ]


def changed_fields(before: Subscription, after: Subscription) -> list[str]:
    """Return the names of the fields in which two subscriptions differ; the order of types means nothing."""
    names = [each.name for each in fields(SubscriptionInput)]
    return [name for name in names if _comparable(before, name) != _comparable(after, name)]


def compare_subscriptions(stored: Sequence[Subscription], wanted: WantedSubscriptions) -> SubscriptionsDifference:
    """Return the differences between the stored subscriptions and a whole set of wanted ones.

    Raises:
        InvalidError: with every fault of the set, each as ``subscriptions/ci/url``.
    """
    before, after, faults = {each.name: each for each in stored}, dict[str, Subscription](), list[tuple[str, str]]()
    if len(wanted) > SUBSCRIPTIONS_MAX:
        faults.append(("subscriptions", f"expected at most {SUBSCRIPTIONS_MAX}"))
    for name, content in wanted.items():
        given = content(before.get(name))
        found = subscription_faults(given) if is_name(name) else [("", f"{name[:100]!r}: {NAME_FAULT}")]
        faults += [(f"subscriptions/{name}/{field}".rstrip("/"), text) for field, text in found]
        after[name] = Subscription(name=name, **asdict(given))
    if faults:
        raise InvalidError(faults)
    return SubscriptionsDifference(
        added=[each for name, each in sorted(after.items()) if name not in before],
        removed=[each for name, each in sorted(before.items()) if name not in after],
        changed=[
            (before[name], each)
            for name, each in sorted(after.items())
            if name in before and changed_fields(before[name], each)
        ],
    )


def _comparable(subscription: Subscription, name: str) -> object:
    value = getattr(subscription, name)
    if name == "events":
        return sorted(set(value))
    return list(value) if name == "secrets" else value
