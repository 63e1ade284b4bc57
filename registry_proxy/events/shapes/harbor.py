"""The webhook of Harbor 2 in its default format, which Flux, Kargo, Argo CD Image Updater and Keel read."""

import json

from registry_proxy.events.delivery import Delivery
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.outbox import EventType, RegistryEvent

_TYPES = {
    EventType.PUSH: "PUSH_ARTIFACT",
    EventType.DELETE: "DELETE_ARTIFACT",
    EventType.PULL: "PULL_ARTIFACT",
}


def harbor_webhook(_subscription: Subscription, _number: int, delivery: Delivery) -> tuple[bytes, str]:
    """Return a push or a deletion as Harbor tells it, and its media type."""
    event = delivery.event
    namespace, name = _split(event.repository)
    body = {
        "type": _TYPES[event.type],
        "occur_at": int(event.at),
        "operator": "" if event.actor is None else event.actor.subject,
        "event_data": {
            "resources": [_resource(event)],
            "repository": {
                "name": name,
                "namespace": namespace,
                "repo_full_name": event.repository,
                "repo_type": "private",  # the other word is "public": what everyone may pull is no part of an event
            },
        },
    }
    return json.dumps(body).encode(), "application/json"


def _split(repository: str) -> tuple[str, str]:
    """Return the project and the name in it: Harbor's project is the first component."""
    first, slash, rest = repository.partition("/")
    return (first, rest) if slash else ("", first)


def _resource(event: RegistryEvent) -> dict[str, str]:
    """Return the artifact. Without a tag, its digest stands in the place of one, as Harbor does it."""
    host = "" if event.actor is None else event.actor.host
    image = f"{host}/{event.repository}".lstrip("/")
    reference = f":{event.tag}" if event.tag else f"@{event.digest}"
    digest = {"digest": event.digest} if event.digest else {}
    return {**digest, "tag": event.tag or event.digest, "resource_url": f"{image}{reference}"}
