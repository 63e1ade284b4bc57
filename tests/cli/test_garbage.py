"""`replica pause`, `resume` and `gc` against a real admin listener: their order, and every way to stop midway."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from registry_proxy.cli import garbage, pauses
from registry_proxy.ports.journal import Pause
from tests.cli.conftest import Run
from tests.support.admin_bench import Node


@pytest.fixture
def node(listener: tuple[str, Node]) -> Node:
    """Give a node whose comparisons end immediately, and whose replicas are quiet as soon as they are paused."""
    node = listener[1]
    node.loop.call_soon_threadsafe(node.verifier.gate.set)
    node.maintains.is_over = True
    return node


def paused(node: Node) -> list[str]:
    """Return the replicas that are paused."""
    return [one.name for one in node.upstreams["main"].replicas if one.pause]


def test_each_replica_is_collected_while_it_alone_is_paused(run: Run, node: Node, tmp_path: Path) -> None:
    """The command receives name and URL, without the password; replicas are compared before, between and after."""
    notes = tmp_path / "notes"
    result = run("replica", "gc", "main", "--run", f'echo "$REPLICA $REPLICA_URL" >> {notes}; echo done', "--json")
    assert result.exit_code == 0, result.output
    assert notes.read_text().splitlines() == ["a http://127.0.0.1:5001", "b http://[::1]:5002/"]
    assert [(one["replica"], one["returned"]) for one in json.loads(result.stdout)] == [("a", 0), ("b", 0)]
    assert [repair for repair, _ in node.verifier.asked] == [True, True, True]
    assert paused(node) == []
    assert run("replica", "gc", "main", "--replica", "b", "--run", f"echo once >> {notes}").exit_code == 0
    assert notes.read_text().count("once") == 1


def test_a_command_that_fails_leaves_its_replica_paused(run: Run, node: Node, tmp_path: Path) -> None:
    """The message says so and how to go on; the next replica is left alone; a second run is refused."""
    notes = tmp_path / "notes"
    result = run("replica", "gc", "main", "--run", f"echo $REPLICA >> {notes}; exit 3")
    assert (result.exit_code, notes.read_text()) == (1, "a\n")
    assert "The command for replica a of main ended with 3: the replica stays paused" in result.stderr
    assert "registry-proxy replica resume main a" in result.stderr
    assert paused(node) == ["a"]
    again = run("replica", "gc", "main", "--run", f"echo $REPLICA >> {notes}")
    assert (again.exit_code, "a of main is paused already, by user:admin" in again.stderr) == (1, True)
    assert notes.read_text() == "a\n"
    assert run("replica", "resume", "main", "a").exit_code == 0
    assert paused(node) == []


def test_an_interrupt_waits_for_the_command_and_resumes(run: Run, node: Node, tmp_path: Path) -> None:
    """The replica is written to again only after the command has ended."""
    notes = tmp_path / "notes"
    result = run("replica", "gc", "main", "--run", f"kill -INT $PPID; sleep 0.5; echo $REPLICA >> {notes}")
    assert (result.exit_code, notes.read_text()) == (1, "a\n")
    assert "Interrupted; replica a of main is written to again" in result.stderr
    assert paused(node) == []


def test_a_second_interrupt_leaves_command_and_pause(run: Run, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second interrupt the message says that the command still runs and the replica stays paused."""
    wait = os.waitpid
    children: list[int] = []

    def interrupted(pid: int, _: int) -> None:
        children.append(pid)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "waitpid", interrupted)
    result = run("replica", "gc", "main", "--run", "true")
    wait(children[0], 0)
    assert result.exit_code == 1
    assert "was left running: the replica stays paused" in result.stderr
    assert paused(node) == ["a"]


def test_a_registry_that_remembers_blobs_stays_paused(run: Run, node: Node) -> None:
    """Its command succeeded without a restart of it: the next replica is left alone, and --force continues."""
    node.maintains.remembers = True
    result = run("replica", "gc", "main", "--run", "true")
    assert (result.exit_code, "replica a remembers blobs" in result.stderr) == (1, True)
    assert paused(node) == ["a"]
    assert run("replica", "resume", "main", "a").exit_code == 1
    assert run("replica", "resume", "main", "a", "--force").exit_code == 0
    assert paused(node) == []


def test_the_operator_collects(run: Run, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a command each replica waits for Enter; without a terminal the replica is resumed."""
    seen: list[list[str]] = []
    monkeypatch.setattr("builtins.input", lambda: seen.append(paused(node)))
    result = run("replica", "gc", "main")
    assert (result.exit_code, seen) == (0, [["a"], ["b"]]), result.output

    def end() -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    result = run("replica", "gc", "main")
    assert (result.exit_code, "Give --run COMMAND" in result.stderr) == (1, True)
    assert paused(node) == []


Arrange = Callable[[Node], object]


def resume_behind_its_back(node: Node) -> None:
    """Make every pause be over when it is read."""
    pause = node.maintains.pause

    async def vanish(replica: str, reason: str, by: str) -> None:
        await pause(replica, reason, by)
        await node.maintains.resume(replica, by)

    node.maintains.pause = vanish  # type: ignore[method-assign]  # as if somebody else resumed it


def test_a_replica_resumed_while_its_command_runs(run: Run, node: Node) -> None:
    """Writes during the pause may have met the collection: a warning says so, and the next replica is left alone."""
    resume = f"{sys.executable} -P -m registry_proxy replica resume main $REPLICA"
    result = run("replica", "gc", "main", "--run", resume)
    assert (result.exit_code, "a of main was resumed by somebody else" in result.stderr) == (1, True), result.stderr
    assert paused(node) == []


@pytest.mark.parametrize(
    ("arrange", "arguments", "message"),
    [
        (lambda _: None, ["--replica", "c"], "Upstream main has no replica c"),
        (lambda node: setattr(node.maintains, "is_over", False), [], "Something is still being written to replica a"),
        (resume_behind_its_back, [], "Replica a of main was resumed by somebody else"),
        (lambda node: setattr(node.upstreams["main"].replicas[0], "state", "down"), [], "is not up after 0 s"),
    ],
    ids=["unknown", "never quiet", "resumed", "does not come up"],
)
def test_a_collection_that_cannot_go_on_is_reported(
    run: Run,
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    arrange: Arrange,
    arguments: Sequence[str],
    message: str,
) -> None:
    """The exit status is 1 with the reason, and no replica stays paused."""
    monkeypatch.setattr(pauses, "_QUIET_SECONDS", 0)
    monkeypatch.setattr(garbage, "_UP_SECONDS", 0)
    arrange(node)
    result = run("replica", "gc", "main", *arguments, "--run", "true")
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr
    assert paused(node) == []


def test_a_pause_is_listed(run: Run, node: Node) -> None:
    """State and reason in the table say that a replica is paused, with the user and the reason."""
    result = run("replica", "pause", "main", "a", "--reason", "its disk", "--json")
    assert (result.exit_code, json.loads(result.stdout)["replicas"][0]["paused"]["quiet"]) == (0, True)
    node.upstreams["main"].notices = ["it is paused for long"]
    listed = run("replica", "list")
    assert "up, paused" in listed.stdout
    assert "paused by user:admin since 2017-07-14T02:40:00Z: its disk" in listed.stdout
    assert "Warning: it is paused for long." in listed.stderr
    assert isinstance(node.upstreams["main"].replicas[0].pause, Pause)
