"""Deliveries of events in the admin API: what is queued, what arrived lately, and what was given up."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from registry_proxy.api.models import Document, EmptyBody, Page, Time
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import ProblemError
from registry_proxy.api.requests import PAGE, parse_page, read_query
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.events.delivery import DeliveryState, ListedDelivery
from registry_proxy.events.record import DeliveryRecord


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


def _document(listed: ListedDelivery) -> DeliveryDocument:
    delivery = listed.delivery
    return DeliveryDocument.of(
        delivery,
        id=listed.id,
        subscription=listed.subscription,
        number=listed.number,
        state=listed.state,
        event=_without_nothing(delivery.event.stored()),
        next_attempt_at=delivery.next_attempt_at or None,
        ended_at=delivery.ended_at or None,
    )


def _without_nothing(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if value not in ("", 0, None, {})}


class DeliveryResource:
    """The handlers of deliveries."""

    def __init__(self, record: DeliveryRecord) -> None:
        self._record = record

    @Endpoint("GET /deliveries", "List deliveries", Page[DeliveryDocument], query=(*PAGE, "subscription", "state"))
    async def list_deliveries(self, request: web.Request) -> web.Response:
        """Return the deliveries of one subscription, or of all, in one state, or in each."""
        query = read_query(request, (*PAGE, "subscription", "state"))
        page, state = parse_page(query), query.get("state")
        if state is not None and state not in [each.value for each in DeliveryState]:
            raise ProblemError(400, f"state: expected one of {', '.join(each.value for each in DeliveryState)}")
        found = await self._record.list(query.get("subscription"), None if state is None else DeliveryState(state))
        return page.answer({each.id: each for each in found}, _document)

    @Endpoint("GET /deliveries/{id}", "Show a delivery")
    async def get_delivery(self, request: web.Request) -> DeliveryDocument:
        return _document(_found(await self._record.get(request.match_info["id"])))

    @Endpoint("POST /deliveries/{id}/replay", "Send an event again", statuses=(202,))
    async def replay_delivery(self, request: web.Request, _: EmptyBody) -> DeliveryDocument:
        return _document(_found(await self._record.replay(request.match_info["id"])))


def _found(listed: ListedDelivery | None) -> ListedDelivery:
    if listed is None:
        raise NotFoundError("there is no such delivery, or it is too old to be on record")
    return listed
