"""Users, groups and grants as values, and their stored form."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from registry_proxy.ports import Record
from registry_proxy.spec.scope import Action


class GrantMode(StrEnum):
    """Whether a grant is in force, or on trial: ``warn`` allows, and what only it allowed is counted."""

    ENFORCE = "enforce"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class User:
    """A person or a machine that logs in with a password.

    ``groups`` is the view of ``Group.members`` from the other side, sorted. ``revision`` rises with each change of any
    of this; 0 where it comes from no store.
    """

    name: str
    password_hash: str = field(repr=False)
    is_admin: bool = False
    is_disabled: bool = False
    groups: tuple[str, ...] = ()
    revision: int = 0

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the name; the groups are stored in the groups."""
        return {"password_hash": self.password_hash, "admin": self.is_admin, "disabled": self.is_disabled}


@dataclass(frozen=True, slots=True)
class Group:
    """A set of users, by name, sorted."""

    name: str
    members: tuple[str, ...] = ()
    revision: int = 0

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the name."""
        return {"members": list(self.members)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """That a subject may do some actions in repositories and on tags that match patterns; in Unix seconds until."""

    id: str
    subject: str
    repository: str
    actions: frozenset[Action]
    tags: str = "*"
    mode: GrantMode = GrantMode.ENFORCE
    expires_at: float | None = None
    revision: int = 0

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the id."""
        return {
            "subject": self.subject,
            "repository": self.repository,
            "tags": self.tags,
            "actions": sorted(self.actions),
            "mode": self.mode.value,
            "expires_at": self.expires_at,
        }


def user_of(record: Record, groups: tuple[str, ...] = ()) -> User:
    """Return the user of a record, who is in these groups."""
    value = record.value
    return User(record.key, value["password_hash"], value["admin"], value["disabled"], groups, record.revision)


def group_of(record: Record) -> Group:
    """Return the group of a record."""
    return Group(record.key, tuple(record.value["members"]), record.revision)


def grant_of(record: Record) -> Grant:
    """Return the grant of a record."""
    value = record.value
    return Grant(
        id=record.key,
        subject=value["subject"],
        repository=value["repository"],
        actions=frozenset(Action(action) for action in value["actions"]),
        tags=value["tags"],
        mode=GrantMode(value["mode"]),
        expires_at=value["expires_at"],
        revision=record.revision,
    )
