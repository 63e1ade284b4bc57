"""The whole policy as one document of the admin API: read it, compare another one with it, put another in its place."""

from collections.abc import Collection, Mapping, Sequence

from aiohttp import web

from registry_proxy.access.directory import Directory
from registry_proxy.access.faults import InvalidError
from registry_proxy.access.grant import Grant, GrantInput
from registry_proxy.access.grants import Policy
from registry_proxy.access.policy_document import PolicyDifference
from registry_proxy.access.records import Group
from registry_proxy.access.subject import group_subject
from registry_proxy.admin.auth import Control
from registry_proxy.admin.bodies import PolicyBody
from registry_proxy.admin.documents import (
    GrantDocument,
    MembersDocument,
    PolicyDifferenceDocument,
    PolicyDocument,
    StatedGrantDocument,
)
from registry_proxy.admin.openapi import Endpoint
from registry_proxy.admin.problems import Fault, ProblemError, pointer_to
from registry_proxy.admin.requests import ASKED_FOR, expected_revision, format_etag, read_body, read_query, warned

_DOUBTS_MAX = 10
"""What stands before the listener may take headers of 4 KiB."""


def _document(groups: Sequence[Group], grants: Sequence[Grant]) -> PolicyDocument:
    return PolicyDocument(
        version=1,
        groups={group.name: list(group.members) for group in groups},
        grants=[StatedGrantDocument.of(grant) for grant in grants],
    )


def _difference_document(difference: PolicyDifference) -> PolicyDifferenceDocument:
    return PolicyDifferenceDocument(
        groups_added={group.name: list(group.members) for group in difference.groups_added},
        groups_removed={group.name: list(group.members) for group in difference.groups_removed},
        groups_changed={
            after.name: MembersDocument(
                added=sorted({*after.members} - {*before.members}),
                removed=sorted({*before.members} - {*after.members}),
            )
            for before, after in difference.groups_changed
        },
        grants_added=[StatedGrantDocument.of(grant) for grant in difference.grants_added],
        grants_removed=[GrantDocument.of(grant) for grant in difference.grants_removed],
    )


class PolicyResources:
    """The handlers over the policy as one document."""

    def __init__(self, directory: Directory, control: Control) -> None:
        self._directory = directory
        self._control = control

    def routes(self) -> list[Endpoint]:
        """Return the routes, below /admin/v1."""
        return [
            Endpoint("GET", "/policy", self.get_policy, "Show the whole policy", {200: PolicyDocument}, tagged=True),
            Endpoint(
                "PUT",
                "/policy",
                self.put_policy,
                "Put a policy in the place of the one in force",
                {200: PolicyDifferenceDocument},
                body=PolicyBody,
                conditional=True,
                tagged=True,
            ),
            Endpoint(
                "POST",
                "/policy/diff",
                self.compare_policy,
                "Tell what another policy would change",
                {200: PolicyDifferenceDocument},
                body=PolicyBody,
            ),
        ]

    async def get_policy(self, request: web.Request) -> web.Response:
        """Give all groups and grants, in an order that stays the same, for a file under version control."""
        read_query(request)
        groups, grants, revision = await self._directory.read_policy()
        return web.json_response(_document(groups, grants).as_json(), headers={"ETag": format_etag(revision)})

    async def put_policy(self, request: web.Request) -> web.Response:
        """Put a policy in the place of the stored one, whole or not at all; tell what changed."""
        read_query(request)
        groups, grants = await _read(request)
        expect = expected_revision(request, await self._directory.policy_revision())
        policy = await self._control.policy()
        try:
            difference, revision = await self._directory.replace_policy(groups, grants, expect=expect)
        except InvalidError as error:
            raise _invalid(error) from None
        document = _difference_document(difference).as_json()
        # The audit log tells what changed, not the whole file.
        request[ASKED_FOR] = {name: part for name, part in document.items() if part}
        headers = {"ETag": format_etag(revision), **warned(_doubts(difference, groups, policy))}
        return web.json_response(document, headers=headers)

    async def compare_policy(self, request: web.Request) -> web.Response:
        """Tell what a PUT of the same body would change, and change nothing."""
        read_query(request)
        groups, grants = await _read(request)
        policy = await self._control.policy()
        try:
            difference = await self._directory.compare_policy(groups, grants)
        except InvalidError as error:
            raise _invalid(error) from None
        headers = warned(_doubts(difference, groups, policy))
        return web.json_response(_difference_document(difference).as_json(), headers=headers)


async def _read(request: web.Request) -> tuple[Mapping[str, Sequence[str]], list[GrantInput]]:
    body = await read_body(request, PolicyBody)
    del request[ASKED_FOR]  # what it changes is told, not all of it
    return body.groups, [given.content() for given in body.grants]


def _doubts(difference: PolicyDifference, groups: Collection[str], policy: Policy) -> list[str]:
    """Return for whom the policy newly has grants that are of no use as things are, and why: the first few."""
    subjects = {grant.subject for grant in difference.grants_added} - set(map(group_subject, groups))
    doubts = [why for subject in sorted(subjects) if (why := policy.why_of_no_use(subject)) is not None]
    told = [f"{why}: until that changes, its grants allow nothing" for why in doubts[:_DOUBTS_MAX]]
    return told if len(doubts) <= _DOUBTS_MAX else [*told, f"and {len(doubts) - _DOUBTS_MAX} more of the kind"]


def _invalid(error: InvalidError) -> ProblemError:
    faults = [Fault(pointer_to(field.split("/")), text) for field, text in error.faults]
    return ProblemError(400, "the policy is not valid; nothing was changed", faults=faults)
