"""Deliveries of events in the admin API: what is queued, what arrived lately, and what was given up."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from registry_proxy.admin.subscriptions import may_see
from registry_proxy.admission.auth import NAMESPACES
from registry_proxy.admission.namespaces import lies_inside
from registry_proxy.api.models import Document, EmptyBody, Page, Time
from registry_proxy.api.openapi import Audience, Endpoint
from registry_proxy.api.problems import ProblemError
from registry_proxy.api.requests import PAGE, parse_page, read_query
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.directory.subscriptions import Subscriptions
from registry_proxy.events.delivery import DeliveryState, ListedDelivery, key_of
from registry_proxy.events.record import DeliveryRecord
from registry_proxy.ports.outbox import with_values


class DeliveryDocument(Document):
    """One event on its way to one subscription; ``number`` counts those of its repository there."""

    id: str
    event: dict[str, Any]
    subscription: str
    number: int
    state: DeliveryState
    is_replay: bool
    attempts: int
    last_status: int | None
    last_answer: str
    queued_at: Time
    next_attempt_at: Time | None
    ended_at: Time | None


def _document(request: web.Request, listed: ListedDelivery) -> DeliveryDocument:
    """Return a delivery as the caller may see it.

    The answer is for administrators: an owner chooses the URL, and would read with it what only the service reaches.
    """
    delivery = listed.delivery
    return DeliveryDocument.of(
        delivery,
        id=listed.id,
        subscription=listed.subscription,
        number=listed.number,
        state=listed.state,
        last_answer=delivery.last_answer if NAMESPACES not in request else "",
        event=with_values(delivery.event.stored()),
        next_attempt_at=delivery.next_attempt_at or None,
        ended_at=delivery.ended_at or None,
    )


class DeliveryResource:
    """The handlers of deliveries; owners of namespaces see those of their subscriptions and repositories."""

    def __init__(self, record: DeliveryRecord, subscriptions: Subscriptions) -> None:
        self._record = record
        self._subscriptions = subscriptions

    @Endpoint(
        "GET /deliveries",
        "List deliveries",
        Page[DeliveryDocument],
        query=(*PAGE, "subscription", "state"),
        audience=Audience.OWNERS,
    )
    async def list_deliveries(self, request: web.Request) -> web.Response:
        """Return the deliveries of one subscription, or of all, in one state, or in each."""
        query = read_query(request, (*PAGE, "subscription", "state"))
        page, state, after = parse_page(query), query.get("state"), ""
        if state is not None and state not in [each.value for each in DeliveryState]:
            raise ProblemError(400, f"state: expected one of {', '.join(each.value for each in DeliveryState)}")
        if page.after:
            after = key_of(page.after) or ""
            if not after:
                raise ProblemError(400, "after: expected the id of a delivery")
        found, has_more = await self._record.page(
            await self._asked_for(request, query.get("subscription")),
            None if state is None else DeliveryState(state),
            page.limit,
            after=after,
            is_shown=lambda each: lies_inside(request, each.delivery.event.repository),
        )
        items = [_document(request, each).as_json() for each in found]
        return web.json_response({"items": items, "next": found[-1].id if has_more else None})

    @Endpoint("GET /deliveries/{id}", "Show a delivery", audience=Audience.OWNERS)
    async def get_delivery(self, request: web.Request) -> DeliveryDocument:
        return _document(request, await self._find(request))

    @Endpoint("DELETE /deliveries/{id}", "Dismiss a dead letter", audience=Audience.OWNERS)
    async def dismiss_delivery(self, request: web.Request) -> None:
        delivery = await self._find(request)
        if delivery.state is not DeliveryState.DEAD:
            detail = f"the delivery is {delivery.state}: only dead letters are dismissed"
            if delivery.state is DeliveryState.QUEUED:
                skip = f"registry-proxy subscription set {delivery.subscription} --on-failure skip"
                detail += f"; `{skip}` lets later events pass it"
            raise ProblemError(409, detail)
        await self._record.dismiss(delivery.id)

    @Endpoint("POST /deliveries/{id}/replay", "Send an event again", statuses=(202,), audience=Audience.OWNERS)
    async def replay_delivery(self, request: web.Request, _: EmptyBody) -> DeliveryDocument:
        delivery = await self._find(request)
        return _document(request, await self._record.replay(delivery.id) or delivery)

    async def _asked_for(self, request: web.Request, name: str | None) -> Sequence[str] | None:
        """Return the subscriptions whose deliveries the caller may see and asks for; None for all that there are."""
        if NAMESPACES not in request:
            return None if name is None else [name]
        own = [each.name for each in await self._subscriptions.list() if may_see(request, each)]
        return own if name is None else [each for each in own if each == name]

    async def _find(self, request: web.Request) -> ListedDelivery:
        """Return the delivery in the path; one that the caller may not see seems not to exist."""
        delivery = await self._record.get(request.match_info["id"])
        if delivery is not None and lies_inside(request, delivery.delivery.event.repository):
            names = await self._asked_for(request, delivery.subscription)
            if names is None or delivery.subscription in names:
                return delivery
        raise NotFoundError("there is no such delivery, or it is too old to be on record")
