"""CloudEvents 1.0 in structured mode, with the sequence extension."""

import json

from registry_proxy.events.delivery import Delivery
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.outbox import EventType, RegistryEvent

_SOURCE = "registry-proxy"
_TYPES = {EventType.PUSH: "image.push"}
"""Names that differ from the event's: Argo CD Image Updater takes types with the word "image" for a moved tag."""

_NUMBER_DIGITS = 12


def cloudevent(_: Subscription, number: int, delivery: Delivery) -> tuple[bytes, str]:
    """Return the event as a CloudEvent, and its media type."""
    event = delivery.event
    attributes = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"{_SOURCE}/{event.repository}".rstrip("/"),
        "type": f"{_SOURCE}.{_TYPES.get(event.type, event.type.value)}",
        "time": event.time,
        "datacontenttype": "application/json",
        "sequence": f"{number:0{_NUMBER_DIGITS}d}",
    }
    if event.repository:  # a subject that is there must not be empty
        attributes["subject"] = event.repository
    body = {**attributes, "data": {**_data(event), "replay": delivery.is_replay}}
    return json.dumps(body).encode(), "application/cloudevents+json"


def _data(event: RegistryEvent) -> dict[str, object]:
    actor = event.actor
    return {
        "registry": None if actor is None else actor.host or None,
        "repository": event.repository,
        "tag": event.tag or None,
        "digest": event.digest or None,
        "previous": event.previous or None,
        "media_type": event.media_type or None,
        "size": event.size_bytes or None,
        "subject": None if actor is None else actor.subject,
        **event.detail,
    }
