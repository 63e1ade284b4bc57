"""WWW-Authenticate: our own is read back as written, and any upstream's is read without harm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.protocol.challenge import Challenge, format_challenge, parse_challenges

VISIBLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))


@given(VISIBLE, VISIBLE, st.none() | VISIBLE, st.sampled_from([None, "invalid_token", "insufficient_scope"]))
def test_our_challenge_round_trips(realm: str, service: str, scope: str | None, error: str | None) -> None:
    """Every parameter comes back unchanged, with quotes and backslashes in it."""
    parameters = {"realm": realm, "service": service}
    if scope is not None:
        parameters["scope"] = scope
    if error is not None:
        parameters["error"] = error
    assert parse_challenges([format_challenge(realm, service, scope, error)]) == [Challenge("bearer", parameters)]


def test_our_challenge_is_written_as_docker_knows_it() -> None:
    """Realm, service and scope come in this order, quoted, in one scheme."""
    written = format_challenge("https://r.example/auth/token", "registry-proxy", "repository:a/b:pull,push")
    assert written == (
        'Bearer realm="https://r.example/auth/token",service="registry-proxy",scope="repository:a/b:pull,push"'
    )


@pytest.mark.parametrize(
    ("header", "scheme", "parameters"),
    [
        ('Bearer realm="https://auth.docker.io/token",service="registry.docker.io"', "bearer",
         {"realm": "https://auth.docker.io/token", "service": "registry.docker.io"}),
        ('Bearer realm="u" , service="s" ,scope="repository:a:pull,push"', "bearer",
         {"realm": "u", "service": "s", "scope": "repository:a:pull,push"}),
        ('BASIC Realm="x"', "basic", {"realm": "x"}),
        ("Basic realm=x", "basic", {"realm": "x"}),
        ('Bearer realm="a\\"b\\\\c"', "bearer", {"realm": 'a"b\\c'}),
        ('Bearer realm="first",realm="second"', "bearer", {"realm": "first"}),
        ("Negotiate", "negotiate", {}),
        ('Bearer realm="never closed', "bearer", {}),
    ],
)  # fmt: skip
def test_challenges_of_upstreams(header: str, scheme: str, parameters: dict[str, str]) -> None:
    """Spaces, cases, tokens, escapes and repeated parameters are read as RFC 9110 says; the first of a name counts."""
    assert parse_challenges([header]) == [Challenge(scheme, parameters)]


@pytest.mark.parametrize(
    ("headers", "schemes"),
    [
        (['Basic realm="x"', 'Bearer realm="y",service="a, Basic realm=z"'], ["basic", "bearer"]),
        (['Basic realm="x", Bearer realm="y",scope="a:b:pull,push"'], ["basic", "bearer"]),
        (["Negotiate, Basic realm=x"], ["negotiate", "basic"]),
        (["Negotiate abc/+def==, Basic realm=x"], ["negotiate", "basic"]),
        (["NTLM", "Negotiate YII=", 'Basic realm="x"'], ["ntlm", "negotiate", "basic"]),
        ([",, Basic realm=x , , Bearer  realm=y ,"], ["basic", "bearer"]),
        (['Bearer realm="y"\tBasic realm="x"'], ["bearer", "basic"]),
        (["", 'Basic realm="x"'], ["basic"]),
        (['Bearer realm="never closed, Basic realm=x', "Basic realm=x"], ["bearer", "basic"]),
        ([], []),
    ],
)
def test_several_challenges(headers: list[str], schemes: list[str]) -> None:
    """All challenges are read, from several headers and from one, with commas in quotes, token68 and empty elements."""
    found = parse_challenges(headers)
    assert [one.scheme for one in found] == schemes
    assert all(one.parameters["realm"] == "x" for one in found if one.scheme == "basic")


@pytest.mark.parametrize("header", ["", "   ", 'realm="x"', "="])
def test_no_scheme(header: str) -> None:
    """Without a scheme there is no challenge."""
    assert parse_challenges([header]) == []


@given(st.one_of(st.text(), st.text(alphabet='Ba1 =",\\\t\n', max_size=60)))
def test_any_header(header: str) -> None:
    """Any text is read without an exception."""
    assert all(one.scheme == one.scheme.lower() for one in parse_challenges([header, header]))


@pytest.mark.parametrize("evil", ["B " + " " * 200_000 + "!", 'B a="' + "\\" * 200_000, "B " + "a" * 200_000])
def test_long_headers_are_read_without_backtracking(evil: str) -> None:
    """Headers made for endless backtracking are read (a slow one would run into the test's time-out)."""
    assert parse_challenges([evil])[0] == Challenge("b", {})
