"""The forms of image rules in the admin API."""

from typing import Annotated

from pydantic import Field, WithJsonSchema

from registry_proxy.api.models import Body, Document, patch_of
from registry_proxy.ports.rules import RuleMode
from registry_proxy.rules.rule import DELETE, OVERWRITE, Rule, RuleInput

_ModeName = Annotated[str, WithJsonSchema({"type": "string", "enum": [each.value for each in RuleMode]})]
_ActName = Annotated[str, WithJsonSchema({"type": "string", "enum": [OVERWRITE, DELETE]})]
_Texts = Annotated[list[str], Field(max_length=50)]


class RuleBody(Body):
    """PUT of a rule: which tags it is for, and at least one condition."""

    repository: str
    tags: str = "*"
    except_tags: _Texts = []
    mode: _ModeName = "enforce"
    labels: Annotated[dict[str, str], Field(max_length=50)] = {}
    max_size_bytes: int | None = None
    max_layers: int | None = None
    media_types: _Texts = []
    platforms: _Texts = []
    not_root: bool = False
    max_age_seconds: int | None = None
    bases: _Texts = []
    max_floors: int | None = None
    immutable: Annotated[list[_ActName], Field(max_length=2)] = []
    advice: str = ""

    def content(self) -> RuleInput:
        """Return the rule that the body describes."""
        return RuleInput(**dict(self))


RulePatch = patch_of(RuleBody, "PATCH of a rule.")


class StatedRuleDocument(Document):
    """A rule without its name, as a whole policy states it."""

    repository: str
    tags: str
    except_tags: list[str]
    mode: str
    labels: dict[str, str]
    max_size_bytes: int | None
    max_layers: int | None
    media_types: list[str]
    platforms: list[str]
    not_root: bool
    max_age_seconds: int | None
    bases: list[str]
    max_floors: int | None
    immutable: list[str]
    advice: str


class RuleDocument(StatedRuleDocument):
    """A rule of images."""

    name: str


class BaseBody(Body):
    """An image that others may be built FROM: a tag, and the digest that it is or was; null for the one it is."""

    repository: str
    tag: str
    digest: str | None = None


class BaseDocument(Document):
    """An image that is known as a base: its name, and the chain of its layers for each platform."""

    name: str
    chains: list[str]


class AppliedRuleDocument(Document):
    """A rule that judges what a question is about."""

    name: str
    mode: str
    conditions: list[str]


def rule_document(rule: Rule) -> RuleDocument:
    """Return the document of a rule."""
    return RuleDocument.of(None, name=rule.name, **rule.stored())
