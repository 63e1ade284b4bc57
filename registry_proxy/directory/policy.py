"""The policy as one document: all groups, all grants, and all subscriptions and rules where it names them."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from registry_proxy.access.faults import Faults, InvalidError
from registry_proxy.access.grant import Grant, GrantInput, make_grant
from registry_proxy.access.policy_document import PolicyDifference, compare, sorted_grants
from registry_proxy.access.records import Group
from registry_proxy.access.subject import NAME_FAULT, is_name
from registry_proxy.directory.grants import Grants
from registry_proxy.directory.groups import Groups
from registry_proxy.directory.named_set import SetDifference
from registry_proxy.directory.revise import check_revision
from registry_proxy.directory.rule_set import compare_rules
from registry_proxy.directory.rules import Rules
from registry_proxy.directory.subscription_set import (
    WantedSubscriptions,
    compare_subscriptions,
)
from registry_proxy.directory.subscriptions import Subscriptions
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.store import Record, Store, Table, retried
from registry_proxy.rules.rule import Rule, RuleInput

_TABLES = (Table.GROUPS, Table.GRANTS, Table.SUBSCRIPTIONS, Table.RULES)


@dataclass(frozen=True, slots=True)
class WantedObjects:
    """The objects of a document by name; those of a kind that is None stay as they are."""

    subscriptions: WantedSubscriptions | None = None
    rules: Mapping[str, RuleInput] | None = None


NO_OBJECTS = WantedObjects()


@dataclass(frozen=True, slots=True)
class DocumentDifference:
    """The changes that a document makes: in groups and grants, in subscriptions, and in rules of images."""

    rights: PolicyDifference
    subscriptions: SetDifference[Subscription]
    rules: SetDifference[Rule]

    def __bool__(self) -> bool:
        return bool(self.rights or self.subscriptions or self.rules)


class PolicyDocument:
    """See ``Directory``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._groups = Groups(store)
        self._grants = Grants(store)
        self._subscriptions = Subscriptions(store)
        self._rules = Rules(store)

    async def read(self) -> tuple[Sequence[Group], Sequence[Grant], int]:
        """Return all groups, each different grant once, and a revision that rises with every change."""
        revision = await self.revision()
        return await self._groups.list(), sorted_grants(await self._grants.list()), revision

    async def revision(self) -> int:
        """Return the revision that rises with every change of any group, grant, subscription or rule."""
        return max((await self._versions()).values())

    async def _versions(self) -> Mapping[Table, int]:
        versions = await self._store.versions()
        return {table: versions.get(table, 0) for table in _TABLES}

    async def compare(
        self,
        groups: Mapping[str, Sequence[str]],
        grants: Sequence[GrantInput],
        named: WantedObjects = NO_OBJECTS,
    ) -> DocumentDifference:
        """Return what ``replace`` would do.

        Args:
            groups: the members of each group, users as ``ann`` or ``user:ann``.
            grants: as given; those that say the same count once.
            named: all subscriptions and rules that there will be.

        Raises:
            InvalidError: with every fault of the input, each as ``grants/0/subject``; there is no such user.
        """
        rights, _ = await self._compare(groups, grants)
        return await self._difference(rights, named)

    async def replace(
        self,
        groups: Mapping[str, Sequence[str]],
        grants: Sequence[GrantInput],
        named: WantedObjects = NO_OBJECTS,
        *,
        expect: int | None = None,
    ) -> tuple[DocumentDifference, int]:
        """Put a policy in the place of the stored one, whole and in one commit; return what changed, and the revision.

        Groups and grants that the policy does not name are removed, and subscriptions and rules where it names
        any. Users, robots and their secrets stay.

        Raises:
            InvalidError: as ``compare``.
            RevisionConflictError: see the class.
        """

        async def attempt() -> tuple[DocumentDifference, int]:
            versions = await self._versions()
            revision = max(versions.values())
            check_revision(revision, expect)
            rights, users = await self._compare(groups, grants)
            difference = await self._difference(rights, named)
            if difference:
                # What somebody adds in between is in no difference: it would stay, though the policy does not name it.
                changes = [*rights.changes(users), *difference.subscriptions.changes(), *difference.rules.changes()]
                revision = await self._store.commit(changes, versions=versions)
            return difference, revision

        return await retried(attempt)

    async def _difference(self, rights: PolicyDifference, named: WantedObjects) -> DocumentDifference:
        subscriptions: SetDifference[Subscription] = SetDifference(Table.SUBSCRIPTIONS)
        rules: SetDifference[Rule] = SetDifference(Table.RULES)
        if named.subscriptions is not None:
            subscriptions = compare_subscriptions(await self._subscriptions.list(), named.subscriptions)
        if named.rules is not None:
            rules = compare_rules(await self._rules.list(), named.rules)
        return DocumentDifference(rights, subscriptions, rules)

    async def _compare(
        self, groups: Mapping[str, Sequence[str]], grants: Sequence[GrantInput]
    ) -> tuple[PolicyDifference, Mapping[str, Record]]:
        users = {user.key: user for user in await self._store.list(Table.USERS)}
        faults: Faults = []
        wanted_groups = []
        for name, given in groups.items():
            if not is_name(name):
                faults.append(("groups", f"{name[:100]!r}: {NAME_FAULT}"))
                continue
            members = [member.removeprefix("user:") for member in given]
            unknown = [(index, member) for index, member in enumerate(members) if member not in users]
            faults += [(f"groups/{name}/{index}", f"there is no user {member!r}") for index, member in unknown]
            wanted_groups.append(Group(name, tuple(sorted(set(members)))))
        wanted_grants = []
        for index, each in enumerate(grants):
            try:
                wanted_grants.append(make_grant(each, secrets.token_hex(8)))
            except InvalidError as error:
                faults += [(f"grants/{index}/{field}", text) for field, text in error.faults]
        if faults:
            raise InvalidError(faults)
        return compare(await self._groups.list(), await self._grants.list(), wanted_groups, wanted_grants), users
