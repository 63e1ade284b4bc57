"""The official conformance suite of the OCI distribution specification, over one registry and two of each kind."""

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


def needs(kinds: str, count: int) -> object:
    """Return a row: kinds of registries, and their number in all. Only Debian's docker-registry needs no mark."""
    mark = pytest.mark.acceptance(*(name for name in kinds.split("+") if name != "docker-registry"))
    return pytest.param(kinds, count, marks=mark, id=f"{kinds}-{count}")


_KINDS: Mapping[str, Callable[[Path], Server]] = {"docker-registry": docker_registry, **DESCRIBE}


@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        needs("docker-registry", 1),
        needs("docker-registry", 2),
        needs("distribution", 1),
        needs("distribution", 2),
        needs("olareg", 1),
        needs("olareg", 2),
        needs("olareg+docker-registry", 2),
    ],
)
def test_the_suite_passes(kinds: str, count: int, tmp_path: Path, copies: Copies) -> None:
    """No check of the suite fails, and none is skipped."""
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
    passed = outcomes.pop("passed")
    assert outcomes == {}
    assert passed.total() > 600
