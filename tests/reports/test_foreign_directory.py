"""A foreign directory stays unchanged: the service writes and deletes only in directories that it made.

Reports: "cache.path pointed at /srv/data, and the files in its temp/ and fills/ were gone".
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from registry_proxy.cache.layout import prepare_cache
from registry_proxy.cli.main import app
from tests.conftest import StartProxy
from tests.support.copied import Copies
from tests.support.product import proxy_server
from tests.support.servers import Server, wait_until

NOWHERE = Server([], 1, Path())


def tree(root: Path) -> dict[str, bytes]:
    """Return the files below a directory."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def written(directory: Path, *names: str) -> Path:
    """Make a directory with some files."""
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of somebody else")
    return directory


@pytest.mark.parametrize("name", ["temp/x", "fills/x.part", "metrics/x.txt", "blobs/x", "photo.jpg", "schema"])
def test_a_foreign_directory_is_refused_untouched(tmp_path: Path, copies: Copies, name: str) -> None:
    """`serve`, `restore` and `check-config` name the key and the directory, and change nothing in it."""
    proxy = proxy_server(tmp_path, [NOWHERE], copies=copies)
    before = tree(written(proxy.cache, name))
    proxy.launch()
    wait_until(lambda: proxy.has_ended, "it has refused to start")
    for text in (
        proxy.log_text(),
        CliRunner().invoke(app, ["check-config", str(proxy.config)]).stderr,
        CliRunner().invoke(app, ["restore", "backup", "--config", str(proxy.config)]).stderr,
    ):
        assert "cache.path: expected a new or empty directory, or a cache of ours" in " ".join(text.split())
        assert str(proxy.cache) in text
    assert tree(proxy.cache) == before


def _of_an_older_release(cache: Path) -> None:
    prepare_cache(cache)
    (cache / "schema").write_text("1\n")
    (cache / "audit").mkdir()


def _of_a_start_that_was_cut(cache: Path) -> None:
    cache.mkdir()
    for name in ("node.lock", "changes", "discovered.json", "schema.new"):
        (cache / name).touch()
    (cache / "metrics").mkdir()
    (cache / "metrics" / "counter_0-1.db").touch()


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        lambda cache: cache.mkdir(),
        lambda cache: (cache / "lost+found").mkdir(parents=True),
        _of_an_older_release,
        _of_a_start_that_was_cut,
    ],
    ids=["absent", "empty", "a new file system", "of an older release", "of a start that was cut"],
)
def test_a_directory_of_ours_or_of_nobody_is_taken(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """A new directory, the root of a file system, and leftovers of an older release or a cut start are accepted."""
    proxy = proxy_server(tmp_path, [NOWHERE])
    make(proxy.cache)
    checked = CliRunner().invoke(app, ["check-config", str(proxy.config)])
    assert (checked.exit_code, checked.stdout) == (0, "OK\n")
    prepare_cache(proxy.cache)
    assert (proxy.cache / "schema").read_text() == "2\n"


def test_a_second_start_finds_its_own(start_proxy: StartProxy) -> None:
    """The files of a running node, killed at any moment, are accepted by the next start."""
    proxy = start_proxy([NOWHERE])
    proxy.kill_everything()
    proxy.start()
