"""Patterns, compared with a slow and obvious model, and with names made for endless backtracking."""

from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry_proxy.protocol.patterns import (
    compile_repository_pattern,
    compile_text_pattern,
    for_subject,
    is_below,
    literal_last,
    literal_prefix,
    namespace_fault,
    repository_pattern_fault,
    tag_pattern_fault,
)


def _wild(pattern: str, text: str) -> bool:
    """Tell whether a text matches a pattern in which ``*`` is any text: by trying everything."""

    @cache
    def match(i: int, j: int) -> bool:
        if i == len(pattern):
            return j == len(text)
        if pattern[i] == "*":
            return any(match(i + 1, k) for k in range(j, len(text) + 1))
        return j < len(text) and pattern[i] == text[j] and match(i + 1, j + 1)

    return match(0, 0)


def _model(pattern: list[str], name: list[str]) -> bool:
    """Tell whether components match: the definition of `*` and `**`, tried in every way."""
    if not pattern:
        return not name
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        least = 1 if all(component == "**" for component in rest) else 0
        return any(_model(rest, name[k:]) for k in range(least, len(name) + 1)) if rest else len(name) >= least
    return bool(name) and _wild(first, name[0]) and _model(rest, name[1:])


def _collapse(components: list[str]) -> list[str]:
    return [c for i, c in enumerate(components) if not (c == "**" and components[i + 1 : i + 2] == ["**"])]


COMPONENTS = st.text("ab-", min_size=1, max_size=4)
NAMES = st.lists(COMPONENTS, min_size=1, max_size=5)
GLOBS = st.text("ab*", min_size=1, max_size=4).filter(lambda text: "**" not in text)
PATTERNS = st.lists(st.one_of(GLOBS, st.just("**"), COMPONENTS), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("team/**", "team/a team/a/b team/a/b/c", "team teams/a a/team/b team-x"),
        ("**/app", "app a/app a/b/app", "a/apps app/a myapp a/app/b"),
        ("**", "a a/b a/b/c", ""),
        ("*", "a abc a.b", "a/b"),
        ("team/*", "team/a team/abc", "team team/a/b"),
        ("team/a*", "team/a team/ab team/a-b", "team/b team/a/b team/ba"),
        ("team/*-dev", "team/x-dev team/x-y-dev", "team/x team/x-dev/y"),
        ("team/a*b*c", "team/abc team/axbxc team/abbcc", "team/acb team/ab/c"),
        ("a/**/b", "a/b a/x/b a/x/y/b a/b/b", "a b a/bb a/x/bb"),
        ("**/a/**", "a/b x/a/b x/a/b/c a/a", "a x/a b"),
        ("**/a/**/b", "a/b x/a/y/b a/a/b", "b/a a/bb"),
        ("**/**", "a a/b", ""),
        ("a/**/**/b", "a/b a/x/b", "a"),
        ("*/*", "a/b", "a a/b/c"),
        ("a", "a", "a/b b/a aa"),
        ("a.b", "a.b", "axb"),
    ],
)
def test_examples(pattern: str, yes: str, no: str) -> None:
    """The promised cases and their neighbours."""
    compiled = compile_repository_pattern(pattern)
    assert repository_pattern_fault(pattern) is None
    assert [name for name in yes.split() if not compiled.fullmatch(name)] == []
    assert [name for name in no.split() if compiled.fullmatch(name)] == []


@given(PATTERNS, NAMES)
@example(["**", "a", "**"], ["a"])
@example(["**", "a*a", "b", "**", "b"], ["aa", "b", "aa", "b", "b"])
def test_repository_patterns_do_what_the_model_does(pattern: list[str], name: list[str]) -> None:
    """For any pattern and name the compiled expression and the model agree."""
    compiled = compile_repository_pattern("/".join(pattern))
    assert (compiled.fullmatch("/".join(name)) is not None) == _model(_collapse(pattern), name)


@given(st.text("ab.*", min_size=1, max_size=8), st.text("ab.", min_size=1, max_size=10))
def test_tag_patterns_do_what_the_model_does(pattern: str, tag: str) -> None:
    """For any tag pattern and tag the compiled expression and the model agree."""
    assert (compile_text_pattern(pattern).fullmatch(tag) is not None) == _wild(pattern, tag)


@given(PATTERNS, NAMES)
def test_the_literal_beginning_is_that_of_every_match(pattern: list[str], name: list[str]) -> None:
    """Every match of a pattern starts, by whole components, with its literal prefix: the index relies on it."""
    prefix = literal_prefix("/".join(pattern))
    text = "/".join(name)
    if compile_repository_pattern("/".join(pattern)).fullmatch(text):
        assert prefix in {"", text} or text.startswith(f"{prefix}/")


@given(PATTERNS, NAMES)
def test_the_literal_end_is_that_of_every_match(pattern: list[str], name: list[str]) -> None:
    """Every match of a pattern ends with its last component, if that is literal: the index relies on it."""
    last = literal_last("/".join(pattern))
    if compile_repository_pattern("/".join(pattern)).fullmatch("/".join(name)):
        assert last in {None, name[-1]}


