"""Scopes as clients write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.protocol.scope import (
    CATALOG,
    Access,
    Action,
    format_scope,
    is_repository_access,
    parse_scopes,
    repository_access,
)

NAMES = st.text(alphabet="abz09/._-:*", min_size=1, max_size=20)
ACTIONS = st.frozensets(st.sampled_from(["pull", "push", "delete", "*"]))


def access(name: str, *actions: str) -> Access:
    """Return an access to a repository."""
    return Access("repository", name, frozenset(actions))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        ([""], []),
        (["repository:a/b:pull"], [access("a/b", "pull")]),
        (["repository:a:push,pull"], [access("a", "pull", "push")]),
        (["repository:a:pull", "repository:b:pull"], [access("a", "pull"), access("b", "pull")]),
        (["repository:a:pull repository:b:pull"], [access("a", "pull"), access("b", "pull")]),
        (["repository:a:pull repository:a:pull,push"], [access("a", "pull", "push")]),  # containerd's POST
        (["repository:a:pull,push", "repository:b:pull"], [access("a", "pull", "push"), access("b", "pull")]),
        (["repository:host:5000/a:pull"], [access("host:5000/a", "pull")]),
        (["repository(plugin):a:pull"], [access("a", "pull")]),
        (["registry:catalog:*"], [CATALOG]),
        (["repository:a:*"], [access("a", "*")]),
        (["repository:a:"], [access("a")]),
        (["repository:a:pull,,push,"], [access("a", "pull", "push")]),
        (["repository:a"], []),
        (["repository"], []),
        ([":a:pull"], []),
        (["(plugin):a:pull"], []),
        (["repository::pull"], []),
        (["nonsense repository:a:pull :::"], [access("a", "pull")]),
        (["  repository:a:pull   "], [access("a", "pull")]),
    ],
)
def test_scopes(texts: list[str], expected: list[Access]) -> None:
    """Repeated and space-separated scopes are all read, ports and classes understood, other texts left out."""
    assert parse_scopes(texts) == expected


@given(st.lists(st.one_of(st.text(), st.text(alphabet="repository:,a( )", max_size=40)), max_size=5))
def test_any_scopes(texts: list[str]) -> None:
    """Any texts are read without an exception, each (type, name) at most once."""
    found = parse_scopes(texts)
    assert len({(entry.type, entry.name) for entry in found}) == len(found)
    assert all(entry.type and entry.name for entry in found)


@given(st.sampled_from(["repository", "registry"]), NAMES, ACTIONS)
def test_scopes_round_trip(kind: str, name: str, actions: frozenset[str]) -> None:
    """The text form of an access is read back as that access."""
    asked = Access(kind, name, actions)
    assert parse_scopes([format_scope(asked)]) == [asked]


def test_the_text_form_has_the_customary_order() -> None:
    """Docker compares scopes as texts: pull comes before push, and push before delete."""
    assert format_scope(repository_access("a", Action.DELETE, Action.PUSH, Action.PULL)) == (
        "repository:a:pull,push,delete"
    )
    assert format_scope(CATALOG) == "registry:catalog:*"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (access("a/b", "pull"), True),
        (access("A", "pull"), False),
        (access("a/../b", "pull"), False),
        (access("host:5000/a", "pull"), False),
        (access("*", "pull"), False),
        (CATALOG, False),
    ],
)
def test_only_names_that_can_exist_are_repositories(asked: Access, *, expected: bool) -> None:
    """A scope on a name outside the grammar can never be granted by a pattern."""
    assert is_repository_access(asked) is expected
