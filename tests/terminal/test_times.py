"""Options that take a time."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry_proxy.audit.chain import START_HASH, file_name, seal
from registry_proxy.audit.trail import format_moment
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("given", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("30d", 30 * 86_400), ("1.5h", 5400)]
)
def test_an_end_may_be_given_as_a_duration(run: Run, given: str, seconds: float) -> None:
    """A duration is counted from now, for robots and grants, made and changed alike."""
    grant = json.loads(run("grant", "add", "user:bob", "team/**", "pull", "--expires-at", given, "--json").stdout)
    robot = json.loads(run("robot", "add", "ci", "--expires-at", given, "--json").stdout)
    run("robot", "set", "ci", "--expires-at", "never")
    changed = json.loads(run("robot", "set", "ci", "--expires-at", given, "--json").stdout)
    for made in (grant, robot, changed):
        ahead = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
        assert timedelta(seconds=seconds - 60) < ahead <= timedelta(seconds=seconds)


def test_a_search_goes_back_by_a_duration(run: Run, tmp_path: Path) -> None:
    """--since finds the events of that time until now, --until those before it."""
    lines, digest, now = [], START_HASH, datetime.now(UTC)
    for seq, hours in enumerate((3, 2, 0), 1):
        at = format_moment((now - timedelta(hours=hours)).timestamp())
        line, digest = seal(digest, seq, at, {"action": f"{hours} hours ago", "outcome": "ok", "process": "0"})
        lines.append(line)
    (tmp_path / "audit").mkdir(exist_ok=True)
    (tmp_path / "audit" / file_name("0", 1)).write_bytes(b"".join(lines))

    def found(*options: str) -> list[str]:
        return [json.loads(line)["action"] for line in run("audit", "search", *options, "--json").stdout.splitlines()]

    assert found("--since", "1h") == ["0 hours ago"]
    assert found("--until", "150m") == ["3 hours ago"]
    assert found("--since", "150m", "--until", "1h") == ["2 hours ago"]


def test_a_duration_has_a_unit_and_an_end(run: Run) -> None:
    """A number alone is no time, and an endless duration is refused before a request."""
    for wrong in ("3600", "yesterday", "2030-01-31T00:00:00"):
        refused = run("grant", "add", "user:bob", "team/**", "pull", "--expires-at", wrong)
        message = " ".join(refused.stderr.replace("│", " ").split())
        assert refused.exit_code == 2
        assert "'--expires-at': expected a time with its zone" in message
    result = run("robot", "add", "ci", "--expires-at", "99999999d")
    assert (result.exit_code, "out of the calendar" in result.stderr) == (2, True)
