"""The program from the command line: `registry-proxy check-config` and `python -m registry_proxy serve`."""

import fcntl
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from registry_proxy.cli.main import app
from registry_proxy.offline.backup import Backup, write_file
from registry_proxy.ports.store import Table
from tests.conftest import StartProxy

ROOT = Path(__file__).parent.parent.parent
GOOD = str(ROOT / "config" / "example.yaml")


def test_check_config_says_ok() -> None:
    """A good file gives OK and exit status 0."""
    result = CliRunner().invoke(app, ["check-config", GOOD])
    assert (result.exit_code, result.stdout) == (0, "OK\n")


def test_check_config_tells_every_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad file gives each fault on a line of standard error, and exit status 1."""
    file = tmp_path / "bad.yaml"
    file.write_text(Path(GOOD).read_text().replace("workers: 1", "workers: many\nworker: 1"))
    monkeypatch.setenv("REGISTRY_PROXY__LISTEN", "nowhere")
    result = CliRunner().invoke(app, ["check-config", str(file)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["workers", "worker", "listen"]


@pytest.mark.parametrize("arguments", [["serve"], ["check-config"], ["no-such-command"], ["serve", "--password", "x"]])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    """An unknown command or option has the usual exit status of wrong usage."""
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("revoke user:ann", "No such command 'revoke'. Did you mean 'token revoke'?"),
        ("explan", "No such command 'explan'. Did you mean 'explain'"),
        ("grant revoke", "There are 'add', 'set', 'list', 'rm', 'replay'; elsewhere 'token revoke'."),
        ("user delete", "There are 'add', 'set', 'list', 'show', 'rm'."),
        ("user --delete", "No such option: --delete"),
    ],
)
def test_a_command_that_is_not_there_leads_to_those_that_are(words: str, message: str) -> None:
    """The message names the same command in another group, or the commands of the group."""
    result = CliRunner().invoke(app, words.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_module_and_the_command_are_one_program() -> None:
    """`python -m registry_proxy` lists the same commands."""
    command = [sys.executable, "-m", "registry_proxy", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert all(name in text for name in ("serve", "check-config", "user", "grant", "explain"))


def test_serve_refuses_a_bad_configuration(tmp_path: Path) -> None:
    """Nothing starts: the faults are on standard error, the status is 1, no file is made."""
    file = tmp_path / "bad.yaml"
    file.write_text("workers: many\n")
    command = [sys.executable, "-m", "registry_proxy", "serve", "--config", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert ended.returncode == 1
    assert f"{file}:1: workers: expected a whole number" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_serve_says_why_it_cannot_start(start_proxy: StartProxy) -> None:
    """A second service on the cache of a running one ends with status 1 and a sentence; the first goes on."""
    running = start_proxy([_Nowhere()])
    other = running.root / "other.yaml"
    text = running.config.read_text()
    other.write_text(text.replace(f":{running.port}", ":1025").replace(f":{running.admin_port}", ":1026"))
    command = [sys.executable, "-m", "registry_proxy", "serve", "--config", str(other)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert ended.returncode == 1
    assert f"belongs to a registry-proxy that is running (process {running.pid})" in ended.stderr
    assert running.workers()


class _Nowhere:
    """A registry that does not exist."""

    url = "http://127.0.0.1:1"


def test_the_version_is_printed() -> None:
    """`--version` prints the release."""
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"registry-proxy {version('registry-proxy')}\n")


def test_a_store_is_backed_up_and_restored_by_command(tmp_path: Path) -> None:
    """A store under a running node is refused; failures are reported in a sentence, with 1, without a traceback."""
    config = tmp_path / "config.yaml"
    store = {"store": f"sqlite:///{tmp_path / 'store.db'}", "cache": {"path": str(tmp_path / "cache")}}
    upstreams = {"main": {"replicas": [{"url": "http://127.0.0.1:1"}]}}
    key = {"signing_key_file": str(tmp_path / "key.pem")}
    routes = [{"prefix": "", "upstream": "main"}]
    config.write_text(json.dumps({**store, "upstreams": upstreams, "routes": routes, "auth": key}))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--config", str(config)], catch_exceptions=False)

    file = str(tmp_path / "backup")
    write_file(Backup(1, {Table.USERS: {"ann": {}}}), file, replaces=False)
    restored = run("restore", file)
    assert (restored.exit_code, "replica verify" in restored.stderr) == (0, True), restored.output
    assert f"restored into {tmp_path / 'store.db'}" in restored.stderr
    made = run("backup", file, "--replace")
    assert (made.exit_code, f"records are in {file}" in made.stderr) == (0, True), made.output
    for wrong in (["restore", str(config)], ["restore", "/nowhere"], ["backup", "/nowhere/backup"], ["backup", file]):
        refused = run(*wrong)
        assert (refused.exit_code, "error:" in refused.stderr) == (1, True)
    with (tmp_path / "cache" / "node.lock").open("w") as lock:  # a running node would go on with its memory
        fcntl.flock(lock, fcntl.LOCK_EX)
        print("4711", file=lock, flush=True)
        refused = run("restore", file)
    assert refused.exit_code == 1
    assert "running (process 4711)" in refused.stderr
    assert "Stop the nodes" in refused.stderr


def test_a_shell_completes_commands_and_options() -> None:
    """The script of `--install-completion` asks the program, which knows its commands and options."""
    asked = {"registry-proxy user ": "add set list show rm", "registry-proxy grant set --m": "--mode"}
    for words, expected in asked.items():
        line = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = CliRunner().invoke(app, [], env={"_REGISTRY_PROXY_COMPLETE": "complete_bash", **line})
        assert result.stdout.split() == expected.split()


@pytest.mark.parametrize("command", [[], ["user"], ["user", "add"], ["serve"]])
def test_the_short_option_shows_the_help(command: list[str]) -> None:
    """`-h` prints what `--help` prints, for a group and for a command."""
    short, long = (CliRunner().invoke(app, [*command, option]) for option in ("-h", "--help"))
    assert (short.exit_code, short.stdout) == (0, long.stdout)
