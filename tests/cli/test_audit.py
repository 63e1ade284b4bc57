"""`registry-proxy audit`, against a real admin listener and a log that grows meanwhile."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from registry_proxy.cli import audit
from tests.cli.conftest import Run


def test_tail_goes_on_below_its_headings(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New events are printed as they come, once, under the first headings, which are not repeated."""
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


def test_a_search_that_the_log_cannot_match_is_an_error(run: Run) -> None:
    """A misspelt subject or outcome is an error, not an empty log; a wrong time is answered with an example."""
    for wrong, message in (
        (["--subject", "ann"], "subject: expected user:NAME"),
        (["--outcome", "bad"], "outcome: expected one of ok, refused"),
    ):
        result = run("audit", "search", *wrong)
        assert (result.exit_code, message in " ".join(result.stderr.split())) == (1, True), result.output
    wrong_time = run("audit", "search", "--since", "yesterday")
    assert (wrong_time.exit_code, "expected a time with its zone" in wrong_time.stderr) == (2, True)
    assert run("audit", "search", "--subject", "user:ann", "--outcome", "denied").exit_code == 0


def test_a_row_names_the_subject_and_the_outcome(run: Run, tmp_path: Path) -> None:
    """A row of a grant or revocation names its subject, of a failure the answer, of a refused login the reason."""
    detail = {"path": "/admin/v1/revocations", "status": 201, "asked": {"subject": "user:ann"}}
    failed = {"path": "/admin/v1/users/ann", "status": 400, "asked": None}
    events: list[dict[str, Any]] = [
        {"action": "revocations.post", "outcome": "ok", "detail": detail},
        {"action": "grants.post", "outcome": "ok", "repository": "team/**", "detail": detail},
        {"action": "users.put", "outcome": "failed", "detail": failed},
        {"action": "login", "outcome": "failed", "rule": "LDAP does not answer"},
        {"action": "worker.start", "outcome": "ok"},
    ]
    log = tmp_path / "audit" / "0-000000000001.jsonl"
    log.parent.mkdir(exist_ok=True)
    place = {"time": "2020-01-31T00:00:00.000000Z", "process": "0"}
    lines = [json.dumps({"seq": seq, **place, **event}, separators=(",", ":")) for seq, event in enumerate(events, 1)]
    log.write_text("\n".join([*lines, ""]))
    rows = [" ".join(line.split()[1:]) for line in run("audit", "tail").stdout.splitlines()[1:]]
    assert rows == [
        "revocations.post ok - /admin/v1/revocations user:ann - -",
        "grants.post ok - team/** user:ann - -",
        "users.put failed - /admin/v1/users/ann - answered 400",
        "login failed - - - LDAP does not answer",
        "worker.start ok - - - -",
    ]
    last = run("audit", "search", "--last", "2", "--outcome", "failed").stdout.splitlines()[1:]
    assert [line.split()[:2] for line in last] == [
        ["2020-01-31T00:00:00Z", "users.put"],
        ["2020-01-31T00:00:00Z", "login"],
    ]
