"""The programs of others that these tests need, the product before them, and the names of what is not installed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.clients import Client
from tests.acceptance.programs import why_not
from tests.copied import Copies
from tests.product import Proxy, proxy_server
from tests.servers import docker_registry, running

_LEFT_OUT = pytest.StashKey[Counter[str]]()


@pytest.hookimpl(trylast=True)  # after -m: only the tests that would run are counted
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose programs are missing. They are deselected: a skipped test is a failure here."""
    reasons: dict[str, str | None] = {}
    left_out: list[pytest.Item] = []
    for item in items:
        needed = [name for mark in item.iter_markers("acceptance") for name in mark.args]
        for name in needed:
            reasons.setdefault(name, why_not(name))
        missing = [f"{name} ({reasons[name]})" for name in needed if reasons[name] is not None]
        if missing:
            left_out.append(item)
            config.stash.setdefault(_LEFT_OUT, Counter())[" and ".join(missing)] += 1
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the programs that are missing, and how many tests each of them keeps out."""
    for missing, count in sorted(config.stash.get(_LEFT_OUT, Counter()).items()):
        terminalreporter.write_line(f"not installed: {missing}: {count} tests deselected")


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start two docker-registry and a proxy before them, for tests that stop none; ann may do all of it."""
    root = tmp_path_factory.mktemp("product")
    registries = [docker_registry(root / name) for name in ("first", "second")]
    proxy = proxy_server(root / "proxy", registries, copies=copies)
    with ExitStack() as stack:
        for server in (*registries, proxy):
            stack.enter_context(running(server))
        proxy.add_user("ann", pull_push_delete=["**"])
        yield proxy


@pytest.fixture
def client(program: str, product: Proxy, tmp_path: Path) -> Client:
    """Give the client that the test names as ``program``, logged in at the product as ann."""
    client = Client(program, tmp_path / "home", product.host)
    client.log_in("ann", "password of a user")
    return client
