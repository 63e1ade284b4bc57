"""The admin API under requests that schemathesis makes of its OpenAPI document, right ones and wrong ones.

A failed run prints its seed; ``FUZZ_SEED=… make test`` sends the same requests again.
"""

import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from aiohttp import encode_basic_auth
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from registry_proxy.access.directory import UserInput
from tests.admin import Node, admin_node, contract_of, name_below

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
SOAK_SECONDS = 300
ROOT, PASSWORD = "root-of-this-test", "a password of the test"
"""An administrator whom no request that is made up removes or locks out."""


GRANT = {"subject": "user:bob", "repository": "team/**", "actions": ["pull"]}
RIGHT: dict[str, Any] = {
    "POST /grants": GRANT,
    "POST /explain": {"subject": "user:bob", "repository": "team/app", "action": "pull"},
    "POST /revocations": {"subject": "user:bob"},
    "POST /robots/{name}/secrets": {"label": "of a job"},
    "POST /cache/warm": {"repository": "team/app", "platforms": ["linux/amd64"]},
    "POST /policy/replay": {"add": [GRANT]},
}
"""Bodies that nothing made up of the schema alone comes near to."""


class Fuzz:
    """Sends requests; what is found is an exception that shows the request and how to repeat it."""

    def __init__(self, node: Node, document: dict[str, Any], base_url: str) -> None:
        self._node = node
        self._schema = schemathesis.openapi.from_dict(document)
        # Any refusal is one; what is wrong may be told after a precondition that fails: 412.
        self._schema.config.checks.negative_data_rejection.expected_statuses = ["4xx"]
        self._base_url = base_url
        self.statuses: Counter[tuple[str, int]] = Counter()

    def round(self, seed: int, examples: int) -> None:
        """Send so many requests of each kind to each operation: right and wrong, of names that are there or not."""
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


async def _fuzz(root: Path, *, seconds: float, examples: int) -> Counter[tuple[str, int]]:
    """Send rounds of requests until the time is over, at least one."""
    seed = int(os.environ.get("FUZZ_SEED") or random.randrange(1 << 32))
    async with admin_node(root) as node, TestClient(TestServer(node.app)) as http:
        await node.directory.put_user(ROOT, UserInput(password=PASSWORD, is_admin=True))
        await node.directory.put_group("dev", ["bob"])
        await node.directory.put_robot("ci", None, [])
        node.verifier.gate.set()
        fuzz = Fuzz(node, (await contract_of(node, http)).document, str(http.make_url("/")).rstrip("/"))
        ends_at = time.monotonic() + seconds
        while True:
            print(f"FUZZ_SEED={seed}")
            await asyncio.to_thread(fuzz.round, seed, examples)
            if time.monotonic() > ends_at:
                break
            seed += 1
    return fuzz.statuses


async def test_no_request_gets_an_answer_that_is_not_described(tmp_path: Path) -> None:
    """Whatever is sent: no 5xx, nothing beside the schema; what is wrong is refused, most of the rest understood."""
    statuses = await _fuzz(tmp_path, seconds=0, examples=3)
    understood = {operation for operation, status in statuses if status < 300}
    assert len(understood) > len({operation for operation, _ in statuses}) / 2
    assert not {status for _, status in statuses} & {401, 403}


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS * 2)
async def test_no_request_gets_an_answer_that_is_not_described_in_five_minutes(tmp_path: Path) -> None:
    """As above, for five minutes."""
    statuses = await _fuzz(tmp_path, seconds=SOAK_SECONDS, examples=30)
    print(statuses)
