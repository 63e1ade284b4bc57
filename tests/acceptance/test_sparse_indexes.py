"""Indexes without some of their children, at a registry whose configuration allows them."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.conftest import new_image
from tests.acceptance.layout import make_index
from tests.acceptance.registries import distribution
from tests.support.copied import Copies
from tests.support.product import proxy_server
from tests.support.servers import Server, docker_registry, running

pytestmark = pytest.mark.acceptance("distribution")


def sparse_distribution(root: Path) -> Server:
    """Describe a CNCF distribution 3 that checks no child of an index."""
    server = distribution(root)
    with (root / "config.yml").open("a") as config:
        config.write("validation: {manifests: {indexes: {platforms: none}}}\n")
    return server


def test_a_sparse_index_is_kept_where_the_registry_takes_it(tmp_path: Path, copies: Copies) -> None:
    """It is pushed and pulled with the existing child, its replicas are equal, and nothing is lost."""
    here, elsewhere = new_image(), new_image()
    index = make_index(here, elsewhere)
    registries = [sparse_distribution(tmp_path / name) for name in ("first", "second")]
    proxy = proxy_server(tmp_path / "proxy", registries, copies=copies)
    with ExitStack() as stack:
        for server in (*registries, proxy):
            stack.enter_context(running(server))
        user = proxy.add_user("ann", pull_push=["**"])
        user.push("team/app", here.digest, here)
        assert user.push_manifest("team/app", "1", index).status_code == 201
        assert proxy.command("cache", "purge", "--all", "--yes").exit_code == 0
        assert user.get("team/app", "manifests/1", Accept=index.media_type).content == index.manifest
        assert user.pull("team/app", here.digest) == here
        assert user.get("team/app", f"manifests/{elsewhere.digest}").status_code == 404
        verified = proxy.command("replica", "verify")
        assert (verified.exit_code, "1 child of an index is at no replica" in verified.stderr) == (0, True)


def test_a_registry_that_takes_none_is_the_switch(tmp_path: Path, copies: Copies) -> None:
    """Beside a registry that accepts a sparse index, one does not: the push succeeds, and the refusal is on record."""
    registries = [sparse_distribution(tmp_path / "first"), docker_registry(tmp_path / "second")]
    index = make_index(new_image())
    proxy = proxy_server(tmp_path / "proxy", registries, copies=copies)
    with ExitStack() as stack:
        for server in (*registries, proxy):
            stack.enter_context(running(server))
        user = proxy.add_user("ann", pull_push=["**"])
        answer = user.push_manifest("team/app", "1", index)
        assert answer.status_code == 201, answer.text
        assert user.get("team/app", "manifests/1", Accept=index.media_type).content == index.manifest
        assert proxy.command("replica", "repair").exit_code == 0
        refused = proxy.command("replica", "exceptions").stdout
        assert f"127.0.0.1:{registries[1].port}" in refused
        assert "because sha256:" in refused
