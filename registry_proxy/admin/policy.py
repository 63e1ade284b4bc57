"""The whole policy as one document of the admin API: read it, compare another one with it, put another in its place."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BeforeValidator, Field

from registry_proxy.access.control import AccessControl
from registry_proxy.access.faults import InvalidError
from registry_proxy.access.grant import GrantInput
from registry_proxy.access.policy import Policy
from registry_proxy.access.policy_document import PolicyDifference
from registry_proxy.access.records import Group
from registry_proxy.access.subject import group_subject
from registry_proxy.admin.grants import GrantBody, GrantDocument, StatedGrantDocument
from registry_proxy.admin.subscriptions import StatedSubscriptionDocument, SubscriptionBody
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import Body, Document, Members
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import Fault, ProblemError, pointer_to
from registry_proxy.api.requests import ASKED_FOR, read_query
from registry_proxy.api.revisions import expected_revision
from registry_proxy.api.rules import RuleBody, StatedRuleDocument
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.policy import DocumentDifference, WantedObjects
from registry_proxy.directory.rule_set import changed_rule_fields
from registry_proxy.directory.subscription_set import changed_fields
from registry_proxy.events.subscription import Subscription
from registry_proxy.rules.rule import Rule

_BODY_MAX_BYTES = 8 * 1024 * 1024
"""Room for some 50,000 grants."""

_DOUBTS_MAX = 10
"""A proxy before the listener may take headers of 4 KiB."""


class PolicyBody(Body):
    """A whole policy: the members of every group, and every grant. No default: an empty file must remove nothing.

    Subscriptions stay as they are without ``subscriptions``; with it, those that it does not name are removed. Rules of
    images likewise.
    """

    max_bytes = _BODY_MAX_BYTES
    version: Literal[1]
    groups: Annotated[dict[str, Members], Field(max_length=10_000)]
    grants: Annotated[list[GrantBody], Field(max_length=100_000)]
    subscriptions: Annotated[dict[str, SubscriptionBody], Field(max_length=10_000)] | None = None
    rules: Annotated[dict[str, RuleBody], Field(max_length=10_000)] | None = None


class MembersDocument(Document):
    """The differences of a group's members."""

    added: list[str]
    removed: list[str]


def _members(groups: Sequence[Group]) -> dict[str, list[str]]:
    return {group.name: list(group.members) for group in groups}


def _changed_members(groups: Sequence[tuple[Group, Group]]) -> dict[str, MembersDocument]:
    return {
        after.name: MembersDocument(
            added=sorted({*after.members} - {*before.members}), removed=sorted({*before.members} - {*after.members})
        )
        for before, after in groups
    }


def _stated(subscriptions: Sequence[Subscription]) -> dict[str, StatedSubscriptionDocument]:
    return {each.name: StatedSubscriptionDocument.of(each) for each in subscriptions}


def _stated_rules(rules: Sequence[Rule]) -> dict[str, StatedRuleDocument]:
    return {each.name: StatedRuleDocument.of(None, **each.stored()) for each in rules}


_Groups = Annotated[dict[str, list[str]], BeforeValidator(_members)]
_Subscriptions = Annotated[dict[str, StatedSubscriptionDocument], BeforeValidator(_stated)]
_Rules = Annotated[dict[str, StatedRuleDocument], BeforeValidator(_stated_rules)]
_ChangedGroups = Annotated[dict[str, MembersDocument], BeforeValidator(_changed_members)]


class PolicyDocument(Document):
    """A whole policy: groups with their members, grants, rules of images, and subscriptions without credentials.

    Without any subscription or rule it does not name them: other policies leave those that there are alone.
    """

    version: Literal[1]
    groups: _Groups
    grants: list[StatedGrantDocument]
    subscriptions: _Subscriptions = {}
    rules: _Rules = {}

    def as_json(self) -> dict[str, Any]:
        document = super().as_json()
        return {name: part for name, part in document.items() if part or name not in {"subscriptions", "rules"}}


class PolicyDifferenceDocument(Document):
    """The changes that another policy makes; all are empty for the policy in force.

    Of a changed subscription or rule the names of the changed fields are shown.
    """

    groups_added: _Groups
    groups_removed: _Groups
    groups_changed: _ChangedGroups
    grants_added: list[StatedGrantDocument]
    grants_removed: list[GrantDocument]
    subscriptions_added: _Subscriptions
    subscriptions_removed: _Subscriptions
    subscriptions_changed: dict[str, list[str]]
    rules_added: _Rules
    rules_removed: _Rules
    rules_changed: dict[str, list[str]]


