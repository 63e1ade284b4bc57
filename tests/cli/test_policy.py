"""`registry-proxy access`: the policy as a file, against a real admin listener."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Run
from tests.support.admin_bench import BOB, Node

POLICY = """\
version: 1
groups:
  dev: [bob]
grants:
  - {subject: "group:dev", repository: team/**, actions: [pull, push]}
  - {subject: anonymous, repository: "home/{subject}/**", actions: [pull], mode: warn, expires_at: 2100-01-01T00:00:00Z}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file with a policy."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def wait(node: Node, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine in the loop of the listener."""
    return asyncio.run_coroutine_threadsafe(work(), node.loop).result(20)


def test_a_policy_for_nobody_is_applied_with_a_warning(run: Run, tmp_path: Path) -> None:
    """Each absent subject is named once, up to a bound; groups of the file count as present."""
    names = ["group:dev", "user:bob", "anonymous", "group:ghosts", *(f"user:nobody{number:02}" for number in range(30))]
    grants = [{"subject": name, "repository": where, "actions": ["pull"]} for name in names for where in ("a", "b")]
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "groups": {"dev": ["bob"]}, "grants": grants}))
    for command in (["diff"], ["apply", "--dry-run"], ["apply"]):
        lines = [
            line for line in run("access", *command, str(file)).stderr.splitlines() if line.startswith("warning: ")
        ]
        assert len(lines) == 11
        assert lines[0].startswith("warning: there is no group:ghosts, and no rule of auth.oidc puts anybody into it: ")
        assert lines[1] == "warning: there is no user:nobody00: until that changes, its grants allow nothing"
        assert lines[-1] == "warning: and 21 more of the kind"
    assert "warning" not in run("access", "apply", str(file)).stderr, "nothing is new"


def test_a_policy_goes_round_by_a_file(run: Run, file: Path) -> None:
    """An exported policy equals the applied one: `diff` and `apply` find no difference."""
    applied = run("access", "apply", str(file))
    assert applied.exit_code == 0, applied.output
    assert "3 changes made" in applied.stderr
    exported = run("access", "export")
    assert exported.exit_code == 0
    document = yaml.safe_load(exported.stdout)
    assert document["groups"] == {"dev": ["bob"]}
    assert [grant["subject"] for grant in document["grants"]] == ["anonymous", "group:dev"]
    assert json.loads(run("access", "export", "--json").stdout) == json.loads(json.dumps(document, default=str)) | {
        "grants": [
            {**grant, "expires_at": grant["expires_at"] and "2100-01-01T00:00:00Z"} for grant in document["grants"]
        ]
    }
    again = file.with_name("again.yaml")
    again.write_text(exported.stdout)
    for source in (again, file):
        same = run("access", "diff", str(source))
        assert (same.exit_code, same.stdout) == (0, "")
        assert "No difference: nothing was changed." in run("access", "apply", str(source)).stderr
    assert run("access", "export").stdout == exported.stdout
    assert (run("access", "diff", "-", stdin=exported.stdout)).exit_code == 0


def test_a_difference_is_printed_line_by_line(run: Run, file: Path) -> None:
    """`diff` ends with 1 and lists added, removed and changed entries; it and a dry run change nothing."""
    run("group", "add", "dev", "--member", "admin")
    run("group", "add", "old")
    grant = json.loads(run("grant", "add", "user:bob", "b", "delete", "--tags", "v*", "--json").stdout)["id"]
    before = run("access", "export").stdout
    expected = [
        "- group old: -",
        "~ group dev: +bob -admin",
        f"- grant user:bob b delete tags v* [{grant}]",
        "+ grant anonymous home/{subject}/** pull (warn) until 2100-01-01T00:00:00Z",
        "+ grant group:dev team/** pull,push",
    ]
    result = run("access", "diff", str(file))
    assert (result.exit_code, result.stdout.splitlines()) == (1, expected)
    dry = run("access", "apply", "--dry-run", str(file))
    assert (dry.exit_code, dry.stdout.splitlines()) == (0, expected)
    assert "5 changes would be made; nothing was changed." in dry.stderr
    assert run("access", "export").stdout == before
    machine = run("access", "diff", str(file), "--json")
    assert machine.exit_code == 1
    assert json.loads(machine.stdout)["groups_changed"] == {"dev": {"added": ["bob"], "removed": ["admin"]}}
    asked = run("access", "apply", str(file))
    assert (asked.exit_code, asked.stdout.strip()) == (1, "")
    assert "Remove 1 group and 1 grant, and keep 1 group and 0 grants?" in asked.stderr
    assert run("access", "export").stdout == before, "more would go than stays, and nobody said yes"
    assert run("access", "apply", "--yes", str(file)).stdout.splitlines() == expected


def test_a_difference_is_tried_on_what_was_asked(run: Run, file: Path, tmp_path: Path) -> None:
    """`diff --replay` lists subjects that the file's policy would newly refuse, by its groups and grants."""
    run("access", "apply", str(file))
    (tmp_path / "audit").mkdir()
    asked = json.dumps(["2030-01-01T00:00:00Z", "user:bob", "team/app", "push", "v1", 3])
    (tmp_path / "audit" / "decisions-0.jsonl").write_text(f"{asked}\n")
    for less in (POLICY.replace("[bob]", "[]"), POLICY.replace("[pull, push]", "[pull]")):
        file.write_text(less)
        result = run("access", "diff", "--replay", str(file))
        assert result.exit_code == 1
        assert "Newly denied: 1 subject, user:bob" in result.stderr
        assert "no grant lets user:bob push team/app, tag v1" in result.stdout
    assert json.loads(run("access", "diff", "--replay", "--json", str(file)).stdout)["replay"]["decisions"] == 1


BAD = {
    POLICY.replace("dev: [bob]", "'7': [bob, ghost]"): ["policy.yaml:3: groups.7[1]: there is no user 'ghost'"],
    POLICY.replace("bob", "ghost"): ["policy.yaml:3: groups.dev[0]: there is no user 'ghost'"],
    POLICY.replace("team/**", "Team/**"): ["policy.yaml:5: grants[0].repository: expected components"],
    POLICY.replace("group:dev", "dev").replace("mode: warn", "mode: maybe"): [
        "policy.yaml:5: grants[0].subject: expected user:NAME",
        "policy.yaml:6: grants[1].mode: expected enforce or warn",
    ],
    POLICY.replace("version: 1", "version: 2"): ["policy.yaml:1: version: expected 1"],
    POLICY + "grants: []\n": ["policy.yaml:7: grants: the key is there twice, first in line 4"],
    "": [f"{key}: expected a value: the field is not there" for key in ("version", "groups", "grants")],
    "groups: {dev: [": ["not YAML"],
    "- a": ["expected a map of keys"],
    "version: .nan": ["not JSON compliant"],
    POLICY.replace("[bob]", "!!python/name:os.system"): ["found the tag"],
}


@pytest.mark.parametrize(("text", "faults"), BAD.items(), ids=range(len(BAD)))
def test_a_fault_is_reported_with_its_line_and_changes_nothing(
    run: Run, file: Path, text: str, faults: list[str]
) -> None:
    """The error has file, line, key and the expected value, for every fault at once; the policy stays."""
    run("access", "apply", str(file))
    before = run("access", "export").stdout
    file.write_text(text)
    for command in ("apply", "diff"):
        result = run("access", command, str(file))
        assert result.exit_code == (2 if command == "diff" else 1)
        for fault in faults:
            assert fault in " ".join(result.stderr.split()), result.stderr
    assert run("access", "export").stdout == before


def test_a_file_that_cannot_be_read_is_reported(run: Run, tmp_path: Path) -> None:
    """The error names the file and the cause; wrong usage is 2."""
    result = run("access", "apply", str(tmp_path / "none.yaml"))
    assert (result.exit_code, "none.yaml cannot be read: No such file" in result.stderr) == (1, True)
    assert run("access", "diff", str(tmp_path / "none.yaml")).exit_code == 2, "1 means that something differs"
    assert run("access", "apply", str(tmp_path)).exit_code == 1
    assert run("access", "apply").exit_code == 2


def test_an_owner_is_refused_a_grant_outside(
    run: Run, environment: pytest.MonkeyPatch, listener: tuple[str, Node]
) -> None:
    """The owner of a namespace makes grants inside with the same command; the refusal of others names the namespace."""
    assert run("grant", "add", "user:bob", "team/**", "manage").exit_code == 0
    environment.setenv("REGISTRY_PROXY_ADMIN_USER", BOB[0])
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", BOB[1])
    assert run("grant", "add", "anonymous", "team/public/*", "pull").exit_code == 0
    result = run("grant", "add", "anonymous", "**", "pull")
    assert result.exit_code == 1
    assert "this is not yours to give" in result.stderr
    assert "repository: expected a pattern that lies in team/**" in result.stderr
    assert "bob is not an admin" in run("access", "export").stderr


def test_no_secret_is_exported(run: Run, listener: tuple[str, Node]) -> None:
    """The export holds no hashes, secrets or administrators: everybody may read the file."""
    run("robot", "add", "ci")
    run("robot", "secret", "add", "ci")
    users = wait(listener[1], listener[1].directory.users.list)
    text = run("access", "export").stdout
    assert "argon2" not in text
    assert not any(user.password_hash in text for user in users)
    assert set(yaml.safe_load(text)) == {"version", "groups", "grants"}


def test_subscriptions_go_round_by_the_file(run: Run, listener: tuple[str, Node], file: Path) -> None:
    """Made, changed and removed by the file, their credentials from files beside it; they are never exported."""
    node = listener[1]
    file.with_name("secrets").write_text("a secret of the file\n")
    file.with_name("headers").write_text("Authorization: a header of the file\n")
    text = POLICY + "subscriptions:\n  ci: {url: https://ci.example/, secrets_file: secrets, headers_file: headers}\n"
    file.write_text(text)
    applied = run("access", "apply", str(file))
    assert applied.exit_code == 0, applied.output
    assert "+ subscription ci: push, delete of ** to https://ci.example/" in applied.stdout

    def stored() -> Any:
        return wait(node, lambda: node.directory.subscriptions.get("ci"))

    assert (list(stored().secrets), dict(stored().headers)) == (
        ["a secret of the file"],
        {"Authorization": "a header of the file"},
    )
    exported = run("access", "export").stdout
    assert "of the file" not in exported
    again = file.with_name("again.yaml")
    again.write_text(exported)
    assert "No difference" in run("access", "diff", str(again)).stderr
    again.write_text(exported.replace("https://ci.example/", "https://ci.example/2").replace("- delete", "- pull"))
    assert "~ subscription ci: url, events" in run("access", "apply", str(again)).stdout
    assert (stored().url, len(stored().secrets)) == ("https://ci.example/2", 1)
    file.with_name("secrets").write_text("another secret of it\n")
    assert "~ subscription ci: url, secrets, events" in run("access", "diff", str(file)).stdout
    audited = json.dumps([event.detail for event in node.audit.events], default=str)
    assert "of the file" not in audited
    file.write_text(POLICY)
    assert "No difference" in run("access", "apply", str(file)).stderr, "a file without them leaves them alone"
    file.write_text(POLICY + "subscriptions: {}\n")
    assert "- subscription ci" in run("access", "apply", str(file)).stdout
    assert wait(node, node.directory.subscriptions.list) == []


def test_a_fault_of_a_subscription_is_named_with_its_line(run: Run, listener: tuple[str, Node], file: Path) -> None:
    """Nothing of the file is in force then, and a credential is not repeated."""
    node = listener[1]
    file.with_name("secrets").write_text("short\n")
    file.write_text(
        POLICY + "subscriptions:\n  ci: {url: 'ftp://x', secrets_file: secrets}\n  a b: {url: 'http://a/'}\n"
    )
    refused = run("access", "apply", str(file))
    assert refused.exit_code == 1
    assert f"{file}:8: subscriptions.ci.url: expected the URL of a receiver" in refused.stderr
    assert "subscriptions.ci.secrets: expected texts of 16" in refused.stderr
    assert f"{file}:9: subscriptions.a b: 'a b': " in refused.stderr
    assert "short" not in refused.stderr
    assert wait(node, node.directory.subscriptions.list) == []
    file.write_text(POLICY + "subscriptions:\n  ci: {url: 'http://a/', secrets_file: absent}\n")
    assert "absent cannot be read" in run("access", "diff", str(file)).stderr


def test_rules_go_round_by_the_file(run: Run, listener: tuple[str, Node], file: Path) -> None:
    """Made, changed and removed by the file; a file without them leaves them alone; a fault has its line."""
    node = listener[1]
    file.write_text(POLICY + "rules:\n  small: {repository: prod/**, max_layers: 3, labels: {a: b}}\n")
    assert "+ rule small: labels, max_layers of prod/**:*, enforce" in run("access", "apply", str(file)).stdout
    again = file.with_name("again.yaml")
    again.write_text(run("access", "export").stdout)
    assert "No difference" in run("access", "diff", str(again)).stderr
    again.write_text(
        again.read_text().replace("not_root: false", "not_root: true").replace("max_layers: 3", "max_layers: 4")
    )
    assert "~ rule small: max_layers, not_root" in run("access", "apply", str(again)).stdout
    file.write_text(POLICY)
    assert "No difference" in run("access", "apply", str(file)).stderr
    file.write_text(
        POLICY + "rules:\n  small: {repository: prod/**, mode: audit, max_layers: 3}\n  a b: {repository: b}\n"
    )
    refused = run("access", "apply", str(file))
    assert f"{file}:8: rules.small.mode: expected one of enforce, warn" in refused.stderr
    assert "rules.a b: 'a b': " in refused.stderr
    assert [rule.max_layers for rule in wait(node, node.directory.rules.list)] == [4]
    file.write_text(POLICY + "rules: {}\n")
    assert "- rule small: " in run("access", "apply", str(file)).stdout
    assert wait(node, node.directory.rules.list) == []
