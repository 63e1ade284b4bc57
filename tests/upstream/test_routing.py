"""Routes: the longest prefix of whole components wins, and every listed name leads back to its repository."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.patterns import compile_repository_pattern
from registry_proxy.protocol.reference import parse_repository
from registry_proxy.upstream.routing import PrefixRouter, Route

ROUTER = PrefixRouter(
    [
        Route("", "main"),
        Route("hub/", "hub", strip_prefix=True, namespaces=("docker.io",), is_docker_hub=True),
        Route("hub/private/", "main"),
        Route("team/", "teams"),
    ]
)
NAMES = st.lists(st.sampled_from(["hub", "private", "team", "teams", "a", "library"]), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("name", "upstream", "there"),
    [
        ("a", "main", "a"),
        ("hub", "main", "hub"),
        ("hub/library/alpine", "hub", "library/alpine"),
        ("hub/alpine", "hub", "library/alpine"),
        ("hub/library", "hub", "library/library"),
        ("hub/a/alpine", "hub", "a/alpine"),
        ("hub/private/x", "main", "hub/private/x"),
        ("team/x", "teams", "team/x"),
        ("teams/x", "main", "teams/x"),
    ],
)
def test_the_longest_prefix_of_whole_components_wins(name: str, upstream: str, there: str) -> None:
    """A prefix ends at a slash, and the longest one decides."""
    assert ROUTER.route(parse_repository(name)) == RoutedRepository(upstream, parse_repository(there))


def test_names_of_our_own_lead_nowhere_where_we_write() -> None:
    """A repository below the reserved prefix is unknown at an upstream that we write to, and ordinary elsewhere."""
    router = PrefixRouter([Route("", "main", is_writable=True), Route("hub/", "hub", strip_prefix=True)])
    with pytest.raises(RegistryError) as caught:
        router.route(parse_repository("registry-proxy-internal/sentinel"))
    assert caught.value.code is ErrorCode.NAME_UNKNOWN
    assert router.route(parse_repository("hub/registry-proxy-internal/x")).upstream == "hub"
    assert router.local_name(RoutedRepository("main", parse_repository("registry-proxy-internal/x"))) is None
    assert [router.reserves_names(name) for name in ("main", "hub")] == [True, False]


def test_ns_names_the_route_and_rights_are_judged_on_its_name() -> None:
    """`?ns=docker.io` turns the name into the one below the route that serves it."""
    for host in ("docker.io", "DOCKER.IO", "Docker.io"):
        assert ROUTER.canonical(parse_repository("library/alpine"), host) == "hub/library/alpine"
    assert ROUTER.canonical(parse_repository("library/alpine"), None) == "library/alpine"


@pytest.mark.parametrize("namespace", ["", "evil.example", "169.254.169.254", "index.docker.io", "docker.io."])
def test_an_unknown_ns_is_no_open_proxy(namespace: str) -> None:
    """A namespace that no route serves is NAME_UNKNOWN."""
    with pytest.raises(RegistryError) as caught:
        ROUTER.canonical(parse_repository("library/alpine"), namespace)
    assert caught.value.code is ErrorCode.NAME_UNKNOWN


def test_a_name_made_too_long_by_its_route_is_unknown() -> None:
    """The name with the prefix obeys the grammar too."""
    with pytest.raises(RegistryError):
        ROUTER.canonical(parse_repository("a" * 255), "docker.io")


def test_a_name_without_a_route_is_unknown() -> None:
    """Without a route for everything, the rest is NAME_UNKNOWN."""
    with pytest.raises(RegistryError) as caught:
        PrefixRouter([Route("hub/", "hub")]).route(parse_repository("a"))
    assert caught.value.code is ErrorCode.NAME_UNKNOWN


@given(NAMES)
def test_a_local_name_leads_back(components: list[str]) -> None:
    """The name that a repository is listed under routes to that repository."""
    canonical = parse_repository("/".join(components))
    routed = ROUTER.route(canonical)
    name = ROUTER.local_name(routed)
    assert name is not None
    assert ROUTER.route(name) == routed


def test_a_repository_without_a_route_is_not_listed() -> None:
    """A repository of an upstream that only other prefixes lead to has no local name."""
    assert ROUTER.local_name(RoutedRepository("teams", parse_repository("elsewhere/x"))) is None
    assert ROUTER.local_name(RoutedRepository("main", parse_repository("team/x"))) is None


PATTERNS = st.lists(st.sampled_from(["hub", "private", "team", "*", "**", "t*", "a"]), min_size=1, max_size=4)


@given(PATTERNS, NAMES)
def test_a_pattern_may_lead_wherever_a_name_that_it_matches_lies(pattern: list[str], components: list[str]) -> None:
    """Every upstream that may hold a match of the pattern is named."""
    name, text = parse_repository("/".join(components)), "/".join(pattern)
    if compile_repository_pattern(text).fullmatch(name):
        assert ROUTER.may_lead(text, ROUTER.route(name).upstream)


@pytest.mark.parametrize(
    ("pattern", "upstreams"),
    [
        ("**", "hub main teams"),
        ("*", "main"),
        ("team/**", "teams"),
        ("hub", "main"),
        ("hub/**", "hub main"),
        ("hub/library/*", "hub"),
        ("hub/private/x", "main"),
        ("t*/x", "main teams"),
        ("**/x", "hub main teams"),
        ("elsewhere/x", "main"),
    ],
)
def test_a_pattern_leads_nowhere_else(pattern: str, upstreams: str) -> None:
    """Upstreams without a match of the pattern are not named."""
    assert [upstream for upstream in ROUTER.upstreams if ROUTER.may_lead(pattern, upstream)] == upstreams.split()
