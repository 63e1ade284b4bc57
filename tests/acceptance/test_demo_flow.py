"""`make demo-flow`: from `git push` to a running container and back, with git, the Docker engine and HTTP."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.acceptance("docker", "dockerd"), pytest.mark.timeout(600)]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that leaves room for the sockets of an engine."""
    with tempfile.TemporaryDirectory(prefix="demo-") as path:
        yield Path(path)


def test_a_commit_reaches_a_container_and_the_tag_goes_back(directory: Path) -> None:
    """Each version is served in its turn, its commit is on record, and nothing of the demo is left behind."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.demo_flow"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^  (version [0-9])$", done.stdout, re.MULTILINE) == ["version 1", "version 2", "version 1"]
    first, second = re.findall(r"from commit ([0-9a-f]{40})", done.stdout)
    assert re.findall(r"\b(push|rollback)\b", done.stdout.partition("tag history")[2].partition("$ ")[0]) == [
        "rollback",
        "push",
        "push",
    ]
    history = done.stdout.rpartition("--history")[2]
    assert re.findall(r"[0-9a-f]{40}", history) == [first, second, first]
    assert [line.split()[5] for line in history.splitlines() if "succeeded" in line] == ["yes", "no", "no"]
    assert list(directory.iterdir()) == []
    assert str(directory) not in Path("/proc/self/mounts").read_text()
    assert [process for process in psutil.process_iter() if str(directory) in " ".join(_arguments(process))] == []


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
