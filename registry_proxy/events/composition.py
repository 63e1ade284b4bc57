"""A delivery as the request that its receiver gets: shape, signatures and headers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from registry_proxy.events.delivery import Delivery
from registry_proxy.events.shapes.cloudevents import cloudevent
from registry_proxy.events.shapes.distribution import distribution_envelope
from registry_proxy.events.shapes.harbor import harbor_webhook
from registry_proxy.events.shapes.template import filled_template
from registry_proxy.events.signatures import signatures
from registry_proxy.events.subscription import Format, Subscription

_SHAPES: Mapping[Format, Callable[[Subscription, int, Delivery], tuple[bytes, str]]] = {
    Format.CLOUDEVENTS: cloudevent,
    Format.DISTRIBUTION: distribution_envelope,
    Format.HARBOR: harbor_webhook,
    Format.TEMPLATE: filled_template,
}


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
    delivery = replace(delivery, event=subscription.received(delivery.event))
    # An event that was queued before its subscription got another format may have no form there.
    shape = Format(subscription.format) if subscription.can_express(delivery.event.type) else Format.CLOUDEVENTS
    body, media_type = _SHAPES[shape](subscription, number, delivery)
    headers = {
        **subscription.headers,
        "Content-Type": media_type,
        "User-Agent": "registry-proxy",
        **signatures(subscription.secrets, delivery.event.id, int(sent_at), body),
    }
    return ComposedRequest(body, headers)
