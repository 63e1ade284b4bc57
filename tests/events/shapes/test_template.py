"""Bodies from a subscription's template, for CI systems that accept only their own form."""

import json
from dataclasses import replace
from typing import Any

import pytest

from registry_proxy.events.shapes.template import PLACEHOLDERS, template_faults
from registry_proxy.ports.outbox import Actor, RegistryEvent
from tests.events.support import composed, deleted, pushed

DIGEST = f"sha256:{1:064x}"
IMAGE = f"registry.example:5000/team/app@{DIGEST}"


def filled(template: object, event: RegistryEvent, **fields: Any) -> Any:
    """Return the body that a template makes of an event; the directory accepts the template."""
    text = json.dumps(template)
    assert template_faults(text, fields.get("secrets", ())) == []
    request = composed(event, format="template", template=text, **fields)
    assert request.headers["Content-Type"] == "application/json"
    return json.loads(request.body)


def test_every_placeholder_has_a_value() -> None:
    """Numbers and truth values are written as texts, as they stand in strings."""
    body = filled({name: f"<{{{name}}}>" for name in PLACEHOLDERS}, pushed(1), secrets=["s" * 16])
    assert body == {
        "event.id": "<event-1>",
        "event.type": "<push>",
        "event.time": "<2023-11-14T22:13:21Z>",
        "event.number": "<7>",
        "event.replay": "<false>",
        "registry": "<registry.example:5000>",
        "repository": "<team/app>",
        "tag": "<v1>",
        "digest": f"<{DIGEST}>",
        "previous": "<>",
        "image": f"<{IMAGE}>",
        "media_type": "<application/vnd.oci.image.manifest.v1+json>",
        "size": "<700>",
        "subject": "<user:ann>",
        "secret": f"<{'s' * 16}>",
    }


@pytest.mark.parametrize("subject", ['"}, "admin": {"', "\\", "\n\x00", "{secret}", "ä\U0001f600"])
def test_a_value_stays_inside_its_string(subject: str) -> None:
    """No name from a client changes other parts of the body or inserts another value."""
    event = replace(pushed(1), actor=Actor(subject))
    assert filled({"by": ["{subject}"], "n": 1}, event, secrets=["s" * 16]) == {"by": [subject], "n": 1}


def test_other_braces_stay() -> None:
    """Text that is not in the form of a placeholder is sent unchanged."""
    assert filled({"a": "{}", "b": "${CI}", "c": {}}, pushed(1)) == {"a": "{}", "b": "${CI}", "c": {}}


def test_a_deleted_tag_has_an_image_without_a_digest() -> None:
    """The image of a deleted tag has the tag in the place of the digest."""
    assert filled("{image}", deleted(tag="v1")) == "registry.example:5000/team/app:v1"


def test_github_gets_a_repository_dispatch() -> None:
    """``event_type`` has at most 100 characters, ``client_payload`` at most ten fields; the event's id is inside."""
    body = filled(
        {
            "event_type": "image-{event.type}",
            "client_payload": {"id": "{event.id}", "image": "{image}", "tag": "{tag}"},
        },
        pushed(1),
    )
    assert set(body) == {"event_type", "client_payload"}
    assert (body["event_type"], len(body["event_type"]) <= 100, len(body["client_payload"]) <= 10) == (
        "image-push",
        True,
        True,
    )
    assert body["client_payload"] == {"id": "event-1", "image": IMAGE, "tag": "v1"}


def test_gitlab_gets_a_trigger_with_its_token() -> None:
    """The token is the secret of the subscription; variables are a flat object of texts."""
    template = {"token": "{secret}", "ref": "main", "variables": {"EVENT": "{event.id}", "IMAGE": "{image}"}}
    body = filled(template, pushed(1), secrets=["glptt-0123456789abcdef"])
    assert (body["token"], body["ref"]) == ("glptt-0123456789abcdef", "main")
    assert body["variables"] == {"EVENT": "event-1", "IMAGE": IMAGE}


def test_jenkins_generic_webhook_trigger_reads_its_variables() -> None:
    """Expressions such as ``$.image`` find their values in the body."""
    body = filled({"event": "{event.id}", "image": "{image}", "tag": "{tag}"}, pushed(1))
    assert (body["event"], body["image"], body["tag"]) == ("event-1", IMAGE, "v1")
