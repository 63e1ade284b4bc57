"""The access of a token as claims: by name where that is short, else by digest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.access.carried import carries, format_carried, read_carried
from registry_proxy.protocol.scope import CATALOG, Access, repository_access

NAMES = st.text("abc/-0", min_size=1, max_size=255)
ACTIONS = st.frozensets(st.sampled_from(["pull", "push", "delete"]), min_size=1)


def carried(access: list[Access]) -> object:
    """Return access as it comes out of a token's JSON."""
    return json.loads(json.dumps(format_carried(access)))


@given(st.dictionaries(NAMES, ACTIONS, max_size=60), NAMES)
def test_exactly_what_was_put_in_is_carried(wanted: dict[str, frozenset[str]], other: str) -> None:
    """In both forms the claim holds each name with its own actions, and nothing else."""
    access = read_carried(format_carried([Access("repository", name, actions) for name, actions in wanted.items()]))
    for name in {*wanted, other}:
        for action in ("pull", "push", "delete", "*"):
            assert carries(access, "repository", name, action) == (action in wanted.get(name, ()))
        assert not carries(access, "registry", name, "pull")


def test_few_names_are_written_as_the_specification_has_them() -> None:
    """A reader of such a token finds its access claim in the form of the specification."""
    claims = carried([repository_access("team/app")])
    assert claims == {"access": [{"type": "repository", "name": "team/app", "actions": []}]}


def test_many_names_become_digests_of_one_length() -> None:
    """The claim stays short however many names there are, and holds the catalogue too."""
    names = [f"{i:0255}" for i in range(199)]
    claims = format_carried([*(Access("repository", name, frozenset({"pull"})) for name in names), CATALOG])
    assert claims["access"] == []
    assert {actions: len(text) for actions, text in claims["access_digests"].items()} == {"pull": 199 * 16, "*": 16}
    access = read_carried(claims)
    assert carries(access, "registry", "catalog", "*")
    assert all(carries(access, "repository", name, "pull") for name in names)


@pytest.mark.parametrize("digests", [[], "x", {"pull": 5}, 7])
def test_another_form_is_an_error(digests: object) -> None:
    """A claim in another form raises an error that the verifier reports as an invalid token."""
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        read_carried({"access": [], "access_digests": digests})
