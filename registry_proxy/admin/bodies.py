"""The bodies that the admin API takes, each, as the handlers read it and as the OpenAPI document describes it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema

from registry_proxy.access.grant import GrantInput, GrantMode
from registry_proxy.access.subject import SUBJECT_PATTERN
from registry_proxy.protocol.scope import Action

BODY_MAX_BYTES = 1024 * 1024
_USERS_BODY_MAX_BYTES = 64 * 1024  # of what not only administrators send: finding all faults of a megabyte takes long
_POLICY_MAX_BYTES = 8 * 1024 * 1024
"""Room for some 50,000 grants."""

_YEAR_10000 = 253_402_300_800


class Body(BaseModel):
    """A JSON body: exact types, and no field that is not known. What values mean is judged where they are used."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)
    max_bytes: ClassVar[int] = BODY_MAX_BYTES


_Groups = Annotated[list[str], Field(max_length=1000)]
_Members = Annotated[list[str], Field(max_length=10_000)]
_Networks = Annotated[list[str], Field(max_length=1000)]


class UserBody(Body):
    """PUT of a user; without ``password`` the user keeps the one it has, or LDAP does."""

    password: str | None = None
    ldap: bool | None = None
    admin: bool = False
    disabled: bool = False
    groups: _Groups = []


class Patch(Body):
    """A merge patch (RFC 7396): a field that is absent stays as it is, null gives it its default."""

    def over(self, current: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of what the patch makes of a document; those that a patch has not are kept."""
        changed = {**current, **self.model_dump(exclude_unset=True)}
        return {name: value for name, value in changed.items() if value is not None}


class UserPatch(Patch):
    """PATCH of a user."""

    password: str | None = None
    ldap: bool | None = None
    admin: bool | None = None
    disabled: bool | None = None
    groups: _Groups | None = None


class GroupBody(Body):
    """PUT of a group."""

    members: _Members = []


class GroupPatch(Patch):
    """PATCH of a group."""

    members: _Members | None = None


_TimeInput = Annotated[str, Field(json_schema_extra={"format": "date-time"})] | float | None


def _parse_time(value: Any) -> Any:
    """Return Unix seconds for a text of RFC 3339; leave what is no text to the next check."""
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


_Time = Annotated[float | None, BeforeValidator(_parse_time, json_schema_input_type=_TimeInput)]


# Judged where they are used, together with what else is wrong there; the description of the API has them here.
_ActionName = Annotated[str, WithJsonSchema({"type": "string", "enum": [action.value for action in Action]})]
_SubjectName = Annotated[str, WithJsonSchema({"type": "string", "pattern": SUBJECT_PATTERN})]
_ActionNames = Annotated[list[_ActionName], Field(max_length=100)]
_ModeName = Annotated[str, WithJsonSchema({"type": "string", "enum": [mode.value for mode in GrantMode]})]


class GrantBody(Body):
    """POST of a grant."""

    max_bytes = _USERS_BODY_MAX_BYTES
    subject: _SubjectName
    repository: str
    tags: str = "*"
    actions: _ActionNames
    mode: _ModeName = "enforce"
    expires_at: _Time = None

    def content(self) -> GrantInput:
        """Return the grant that the body describes."""
        return GrantInput(**dict(self))


class PolicyBody(Body):
    """A whole policy: the members of every group, and every grant. No default: an empty file must remove nothing."""

    max_bytes = _POLICY_MAX_BYTES
    version: Literal[1]
    groups: Annotated[dict[str, _Members], Field(max_length=10_000)]
    grants: Annotated[list[GrantBody], Field(max_length=100_000)]


class GrantPatch(Patch):
    """PATCH of a grant: whom it is for and where are what it is, and stay."""

    max_bytes = _USERS_BODY_MAX_BYTES
    tags: str | None = None
    actions: _ActionNames = Field(default_factory=list)
    mode: _ModeName | None = None
    expires_at: _Time = None


class RobotBody(Body):
    """PUT of a robot."""

    expires_at: _Time = None
    networks: _Networks = []


class RobotPatch(Patch):
    """PATCH of a robot."""

    expires_at: _Time = None
    networks: _Networks | None = None


class SecretBody(Body):
    """POST of a robot's secret."""

    label: str = ""
    expires_at: _Time = None


class TokenBody(SecretBody):
    """POST of a personal access token; without ``actions`` it may do what its user may."""

    max_bytes = _USERS_BODY_MAX_BYTES
    actions: _ActionNames | None = None


class ExplainBody(Body):
    """A question about a right."""

    max_bytes = _USERS_BODY_MAX_BYTES
    subject: _SubjectName
    repository: str
    tag: str | None = None
    action: Action


class ReplayBody(Body):
    """A proposed policy: the grants of today, without some, and with others; with ``replace`` none of today's.

    ``groups`` are those that have other members than today.
    """

    add: Annotated[list[GrantBody], Field(max_length=100_000)] = []
    remove: Annotated[list[str], Field(max_length=100_000)] = []
    replace: bool = False
    groups: Annotated[dict[str, _Members], Field(max_length=10_000)] = {}
    limit: Annotated[int, Field(ge=1, le=100_000)] = 10_000


class RevocationBody(Body):
    """The tokens to revoke: all bearer and refresh tokens of a subject, with ``secrets`` its secrets too, or one token.

    Secrets are the personal tokens of a user and the secrets of a robot: they are deleted. Passwords stay.
    """

    subject: _SubjectName | None = None
    secrets: bool = False
    token_id: str | None = None


class PasswordBody(Body):
    """A user's own password, and the one that takes its place."""

    max_bytes = _USERS_BODY_MAX_BYTES
    current: SecretStr
    new: SecretStr


class AcceptBody(Body):
    """POST to accept the faults of the audit log."""

    reason: Annotated[str, Field(min_length=1, max_length=500)]


class EmptyBody(Body):
    """Nothing, or ``{}``."""


class VerifyBody(Body):
    """POST of a comparison: whether what differs is mended, and which replica decides where nothing else does."""

    mend: bool = False
    prefer: str | None = None


class PauseBody(Body):
    """The replica to take out of writes and repair, and why, for people."""

    replica: str
    reason: Annotated[str, Field(max_length=500)] = ""


class ResumeBody(Body):
    """The replica to write to again; with ``force`` also one that answers for blobs that are gone."""

    replica: str
    force: bool = False


class ChosenBody(Body):
    """The exceptions that are meant: those of one repository, of one tag or digest, or all."""

    repository: str | None = None
    name: str | None = None


class WarmBody(Body):
    """An image to bring into the cache; of an index only the platforms named, such as linux/amd64."""

    repository: str
    reference: str = "latest"
    platforms: Annotated[list[str], Field(max_length=100)] = []


class PurgeBody(Body):
    """Content to remove from the cache: one digest, all that one repository holds, or everything."""

    digest: str | None = None
    repository: str | None = None