class PolicyResource:
    """The handlers of the policy as one document."""

    def __init__(self, directory: Directory, control: AccessControl) -> None:
        self._directory = directory
        self._control = control

    @Endpoint("GET /policy", "Show the whole policy", is_revised=True)
    async def get_policy(self, request: web.Request) -> Answer[PolicyDocument]:
        """Return all groups, grants, subscriptions and rules in a stable order, for a file under version control."""
        read_query(request)
        groups, grants, revision = await self._directory.policy.read()
        subscriptions = await self._directory.subscriptions.list()
        rules = await self._directory.rules.list()
        document = PolicyDocument.of(
            None, version=1, groups=groups, grants=grants, subscriptions=subscriptions, rules=rules
        )
        return Answer(document, revision=revision)

    @Endpoint("PUT /policy", "Replace the policy in force", is_revised=True)
    async def put_policy(self, request: web.Request, body: PolicyBody) -> Answer[PolicyDifferenceDocument]:
        """Replace the stored policy entirely or not at all; return the difference."""
        read_query(request)
        groups, grants = _read(request, body)
        expect = expected_revision(request, await self._directory.policy.revision())
        policy = await self._control.policy()
        try:
            difference, revision = await self._directory.policy.replace(groups, grants, _wanted(body), expect=expect)
        except InvalidError as error:
            raise _invalid(error) from None
        document = _document(difference)
        # The audit log records the difference, not the whole file.
        request[ASKED_FOR] = {name: part for name, part in document.as_json().items() if part}
        return Answer(document, revision=revision, warnings=_doubts(difference.rights, groups, policy))

    @Endpoint("POST /policy/diff", "Show the changes of another policy", is_question=True)
    async def compare_policy(self, request: web.Request, body: PolicyBody) -> Answer[PolicyDifferenceDocument]:
        """Return the changes that a PUT of the same body would make, without making them."""
        read_query(request)
        groups, grants = _read(request, body)
        policy = await self._control.policy()
        try:
            difference = await self._directory.policy.compare(groups, grants, _wanted(body))
        except InvalidError as error:
            raise _invalid(error) from None
        return Answer(_document(difference), warnings=_doubts(difference.rights, groups, policy))


def _read(request: web.Request, body: PolicyBody) -> tuple[Mapping[str, Sequence[str]], list[GrantInput]]:
    del request[ASKED_FOR]  # the audit log records the difference, not the whole policy
    return body.groups, [given.content() for given in body.grants]


def _wanted(body: PolicyBody) -> WantedObjects:
    return WantedObjects(
        None if body.subscriptions is None else {name: each.content for name, each in body.subscriptions.items()},
        None if body.rules is None else {name: each.content() for name, each in body.rules.items()},
    )


def _document(difference: DocumentDifference) -> PolicyDifferenceDocument:
    subscriptions, rules = difference.subscriptions, difference.rules
    return PolicyDifferenceDocument.of(
        difference.rights,
        subscriptions_added=subscriptions.added,
        subscriptions_removed=subscriptions.removed,
        subscriptions_changed={after.name: changed_fields(before, after) for before, after in subscriptions.changed},
        rules_added=rules.added,
        rules_removed=rules.removed,
        rules_changed={after.name: changed_rule_fields(before, after) for before, after in rules.changed},
    )


def _doubts(difference: PolicyDifference, groups: Collection[str], policy: Policy) -> list[str]:
    """Return why new grants of the policy have no effect yet: the first few reasons."""
    subjects = {grant.subject for grant in difference.grants_added} - set(map(group_subject, groups))
    doubts = [why for subject in sorted(subjects) if (why := policy.why_of_no_use(subject)) is not None]
    warnings = [f"{why}: until that changes, its grants allow nothing" for why in doubts[:_DOUBTS_MAX]]
    return warnings if len(doubts) <= _DOUBTS_MAX else [*warnings, f"and {len(doubts) - _DOUBTS_MAX} more of the kind"]


def _invalid(error: InvalidError) -> ProblemError:
    faults = [Fault(pointer_to(field.split("/")), text) for field, text in error.faults]
    return ProblemError(400, "the policy is not valid; nothing was changed", faults=faults)