@pytest.mark.timeout(20)
def test_no_pattern_runs_away() -> None:
    """Patterns full of wildcards answer for the longest names that almost match; backtracking would take years."""
    name = "/".join(["a"] * 127) + "/b"
    for pattern in ["/".join(["**", "a"] * 60) + "/c", "/".join(["**", "*a*"] * 40) + "/c", "**/*/" * 60 + "c"]:
        assert compile_repository_pattern(pattern).fullmatch(name) is None
    assert compile_repository_pattern("*a" * 100 + "c").fullmatch("a" * 255) is None
    assert compile_text_pattern("*a" * 60 + "c").fullmatch("a" * 128) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A/b",
        "a**",
        "**a/b",
        "a/***",
        "a b",
        "a/\u00e4",
        "a:b",
        "a\n",
        "?",
        "[a]",
        "a" * 256,
    ],
)
def test_faulty_repository_patterns_are_named(pattern: str) -> None:
    """A pattern that could never match, or would mean less than it seems to, is a fault."""
    assert repository_pattern_fault(pattern) is not None


@pytest.mark.parametrize("pattern", ["", "a/b", "a b", "a:b", "\u00e4", "v1\n", "a" * 129])
def test_faulty_tag_patterns_are_named(pattern: str) -> None:
    """A tag pattern that could never match is a fault."""
    assert tag_pattern_fault(pattern) is not None


def test_right_tag_patterns_have_no_fault() -> None:
    """Every tag is a pattern."""
    assert [p for p in ["*", "latest", "v*", "v1.*-rc", "_x", "A"] if tag_pattern_fault(p) is not None] == []


@pytest.mark.parametrize("pattern", ["{subject}", "home/{subject}/**", "{subject}/{subject}"])
def test_a_pattern_of_a_grant_may_name_its_subject(pattern: str) -> None:
    """The subject is allowed as a whole component, where the grant allows it; nowhere else."""
    assert repository_pattern_fault(pattern, takes_subject=True) is None
    assert repository_pattern_fault(pattern) is not None
    assert "{" not in literal_prefix(pattern)
    assert "{" not in (literal_last(pattern) or "")


@pytest.mark.parametrize(
    "pattern", ["home/x{subject}", "{subject}x/**", "{Subject}", "{}", "{subject}/**x", "{subject"]
)
def test_a_subject_is_a_whole_component(pattern: str) -> None:
    """Two names in one component could be read in two ways."""
    assert repository_pattern_fault(pattern, takes_subject=True) is not None


@pytest.mark.parametrize("pattern", ["..", "team/..", "../team/**", "team/..*", "team/*../x", "team/a..b*"])
def test_two_dots_stand_in_no_pattern(pattern: str) -> None:
    """No repository has two dots, and other readers of a path take them for the parent."""
    assert repository_pattern_fault(pattern) is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ann", "home/ann/**"),
        ("a.b-c_d", "home/a.b-c_d/**"),
        ("Ann", None),
        ("ann@x", None),
        ("..", None),
        ("a/b", None),
        ("*", None),
        ("**", None),
        ("", None),
        ("a" * 256, None),
    ],
)
def test_a_name_that_is_no_component_has_no_pattern(name: str, expected: str | None) -> None:
    """Names come from people: no name makes a pattern match more than its own component."""
    assert for_subject("home/{subject}/**", name) == expected


NAMESPACE = st.lists(st.sampled_from(["a", "b", "a-"]), min_size=1, max_size=2)


@given(NAMESPACE, PATTERNS, NAMES)
@example(["a"], ["a"], ["a"])
@example(["a"], ["a*", "b"], ["aa", "b"])
@example(["a"], ["a-", "b"], ["a-", "b"])
@example(["a"], ["**", "b"], ["b"])
def test_a_pattern_in_a_namespace_matches_nothing_outside(
    namespace: list[str], pattern: list[str], name: list[str]
) -> None:
    """Every match of a pattern inside a namespace is in the namespace: an owner grants nothing else."""
    for inside in (pattern, [*namespace, *pattern]):
        if (
            is_below("/".join(inside), "/".join([*namespace, "**"]))
            and repository_pattern_fault("/".join(inside)) is None
        ):
            for text in ("/".join(name), "/".join([*namespace, *name])):
                if compile_repository_pattern("/".join(inside)).fullmatch(text):
                    assert compile_repository_pattern("/".join([*namespace, "**"])).fullmatch(text)
    assert is_below("/".join([*namespace, *pattern]), "/".join([*namespace, "**"]))


@pytest.mark.parametrize(
    ("pattern", "is_namespace"),
    [
        ("team/**", True),
        ("org/team/**", True),
        ("home/{subject}/**", True),
        ("{subject}/**", True),
        ("**", False),
        ("team", False),
        ("team/*", False),
        ("team/a", False),
        ("*/**", False),
        ("te*/**", False),
        ("team/**/**", False),
        ("team/**/a", False),
        ("", False),
    ],
)
def test_a_namespace_is_all_below_some_components(pattern: str, *, is_namespace: bool) -> None:
    """Only a pattern below literal components can have an owner: the content of a wildcard is unknown."""
    assert (namespace_fault(pattern) is None) == is_namespace
