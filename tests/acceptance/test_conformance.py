"""The official conformance suite of the OCI distribution specification, over one registry and two of each kind.

The checks that are known to fail are listed with how often each does: one more fails the test, and so does one less,
which is then taken out of the list.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.conformance import run_conformance
from tests.acceptance.registries import DESCRIBE
from tests.support.copied import Copies
from tests.support.product import proxy_server
from tests.support.servers import Server, docker_registry, running

pytestmark = [pytest.mark.acceptance("conformance"), pytest.mark.timeout(300)]

_FOREIGN_LAYERS = {  # none of these registries takes a manifest with a layer that lies elsewhere
    f"non-distributable-layers/{name}": 1
    for name in (
        "push/manifest-by-digest",
        "push/manifest-by-tag",
        "tag-list",
        "head/manifest-head-by-digest",
        "head/manifest-head-by-tag",
        "pull/manifest-by-digest",
        "pull/manifest-by-tag",
    )
}


def needs(kind: str) -> pytest.MarkDecorator:
    """Mark what needs registries of some kinds; Debian's docker-registry is there."""
    return pytest.mark.acceptance(*(name for name in kind.split("+") if name != "docker-registry"))


def expect(kinds: str, count: int, failing: Mapping[str, int]) -> object:
    """Return a row: kinds of registries, how many in all, and the checks that fail over them."""
    return pytest.param(kinds, count, failing, marks=needs(kinds), id=f"{kinds}-{count}")


_KINDS: Mapping[str, Callable[[Path], Server]] = {"docker-registry": docker_registry, **DESCRIBE}


@pytest.mark.parametrize(
    ("kinds", "count", "failing"),
    [
        expect("docker-registry", 1, _FOREIGN_LAYERS),
        expect("docker-registry", 2, _FOREIGN_LAYERS),
        expect("distribution", 1, _FOREIGN_LAYERS),
        expect("distribution", 2, _FOREIGN_LAYERS),
        expect("olareg", 1, _FOREIGN_LAYERS),
        expect("olareg", 2, _FOREIGN_LAYERS),
        expect("olareg+docker-registry", 2, _FOREIGN_LAYERS),
    ],
)
def test_the_suite_fails_in_nothing_else(
    kinds: str, count: int, failing: Mapping[str, int], tmp_path: Path, copies: Copies
) -> None:
    """Every other check of the suite passes."""
    names = kinds.split("+")
    with ExitStack() as stack:
        registries = [
            stack.enter_context(running(_KINDS[names[number % len(names)]](tmp_path / str(number))))
            for number in range(count)
        ]
        proxy = proxy_server(tmp_path / "proxy", registries, copies=copies)
        stack.enter_context(running(proxy))
        user = proxy.add_user("ann", pull_push_delete=["**"])
        outcomes = run_conformance(tmp_path / "results", proxy.host, ("ann", user.password or ""))
    assert outcomes.get("failure", Counter()) + outcomes.get("error", Counter()) == Counter(failing)
    assert "skipped" not in outcomes
    assert outcomes["passed"].total() > 600
