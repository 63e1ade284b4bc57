"""A grant: its stored form, and the comparison of two grants."""

import json

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.access.grant import Grant, GrantInput, GrantMode, grant_of, make_grant
from registry_proxy.ports.store import Record
from registry_proxy.protocol.scope import Action

_GRANT = Grant(
    id="1",
    subject="group:dev",
    repository="a/**",
    actions=frozenset({Action.PULL, Action.CREATE}),
    tags="v*",
    mode=GrantMode.WARN,
    expires_at=1.5,
    revision=5,
)
_STORED = {
    "subject": "group:dev",
    "repository": "a/**",
    "tags": "v*",
    "actions": ["create", "pull"],
    "mode": "warn",
    "expires_at": 1.5,
}


def test_a_grant_comes_back_as_it_was() -> None:
    """Stores of every release hold exactly these fields."""
    assert _GRANT.stored() == _STORED
    assert grant_of(Record("1", json.loads(json.dumps(_GRANT.stored())), 5)) == _GRANT


def test_fields_of_a_later_release_are_left_out() -> None:
    """While nodes of two releases share a store, the older one ignores unknown fields."""
    assert grant_of(Record("1", {**_STORED, "color": "red"}, 5)) == _GRANT


def test_a_grant_is_made_of_what_it_was_described_by() -> None:
    """The stored form holds everything of the description; all faults are reported at once."""
    given = GrantInput(
        subject="group:dev", repository="a/**", tags="v*", actions=["pull", "create"], mode="warn", expires_at=1.5
    )
    assert make_grant(given, "1").stored() == _STORED
    with pytest.raises(InvalidError) as refused:
        make_grant(GrantInput(subject="dev", repository="A//", actions=[], mode="x", expires_at=-1.0), "1")
    assert [name for name, _ in refused.value.faults] == ["subject", "repository", "actions", "mode", "expires_at"]


def test_grants_are_sorted_field_by_field() -> None:
    """A grant without an expiry sorts behind an equal one that expires."""
    never = GrantInput(subject="user:ann", repository="a", actions=["pull"])
    ends = GrantInput(subject="user:ann", repository="a", actions=["pull"], expires_at=1.0)
    other = GrantInput(subject="user:bob", repository="a", actions=["pull"], expires_at=1.0)
    grants = [make_grant(given, "1") for given in (other, never, ends)]
    assert sorted(grants, key=Grant.sort_key) == [grants[2], grants[1], grants[0]]
