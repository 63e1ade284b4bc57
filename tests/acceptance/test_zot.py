"""A registry that stores equal blobs of all repositories once does not give them to a user without rights."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.registries import DESCRIBE
from tests.reports.test_mixed_repositories import SECRET, Eve, Setting, attack
from tests.support.copied import Copies
from tests.support.product import Proxy, proxy_server
from tests.support.servers import running

pytestmark = pytest.mark.acceptance

KINDS = [pytest.param(kind, marks=pytest.mark.acceptance(kind)) for kind in ("zot", "crane", "olareg", "distribution")]


@pytest.fixture
def proxy(kind: str, tmp_path: Path, copies: Copies) -> Iterator[Proxy]:
    """Start the product before one registry of a kind."""
    with running(DESCRIBE[kind](tmp_path / kind)) as registry:
        proxy = proxy_server(tmp_path / "proxy", [registry], copies=copies)
        with running(proxy):
            yield proxy


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_is_secret_at_every_registry(proxy: Proxy, kind: str) -> None:
    """A blob is served only through a repository that holds it; the user who pushed it there receives it."""
    here = Setting(proxy)
    here.ann.push("secret/app", "1", SECRET)
    attack(here.eve, [Eve.read])
    assert here.ann.pull("secret/app", "1").blobs == SECRET.blobs
    attack(here.eve)
    here.eve.push("eve/own", "1", SECRET)  # she has the bytes
    assert here.eve.pull("eve/own", "1").blobs == SECRET.blobs
    with proxy.admin() as admin:
        [replica] = admin.get("/upstreams/main").json()["replicas"]
    if kind != "zot":  # whose versions differ
        assert (replica["keeps_apart"] is False) is (kind == "crane")
