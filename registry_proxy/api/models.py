"""Models of the admin API: the bases of bodies and documents, and the types of fields that several of them have."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar, get_type_hints, overload

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

from registry_proxy.access.subject import SUBJECT_PATTERN
from registry_proxy.protocol.scope import Action
from registry_proxy.protocol.times import format_rfc3339

BODY_MAX_BYTES = 1024 * 1024
USERS_BODY_MAX_BYTES = 64 * 1024
"""Limit of bodies that not only administrators send: finding all faults of a megabyte takes long."""

_YEAR_10000 = 253_402_300_800
_ACTION_ORDER = list(Action)
_Item = TypeVar("_Item")


class Body(BaseModel):
    """A JSON body: exact types, and no unknown fields. Rules of values are checked where the values are used."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)
    max_bytes: ClassVar[int] = BODY_MAX_BYTES


class Patch(Body):
    """A merge patch (RFC 7396): a field that is absent stays as it is, null gives it its default."""

    def over(self, current: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the patched document; those that are absent from the patch are kept."""
        changed = {**current, **self.model_dump(exclude_unset=True)}
        return {name: value for name, value in changed.items() if value is not None}


def patch_of(body: type[Body], description: str, *, without: Collection[str] = ()) -> type[Patch]:
    """Return the merge patch of a body: its fields, none required, and null only for those with a default."""
    hints = get_type_hints(body, include_extras=True)
    fields: dict[str, Any] = {}
    for name, field in body.model_fields.items():
        if field.is_required():
            fields[name] = (hints[name], Field(default_factory=lambda: None))
        else:
            fields[name] = (hints[name] if field.default is None else hints[name] | None, None)
    kept = {name: field for name, field in fields.items() if name not in without}
    patch = create_model(body.__name__.replace("Body", "Patch"), __base__=Patch, __doc__=description, **kept)
    patch.max_bytes = body.max_bytes
    return patch


class EmptyBody(Body):
    """Nothing, or ``{}``."""


class Document(BaseModel):
    """A JSON object with exactly these fields."""

    model_config = ConfigDict(extra="forbid", from_attributes=True, populate_by_name=True)

    @classmethod
    def of(cls, value: object, **fields: Any) -> Self:
        """Return the document of a value: each field from the attribute of its name or alias, unless it is given."""
        if not fields:
            return cls.model_validate(value)
        missing = (name for name in cls.model_fields if name not in fields)
        attributes = {name: getattr(value, str(cls.model_fields[name].validation_alias or name)) for name in missing}
        return cls.model_validate({**attributes, **fields})

    def as_json(self) -> dict[str, Any]:
        """Return the document as ``json.dumps`` takes it."""
        return self.model_dump(mode="json")


class Page(Document, Generic[_Item]):
    """A page of a list; ``next`` is the ``after`` of the next page, null on the last one."""

    items: list[_Item]
    next: str | None


@overload
def format_time(moment: float) -> str: ...
@overload
def format_time(moment: None) -> None: ...
@overload
def format_time(moment: float | None) -> str | None: ...
def format_time(moment: float | None) -> str | None:
    """Return Unix seconds as a text of RFC 3339."""
    return None if moment is None else format_rfc3339(moment)


def _parse_time(value: Any) -> Any:
    """Return Unix seconds for a text of RFC 3339; other values are left to the next check."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            value = moment.timestamp() if moment.tzinfo is not None else None
        except (ValueError, OverflowError):
            value = None
        if value is None:
            raise ValueError("expected a time with its zone (RFC 3339), such as 2030-01-31T00:00:00Z, or Unix seconds")
    if isinstance(value, int | float) and not 0 < value < _YEAR_10000:
        raise ValueError("expected a time between 1970 and 9999")
    return value


def _text_of_time(value: Any) -> Any:
    return format_time(value) if isinstance(value, int | float) else value


def _text_of_seconds(value: Any) -> Any:
    return format_time(int(value)) if isinstance(value, int | float) else value


_TIME = Field(json_schema_extra={"format": "date-time"})
Time = Annotated[str, BeforeValidator(_text_of_time), _TIME]
"""A time of a document, a text of RFC 3339; Unix seconds become one."""

WholeSeconds = Annotated[str, BeforeValidator(_text_of_seconds), _TIME]
"""A ``Time`` without parts of a second."""

TimeInput = Annotated[
    float | None, BeforeValidator(_parse_time, json_schema_input_type=Annotated[str, _TIME] | float | None)
]
"""A time of a body: a text of RFC 3339 or a number; Unix seconds."""

Text = Annotated[str, BeforeValidator(lambda value: value if value is None else str(value))]
"""The text of a value such as a digest."""

Actions = Annotated[list[Action], BeforeValidator(lambda actions: actions and sorted(actions, key=_ACTION_ORDER.index))]
"""Actions of a document, in the order in which the documentation has them."""

Members = Annotated[list[str], Field(max_length=10_000)]

# The rules of these are checked where the value is used, with all other faults of it; the description has them here.
ActionName = Annotated[str, WithJsonSchema({"type": "string", "enum": [action.value for action in Action]})]
ActionNames = Annotated[list[ActionName], Field(max_length=100)]
SubjectName = Annotated[str, WithJsonSchema({"type": "string", "pattern": SUBJECT_PATTERN})]
