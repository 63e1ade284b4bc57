"""Harbor's webhook, read as its consumers do."""

import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from registry_proxy.ports.outbox import RegistryEvent
from tests.events.support import composed, deleted, pulled, pushed

TOKEN = "the token of the receiver"
DIGEST = f"sha256:{1:064x}"


def webhook(event: RegistryEvent) -> dict[str, Any]:
    """Return the body for a receiver that checks a token as Harbor sends it: alone in Authorization."""
    request = composed(event, format="harbor", headers={"Authorization": TOKEN})
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Authorization"] == TOKEN
    return dict(json.loads(request.body))


def test_a_push_has_the_fields_of_harbor() -> None:
    """Project and name are split at the first slash, and seconds are whole."""
    body = webhook(replace(pushed(1, repository="team/web/app"), at=1_700_000_001.7))
    assert (body["type"], body["occur_at"], body["operator"]) == ("PUSH_ARTIFACT", 1_700_000_001, "user:ann")
    assert body["event_data"]["repository"] == {
        "name": "web/app",
        "namespace": "team",
        "repo_full_name": "team/web/app",
        "repo_type": "private",
    }
    resource = {"digest": DIGEST, "tag": "v1", "resource_url": "registry.example:5000/team/web/app:v1"}
    assert body["event_data"]["resources"] == [resource]


def test_a_repository_without_a_project_keeps_its_name() -> None:
    """A repository without a project, unknown to Harbor, keeps its name, from which consumers build theirs."""
    repository = webhook(pushed(1, repository="app"))["event_data"]["repository"]
    assert (repository["namespace"], repository["name"], repository["repo_full_name"]) == ("", "app", "app")


def test_a_deletion_names_the_tag_or_the_digest() -> None:
    """The digest of a manifest without a tag stands in the place of the tag."""
    of_tag, of_manifest = webhook(deleted(tag="v1")), webhook(deleted(digest=DIGEST))
    assert of_tag["type"] == of_manifest["type"] == "DELETE_ARTIFACT"
    image = "registry.example:5000/team/app"
    assert of_tag["event_data"]["resources"] == [{"tag": "v1", "resource_url": f"{image}:v1"}]
    resource = {"digest": DIGEST, "tag": DIGEST, "resource_url": f"{image}@{DIGEST}"}
    assert of_manifest["event_data"]["resources"] == [resource]


def test_flux_accepts_the_token_of_a_harbor_receiver() -> None:
    """Flux compares Authorization with its token, and reads nothing of the body."""
    assert composed(pushed(1), format="harbor", headers={"Authorization": TOKEN}).headers["Authorization"] == TOKEN


def test_kargo_finds_the_image_and_its_tag() -> None:
    """Kargo takes PUSH_ARTIFACT alone; the image is the URL of the first resource, without the tag."""
    body = webhook(pushed(1))
    (resource,) = body["event_data"]["resources"]
    assert body["type"] == "PUSH_ARTIFACT"
    assert resource["resource_url"].rpartition(":")[0] == "registry.example:5000/team/app"
    assert resource["tag"] == "v1"


def test_argocd_image_updater_finds_registry_repository_and_tag() -> None:
    """The registry is the host of the resource's URL, which has no scheme."""
    data = webhook(pushed(1))["event_data"]
    resource = data["resources"][0]
    assert urlsplit(f"https://{resource['resource_url']}").netloc == "registry.example:5000"
    assert (data["repository"]["repo_full_name"], resource["tag"]) == ("team/app", "v1")
    assert resource["digest"] == DIGEST


def test_keel_parses_the_url_of_a_resource() -> None:
    """Keel decodes whole seconds, and takes image and tag from the URL alone."""
    body = webhook(pushed(1))
    assert isinstance(body["occur_at"], int)
    image, _, tag = body["event_data"]["resources"][0]["resource_url"].rpartition(":")
    assert (image, tag) == ("registry.example:5000/team/app", "v1")


def test_a_pull_is_one_of_harbor() -> None:
    """The type distinguishes it from a push; a pull by digest has the digest in the place of a tag."""
    assert webhook(pulled())["type"] == "PULL_ARTIFACT"
    (resource,) = webhook(pulled(tag=""))["event_data"]["resources"]
    image = f"registry.example:5000/team/app@{DIGEST}"
    assert resource == {"digest": DIGEST, "tag": DIGEST, "resource_url": image}
