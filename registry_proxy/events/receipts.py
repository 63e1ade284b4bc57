"""Reports of deployments in the answers of receivers: a receiver that deploys says at once what came of an event.

The answer is ``{"deployment": {"environment": "production", "outcome": "succeeded"}}``. Repository, tag and digest are
those of the event: a receiver can report nothing else.
"""

import json
from typing import Any

from registry_proxy.events.delivery import ANSWER_MAX_CHARACTERS
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.deployments import DeploymentReport
from registry_proxy.ports.outbox import TAG_MOVES, RegistryEvent

_FIELDS = {"environment", "outcome"}


def reported(text: str, event: RegistryEvent, subscription: Subscription) -> DeploymentReport | None:
    """Return the report in an answer; None for an answer without one.

    Args:
        text: of the answer; a longer one than ANSWER_MAX_CHARACTERS was cut, and is no report.
        event: the delivered event.
        subscription: as it is now; an event that it does not take any more is none to report on.
    """
    is_test = "test" in event.detail
    if event.type not in TAG_MOVES or is_test or not subscription.takes(event) or len(text) >= ANSWER_MAX_CHARACTERS:
        return None
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    given: Any = answer.get("deployment") if isinstance(answer, dict) else None
    if (
        not isinstance(given, dict)
        or given.keys() != _FIELDS
        or not all(isinstance(each, str) for each in given.values())
    ):
        return None
    return DeploymentReport(
        environment=given["environment"],
        repository=event.repository,
        digest=event.digest,
        outcome=given["outcome"],
        tag=event.tag,
    )
