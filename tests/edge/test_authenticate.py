"""The Authenticator: both of its ways allow exactly the requests that ``explain`` allows."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from registry_proxy.access.control import AccessControl
from registry_proxy.access.grant import Grant, GrantMode
from registry_proxy.access.policy import Policy
from registry_proxy.access.records import Group, Robot, User
from registry_proxy.access.tokens import TokenSigner, TokenVerifier, create_key_file, public_key_of
from registry_proxy.edge.authenticate import Authenticator, Authorized
from registry_proxy.edge.incoming import Incoming, make_exchange
from registry_proxy.edge.origin import Origins
from registry_proxy.protocol.endpoints import (
    BlobRequest,
    ManifestRequest,
    Operation,
    RegistryRequest,
    StartUploadRequest,
)
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag
from registry_proxy.protocol.scope import Access, Action
from tests.support.fakes.memory import MemoryAudit, RecordingObserver
from tests.support.fakes.public import SERVICE, FakeControl, OneUpstream

PAST, FUTURE = 1.0, 4e9
DIGEST = Digest("sha256", "0" * 64)
HOLDERS = ["anonymous", "user:ann", "user:bob", "user:Eve", "user:root", "group:dev", "group:ops", "robot:ci"]
CALLERS = [*(holder for holder in HOLDERS if not holder.startswith("group:")), "user:ghost", "robot:ghost"]
COMPONENTS = ["a", "b", "home", "ann", "bob"]
OPERATIONS = {
    Action.PULL: (Operation.GET_BLOB, Operation.GET_MANIFEST),
    Action.PUSH: (Operation.START_UPLOAD, Operation.PUT_MANIFEST),
    Action.CREATE: (Operation.START_UPLOAD, Operation.PUT_MANIFEST),
    Action.DELETE: (Operation.DELETE_BLOB, Operation.DELETE_MANIFEST),
}
"""The request of a client for each action, without a tag and on a tag."""

Question = tuple[str, str, Action, str | None]

EXPIRIES = st.sampled_from([None, None, PAST, FUTURE])
GRANTS = st.builds(
    Grant,
    id=st.integers(0, 10**6).map(str),
    subject=st.sampled_from(HOLDERS),
    repository=st.lists(st.sampled_from([*COMPONENTS, "*", "**", "a*", "{subject}"]), min_size=1, max_size=3).map(
        "/".join
    ),
    actions=st.frozensets(st.sampled_from(list(Action)), min_size=1),
    tags=st.sampled_from(["*", "*", "v*", "x", "**"]),
    mode=st.sampled_from(list(GrantMode)),
    expires_at=EXPIRIES,
)
MEMBERS = st.lists(st.sampled_from(["ann", "bob", "Eve"]), unique=True).map(tuple)
POLICIES = st.builds(
    lambda grants, dev, ops, is_disabled, expires_at: Policy(
        [User("ann", ""), User("bob", "", is_disabled=is_disabled), User("Eve", ""), User("root", "", is_admin=True)],
        [Group("dev", dev), Group("ops", ops)],
        grants,
        {"user:ann": 3},
        robots=[Robot("ci", expires_at)],
    ),
    st.lists(GRANTS, max_size=12, unique_by=lambda grant: grant.id),
    MEMBERS,
    MEMBERS,
    st.booleans(),
    EXPIRIES,
)
NAMES = ["/".join(parts) for length in (1, 2, 3) for parts in itertools.product(COMPONENTS, repeat=length)]
QUESTIONS = st.lists(
    st.sampled_from(list(itertools.product(CALLERS, NAMES, list(OPERATIONS), (None, "v1", "x")))),
    min_size=40,
    max_size=40,
)


class PolicyControl(FakeControl):
    """A control over one policy."""

    def __init__(self, verifier: TokenVerifier, policy: Policy) -> None:
        super().__init__(verifier)
        self._given = policy

    def _policy(self) -> Policy:
        return self._given


@dataclass(frozen=True)
class Keys:
    """A signer of tokens with its verifier."""

    signer: TokenSigner
    verifier: TokenVerifier


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """One key for all examples."""
    path = str(tmp_path_factory.mktemp("keys") / "key.pem")
    create_key_file(path)
    signer, verifier = TokenSigner(path, SERVICE, 300), TokenVerifier(SERVICE)
    verifier.set_keys({signer.key_id: public_key_of(signer.public_jwk)})
    return Keys(signer, verifier)


def wanted(repository: str, action: Action, tag: str | None) -> RegistryRequest:
    """Return the request that a client sends for an action."""
    operation = OPERATIONS[action][tag is not None]
    name = Repository(repository)
    if tag is not None:
        return ManifestRequest(operation=operation, repository=name, tag_or_digest=Tag(tag))
    if operation is Operation.START_UPLOAD:
        return StartUploadRequest(operation=operation, repository=name)
    return BlobRequest(operation=operation, repository=name, digest=DIGEST)


async def enforced(keys: Keys, policy: Policy, questions: Sequence[Question]) -> list[Authorized | None]:
    """Return the outcome of the request of each question, with a token as the token endpoint gives it."""
    authenticator = Authenticator(
        control=cast(AccessControl, PolicyControl(keys.verifier, policy)),
        router=OneUpstream(),
        observer=RecordingObserver(),
        audit=MemoryAudit(),
        origins=Origins(None, []),
        service=SERVICE,
    )
    blank = make_mocked_request("GET", "/v2/")  # slower than everything else here
    callers = {}
    for subject in {subject for subject, *_ in questions}:
        names = {name for asker, name, *_ in questions if asker == subject}
        asked = [Access("repository", name, frozenset({"pull", "push", "delete"})) for name in sorted(names)]
        access = [allowed for each in asked if (allowed := policy.allowed_access(subject, each)) is not None]
        generation = policy.generation(subject)
        bearer = f"Bearer {keys.signer.issue(subject, generation or 0, access, time.time()).token}"
        asking = blank.clone(headers={"Authorization": bearer})
        callers[subject] = make_exchange(asking, Incoming(asking), Origins(None, []))
    outcomes: list[Authorized | None] = []
    for subject, repository, action, tag in questions:
        request, exchange = wanted(repository, action, tag), callers[subject]
        outcome: Authorized | None = None
        at_once: Authorized | None = None
        with contextlib.suppress(RegistryError):
            outcome = await authenticator.authorize(exchange, request)
        current = authenticator.policy_now()
        assert current is not None
        with contextlib.suppress(RegistryError):
            at_once = authenticator.decide(exchange, request, current)
        assert at_once == outcome, "the two ways to decide differ"
        outcomes.append(outcome)
    return outcomes


# Not shrunk: that takes minutes here, and the message has the question with its policy.
UNSHRUNK = settings(suppress_health_check=[HealthCheck.too_slow], phases=[Phase.reuse, Phase.generate])


@settings(UNSHRUNK, max_examples=80)
@given(policy=POLICIES, questions=QUESTIONS)
def test_explain_equals_enforcement(keys: Keys, policy: Policy, questions: list[Question]) -> None:
    """In thousands of generated cases a request passes exactly where ``explain`` says so, by the grant it names."""
    compare(keys, policy, questions)


@pytest.mark.soak
@settings(UNSHRUNK, max_examples=2000)
@given(policy=POLICIES, questions=QUESTIONS)
def test_explain_equals_enforcement_in_many_cases(keys: Keys, policy: Policy, questions: list[Question]) -> None:
    """80,000 generated cases show no difference between ``explain`` and the outcome of a request."""
    compare(keys, policy, questions)


def compare(keys: Keys, policy: Policy, questions: list[Question]) -> None:
    """Fail where the outcome of a request differs from ``explain``."""
    outcomes = asyncio.run(enforced(keys, policy, questions))
    for question, outcome in zip(questions, outcomes, strict=True):
        explanation = policy.explain(*question)
        assert explanation.allowed == (outcome is not None), question
        if outcome is not None and question[2] is Action.PUSH:
            assert ("new tags only" in explanation.reason) != outcome.may_move_tags, question
        if explanation.allowed and question[2] is not Action.CREATE:
            assert outcome is not None
            assert outcome.rule == (explanation.grant or explanation.reason)
        assert explanation.allowed or explanation.grant is None
