"""Requests to receivers: the format of the subscription."""

import json
from dataclasses import replace

import pytest

from registry_proxy.events.subscription import Format
from registry_proxy.ports.outbox import EventType
from tests.events.support import composed, pushed


@pytest.mark.parametrize("name", [*Format, "carrier-pigeon"])
@pytest.mark.parametrize("kind", list(EventType))
def test_every_event_has_a_form_in_every_format(name: str, kind: EventType) -> None:
    """A queued event that a newly chosen format cannot express is sent as a CloudEvent."""
    request = composed(replace(pushed(1), type=kind), format=name, template='{"id": "{event.id}"}')
    assert json.loads(request.body)
    if kind is EventType.GAP:
        assert request.headers["Content-Type"] == "application/cloudevents+json"
