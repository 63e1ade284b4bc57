"""Grants, compiled: the patterns of each, and an index by the names that they match."""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from registry_proxy.access.grant import Grant
from registry_proxy.access.subject import SubjectKind
from registry_proxy.protocol.patterns import (
    SUBJECT,
    compile_repository_pattern,
    compile_text_pattern,
    for_subject,
    literal_last,
    literal_prefix,
)
from registry_proxy.protocol.scope import Action

_SATISFIED_BY = {action: frozenset({action}) for action in Action} | {
    Action.CREATE: frozenset({Action.CREATE, Action.PUSH})
}
"""Push makes and moves tags, so it includes create; nothing else includes anything."""


@dataclass(frozen=True, slots=True)
class CompiledGrant:
    """A grant with its patterns compiled."""

    grant: Grant
    repository: re.Pattern[str] | None
    """None where the pattern holds ``{subject}``."""

    tags: re.Pattern[str] | None
    gives: frozenset[Action]
    """The actions that it is enough for."""

    beginning: str
    end: str | None
    """The beginning and the last component of all names that it matches; None where that component differs."""

    def matches(self, subject: str, repository: str, tag: str | None) -> bool:
        pattern = self.repository or _pattern_of(self.grant.repository, subject)
        if pattern is None or pattern.fullmatch(repository) is None:
            return False
        return tag is None or self.tags is None or self.tags.fullmatch(tag) is not None


class GrantIndex:
    """Grants of one action, by the last component of all names that they match and by the beginning of these names."""

    def __init__(self) -> None:
        self._by_end: dict[str | None, dict[str, list[CompiledGrant]]] = {}

    def add(self, grant: CompiledGrant) -> None:
        """Add a grant behind those that are there."""
        self._by_end.setdefault(grant.end, {}).setdefault(grant.beginning, []).append(grant)

    def __iter__(self) -> Iterator[CompiledGrant]:
        return (grant for begins in self._by_end.values() for found in begins.values() for grant in found)

    def find(self, repository: str) -> Sequence[CompiledGrant]:
        """Return the grants whose names begin and end as this one does."""
        found: list[CompiledGrant] = []
        for end in (None, repository.rpartition("/")[2]):
            begins = self._by_end.get(end)
            if begins is None:
                continue
            found += begins.get("", ())
            slash = repository.find("/")
            while slash != -1:
                found += begins.get(repository[:slash], ())
                slash = repository.find("/", slash + 1)
            found += begins.get(repository, ())
        return found


class CompiledGrants:
    """All grants, compiled once for each policy that differs from the last one in something else."""

    def __init__(self, grants: Iterable[Grant]) -> None:
        self.by_id: dict[str, Grant] = {}
        self.by_subject: dict[str, list[CompiledGrant]] = {}
        for grant in sorted(grants, key=lambda grant: grant.id):
            self.by_id[grant.id] = grant
            self.by_subject.setdefault(grant.subject, []).append(_compile(grant))

    def index(self, holders: Iterable[str], action: Action) -> GrantIndex:
        """Return the grants of an action to some subjects, in the order of these."""
        index = GrantIndex()
        for holder in dict.fromkeys(holders):
            for compiled in self.by_subject.get(holder, ()):
                if action in compiled.gives:
                    index.add(compiled)
        return index


def _compile(grant: Grant) -> CompiledGrant:
    tags = None if grant.tags.strip("*") == "" else compile_text_pattern(grant.tags)
    repository = None if SUBJECT in grant.repository else compile_repository_pattern(grant.repository)
    beginning, end = literal_prefix(grant.repository), literal_last(grant.repository)
    return CompiledGrant(grant, repository, tags, given_by(grant.actions), beginning, end)


@functools.cache
def given_by(actions: frozenset[Action]) -> frozenset[Action]:
    """Return every action that one of these is enough for."""
    return frozenset(action for action in Action if actions & _SATISFIED_BY[action])


@functools.lru_cache(maxsize=4096)
def _pattern_of(pattern: str, subject: str) -> re.Pattern[str] | None:
    own = own_pattern(pattern, subject)
    return None if own is None else compile_repository_pattern(own)


def own_pattern(pattern: str, subject: str) -> str | None:
    """Return a pattern as it is for one subject; None where it holds ``{subject}``, and this one is no user.

    A robot may have the name of a user: it has no part in the rights of that user.
    """
    if SUBJECT not in pattern:
        return pattern
    kind, _, name = subject.partition(":")
    return for_subject(pattern, name) if kind == SubjectKind.USER else None
