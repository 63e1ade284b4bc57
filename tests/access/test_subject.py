"""Subjects: text with a kind, and names that cannot be mistaken for something else."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.access.subject import (
    SUBJECT_PATTERN,
    Subject,
    SubjectKind,
    group_subject,
    is_name,
    oidc_rule,
    oidc_subject,
    parse_subject,
    user_subject,
)

IDENTITIES = ["oidc:github/main/acme/app", "oidc:k8s/any/system:serviceaccount:ci:builder"]


@pytest.mark.parametrize(
    "text", ["user:ann", "robot:ci", "group:dev", "anonymous", "user:a.b@c.org", "user:A-1+x_", *IDENTITIES]
)
def test_text_and_value_are_one(text: str) -> None:
    """Parsing and formatting return the same text."""
    assert str(parse_subject(text)) == text


def test_parses_kind_and_name() -> None:
    """Each kind of subject is parsed with its name."""
    assert parse_subject("user:ann") == Subject(SubjectKind.USER, "ann")
    assert parse_subject("anonymous") == Subject(SubjectKind.ANONYMOUS, "")
    assert user_subject("ann") == "user:ann"
    assert group_subject("dev") == "group:dev"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ann",
        "user:",
        ":ann",
        "user:a:b",
        "user:robot$ci",
        "User:ann",
        "anonymous:",
        "anonymous:x",
        "user: ann",
        "user:ann\n",
        "user:ä",
        "user:-a",
        "user:.a",
        "token:x",
        "user:" + "a" * 129,
        "user:oidc",
        "user:a/b",
        "oidc:acme",
        "oidc:github/acme",
        "oidc:github/main/",
        "oidc:github//acme",
        "oidc:GitHub/main/acme",
        "oidc:github/main/-acme",
        "oidc:github/main/a b",
        "oidc:github/main/" + "a" * 201,
    ],
)
def test_refuses_what_is_no_subject(text: str) -> None:
    """Every other text raises ValueError with a message in words."""
    with pytest.raises(ValueError, match="expected user:NAME"):
        parse_subject(text)


@given(st.text())
def test_any_text_is_a_subject_or_a_value_error(text: str) -> None:
    """No text raises any other error, and a parsed subject formats back."""
    with contextlib.suppress(ValueError):
        assert str(parse_subject(text)) == text


@given(st.text(min_size=1))
def test_names_hold_no_separator(text: str) -> None:
    """A name never holds a character with a meaning in Basic, robots, paths or header lines."""
    if is_name(text):
        assert not set(text) & set(":$/ \r\n\t\0%,;\"'\\")


def test_a_subject_of_a_rule_is_distinct_from_everybody_else() -> None:
    """The rule can be read from the subject; a user, or a name without a rule, has none."""
    assert oidc_subject("github/main", "acme/app") == "oidc:github/main/acme/app"
    assert oidc_rule("oidc:github/main/acme/app") == "github/main"
    assert [oidc_rule(text) for text in ("user:github/main/x", "oidc:github/main", "user:ann", "anonymous", "")] == (
        [None] * 5
    )
    with pytest.raises(ValueError, match="expected"):
        oidc_subject("github/main", "a\nb")


@pytest.mark.parametrize(
    "text",
    [
        *("anonymous", "user:ann", "group:a.b_@+-", "robot:7", "oidc:ci/main/acme/app", "oidc:a-b/c_d/x:y@z"),
        *(
            "",
            "ann",
            "user:",
            "user:a:b",
            "user:-a",
            "users:ann",
            "anonymous:",
            "user:ann\n",
            " user:ann",
            "oidc:ci/main",
        ),
        *("oidc:CI/main/x", "user:" + "x" * 128, "user:" + "x" * 129, "oidc:a/b/" + "x" * 200, "oidc:a/b/" + "x" * 201),
    ],
)
def test_the_pattern_of_subjects_is_what_is_parsed(text: str) -> None:
    """The pattern in the API's description matches exactly the texts that parse, with the line ends of JSON schemas."""
    try:
        parse_subject(text)
    except ValueError:
        assert re.fullmatch(SUBJECT_PATTERN, text) is None or text.endswith("\n")
    else:
        assert re.fullmatch(SUBJECT_PATTERN, text) is not None
