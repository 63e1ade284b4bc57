"""`registry-proxy audit`, against a real admin listener and a log that is written meanwhile."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry_proxy.cli import audit
from tests.cli.conftest import Run


def test_tail_goes_on_below_its_headings(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes is printed as it comes, once, under the headings of what was there; they are not repeated."""
    log, times = tmp_path / "audit" / "0-000000000001.jsonl", iter(range(4))
    log.parent.mkdir(exist_ok=True)

    def write(_: float = 0) -> None:
        if (second := next(times)) == 3:
            raise KeyboardInterrupt
        event = {"seq": second + 1, "time": f"2020-01-31T00:00:0{second}.000000Z", "action": "push", "process": "0"}
        with log.open("a") as file:
            file.write(json.dumps(event, separators=(",", ":")) + "\n")

    write()
    monkeypatch.setattr(audit, "time", SimpleNamespace(sleep=write))
    lines = [line.split()[0] for line in run("audit", "tail", "-f").stdout.splitlines() if line.strip()]
    assert lines == ["TIME", *(f"2020-01-31T00:00:0{second}Z" for second in range(3))]


def test_what_the_log_cannot_hold_is_a_mistake_that_is_told(run: Run) -> None:
    """Nobody takes a misspelt subject or outcome for an empty log; times tell what one looks like."""
    for wrong, told in (
        (["--subject", "ann"], "subject: expected user:NAME"),
        (["--outcome", "bad"], "outcome: expected one of ok, refused"),
        (["--since", "yesterday"], "since: expected a time with its zone"),
    ):
        result = run("audit", "search", *wrong)
        assert (result.exit_code, told in " ".join(result.stderr.split())) == (1, True), result.output
        assert "%2B" not in result.stderr
    assert run("audit", "search", "--subject", "user:ann", "--outcome", "denied").exit_code == 0
