"""Subscriptions of the directory: their rules, with every fault named at once."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory import subscriptions
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import NotFoundError, RevisionConflictError
from registry_proxy.events.subscription import SubscriptionInput

DOCUMENT = Path(__file__).parents[2] / "docs" / "events.md"
URL = "https://ci.example/hooks/registry"


async def test_a_subscription_is_kept_and_removed(directory: Directory) -> None:
    """A subscription is read as it was put; a revision guards it; after its removal the name is free."""
    given = SubscriptionInput(url=URL, secrets=["x" * 16], headers={"Authorization": "Bearer y"}, events=["push"])
    made, is_new = await directory.subscriptions.put("ci", given)
    assert is_new
    assert await directory.subscriptions.get("ci") == made
    with pytest.raises(RevisionConflictError):
        await directory.subscriptions.put("ci", given, expect=made.revision + 1)
    await directory.subscriptions.delete("ci")
    with pytest.raises(NotFoundError):
        await directory.subscriptions.get("ci")
    assert await directory.subscriptions.list() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "ftp://ci.example/"),
        ("url", "https://"),
        ("url", "http://ci.example:port/"),
        ("url", "http://ci.example/#a"),
        ("url", "http://ci.example/a b"),
        ("url", "http://ci.example/\r\nX: y"),
        ("secrets", ["short"]),
        ("secrets", ["x" * 16] * 3),
        ("secrets", ["whsec_not Base64 at all"]),
        ("secrets", ["whsec_dG9vIHNob3J0"]),
        ("template", "{}"),
        ("events", []),
        ("events", ["gap"]),
        ("events", ["nothing"]),
        ("events", ["push", "retention"]),
        ("repository", "Team/**"),
        ("tags", "a/b"),
        ("format", "xml"),
        ("on_failure", "stop"),
        ("headers", {"Host": "a"}),
        ("headers", {"Webhook-Id": "a"}),
        ("headers", {"X y": "a"}),
        ("headers", {"X": "a\r\nY: b"}),
        ("headers", {f"X-{number}": "a" for number in range(21)}),
    ],
)
async def test_a_fault_names_its_field(directory: Directory, field: str, value: Any) -> None:
    """A violation of each rule is refused at its field, and nothing is stored."""
    with pytest.raises(InvalidError) as caught:
        await directory.subscriptions.put("ci", SubscriptionInput(**{"url": URL, field: value}))
    assert [name for name, _ in caught.value.faults] == [field]
    assert await directory.subscriptions.list() == []


async def test_all_faults_are_named_at_once(directory: Directory) -> None:
    """Faults of all fields and of the name come in one error."""
    with pytest.raises(InvalidError) as caught:
        await directory.subscriptions.put("a b", SubscriptionInput(url="x", events=["y"], tags="z/"))
    assert [name for name, _ in caught.value.faults] == ["name", "url", "events", "tags"]


async def test_subscriptions_are_bounded(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription beyond the limit is refused; existing ones can be changed."""
    monkeypatch.setattr(subscriptions, "SUBSCRIPTIONS_MAX", 1)
    await directory.subscriptions.put("a", SubscriptionInput(url=URL))
    with pytest.raises(InvalidError, match="already"):
        await directory.subscriptions.put("b", SubscriptionInput(url=URL))
    await directory.subscriptions.put("a", SubscriptionInput(url=URL, enabled=False))


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("", "expected JSON"),
        ("{image}", "expected JSON"),
        ('{"size": NaN}', "expected JSON"),
        ("[" * 16_000, "expected JSON"),
        ('{"ref": "{branch}"}', "{branch} is unknown"),
        ('{"token": "{secret}"}', "needs one in secrets"),
        (f'"{"x" * 16_384}"', "at most 16384 bytes"),
    ],
)
async def test_a_template_is_checked_before_it_is_used(directory: Directory, template: str, fault: str) -> None:
    """A template must be JSON of a limited size, with known placeholders."""
    with pytest.raises(InvalidError, match=re.escape(fault)):
        await directory.subscriptions.put("ci", SubscriptionInput(url=URL, format="template", template=template))


async def test_the_documented_subscriptions_are_accepted(directory: Directory) -> None:
    """Each example of docs/events.md that has a URL is the body of a PUT."""
    blocks = re.findall(r"^```json\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    examples = [json.loads(block) for block in blocks if '"url": "http' in block.partition("\n")[0]]
    for number, example in enumerate(examples):
        await directory.subscriptions.put(f"example-{number}", SubscriptionInput(**example))
    assert {each["format"] for each in examples if "format" in each} == {"distribution", "harbor", "template"}


async def test_harbor_has_no_form_for_manifests(directory: Directory) -> None:
    """A subscription that could never receive its events is refused."""
    given = SubscriptionInput(url=URL, format="harbor", events=["push", "manifest"])
    with pytest.raises(InvalidError, match="no form for a manifest"):
        await directory.subscriptions.put("ci", given)


async def test_a_type_of_a_later_release_is_named_as_such(directory: Directory) -> None:
    """The type is refused, and the message says that it is no misspelling."""
    with pytest.raises(InvalidError, match="retention: not available yet"):
        await directory.subscriptions.put("ci", SubscriptionInput(url=URL, events=["push", "retention"]))


@pytest.mark.parametrize("format_", ["distribution", "harbor", "template"])
async def test_events_of_replicas_are_for_cloudevents_alone(directory: Directory, format_: str) -> None:
    """The other formats describe a change of an image: these events have none."""
    given = SubscriptionInput(url=URL, format=format_, events=["replica_down"], template="{}" * (format_ == "template"))
    with pytest.raises(InvalidError, match="only format cloudevents has a form for replica_down"):
        await directory.subscriptions.put("ci", given)
    await directory.subscriptions.put("ci", replace(given, format="cloudevents", template=""))
