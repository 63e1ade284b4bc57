"""Subscriptions of the admin API, for administrators and owners of namespaces, and tests of their receivers."""

from collections.abc import Collection, Sequence
from typing import Annotated, Any

from aiohttp import web
from pydantic import BeforeValidator, Field, WithJsonSchema

from registry_proxy.access.control import AccessControl
from registry_proxy.admin.subjects import read_put
from registry_proxy.admission.auth import CALLER, NAMESPACES
from registry_proxy.admission.namespaces import joined, lies_inside
from registry_proxy.admission.owners_turns import OwnersTurns
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import Body, Document, EmptyBody, Page, Patch, patch_of
from registry_proxy.api.openapi import Audience, Endpoint
from registry_proxy.api.problems import Fault, ProblemError
from registry_proxy.api.requests import ASKED_FOR, PAGE, name_of, read_page
from registry_proxy.api.revisions import expected_revision, patched
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.directory.subscriptions import OWNERS_SUBSCRIPTIONS_MAX, Subscriptions
from registry_proxy.events.receivers import ReceiverLimits, receiver_doubt
from registry_proxy.events.record import DeliveryRecord
from registry_proxy.events.subscription import Format, OnFailure, Subscription, SubscriptionInput
from registry_proxy.ports.outbox import Actor, EventType
from registry_proxy.protocol.patterns import is_below

_EventName = Annotated[
    str, WithJsonSchema({"type": "string", "enum": [each.value for each in EventType if each is not EventType.GAP]})
]
_FormatName = Annotated[str, WithJsonSchema({"type": "string", "enum": [each.value for each in Format]})]
_OnFailureName = Annotated[str, WithJsonSchema({"type": "string", "enum": [each.value for each in OnFailure]})]


_CREDENTIALS = ("secrets", "headers")
_OF_SERVICE = frozenset({EventType.REPLICA_DOWN.value, EventType.REPLICA_REPAIRED.value})
"""The types of events that are about no repository."""

_OWNERS_MAX = 20
"""Limit of the subscriptions in the namespaces of an owner."""


class SubscriptionBody(Body):
    """PUT of a subscription. Without ``secrets`` or ``headers`` those on record stay."""

    url: str
    secrets: Annotated[list[str], Field(max_length=10)] | None = None
    events: Annotated[list[_EventName], Field(max_length=100)] = ["push", "delete"]
    repository: str = "**"
    tags: str = "*"
    format: _FormatName = "cloudevents"
    template: str = ""
    headers: Annotated[dict[str, str], Field(max_length=100)] | None = None
    on_failure: _OnFailureName = "hold"
    enabled: bool = True

    def content(self, current: Subscription | None) -> SubscriptionInput:
        """Return the subscription that the body describes, given the one on record."""
        fields: dict[str, Any] = dict(self)
        for name, empty in (("secrets", ()), ("headers", {})):
            if fields[name] is None:
                fields[name] = empty if current is None else getattr(current, name)
        return SubscriptionInput(**fields)


SubscriptionPatch = patch_of(SubscriptionBody, "PATCH of a subscription.")


class StatedSubscriptionDocument(Document):
    """A receiver of events as a whole policy states it: without secrets and headers."""

    url: str
    events: Annotated[list[str], BeforeValidator(list)]
    repository: str
    tags: str
    format: str
    template: str
    on_failure: str
    enabled: bool


class SubscriptionDocument(StatedSubscriptionDocument):
    """A receiver of events; its secrets are only counted, of its headers only the names are shown."""

    name: str
    secret_count: int
    header_names: list[str]
    disabled_reason: str


class TestEventDocument(Document):
    """The event that was queued as a test."""

    event: str


def _document(subscription: Subscription) -> SubscriptionDocument:
    return SubscriptionDocument.of(
        subscription,
        secret_count=len(subscription.secrets),
        header_names=sorted(subscription.headers),
    )


