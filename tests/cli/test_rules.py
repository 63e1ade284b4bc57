"""The commands of rules, against the admin API in this process."""

import json
from typing import Any

from typer.testing import Result

from tests.cli.conftest import Run


def _json(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_rule_is_made_changed_and_removed(run: Run) -> None:
    """Each option sets its field, `set` leaves the others, `--without` removes a condition."""
    options = ["--label", "source=https://git.example/*", "--label", "revision", "--max-size", "1KiB", "--not-root"]
    options += ["--max-age", "1h", "--immutable", "overwrite", "--platform", "linux/*", "--media-type", "a/*"]
    options += ["--base", "base/**", "--base", "scratch", "--max-floors", "3"]
    options += ["--except-tag", "dev-*", "--tags", "v*", "--max-layers", "9", "--advice", "See the wiki.", "--warn"]
    made = _json(run("rule", "add", "strict", "prod/**", *options, "--json"))
    expected = {
        "name": "strict",
        "repository": "prod/**",
        "tags": "v*",
        "except_tags": ["dev-*"],
        "mode": "warn",
        "labels": {"source": "https://git.example/*", "revision": "*"},
        "max_size_bytes": 1024,
        "max_layers": 9,
        "media_types": ["a/*"],
        "platforms": ["linux/*"],
        "not_root": True,
        "max_age_seconds": 3600,
        "bases": ["base/**", "scratch"],
        "max_floors": 3,
        "immutable": ["overwrite"],
        "advice": "See the wiki.",
    }
    assert made == expected
    changed = _json(run("rule", "set", "strict", "--enforce", "--without", "max_age_seconds", "--json"))
    assert changed == {**expected, "mode": "enforce", "max_age_seconds": None}
    assert _json(run("rule", "show", "strict", "--json")) == changed
    assert run("rule", "list").stdout.splitlines()[1].split()[:2] == ["strict", "prod/**"]
    assert "exists already" in run("rule", "add", "strict", "**", "--not-root").stderr
    assert run("rule", "rm", "strict").exit_code == 0
    assert "There are no rules." in run("rule", "list").stderr


def test_explain_has_one_line_for_each_rule(run: Run) -> None:
    """Beside what the grants allow stand name, mode and conditions in words of each rule that may refuse the push."""
    run("grant", "add", "user:bob", "team/**", "push")
    run("rule", "add", "strict", "team/**", "--not-root", "--immutable", "overwrite")
    run("rule", "add", "soft", "team/**", "--max-layers", "3", "--warn")
    shown = run("explain", "user:bob", "team/app:v1", "push")
    lines = [line.split(maxsplit=2) for line in shown.stdout.splitlines()]
    assert lines[0] == ["grants", "allow", "yes"]
    assert lines[-2:] == [
        ["rule", "soft", "only warns (warn): number of layers"],
        ["rule", "strict", "may refuse (enforce): user of the image, who must not be root, tags that stay as they are"],
    ]
    assert "'conditions'" not in shown.stdout


def test_wrong_input_of_a_rule_is_reported(run: Run) -> None:
    """The fault and its option are named, and nothing is made."""
    assert "has no condition" in run("rule", "add", "r", "prod/**").stderr
    assert "repository: expected" in run("rule", "add", "r", "Prod", "--not-root").stderr
    assert "--max-size" in run("rule", "add", "r", "prod/**", "--max-size", "big").stderr
    assert "nothing to change" in run("rule", "set", "r").stderr
    assert "is no condition" in run("rule", "set", "r", "--without", "user").stderr
    assert "there is no rule r" in run("rule", "set", "r", "--enforce").stderr
    assert _json(run("rule", "list", "--json")) == []
