"""A command that works on files names them, and never creates the file that it should read.

Reports: "the nightly backup ran from cron, in another directory: for a month it had saved an empty store, exit 0".
"""

import asyncio
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from registry_proxy.cli.main import app
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Change, Table
from registry_proxy.store.open import open_store
from tests.support.servers import Server

FIRST_ADMIN = Change(Table.USERS, "admin", {"admin": True})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a configuration whose paths are relative."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    config = {
        "upstreams": {"main": {"replicas": [{"url": "http://127.0.0.1:1"}]}},
        "routes": [{"prefix": "", "upstream": "main"}],
        "store": "sqlite:///var/store.db",
    }
    (home / "config.yaml").write_text(json.dumps(config))
    return home


def use_store(url: str, *changes: Change) -> list[str]:
    """Open a store as a node does at its start, make some changes, and return the users in it."""

    async def use() -> list[str]:
        async with open_store(url, None) as (store, _):
            await store.commit(changes)
            return [record.key for record in await store.list(Table.USERS)]

    return asyncio.run(use())


def run(home: Path, *arguments: str, stdin: bytes = b"", **environment: str) -> Result:
    """Run a command with the configuration."""
    command = [*arguments, "--config", str(home / "config.yaml")]
    return CliRunner().invoke(app, command, input=stdin, env=environment, catch_exceptions=False)


def test_a_store_that_is_not_there_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another working directory it ends with 1 and both absolute paths, and nothing is made."""
    use_store("sqlite:///var/store.db", FIRST_ADMIN)
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    made = run(home, "backup", "backup")
    assert made.exit_code == 1
    assert f"{elsewhere / 'var' / 'store.db'} is not there (the working directory is {elsewhere})" in made.stderr
    assert os.listdir(elsewhere) == []


def test_nothing_to_back_up_is_an_error(home: Path, redis: Server) -> None:
    """A store that no node has used, of either kind, is no backup: exit status 1, and no file."""
    use_store("sqlite:///var/store.db")
    urls = {"sqlite": "sqlite:///var/store.db", "redis": f"redis://127.0.0.1:{redis.port}/7"}
    for name, url in urls.items():
        made = run(home, "backup", name, REGISTRY_PROXY__STORE=url)
        assert (made.exit_code, "nothing to back up" in made.stderr) == (1, True), made.output
        assert not (home / name).exists()


def test_a_backup_goes_through_a_pipe(home: Path) -> None:
    """`backup -` prints only the backup on standard output, and `restore -` reads it; no file named - is made."""
    use_store("sqlite:///var/store.db", FIRST_ADMIN)
    made = run(home, "backup", "-")
    assert made.exit_code == 0
    assert json.loads(made.stdout_bytes.splitlines()[0])["format"] == "registry-proxy backup"
    store = "sqlite:///var/other.db"
    restored = run(home, "restore", "-", stdin=made.stdout_bytes, REGISTRY_PROXY__STORE=store)
    assert (restored.exit_code, str(home / "var" / "other.db") in restored.stderr) == (0, True), restored.output
    assert use_store(store) == ["admin"]
    assert not (home / "-").exists()


async def test_a_worker_makes_no_empty_store(home: Path) -> None:
    """Only the start of a node makes a store: a removed one must not come back without its grants."""
    with pytest.raises(StoreUnavailableError, match=str(home / "gone.db")):
        async with open_store("sqlite:///gone.db", None, may_create=False):
            raise AssertionError("it was opened")
    assert not (home / "gone.db").exists()
