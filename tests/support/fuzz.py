"""Requests that schemathesis generates from an OpenAPI document, right ones and wrong ones, and checks of the answers.

Imported where it is used: to load schemathesis takes a second of a processor.
"""

from collections import Counter
from typing import Any

import hypothesis
import requests
import schemathesis
from aiohttp import encode_basic_auth
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.admin_bench import Node, name_below

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
ROOT, PASSWORD = "root-of-this-test", "a password of the test"
"""An administrator that no generated request removes or locks out."""


GRANT = {"subject": "user:bob", "repository": "team/**", "actions": ["pull"]}
RIGHT: dict[str, Any] = {
    "POST /grants": GRANT,
    "POST /explain": {"subject": "user:bob", "repository": "team/app", "action": "pull"},
    "POST /revocations": {"subject": "user:bob"},
    "POST /robots/{name}/secrets": {"label": "of a job"},
    "POST /cache/warm": {"repository": "team/app", "platforms": ["linux/amd64"]},
    "POST /policy/replay": {"add": [GRANT]},
}
"""Bodies that are far from anything generated from the schema alone."""


class Fuzz:
    """Sends requests; a finding is an exception that shows the request and how to repeat it."""

    def __init__(self, node: Node, document: dict[str, Any], base_url: str) -> None:
        self._node = node
        self._schema = schemathesis.openapi.from_dict(document)
        # Any refusal is one; a fault may be reported after a precondition that fails: 412.
        self._schema.config.checks.negative_data_rejection.expected_statuses = ["4xx"]
        self._base_url = base_url
        self.statuses: Counter[tuple[str, int]] = Counter()

    def round(self, seed: int, examples: int) -> None:
        """Send a number of requests of each kind to each operation: right and wrong, for existing and absent names."""
        with requests.Session() as session:
            session.trust_env = False
            for found in self._schema.get_all_operations():
                assert isinstance(found, Ok), found
                operation = found.ok()
                session.headers["Authorization"] = encode_basic_auth(ROOT, PASSWORD)
                for mode in MODES:
                    self._send(session, operation.as_strategy(mode), seed, examples)
                route = operation.label.replace("/admin/v1", "", 1)
                right = {"body": RIGHT[route], "media_type": "application/json"} if route in RIGHT else {}
                if "{name}" in route and not route.startswith("DELETE"):
                    right["path_parameters"] = {"name": name_below(route.split()[1])}
                if right:
                    self._send(session, operation.as_strategy(**right), seed, examples)

    def _send(self, session: requests.Session, cases: Any, seed: int, examples: int) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(cases)
        def send(case: Any) -> None:
            response = case.call(self._base_url, session)
            self.statuses[case.operation.label, response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        send()
