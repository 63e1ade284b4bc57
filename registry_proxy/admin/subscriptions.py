"""Subscriptions of the admin API, and tests of their receivers."""

from typing import Annotated, Any

from aiohttp import web
from pydantic import Field, WithJsonSchema

from registry_proxy.admin.subjects import read_put
from registry_proxy.admission.auth import CALLER
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import Body, Document, EmptyBody, Page, Patch, patch_of
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.requests import ASKED_FOR, PAGE, name_of, read_page
from registry_proxy.api.revisions import expected_revision, patched
from registry_proxy.directory.subscriptions import Subscriptions
from registry_proxy.events.record import DeliveryRecord
from registry_proxy.events.subscription import Format, OnFailure, Subscription, SubscriptionInput
from registry_proxy.ports.outbox import Actor, EventType

_EventName = Annotated[
    str, WithJsonSchema({"type": "string", "enum": [each.value for each in EventType if each is not EventType.GAP]})
]
_FormatName = Annotated[str, WithJsonSchema({"type": "string", "enum": [each.value for each in Format]})]
_OnFailureName = Annotated[str, WithJsonSchema({"type": "string", "enum": [each.value for each in OnFailure]})]


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


class SubscriptionDocument(Document):
    """A receiver of events; its secrets are only counted, of its headers only the names are shown."""

    name: str
    url: str
    secret_count: int
    events: list[str]
    repository: str
    tags: str
    format: str
    template: str
    header_names: list[str]
    on_failure: str
    enabled: bool
    disabled_reason: str


class TestEventDocument(Document):
    """The event that was queued as a test."""

    event: str


def _document(subscription: Subscription) -> SubscriptionDocument:
    return SubscriptionDocument.of(
        subscription,
        secret_count=len(subscription.secrets),
        header_names=sorted(subscription.headers),
        events=list(subscription.events),
    )


class SubscriptionResource:
    """The handlers of subscriptions."""

    def __init__(self, subscriptions: Subscriptions, record: DeliveryRecord) -> None:
        self._subscriptions = subscriptions
        self._record = record

    @Endpoint("GET /subscriptions", "List subscriptions", Page[SubscriptionDocument], query=PAGE)
    async def list_subscriptions(self, request: web.Request) -> web.Response:
        page = read_page(request)
        return page.answer({each.name: each for each in await self._subscriptions.list()}, _document)

    @Endpoint("GET /subscriptions/{name}", "Show a subscription", is_revised=True)
    async def get_subscription(self, request: web.Request) -> Answer[SubscriptionDocument]:
        subscription = await self._subscriptions.get(name_of(request, "subscription"))
        return Answer(_document(subscription), revision=subscription.revision)

    @Endpoint("PUT /subscriptions/{name}", "Make or replace a subscription", statuses=(200, 201), is_revised=True)
    async def put_subscription(self, request: web.Request, body: SubscriptionBody) -> Answer[SubscriptionDocument]:
        put = await read_put(request, self._subscriptions.get)
        _hide_headers(request)
        subscription, is_new = await self._subscriptions.put(put.name, body.content(put.current), expect=put.expect)
        return Answer(_document(subscription), status=201 if is_new else 200, revision=subscription.revision)

    @Endpoint("PATCH /subscriptions/{name}", "Change fields of a subscription", body=SubscriptionPatch, is_revised=True)
    async def patch_subscription(self, request: web.Request, patch: Patch) -> Answer[SubscriptionDocument]:
        name = name_of(request, "subscription")
        _hide_headers(request)

        async def write(current: Subscription, expect: int) -> Subscription:
            fields = {each: getattr(current, each) for each in SubscriptionBody.model_fields}
            fields |= {"secrets": list(current.secrets), "events": list(current.events)}
            fields["headers"] = dict(current.headers)
            body = SubscriptionBody(**patch.over(fields))
            return (await self._subscriptions.put(name, body.content(None), expect=expect))[0]

        subscription = await patched(request, lambda: self._subscriptions.get(name), write)
        return Answer(_document(subscription), revision=subscription.revision)

    @Endpoint("DELETE /subscriptions/{name}", "Remove a subscription and its deliveries", is_revised=True)
    async def delete_subscription(self, request: web.Request) -> None:
        name = name_of(request, "subscription")
        current = await self._subscriptions.get(name)
        await self._subscriptions.delete(name, expect=expected_revision(request, current.revision))

    @Endpoint("POST /subscriptions/{name}/test", "Queue an event that is a test", statuses=(202,))
    async def send_test(self, request: web.Request, _: EmptyBody) -> TestEventDocument:
        subscription = await self._subscriptions.get(name_of(request, "subscription"))
        event = await self._record.test(subscription.name, Actor(request[CALLER].subject))
        return TestEventDocument(event=event.id)


def _hide_headers(request: web.Request) -> None:
    """Have the audit log record the names of headers alone: their values are credentials as a rule."""
    asked = request.get(ASKED_FOR, {})
    if isinstance(asked.get("headers"), dict):
        request[ASKED_FOR] = {**asked, "headers": sorted(asked["headers"])}
