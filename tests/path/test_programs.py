"""`make acceptance`: a third-party program that is unavailable is named, and fails nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import build

ROOT = Path(__file__).parents[2]


def built(monkeypatch: pytest.MonkeyPatch, directory: Path, go: str) -> int:
    """Build one program into a directory by a go command that downloads nothing."""
    monkeypatch.setenv("ACCEPTANCE_PROGRAMS", str(directory))
    monkeypatch.setattr(build, "PROGRAMS", (build.Program("crane", "example.test/crane", "v1.0.0", "cmd/crane"),))
    monkeypatch.setattr(build, "find_go", lambda _programs: go)
    return build.main()


def test_a_program_that_cannot_be_built_fails_nothing_and_leaves_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The build goes on, and the last line of the failed build lies beside the programs."""
    go = tmp_path / "go"
    (tmp_path / "work-of-a-killed-build").mkdir()
    go.write_text("#!/bin/sh\necho some words\necho example.test/crane: not served\nexit 1\n")
    go.chmod(0o755)
    assert built(monkeypatch, tmp_path, str(go)) == 0
    assert build.find_failure(tmp_path, build.PROGRAMS[0]) == "example.test/crane: not served"
    assert not (tmp_path / "crane").exists()
    assert not list(tmp_path.glob("work-*"))


def test_a_program_that_cannot_be_built_is_tried_once_a_day(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A failed download or build costs no time in later runs; after a day it is tried again."""
    go = tmp_path / "go"
    go.write_text('#!/bin/sh\necho once >>"${0%/*}/log"\nexit 1\n')
    go.chmod(0o755)
    for _ in range(2):
        assert built(monkeypatch, tmp_path, str(go)) == 0
    assert (tmp_path / "log").read_text() == "once\n"
    os.utime(tmp_path / "crane.failed", (0, 0))
    assert built(monkeypatch, tmp_path, str(go)) == 0
    assert (tmp_path / "log").read_text() == "once\nonce\n"


def test_a_program_is_built_once_for_each_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An existing program is not built again; one built from another version is."""
    go = tmp_path / "go"
    go.write_text('#!/bin/sh\n[ "$1" != build ] || { echo once >>"${0%/*}/log"; touch "$5"; }\n')
    go.chmod(0o755)
    for _ in range(2):
        assert built(monkeypatch, tmp_path, str(go)) == 0
    assert (tmp_path / "log").read_text() == "once\n"
    (tmp_path / "crane.stamp").write_text("another recipe")
    assert built(monkeypatch, tmp_path, str(go)) == 0
    assert (tmp_path / "log").read_text() == "once\nonce\n"


def test_tests_without_their_programs_are_deselected_by_name(tmp_path: Path) -> None:
    """Where nothing was built, pytest names the missing programs and the number of tests left out; it skips none."""
    command = [sys.executable, "-m", "pytest", "-m", "acceptance", "tests/acceptance", "--collect-only", "-q"]
    environment = {**os.environ, "ACCEPTANCE_PROGRAMS": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "not installed: crane (`make acceptance` builds it): " in done.stdout, done.stdout
    assert "skipped" not in done.stdout
