"""Models of the admin API: documents made from values, patches made from bodies."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from registry_proxy.api.models import (
    ActionNames,
    Actions,
    Body,
    Document,
    Text,
    Time,
    TimeInput,
    WholeSeconds,
    patch_of,
)
from registry_proxy.protocol.reference import parse_digest
from registry_proxy.protocol.scope import Action

_DIGEST = "sha256:" + "0" * 64


@dataclass
class _Inner:
    line: int = 3
    hidden: str = "x"


@dataclass
class _Value:
    name: str = "a"
    is_done: bool = True
    made_at: float = 1.5
    ended_at: float | None = None
    digest: object = None
    actions: frozenset[Action] = frozenset({Action.PUSH, Action.PULL})
    inner: tuple[_Inner, ...] = (_Inner(),)
    hidden: str = "x"


class _InnerDocument(Document):
    line: int


class _ValueDocument(Document):
    name: str
    done: Annotated[bool, Field(validation_alias="is_done")]
    made_at: Time
    ended_at: WholeSeconds | None
    digest: Text | None
    actions: Actions
    inner: list[_InnerDocument]
    extra: str


def test_a_document_is_made_of_the_attributes_of_a_value() -> None:
    """Attributes are read by name or alias and converted by type, nested too; given fields win, others are ignored."""
    document = _ValueDocument.of(_Value(), extra="given")
    assert document.as_json() == {
        "name": "a",
        "done": True,
        "made_at": "1970-01-01T00:00:01.500000Z",
        "ended_at": None,
        "digest": None,
        "actions": ["pull", "push"],
        "inner": [{"line": 3}],
        "extra": "given",
    }
    value = _Value(ended_at=2.9, digest=parse_digest(_DIGEST))
    document = _ValueDocument.of(value, extra="", name="other", done=False)
    assert (document.name, document.done) == ("other", False)
    assert (document.ended_at, document.digest) == ("1970-01-01T00:00:02Z", _DIGEST)


def test_a_document_misses_no_field() -> None:
    """A field that neither the value nor the caller gives is a defect of ours, and raises at once."""
    with pytest.raises(ValidationError, match="extra"):
        _ValueDocument.of(_Value())
    with pytest.raises(AttributeError, match="extra"):
        _ValueDocument.of(_Value(), name="other")


class _ThingBody(Body):
    max_bytes = 7
    name: str
    actions: ActionNames
    size: int = 1
    until: TimeInput = None


def test_a_patch_is_made_of_a_body() -> None:
    """Absent fields stay, null gives a default, and a field without a default refuses null."""
    patch = patch_of(_ThingBody, "PATCH of a thing.", without=["name"])
    assert (patch.__name__, patch.__doc__, patch.max_bytes) == ("_ThingPatch", "PATCH of a thing.", 7)
    stored = {"name": "a", "actions": ["pull"], "size": 3, "until": 5.0}
    assert patch().over(stored) == stored
    changed = patch.model_validate_json('{"size": null, "until": "1970-01-01T00:00:09Z", "actions": ["push"]}')
    assert _ThingBody(**changed.over(stored)) == _ThingBody(name="a", actions=["push"], size=1, until=9.0)
    for text in ('{"name": "b"}', '{"actions": null}', '{"size": "1"}'):
        with pytest.raises(ValidationError):
            patch.model_validate_json(text)


def test_times_of_bodies_are_rfc_3339_or_seconds() -> None:
    """A time in text needs its zone."""
    moment = datetime(2030, 1, 31, tzinfo=UTC).timestamp()
    body = _ThingBody.model_validate_json('{"name": "a", "actions": [], "until": "2030-01-31T00:00:00Z"}')
    assert body.until == moment
    for text in ("2030-01-31T00:00:00", "tomorrow"):
        with pytest.raises(ValidationError, match="with its zone"):
            _ThingBody.model_validate_json(f'{{"name": "a", "actions": [], "until": "{text}"}}')