class SubscriptionResource:
    """The handlers of subscriptions, for administrators and for owners of the namespaces that one lies in."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        record: DeliveryRecord,
        control: AccessControl,
        receivers: ReceiverLimits,
        public_url: str,
    ) -> None:
        self._subscriptions = subscriptions
        self._record = record
        self._turns = OwnersTurns(control)
        self._receivers = receivers
        self._public_url = public_url

    @Endpoint(
        "GET /subscriptions", "List subscriptions", Page[SubscriptionDocument], query=PAGE, audience=Audience.OWNERS
    )
    async def list_subscriptions(self, request: web.Request) -> web.Response:
        page = read_page(request)
        shown = {each.name: each for each in await self._subscriptions.list() if may_see(request, each)}
        return page.answer(shown, _document)

    @Endpoint("GET /subscriptions/{name}", "Show a subscription", is_revised=True, audience=Audience.OWNERS)
    async def get_subscription(self, request: web.Request) -> Answer[SubscriptionDocument]:
        subscription = await self._find(request)
        return Answer(_document(subscription), revision=subscription.revision)

    @Endpoint(
        "PUT /subscriptions/{name}",
        "Make or replace a subscription",
        statuses=(200, 201),
        is_revised=True,
        audience=Audience.OWNERS,
    )
    async def put_subscription(self, request: web.Request, body: SubscriptionBody) -> Answer[SubscriptionDocument]:
        _hide_headers(request)
        async with self._turns.turn(request):
            put = await read_put(request, self._subscriptions.get)
            given = body.content(put.current)
            if NAMESPACES in request:
                if put.current is not None and not may_see(request, put.current):
                    raise ProblemError(409, f"the name {put.name} is taken: choose another one")
                kept = [name for name in _CREDENTIALS if getattr(body, name) is None]
                _check_own(request[NAMESPACES], given, put.current, kept)
                if put.current is None:
                    await self._check_room(request)
            subscription, is_new = await self._subscriptions.put(put.name, given, expect=put.expect)
        status, doubts = 201 if is_new else 200, await self._doubts(request, subscription)
        return Answer(_document(subscription), status=status, revision=subscription.revision, warnings=doubts)

    @Endpoint(
        "PATCH /subscriptions/{name}",
        "Change fields of a subscription",
        body=SubscriptionPatch,
        is_revised=True,
        audience=Audience.OWNERS,
    )
    async def patch_subscription(self, request: web.Request, patch: Patch) -> Answer[SubscriptionDocument]:
        _hide_headers(request)

        async def write(current: Subscription, expect: int) -> Subscription:
            fields = {each: getattr(current, each) for each in SubscriptionBody.model_fields}
            fields |= {"secrets": list(current.secrets), "events": list(current.events)}
            fields["headers"] = dict(current.headers)
            given = SubscriptionBody(**patch.over(fields)).content(None)
            if NAMESPACES in request:
                kept = [name for name in _CREDENTIALS if name not in patch.model_fields_set]
                _check_own(request[NAMESPACES], given, current, kept)
            return (await self._subscriptions.put(current.name, given, expect=expect))[0]

        async with self._turns.turn(request):
            subscription = await patched(request, lambda: self._find(request), write)
        doubts = await self._doubts(request, subscription) if "url" in patch.model_fields_set else ()
        return Answer(_document(subscription), revision=subscription.revision, warnings=doubts)

    @Endpoint(
        "DELETE /subscriptions/{name}",
        "Remove a subscription and its deliveries",
        is_revised=True,
        audience=Audience.OWNERS,
    )
    async def delete_subscription(self, request: web.Request) -> None:
        async with self._turns.turn(request):
            current = await self._find(request)
            await self._subscriptions.delete(current.name, expect=expected_revision(request, current.revision))

    @Endpoint("POST /subscriptions/{name}/test", "Queue an event that is a test", statuses=(202,))
    async def send_test(self, request: web.Request, _: EmptyBody) -> TestEventDocument:
        subscription = await self._subscriptions.get(name_of(request, "subscription"))
        scheme, _separator, host = self._public_url.partition("://")
        actor = Actor(request[CALLER].subject, host=host, scheme=scheme)
        event = await self._record.test(subscription.name, actor)
        return TestEventDocument(event=event.id)

    async def _find(self, request: web.Request) -> Subscription:
        """Return the subscription in the path; one that the caller may not see seems not to exist."""
        name = name_of(request, "subscription")
        subscription = await self._subscriptions.get(name)
        if not may_see(request, subscription):
            raise NotFoundError(f"there is no subscription {name}")
        return subscription

    async def _doubts(self, request: web.Request, subscription: Subscription) -> Sequence[str]:
        """Return why a receiver gets nothing; an owner does not learn which names lie inside."""
        doubt = await receiver_doubt(self._receivers, subscription.url, resolves=NAMESPACES not in request)
        return () if doubt is None else (doubt,)

    async def _check_room(self, request: web.Request) -> None:
        """Refuse one more subscription by an owner where there are as many as owners may make."""
        there = await self._subscriptions.list()
        own = sum(may_see(request, each) for each in there)
        if own >= _OWNERS_MAX or len(there) >= OWNERS_SUBSCRIPTIONS_MAX:
            detail = f"there are {own} subscriptions in {joined(request[NAMESPACES])} already, {_OWNERS_MAX} may be"
            if own < _OWNERS_MAX:
                detail = "there is no room for more subscriptions of owners: ask an administrator"
            raise ProblemError(409, detail)


def may_see(request: web.Request, subscription: Subscription) -> bool:
    """Tell whether a caller may see and change a subscription: an owner, where it gets what the owner may know."""
    is_of_content = not _OF_SERVICE.intersection(subscription.events)
    return NAMESPACES not in request or (is_of_content and lies_inside(request, subscription.repository))


def _check_own(
    namespaces: tuple[str, ...], given: SubscriptionInput, current: Subscription | None, kept: Collection[str]
) -> None:
    """Refuse a subscription of an owner that reaches outside, or sends credentials that stay hidden to a new receiver.

    Args:
        namespaces: of the owner.
        given: the subscription as it would be.
        current: as it is; None for a new one.
        kept: names of the credentials that stay as they are.
    """
    faults = []
    if not any(is_below(given.repository, each) for each in namespaces):
        faults.append(Fault("#/repository", f"expected a pattern that lies in {joined(namespaces)}"))
    if of_service := sorted(_OF_SERVICE.intersection(given.events)):
        faults.append(Fault("#/events", f"only an administrator subscribes to {' and '.join(of_service)}"))
    if current is not None and current.url != given.url and (hidden := [e for e in kept if getattr(current, e)]):
        faults.append(
            Fault("#/url", f"a new receiver needs new {' and '.join(hidden)}: give them, or none ([] or {{}})")
        )
    if faults:
        raise ProblemError(403, "this is not yours to subscribe to", faults=faults)


def _hide_headers(request: web.Request) -> None:
    """Have the audit log record the names of headers alone: their values are credentials as a rule."""
    asked = request.get(ASKED_FOR, {})
    if isinstance(asked.get("headers"), dict):
        request[ASKED_FOR] = {**asked, "headers": sorted(asked["headers"])}
