"""Subjects: who a token or a grant speaks of, as text with its kind in front (``user:ann``)."""

import re
from dataclasses import dataclass
from enum import StrEnum

ANONYMOUS = "anonymous"
"""The subject of a caller without credentials; what it may do, everyone may do."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,127}")
_OIDC_NAME = re.compile(
    r"([a-z0-9]+(?:[_-][a-z0-9]+)*/[a-z0-9]+(?:[_-][a-z0-9]+)*)/[A-Za-z0-9_][A-Za-z0-9._@+:/-]{0,199}"
)
SUBJECT_PATTERN = (
    f"^(?:{ANONYMOUS}|(?:user|group|robot):{_NAME.pattern}|oidc:{_OIDC_NAME.pattern.replace('(', '(?:', 1)})$"
)
"""What texts look like that mean a subject; ``parse_subject`` also refuses the names that nobody may have."""

OIDC_LOGIN_NAME = "oidc"
"""The user name that goes with an ID token as password."""


class SubjectKind(StrEnum):
    """The part before the colon; ``ANONYMOUS`` stands alone."""

    USER = "user"
    ROBOT = "robot"
    GROUP = "group"
    OIDC = "oidc"
    ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Subject:
    """A parsed subject; ``name`` is empty for anonymous."""

    kind: SubjectKind
    name: str

    def __str__(self) -> str:
        return ANONYMOUS if self.kind is SubjectKind.ANONYMOUS else f"{self.kind}:{self.name}"


NAME_FAULT = (
    "expected a letter, digit or '_', then letters, digits and any of '._@+-', at most 128 characters, and not 'oidc'"
)


def is_name(text: str) -> bool:
    """Tell whether a user, group or robot may have this name: never with the ``:`` and ``$`` of Basic and robots."""
    return _NAME.fullmatch(text) is not None and text != OIDC_LOGIN_NAME


def parse_subject(text: str) -> Subject:
    """Return the subject that a text means.

    Raises:
        ValueError: it means none; the message says what would.
    """
    if text == ANONYMOUS:
        return Subject(SubjectKind.ANONYMOUS, "")
    kind, _, name = text.partition(":")
    if kind == SubjectKind.OIDC and _OIDC_NAME.fullmatch(name) is not None:
        return Subject(SubjectKind.OIDC, name)
    login, _, robot = text.removeprefix("robot:").partition("$")
    if login == SubjectKind.ROBOT and is_name(robot):
        raise ValueError(f"expected robot:{robot}, the subject of the login robot${robot}")
    if kind not in {SubjectKind.USER, SubjectKind.ROBOT, SubjectKind.GROUP} or not is_name(name):
        raise ValueError("expected user:NAME, group:NAME, robot:NAME, oidc:ISSUER/RULE/NAME or anonymous")
    return Subject(SubjectKind(kind), name)


def subject_fault(text: str) -> str | None:
    """Return why a text means no subject; None where it means one."""
    try:
        parse_subject(text)
    except ValueError as error:
        return str(error)
    return None


def user_subject(name: str) -> str:
    """Return the subject text of a user."""
    return f"{SubjectKind.USER}:{name}"


def robot_subject(name: str) -> str:
    """Return the subject text of a robot."""
    return f"{SubjectKind.ROBOT}:{name}"


def oidc_subject(rule: str, name: str) -> str:
    """Return the subject text for a name under a rule (``ISSUER/RULE``). Raises ValueError for an unfit name."""
    return str(parse_subject(f"{SubjectKind.OIDC}:{rule}/{name}"))


def oidc_rule(subject: str) -> str | None:
    """Return the rule (``ISSUER/RULE``) that makes a subject; None for one that no ID token stands for."""
    kind, _, name = subject.partition(":")
    match = _OIDC_NAME.fullmatch(name) if kind == SubjectKind.OIDC else None
    return None if match is None else match[1]


def login_name(subject: str) -> str:
    """Return the name that a user or robot logs in with: ``ann``, ``robot$ci``."""
    kind, _, name = subject.partition(":")
    return f"{kind}${name}" if kind == SubjectKind.ROBOT else name


def claimed_subject(username: str) -> str:
    """Return the subject that a login name stands for, whether or not there is one; "" for what can be no name.

    A text that cannot be a name is often a password in the wrong field.
    """
    kind, separator, name = username.partition("$")
    if separator and kind == SubjectKind.ROBOT:
        return robot_subject(name) if is_name(name) else ""
    return user_subject(username) if is_name(username) else ""


def group_subject(name: str) -> str:
    """Return the subject text of a group."""
    return f"{SubjectKind.GROUP}:{name}"
