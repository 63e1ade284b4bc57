"""CNCF distribution's envelope, read as its consumers do."""

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

from registry_proxy.ports.outbox import EventType, RegistryEvent
from tests.events.support import composed, deleted, pulled, pushed

DIGEST = f"sha256:{1:064x}"


def notification(event: RegistryEvent) -> dict[str, Any]:
    """Return the only event of the envelope."""
    request = composed(event, format="distribution")
    assert request.headers["Content-Type"] == "application/vnd.docker.distribution.events.v2+json"
    (only,) = json.loads(request.body)["events"]
    assert datetime.fromisoformat(only["timestamp"]).timestamp() == event.at
    return dict(only)


def test_a_push_has_every_field_of_distribution() -> None:
    """Names and nesting are those of a registry that sends the event itself."""
    sent = notification(pushed(1))
    assert sent["target"] == {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "size": 700,
        "digest": DIGEST,
        "length": 700,
        "repository": "team/app",
        "url": f"https://registry.example:5000/v2/team/app/manifests/{DIGEST}",
        "tag": "v1",
    }
    assert sent["request"] == {
        "id": "request-1",
        "addr": "192.0.2.1",
        "host": "registry.example:5000",
        "method": "PUT",
        "useragent": "docker/27",
    }
    assert (sent["id"], sent["action"], sent["actor"], sent["source"]) == ("event-1", "push", {"name": "user:ann"}, {})


def test_a_manifest_without_a_tag_is_a_push_without_one() -> None:
    """The envelope omits the tag, as distribution does."""
    sent = notification(replace(pushed(1), type=EventType.MANIFEST, tag=""))
    assert (sent["action"], "tag" in sent["target"], sent["target"]["digest"]) == ("push", False, DIGEST)


def test_a_deleted_tag_is_no_deleted_manifest() -> None:
    """A deletion names the tag or the digest, never both: with a digest a mirror would drop the manifest."""
    of_tag, of_manifest = notification(deleted(tag="v1", digest=DIGEST)), notification(deleted(digest=DIGEST))
    assert of_tag["target"] == {"repository": "team/app", "tag": "v1"}
    assert of_manifest["target"] == {"repository": "team/app", "digest": DIGEST}
    assert (of_tag["action"], of_tag["request"]["method"]) == ("delete", "DELETE")


def test_an_event_of_nobody_names_nobody() -> None:
    """Without an actor the host is unknown, and no URL is invented."""
    sent = notification(replace(pushed(1), actor=None))
    assert (sent["actor"], sent["request"]["id"], "url" in sent["target"]) == ({}, "", False)


def test_keel_finds_the_image_in_a_notification() -> None:
    """Keel takes pushes with a tag: the image is the host of the request and the repository of the target."""
    sent = notification(pushed(1))
    assert sent["action"] == "push"
    assert f"{sent['request']['host']}/{sent['target']['repository']}" == "registry.example:5000/team/app"
    assert (sent["target"]["tag"], sent["target"]["digest"]) == ("v1", DIGEST)


def test_a_pull_is_an_action_of_its_own() -> None:
    """The registry itself sends it by that name, for a GET."""
    sent = notification(pulled())
    assert (sent["action"], sent["request"]["method"], sent["target"]["tag"]) == ("pull", "GET", "v1")
