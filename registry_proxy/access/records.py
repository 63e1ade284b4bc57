"""Users, groups, robots and grants as values, and their stored form."""

import functools
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from registry_proxy.ports.store import Record
from registry_proxy.protocol.addresses import parse_address, parse_network
from registry_proxy.protocol.scope import Action


class GrantMode(StrEnum):
    """Whether a grant is in force, or on trial: ``warn`` allows, and what only it allowed is counted."""

    ENFORCE = "enforce"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class User:
    """A person or a machine that logs in with a password; ``is_ldap``: LDAP knows it, and ``password_hash`` is empty.

    ``groups`` is the view of ``Group.members`` from the other side, sorted. ``revision`` rises with each change of any
    of this; 0 where it comes from no store.
    """

    name: str
    password_hash: str = field(repr=False)
    is_admin: bool = False
    is_disabled: bool = False
    groups: tuple[str, ...] = ()
    revision: int = 0
    is_ldap: bool = False

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the name; the groups are stored in the groups."""
        return {
            "password_hash": self.password_hash,
            "admin": self.is_admin,
            "disabled": self.is_disabled,
            "ldap": self.is_ldap,
        }


@dataclass(frozen=True, slots=True)
class Group:
    """A set of users, by name, sorted."""

    name: str
    members: tuple[str, ...] = ()
    revision: int = 0

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the name."""
        return {"members": list(self.members)}


@dataclass(frozen=True, slots=True)
class Robot:
    """A machine that logs in as ``robot$NAME`` with one of its secrets.

    ``expires_at`` in Unix seconds. ``networks`` are those its logins may come from, as text; empty for any.
    """

    name: str
    expires_at: float | None = None
    networks: tuple[str, ...] = ()
    revision: int = 0

    def is_valid(self, now: float) -> bool:
        """Tell whether it has not expired."""
        return self.expires_at is None or now < self.expires_at

    def may_come_from(self, address: str) -> bool:
        """Tell whether its login may come from an IP address."""
        if not self.networks:
            return True
        parsed = parse_address(address)
        return parsed is not None and any(parsed in parse_network(network) for network in self.networks)

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the name."""
        return {"expires_at": self.expires_at, "networks": list(self.networks)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The right of a subject to actions in repositories and on tags that match patterns; in Unix seconds until."""

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

    def content(self) -> "Grant":
        """Return the grant without its identity: two grants that say the same have equal contents."""
        # As precise as the text of a time is, so that what was exported is what it was exported from.
        until = None if self.expires_at is None else round(self.expires_at, 6)
        return replace(self, id="", revision=0, expires_at=until)


def user_of(record: Record, groups: tuple[str, ...] = ()) -> User:
    """Return the user of a record, who is in these groups."""
    value = record.value
    return User(
        name=record.key,
        password_hash=value["password_hash"],
        is_admin=value["admin"],
        is_disabled=value["disabled"],
        groups=groups,
        revision=record.revision,
        is_ldap=value.get("ldap", False),  # those of earlier versions have no such key
    )


def group_of(record: Record) -> Group:
    """Return the group of a record."""
    return Group(record.key, tuple(record.value["members"]), record.revision)


def robot_of(record: Record) -> Robot:
    """Return the robot of a record."""
    return Robot(record.key, record.value["expires_at"], tuple(record.value["networks"]), record.revision)


def grant_of(record: Record) -> Grant:
    """Return the grant of a record."""
    value = record.value
    return Grant(
        id=record.key,
        subject=value["subject"],
        repository=value["repository"],
        actions=_actions(*value["actions"]),
        tags=value["tags"],
        mode=GrantMode(value["mode"]),
        expires_at=value["expires_at"],
        revision=record.revision,
    )


@functools.lru_cache(maxsize=64)
def _actions(*names: str) -> frozenset[Action]:
    return frozenset(map(Action, names))
