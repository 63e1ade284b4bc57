"""A rule: its fields and stored form, and the tags that it covers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from registry_proxy.ports.rules import Condition, RuleMode
from registry_proxy.ports.store import Record
from registry_proxy.protocol.patterns import compile_repository_pattern, compile_text_pattern

OVERWRITE, DELETE = "overwrite", "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleInput:
    """The content of a rule before its values are checked; the fields of the admin API.

    Args:
        repository: pattern of canonical names.
        tags: pattern of the tags that it covers.
        except_tags: patterns of the tags that it leaves out.
        mode: see ``RuleMode``.
        labels: a pattern for each label or annotation that an image must have.
        max_size_bytes: of one image, with its blobs.
        max_layers: of one image.
        media_types: patterns; each media type in a manifest must match one.
        platforms: patterns such as ``linux/*``; the platform of each image must match one.
        not_root: whether an image must name a user other than root.
        max_age_seconds: since the image was created.
        bases: patterns of ``repository:tag``; the nearest known image below matches one. See ``rules.floors``.
        max_floors: limit of the known images below, and the image itself.
        immutable: the acts that are refused for existing tags: overwrite, delete.
        advice: added to each refusal.
    """

    repository: str
    tags: str = "*"
    except_tags: Sequence[str] = ()
    mode: str = RuleMode.ENFORCE.value
    labels: Mapping[str, str] = field(default_factory=dict)
    max_size_bytes: int | None = None
    max_layers: int | None = None
    media_types: Sequence[str] = ()
    platforms: Sequence[str] = ()
    not_root: bool = False
    max_age_seconds: int | None = None
    bases: Sequence[str] = ()
    max_floors: int | None = None
    immutable: Sequence[str] = ()
    advice: str = ""


_LISTS = ("except_tags", "media_types", "platforms", "bases", "immutable")
_CONTENT = tuple(each.name for each in fields(RuleInput))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(RuleInput):
    """A rule on record."""

    name: str
    revision: int = 0

    @property
    def is_enforced(self) -> bool:
        """Whether a violation refuses. A mode of a later release does."""
        return self.mode != RuleMode.WARN

    @property
    def reads_images(self) -> bool:
        """Whether the image has to be read: for all conditions but immutability."""
        return bool(self.media_types or self.max_layers is not None or self.max_size_bytes is not None) or (
            self.reads_configs
        )

    @property
    def reads_configs(self) -> bool:
        """Whether the configuration of the image has to be read, too."""
        of_config = self.labels or self.platforms or self.not_root or self.max_age_seconds is not None
        return bool(of_config or self.reads_floors)

    @property
    def reads_floors(self) -> bool:
        """Whether the known images below have to be looked up."""
        return bool(self.bases) or self.max_floors is not None

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the name: plain JSON."""
        content = {name: getattr(self, name) for name in _CONTENT}
        return {**content, "labels": dict(self.labels), **{name: list(content[name]) for name in _LISTS}}

    @property
    def conditions(self) -> Sequence[str]:
        """The names of its conditions."""
        return [each.value for each in Condition if getattr(self, each.value, None)]

    def covers(self, repository: str, tag: str) -> bool:
        """Tell whether the rule is for a tag of a repository."""
        return (
            self.covers_repository(repository)
            and compile_text_pattern(self.tags).fullmatch(tag) is not None
            and not matches_any(self.except_tags, tag)
        )

    def covers_repository(self, repository: str) -> bool:
        """Tell whether the rule is for tags of a repository."""
        return compile_repository_pattern(self.repository).fullmatch(repository) is not None


def applying(rules: Iterable[Rule], repository: str, tag: str | None, *, deletes: bool = False) -> Sequence[Rule]:
    """Return the rules that would judge the push, or the deletion, of a tag; None for some tag of the repository."""
    return [
        rule
        for rule in rules
        if (DELETE in rule.immutable if deletes else rule.conditions != ["immutable"] or OVERWRITE in rule.immutable)
        and (rule.covers_repository(repository) if tag is None else rule.covers(repository, tag))
    ]


def rule_of(record: Record) -> Rule:
    """Return the rule of a record; fields that a later release has stored are left out."""
    content = {name: value for name, value in record.value.items() if name in _CONTENT}
    return Rule(name=record.key, revision=record.revision, **content)


def matches_any(patterns: Sequence[str], text: str) -> bool:
    """Tell whether a text matches one of some patterns."""
    return any(compile_text_pattern(pattern).fullmatch(text) is not None for pattern in patterns)
