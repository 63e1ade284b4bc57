"""Users, groups and robots as values, and their stored form."""

from dataclasses import dataclass, field
from typing import Any

from registry_proxy.ports.store import Record
from registry_proxy.protocol.addresses import parse_address, parse_network


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


def user_of(record: Record) -> User:
    """Return the user of a record; the groups have who is in them."""
    value = record.value
    return User(
        name=record.key,
        password_hash=value["password_hash"],
        is_admin=value["admin"],
        is_disabled=value["disabled"],
        revision=record.revision,
        is_ldap=value.get("ldap", False),  # those of earlier versions have no such key
    )


def group_of(record: Record) -> Group:
    """Return the group of a record."""
    return Group(record.key, tuple(record.value["members"]), record.revision)


def robot_of(record: Record) -> Robot:
    """Return the robot of a record."""
    return Robot(record.key, record.value["expires_at"], tuple(record.value["networks"]), record.revision)
