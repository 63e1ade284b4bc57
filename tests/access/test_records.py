"""Records: stored values come back unchanged."""

import json
from dataclasses import replace
from typing import Any

import pytest

from registry_proxy.access.records import Group, Robot, User, group_of, user_of
from registry_proxy.ports.store import Record


def _through_json(value: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(value))
    return copy


def test_values_come_back_as_they_were() -> None:
    """Storing and reading gives an equal value, with the revision of the record."""
    user = User("ann", "hash", is_admin=True, is_disabled=True, groups=("dev",), revision=3, is_ldap=True)
    assert replace(user_of(Record("ann", _through_json(user.stored()), 3)), groups=("dev",)) == user
    group = Group("dev", ("ann", "bob"), revision=4)
    assert group_of(Record("dev", _through_json(group.stored()), 4)) == group


def test_a_user_of_an_earlier_version_is_read() -> None:
    """A record stored before LDAP was known is a user with a local password."""
    stored = {"password_hash": "hash", "admin": False, "disabled": False}
    assert user_of(Record("ann", stored, 3)) == User("ann", "hash", revision=3)


def test_a_user_never_shows_its_hash() -> None:
    """The password hash is in no repr, which may reach a log."""
    assert "secret-hash" not in repr(User("ann", "secret-hash"))


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("192.0.2.0/24", ["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.3.7", "::ffff:192.0.3.7", "::192.0.2.7", "", "x"]),
        ("::ffff:192.0.2.0/120", ["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.3.7", "::ffff:192.0.3.7"]),
        ("2001:db8::/32", ["2001:db8::1"], ["2001:db9::1", "192.0.2.7", "::ffff:192.0.2.7"]),
        ("0.0.0.0/0", ["192.0.2.7", "::ffff:192.0.2.7"], ["2001:db8::1"]),
    ],
)
def test_a_robot_comes_from_its_networks(network: str, inside: list[str], outside: list[str]) -> None:
    """Networks of a robot match in every notation: on ``[::]`` IPv4 callers have mapped addresses."""
    robot = Robot("ci", networks=(network,))
    assert [address for address in inside + outside if robot.may_come_from(address)] == inside
    assert Robot("ci").may_come_from(outside[0])
