"""The body that a subscription gives itself: JSON with placeholders in its strings."""

import json
import re
from collections.abc import Mapping, Sequence

from registry_proxy.events.delivery import Delivery
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.outbox import Actor

TEMPLATE_MAX_BYTES = 16 * 1024
PLACEHOLDERS = (
    *("event.id", "event.type", "event.time", "event.number", "event.replay"),
    *("registry", "repository", "tag", "digest", "previous", "image", "media_type", "size", "subject", "secret"),
)
_PLACEHOLDER = re.compile(r"\{([a-z][a-z_.]*)\}")


def template_faults(template: str, secrets: Sequence[str]) -> list[str]:
    """Return what is wrong with a template for a subscription with such secrets."""
    if len(template.encode()) > TEMPLATE_MAX_BYTES:
        return [f"expected at most {TEMPLATE_MAX_BYTES} bytes"]
    try:
        json.loads(template, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return ['expected JSON, such as {"image": "{image}"}']
    names = set(_PLACEHOLDER.findall(template))
    faults = [f"{{{each}}} is unknown; there are {', '.join(PLACEHOLDERS)}" for each in sorted(names - {*PLACEHOLDERS})]
    if "secret" in names and not secrets:
        faults.append("{secret} needs one in secrets")
    return faults


def filled_template(subscription: Subscription, number: int, delivery: Delivery) -> tuple[bytes, str]:
    """Return the template of the subscription with the values of the event, and its media type.

    Braces around a name occur in JSON inside strings alone: values are written there as the content of a string, and
    are not searched for placeholders themselves.
    """
    values = _values(subscription, number, delivery)
    body = _PLACEHOLDER.sub(lambda found: json.dumps(values[found[1]])[1:-1], subscription.template)
    return body.encode(), "application/json"


def _values(subscription: Subscription, number: int, delivery: Delivery) -> Mapping[str, str]:
    event = delivery.event
    actor = event.actor or Actor("")
    image = f"{actor.host}/{event.repository}".lstrip("/")
    return {
        "event.id": event.id,
        "event.type": event.type.value,
        "event.time": event.time,
        "event.number": str(number),
        "event.replay": str(delivery.is_replay).lower(),
        "registry": actor.host,
        "repository": event.repository,
        "tag": event.tag,
        "digest": event.digest,
        "previous": event.previous,
        "image": f"{image}@{event.digest}" if event.digest else f"{image}:{event.tag}",
        "media_type": event.media_type,
        "size": str(event.size_bytes),
        "subject": actor.subject,
        "secret": next(iter(subscription.secrets), ""),
    }


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are no JSON
