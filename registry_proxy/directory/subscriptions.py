"""Subscriptions, each under the name that its maker chose."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from urllib.parse import urlsplit

from registry_proxy.access.faults import Faults, InvalidError
from registry_proxy.access.subject import NAME_FAULT, is_name
from registry_proxy.directory.revise import Records, Revised
from registry_proxy.events.shapes.template import template_faults
from registry_proxy.events.signatures import secret_fault
from registry_proxy.events.subscription import (
    Format,
    OnFailure,
    Subscription,
    SubscriptionInput,
    subscription_of,
)
from registry_proxy.ports.outbox import LATER_TYPES, EventType
from registry_proxy.ports.store import Store, Table
from registry_proxy.protocol.patterns import repository_pattern_fault, tag_pattern_fault

SECRETS_MAX = 2
SECRET_MIN_CHARACTERS = 16
SUBSCRIPTIONS_MAX = 500
"""Limit of subscriptions: every push is compared with all of them, and may be queued for each."""

OWNERS_SUBSCRIPTIONS_MAX = 400
"""Number of subscriptions from which on only administrators make more."""

_TEXT_MAX_CHARACTERS = 4096
_HEADERS_MAX = 20
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,4094}[\x21-\x7e])?")
_OF_CLOUDEVENTS = (
    EventType.ROLLBACK,
    EventType.RESTORE,
    EventType.PROMOTION,
    EventType.RULE_VIOLATED,
    EventType.REPLICA_DOWN,
    EventType.REPLICA_REPAIRED,
    EventType.DEPLOYMENT,
)
_OURS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "user-agent"})
_OUR_PREFIXES = ("webhook-", "x-hub-signature", "x-signature", "ce-")


class Subscriptions(Records[Subscription]):
    """See ``Directory``."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, Table.SUBSCRIPTIONS, "subscription", subscription_of)

    async def put(self, name: str, given: SubscriptionInput, *, expect: int | None = None) -> tuple[Subscription, bool]:
        """Make or replace a subscription; return it, and whether it is new.

        Raises:
            InvalidError: with every fault of the input; where there are as many as may be.
            RevisionConflictError: see the class.
        """
        faults = [] if is_name(name) else [("name", NAME_FAULT)]
        if faults := faults + subscription_faults(given):
            raise InvalidError(faults)
        subscription = Subscription(name=name, **asdict(given))

        async def make(current: Subscription | None) -> Revised[bool]:
            if current is None and await self._store.count(Table.SUBSCRIPTIONS) >= SUBSCRIPTIONS_MAX:
                raise InvalidError([("name", f"there are {SUBSCRIPTIONS_MAX} subscriptions already: remove one")])
            return Revised(subscription.stored(), current is None)

        is_new, revision = await self._revise(name, make, expect=expect)
        return replace(subscription, revision=revision), is_new

    async def delete(self, name: str, *, expect: int | None = None) -> None:
        """Delete a subscription; its deliveries go with it. Raises NotFoundError, RevisionConflictError."""

        async def make(_: Subscription | None) -> Revised[None]:
            return Revised(None, None)

        await self._revise(name, make, expect=expect, must_exist=True)


def subscription_faults(given: SubscriptionInput) -> Faults:
    """Return every fault of a subscription, each with its field."""
    faults = _url_faults(given.url) + _secret_faults(given.secrets) + _header_faults(given.headers)
    faults += _event_faults(given.events)
    if (fault := repository_pattern_fault(given.repository)) is not None:
        faults.append(("repository", fault))
    if (fault := tag_pattern_fault(given.tags)) is not None:
        faults.append(("tags", fault))
    for name, value, known in (
        ("format", given.format, Format),
        ("on_failure", given.on_failure, OnFailure),
    ):
        if value not in [each.value for each in known]:
            faults.append((name, f"expected one of {', '.join(each.value for each in known)}"))
    return faults + _format_faults(given)


def _event_faults(events: Sequence[str]) -> Faults:
    types = [each.value for each in EventType if each is not EventType.GAP]
    later = [each for each in events if each in LATER_TYPES]
    if later:
        return [("events", f"{' and '.join(later)}: not available yet")]
    if not events or any(each not in types for each in events):
        return [("events", f"expected at least one of {', '.join(types)}")]
    return []


def _format_faults(given: SubscriptionInput) -> Faults:
    if given.format == Format.HARBOR and EventType.MANIFEST in given.events:
        return [("events", "format harbor has no form for a manifest without a tag: leave manifest out")]
    if others := [each for each in _OF_CLOUDEVENTS if each in given.events and given.format != Format.CLOUDEVENTS]:
        return [("events", f"only format cloudevents has a form for {' and '.join(others)}")]
    if given.format == Format.TEMPLATE:
        return [("template", fault) for fault in template_faults(given.template, given.secrets)]
    return [("template", "belongs to format template alone: leave it empty")] if given.template else []


def _url_faults(url: str) -> Faults:
    if "#" in url:
        return [("url", "a fragment (#…) reaches no receiver: leave it out")]
    if len(url) <= _TEXT_MAX_CHARACTERS and url.isascii() and url.isprintable() and " " not in url and _is_http(url):
        return []
    return [("url", "expected the URL of a receiver, http or https, such as https://ci.example/hooks/registry")]


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _secret_faults(secrets: Sequence[str]) -> Faults:
    if len(secrets) > SECRETS_MAX:
        return [("secrets", f"expected at most {SECRETS_MAX}: the active one, and the one that it replaces")]
    if any(not SECRET_MIN_CHARACTERS <= len(each) <= _TEXT_MAX_CHARACTERS for each in secrets):
        return [("secrets", f"expected texts of {SECRET_MIN_CHARACTERS} to {_TEXT_MAX_CHARACTERS} characters")]
    return [("secrets", fault) for each in secrets if (fault := secret_fault(each)) is not None]


def _header_faults(headers: Mapping[str, str]) -> Faults:
    if len(headers) > _HEADERS_MAX:
        return [("headers", f"expected at most {_HEADERS_MAX}")]
    faults = []
    for name, value in headers.items():
        if _HEADER_NAME.fullmatch(name) is None:
            faults.append(("headers", f"expected the name of a header, not {name[:100]!r}"))
        elif name.lower() in _OURS or name.lower().startswith(_OUR_PREFIXES):
            faults.append(("headers", f"{name} is set by the service: leave it out"))
        elif _HEADER_VALUE.fullmatch(value) is None:
            faults.append(("headers", f"expected printable ASCII characters as the value of {name}"))
    return faults
