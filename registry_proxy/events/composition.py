"""A delivery as the request that its receiver gets: shape, signatures and headers."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from registry_proxy.events.delivery import Delivery
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.outbox import RegistryEvent

_SOURCE = "registry-proxy"
_TYPE_PREFIX = "registry-proxy."
_NUMBER_DIGITS = 12


@dataclass(frozen=True, slots=True)
class ComposedRequest:
    """The body and headers of a POST."""

    body: bytes
    headers: Mapping[str, str]


def compose(subscription: Subscription, number: int, delivery: Delivery, sent_at: float) -> ComposedRequest:
    """Return the request of one try.

    Args:
        subscription: whose receiver gets it.
        number: of the delivery in its lane.
        delivery: the event.
        sent_at: seconds since the epoch.
    """
    body, media_type = _cloudevent(number, delivery)
    headers = {
        **subscription.headers,
        "Content-Type": media_type,
        "User-Agent": "registry-proxy",
        **_signatures(subscription.secrets, delivery.event.id, int(sent_at), body),
    }
    return ComposedRequest(body, headers)


def _cloudevent(number: int, delivery: Delivery) -> tuple[bytes, str]:
    """Return a CloudEvent 1.0 in structured mode, with the sequence extension."""
    event = delivery.event
    cloudevent = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"{_SOURCE}/{event.repository}".rstrip("/"),
        "type": f"{_TYPE_PREFIX}{event.type}",
        "time": datetime.fromtimestamp(event.at, UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "subject": event.repository,
        "sequence": f"{number:0{_NUMBER_DIGITS}d}",
        "data": {**_data(event), "replay": delivery.is_replay},
    }
    return json.dumps(cloudevent).encode(), "application/cloudevents+json"


def _data(event: RegistryEvent) -> dict[str, object]:
    actor = event.actor
    return {
        "repository": event.repository,
        "tag": event.tag or None,
        "digest": event.digest or None,
        "previous": event.previous or None,
        "media_type": event.media_type or None,
        "size": event.size_bytes or None,
        "subject": None if actor is None else actor.subject,
        **event.detail,
    }


def _signatures(secrets: Sequence[str], event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks: one signature for each secret that is live."""
    headers = {"webhook-id": event_id, "webhook-timestamp": str(timestamp)}
    signed = f"{event_id}.{timestamp}.".encode() + body
    if secrets:
        digests = (hmac.new(secret.encode(), signed, hashlib.sha256).digest() for secret in secrets)
        headers["webhook-signature"] = " ".join(f"v1,{base64.b64encode(each).decode()}" for each in digests)
    return headers
