"""Reports in the answers of receivers: read as any foreign text, and only about the event itself."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from registry_proxy.events.receipts import reported
from registry_proxy.events.sender import ReceiverAnswer
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.deployments import DeploymentReport
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.outbox import EventType
from registry_proxy.ports.store import Table
from registry_proxy.tasks import running
from tests.events.support import Bench, ScriptedSender, deleted, pushed
from tests.events.test_deliveries import become, deliveries

SUBSCRIPTION = Subscription(name="ci", url="https://ci.example/hook", repository="team/**", tags="v*")
GIVEN = {"environment": "production", "outcome": "succeeded"}
ANSWER = json.dumps({"deployment": GIVEN})


@pytest.mark.parametrize("kind", [EventType.PUSH, EventType.ROLLBACK, EventType.RESTORE, EventType.PROMOTION])
def test_an_answer_reports_on_its_event(kind: EventType) -> None:
    """Repository, tag and digest are those of the event, however the tag was moved."""
    event = replace(pushed(1), type=kind)
    assert reported(ANSWER, event, SUBSCRIPTION) == DeploymentReport(
        environment="production", repository="team/app", digest=event.digest, outcome="succeeded", tag="v1"
    )


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "thanks",
        "[" * 1000,
        "[]",
        '{"jobs": {}}',
        '{"deployment": null}',
        json.dumps({"deployment": {**GIVEN, "repository": "team/other"}}),
        json.dumps({"deployment": {**GIVEN, "digest": "sha256:" + "0" * 64}}),
        json.dumps({"deployment": {"environment": "production"}}),
        json.dumps({"deployment": {**GIVEN, "outcome": True}}),
        json.dumps({"deployment": GIVEN, "more": "x" * 1000})[:1024],
    ],
)
def test_other_answers_report_nothing(answer: str) -> None:
    """An answer of another shape, or with the names of another event, is an ordinary answer."""
    assert reported(answer, pushed(1), SUBSCRIPTION) is None


def test_only_what_the_subscription_takes_is_reported_on() -> None:
    """A deletion, a test, and an event outside of the narrowed subscription get no report."""
    assert reported(ANSWER, deleted(tag="v1"), SUBSCRIPTION) is None
    assert reported(ANSWER, replace(pushed(1), detail={"test": True}), SUBSCRIPTION) is None
    assert reported(ANSWER, pushed(1, repository="other/app"), SUBSCRIPTION) is None
    assert reported(ANSWER, pushed(1, tag="latest"), SUBSCRIPTION) is None
    assert reported(ANSWER, pushed(1), replace(SUBSCRIPTION, enabled=False)) is None


@dataclass
class Answers:
    """Remembers the reports; the first ones fail as scripted."""

    failures: list[Exception] = field(default_factory=list)
    taken: list[tuple[DeploymentReport, str]] = field(default_factory=list)

    async def take(self, report: DeploymentReport, subscription: str) -> None:
        if self.failures:
            raise self.failures.pop()
        self.taken.append((report, subscription))


async def test_an_answer_is_on_record_before_its_delivery_is_over(bench: Bench) -> None:
    """If a report cannot be stored, its event is delivered again; a refusal with a report is no report."""
    await bench.subscribe(repository="team/**")
    answers = [ReceiverAnswer(500, ANSWER), ReceiverAnswer(200, ANSWER), ReceiverAnswer(200, ANSWER)]

    def answer(*_: Any) -> ReceiverAnswer:
        return answers.pop(0)

    sender, takes = ScriptedSender(answer), Answers([StoreUnavailableError("away")])
    await bench.put(pushed(1))
    async with running(deliveries(bench, sender).run(takes), "deliveries"):
        await become(lambda: bench.store.list(Table.DELIVERED), bool)
    assert sender.ids() == ["event-1"] * 3
    assert [(report.digest, name) for report, name in takes.taken] == [(pushed(1).digest, "ci")]
