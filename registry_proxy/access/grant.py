"""A grant: its fields, rules and stored form. The forms of the admin API and of the policy file derive from it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from registry_proxy.access.faults import Faults, InvalidError, actions_faults, faults_of, time_faults
from registry_proxy.access.subject import ANONYMOUS, subject_fault
from registry_proxy.ports.store import Record
from registry_proxy.protocol.patterns import SUBJECT, namespace_fault, repository_pattern_fault, tag_pattern_fault
from registry_proxy.protocol.scope import Action


class GrantMode(StrEnum):
    """Whether a grant is in force, or on trial: ``warn`` allows, and what only it allowed is counted."""

    ENFORCE = "enforce"
    WARN = "warn"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantInput:
    """The content of a grant before its rules are checked: all fields of a grant but its identity.

    ``expires_at`` is in Unix seconds. A new field needs a default, which grants stored without it get.
    """

    subject: str
    repository: str
    tags: str = "*"
    actions: Sequence[str] | frozenset[str]
    mode: str = GrantMode.ENFORCE.value
    expires_at: float | None = None


_CONTENT = tuple(field.name for field in fields(GrantInput))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(GrantInput):
    """One rule of the policy: ``subject`` may do ``actions`` on repositories and tags that match."""

    id: str
    actions: frozenset[Action]
    mode: GrantMode = GrantMode.ENFORCE
    revision: int = 0

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the id: plain JSON, in the order of the fields."""
        content = {name: getattr(self, name) for name in _CONTENT}
        return {**content, "actions": sorted(self.actions), "mode": self.mode.value}

    def content(self) -> "Grant":
        """Return the grant without its identity: two grants that say the same have equal contents."""
        # As precise as the text of a time is, so that what was exported is what it was exported from.
        until = None if self.expires_at is None else round(self.expires_at, 6)
        return replace(self, id="", revision=0, expires_at=until)

    def sort_key(self) -> list[tuple[bool, Any]]:
        """Return what grants are sorted by where ids must not matter: field by field, without an end last."""
        return [(value is None, value) for value in self.stored().values()]


def grant_of(record: Record) -> Grant:
    """Return the grant of a record; fields that a later release has stored are left out."""
    content = {name: value for name, value in record.value.items() if name in _CONTENT}
    return _grant(content, record.key, record.revision)


def make_grant(given: GrantInput, grant_id: str) -> Grant:
    """Return the grant that is described. Raises InvalidError with every fault."""
    if faults := _faults(given):
        raise InvalidError(faults)
    return _grant({name: getattr(given, name) for name in _CONTENT}, grant_id, revision=0)


def _grant(content: dict[str, Any], grant_id: str, revision: int) -> Grant:
    content |= {"actions": _actions(*content["actions"]), "mode": GrantMode(content["mode"])}
    return Grant(id=grant_id, revision=revision, **content)


@functools.lru_cache(maxsize=64)
def _actions(*names: str) -> frozenset[Action]:
    return frozenset(map(Action, names))


def _faults(given: GrantInput) -> Faults:
    faults = faults_of(
        subject=subject_fault(given.subject),
        repository=repository_pattern_fault(given.repository, takes_subject=True),
        tags=tag_pattern_fault(given.tags),
    )
    faults += actions_faults(tuple(given.actions), {action.value for action in Action})
    if given.mode not in {mode.value for mode in GrantMode}:
        faults.append(("mode", "expected enforce or warn"))
    if Action.MANAGE in given.actions:
        faults += _manage_faults(given)
    return faults + time_faults(given.expires_at)


def _manage_faults(given: GrantInput) -> Faults:
    """Return what a grant must not be that makes its subject the owner of a namespace."""
    fault = namespace_fault(given.repository)
    is_for_all = given.subject == ANONYMOUS and SUBJECT not in given.repository
    return faults_of(
        repository=fault and f"for manage, {fault}",
        tags=None if given.tags == "*" else "manage is for all tags: leave this out",
        mode=None if given.mode == GrantMode.ENFORCE else "manage cannot be on trial: write enforce",
        subject=f"everybody would manage the rights of all: name one, or write '{SUBJECT}'" if is_for_all else None,
    )
