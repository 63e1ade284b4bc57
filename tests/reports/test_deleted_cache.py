"""The cache directory may be deleted: what must outlive it lies beside it, and what is lost all the same is told.

Reports: "we deleted the cache as the manual says, and 90 days of audit log were gone; `audit verify` said as written".
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from registry_proxy.cache.layout import CacheMoveError, CachePaths, prepare_cache, read_node_id
from tests.conftest import StartProxy
from tests.product import Proxy
from tests.servers import Server

NOWHERE = Server([], 1, Path())


def names(directory: Path) -> list[str]:
    """Return the paths of the files below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def restarted_without(proxy: Proxy, *directories: Path) -> None:
    """Stop a node, delete some of its directories, start it again."""
    proxy.stop()
    for directory in directories:
        shutil.rmtree(directory)
    proxy.start()


def test_the_audit_log_outlives_the_cache(start_proxy: StartProxy) -> None:
    """With the cache deleted, the log is whole, the node is the same one, and what happened before is found."""
    proxy = start_proxy([NOWHERE])
    proxy.add_user("ann")
    node_id = read_node_id(CachePaths(str(proxy.cache)))
    restarted_without(proxy, proxy.cache)
    assert read_node_id(CachePaths(str(proxy.cache))) == node_id
    assert "/admin/v1/users/ann" in proxy.command("audit", "search", "--action", "users.put").stdout
    verified = proxy.command("audit", "verify")
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize("also_cache", [False, True], ids=["the log", "the log and the cache"])
def test_a_log_that_is_gone_is_named(start_proxy: StartProxy, also_cache: bool) -> None:  # noqa: FBT001 - a parameter
    """`audit verify` names every signed head that no file answers, and ends with 1, also when the node's id is gone."""
    proxy = start_proxy([NOWHERE], {"workers": 2})
    proxy.stop()
    signed = {path.name.partition("-")[0] for path in proxy.audit.glob("[0-9]*.jsonl")}
    assert len(signed) == 2
    shutil.rmtree(proxy.audit)
    if also_cache:
        shutil.rmtree(proxy.cache)
    proxy.start()
    verified = proxy.command("audit", "verify")
    assert verified.exit_code == 1
    for process in signed:
        assert re.search(rf"^(process {process} |{process}-\d+\.jsonl)", verified.stderr, re.MULTILINE)


def _whole(cache: Path) -> None:
    (cache / "audit").mkdir(parents=True)
    for name in ("0-000000000001.jsonl", "decisions-0.jsonl"):
        (cache / "audit" / name).write_text(name)
    (cache / "pins").mkdir()
    (cache / "pins" / f"sha256-{'a' * 64}").touch()
    (cache / "node-id").write_text("the node")
    (cache / "schema").write_text("1\n")


def _half_moved(cache: Path) -> None:
    _whole(cache)
    kept = cache.with_name("cache.audit")
    kept.mkdir()
    shutil.move(cache / "audit" / "decisions-0.jsonl", kept)
    shutil.copy(cache / "audit" / "0-000000000001.jsonl", kept)
    (kept / "0-000000000001.jsonl.0123456789abcdef").touch()


@pytest.mark.parametrize("make", [_whole, _half_moved])
def test_what_an_older_release_kept_inside_is_moved(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Log, id and pins of a cache of 0.1.0 are beside it after a start, also after one that was cut off."""
    cache, kept = tmp_path / "cache", tmp_path / "cache.audit"
    make(cache)
    prepare_cache(cache)
    expected = ["0-000000000001.jsonl", "decisions-0.jsonl", "node-id", f"pins/sha256-{'a' * 64}"]
    assert [name for name in names(kept) if len(name.split(".")) < 3] == expected
    assert (kept / "0-000000000001.jsonl").read_text() == "0-000000000001.jsonl"
    assert (kept / "node-id").read_text() == "the node"
    assert not (cache / "audit").exists()
    assert not (cache / "pins").exists()
    assert (cache / "schema").read_text() == "2\n"


def test_a_place_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Where nothing can lie beside the cache, the start says which directory to make, and nothing is lost."""
    cache = tmp_path / "cache"
    _whole(cache)
    (tmp_path / "cache.audit").touch()
    with pytest.raises(CacheMoveError, match=r"cache\.audit: File exists; the service keeps in .* make that directory"):
        prepare_cache(cache)
    assert (cache / "audit" / "0-000000000001.jsonl").exists()
    assert (cache / "schema").read_text() == "1\n"
