"""The notification of CNCF distribution: an envelope with one event."""

import json

from registry_proxy.events.delivery import Delivery
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.outbox import Actor, EventType, RegistryEvent, with_values

_MEDIA_TYPE = "application/vnd.docker.distribution.events.v2+json"
_ACTIONS = {
    EventType.PUSH: ("push", "PUT"),
    EventType.MANIFEST: ("push", "PUT"),
    EventType.DELETE: ("delete", "DELETE"),
    EventType.PULL: ("pull", "GET"),
}
"""The action and the method of the request, by type."""


def distribution_envelope(_subscription: Subscription, _number: int, delivery: Delivery) -> tuple[bytes, str]:
    """Return the envelope of a push or a deletion, and its media type."""
    event = delivery.event
    action, method = _ACTIONS[event.type]
    actor = event.actor or Actor("")
    notification = {
        "id": event.id,
        "timestamp": event.time,
        "action": action,
        "target": with_values(_target(event, actor)),
        "request": {
            "id": actor.request_id,
            **with_values({"addr": actor.address, "host": actor.host}),
            "method": method,
            "useragent": actor.user_agent,
        },
        "actor": with_values({"name": actor.subject}),
        "source": {},  # the node is no part of an event: any of them delivers it
    }
    return json.dumps({"events": [notification]}).encode(), _MEDIA_TYPE


def _target(event: RegistryEvent, actor: Actor) -> dict[str, object]:
    if event.type is EventType.DELETE and event.tag:  # with a digest, a receiver takes the manifest for deleted
        return {"repository": event.repository, "tag": event.tag}
    url = f"{actor.scheme}://{actor.host}/v2/{event.repository}/manifests/{event.digest}"
    return {
        "mediaType": event.media_type,
        "size": event.size_bytes,
        "digest": event.digest,
        "length": event.size_bytes,
        "repository": event.repository,
        "url": url if event.type is not EventType.DELETE and actor.scheme and actor.host else "",
        "tag": event.tag,
    }
