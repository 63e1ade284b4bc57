"""Rules of images, each under the name that its maker chose."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from registry_proxy.access.faults import Faults, InvalidError
from registry_proxy.access.subject import NAME_FAULT, is_name
from registry_proxy.directory.revise import Records, Revised
from registry_proxy.ports.rules import RuleMode
from registry_proxy.ports.store import Store, Table
from registry_proxy.protocol.patterns import repository_pattern_fault, tag_pattern_fault
from registry_proxy.rules.rule import DELETE, OVERWRITE, Rule, RuleInput, rule_of

RULES_MAX = 200
"""Limit of rules: every push of a tag is compared with all of them."""

_ENTRIES_MAX = 50
_NUMBER_MAX = 2**53
_ADVICE_MAX = 500
_LABEL = re.compile(r"[\x21-\x7e]{1,200}")
_PATTERN = re.compile(r"[\x20-\x7e]{1,300}")


class Rules(Records[Rule]):
    """See ``Directory``."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, Table.RULES, "rule", rule_of)

    async def put(self, name: str, given: RuleInput, *, expect: int | None = None) -> tuple[Rule, bool]:
        """Make or replace a rule; return it, and whether it is new.

        Raises:
            InvalidError: with every fault of the input; where there are as many as may be.
            RevisionConflictError: see the class.
        """
        faults = [] if is_name(name) else [("name", NAME_FAULT)]
        if faults := faults + rule_faults(given):
            raise InvalidError(faults)
        rule = Rule(name=name, **asdict(given))

        async def make(current: Rule | None) -> Revised[bool]:
            if current is None and await self._store.count(Table.RULES) >= RULES_MAX:
                raise InvalidError([("name", f"there are {RULES_MAX} rules already: remove one")])
            return Revised(rule.stored(), current is None)

        is_new, revision = await self._revise(name, make, expect=expect)
        return replace(rule, revision=revision), is_new

    async def delete(self, name: str, *, expect: int | None = None) -> None:
        """Delete a rule. Raises NotFoundError, RevisionConflictError."""

        async def make(_: Rule | None) -> Revised[None]:
            return Revised(None, None)

        await self._revise(name, make, expect=expect, must_exist=True)


def rule_faults(given: RuleInput) -> Faults:
    """Return every fault of a rule."""
    faults = [] if (fault := repository_pattern_fault(given.repository)) is None else [("repository", fault)]
    if (fault := tag_pattern_fault(given.tags)) is not None:
        faults.append(("tags", fault))
    faults += [("except_tags", fault) for each in given.except_tags if (fault := tag_pattern_fault(each)) is not None]
    modes = [each.value for each in RuleMode]
    if given.mode not in modes:
        faults.append(("mode", f"expected one of {', '.join(modes)}"))
    if any(each not in {OVERWRITE, DELETE} for each in given.immutable):
        faults.append(("immutable", f"expected {OVERWRITE}, {DELETE} or both"))
    if len(given.advice) > _ADVICE_MAX or not given.advice.isprintable():
        faults.append(("advice", f"expected a line of at most {_ADVICE_MAX} characters"))
    for name in ("max_size_bytes", "max_layers", "max_age_seconds", "max_floors"):
        if (number := getattr(given, name)) is not None and not 0 < number < _NUMBER_MAX:
            faults.append((name, "expected a whole number from 1"))
    for name in ("media_types", "platforms"):
        faults += _pattern_faults(name, getattr(given, name))
    faults += _label_faults(given.labels) + _base_faults(given.bases)
    if not (given.immutable or Rule(name="", **asdict(given)).reads_images):
        faults.append(("", "the rule has no condition: give labels, max_size_bytes, immutable or another one"))
    return faults


def _label_faults(labels: Mapping[str, str]) -> Faults:
    faults = _pattern_faults("labels", list(labels.values()))
    if any(_LABEL.fullmatch(name) is None for name in labels):
        faults.append(("labels", "expected names of printable ASCII characters without spaces"))
    return faults


def _base_faults(bases: Sequence[str]) -> Faults:
    if len(bases) > _ENTRIES_MAX:
        return [("bases", f"expected at most {_ENTRIES_MAX} entries")]
    faults = []
    for base in bases:
        repository, colon, tag = base.partition(":")
        if (fault := repository_pattern_fault(repository) or (tag_pattern_fault(tag) if colon else None)) is not None:
            faults.append(("bases", f"{base[:100]!r}: {fault}"))
    return faults


def _pattern_faults(field: str, patterns: Sequence[str]) -> Faults:
    if len(patterns) > _ENTRIES_MAX:
        return [(field, f"expected at most {_ENTRIES_MAX} entries")]
    if any(_PATTERN.fullmatch(each) is None for each in patterns):
        return [(field, "expected patterns of printable ASCII characters, such as https://git.example/*")]
    return []
