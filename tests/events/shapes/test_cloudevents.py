"""CloudEvents: the rules of the specification, and the fields that its consumers read."""

import json
import re
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from registry_proxy.events.composition import ComposedRequest
from registry_proxy.ports.outbox import EventType, RegistryEvent
from tests.events.support import composed, deleted, pushed

GAP = RegistryEvent(id="event-9", type=EventType.GAP, at=1_700_000_000.0, detail={"reason": "the store was lost"})
MANIFEST = replace(pushed(1), type=EventType.MANIFEST, tag="")


def taken_by_image_updater(request: ComposedRequest) -> tuple[str, str, str, str]:
    """Return registry, repository, tag and digest as Argo CD Image Updater's CloudEvents handler reads them.

    Raises ValueError for events that it answers with 400.
    """
    event = json.loads(request.body)
    kind = request.headers["Content-Type"]
    if "application/json" not in kind and "application/cloudevents+json" not in kind:
        raise ValueError(kind)
    if not event["specversion"] or not ("container" in event["type"] or "image" in event["type"]):
        raise ValueError(event["type"])
    data = event["data"]
    taken = (data.get("registry"), data.get("repository"), data.get("tag"), data.get("digest") or "")
    if not all(taken[:3]):
        raise ValueError(data)
    return taken


@pytest.mark.parametrize("event", [pushed(1), MANIFEST, deleted(tag="v1"), GAP], ids=lambda each: each.type)
def test_every_event_keeps_the_specification(event: RegistryEvent) -> None:
    """Attributes are non-empty texts, with names of small letters; the source is a URI-reference."""
    request = composed(event)
    body: dict[str, Any] = json.loads(request.body)
    attributes = {name: value for name, value in body.items() if name != "data"}
    assert {"specversion", "id", "source", "type"} <= set(attributes)
    assert all(isinstance(value, str) and value for value in attributes.values())
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in attributes)
    assert urlsplit(body["source"]).path == body["source"]
    assert (body["sequence"], body["time"][-1]) == ("000000000007", "Z")
    assert request.headers["Content-Type"] == "application/cloudevents+json"


def test_types_are_named() -> None:
    """Each type of event has one name, which begins with that of the product."""
    types = [json.loads(composed(each).body)["type"] for each in (pushed(1), MANIFEST, deleted(tag="v1"), GAP)]
    assert types == [f"registry-proxy.{name}" for name in ("image.push", "manifest", "delete", "gap")]


def test_argocd_image_updater_takes_a_cloudevent_of_a_push() -> None:
    """Argo CD Image Updater finds registry, repository, tag and digest in the data."""
    taken = taken_by_image_updater(composed(pushed(1)))
    assert taken == ("registry.example:5000", "team/app", "v1", f"sha256:{1:064x}")


@pytest.mark.parametrize("event", [MANIFEST, deleted(tag="v1"), GAP], ids=lambda each: each.type)
def test_argocd_image_updater_takes_no_other_cloudevent_for_a_push(event: RegistryEvent) -> None:
    """It refuses deletions, manifests without a tag, and gaps: none of them is a new version."""
    with pytest.raises(ValueError, match="registry-proxy"):
        taken_by_image_updater(composed(event))
