"""The admin commands against a real admin listener: their effects, output and error messages."""

import asyncio
import io
import json
import os
import pty
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from registry_proxy.cli.main import app
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.ports.store import Change, Table
from registry_proxy.protocol.reference import digest_of
from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.output import print_table
from tests.cli.conftest import Run
from tests.support.admin_bench import ADMIN, BOB, Node
from tests.support.servers import free_port

SECRET = "a secret that must not be seen"


def _json(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def _fails(result: Result, *texts: str, status: int = 1) -> None:
    assert result.exit_code == status, (result.stdout, result.stderr)
    assert not result.stdout
    for text in texts:
        assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_a_user_is_made_changed_and_removed(run: Run, tmp_path: Path) -> None:
    """Each command changes the fields that its options name and nothing else; --json prints the object."""
    made = _json(
        run(
            "user", "add", "ann", "--group", "dev", "--create-groups", "--password-stdin", "--json", stdin=f"{SECRET}\n"
        )
    )
    assert made == {"name": "ann", "admin": False, "disabled": False, "ldap": False, "groups": ["dev"]}
    assert _json(run("user", "show", "ann", "--json")) == made
    changed = _json(run("user", "set", "ann", "--admin", "--add-group", "ops", "--create-groups", "--json"))
    assert changed == {**made, "admin": True, "groups": ["dev", "ops"]}
    changed = _json(run("user", "set", "ann", "--remove-group", "dev", "--json"))
    assert changed == {**made, "admin": True, "groups": ["ops"]}
    assert _json(run("user", "set", "ann", "--disable", "--json")) == {**changed, "disabled": True}
    assert _json(run("user", "set", "ann", "--no-admin", "--json"))["disabled"], "a field without an option stays"
    assert _json(run("user", "set", "ann", "--enable", "--admin", "--json")) == changed
    assert [user["name"] for user in _json(run("user", "list", "--json"))] == ["admin", "ann", "bob"]
    table = run("user", "list").stdout.splitlines()
    assert table[0].split() == ["NAME", "ADMIN", "DISABLED", "LDAP", "GROUPS"]
    assert table[2].split() == ["ann", "yes", "no", "no", "ops"]
    assert _json(run("user", "set", "ann", "--ldap", "--json"))["ldap"]
    assert _json(run("user", "set", "ann", "--no-admin", "--json"))["ldap"]
    assert _json(run("user", "add", "eve", "--ldap", "--json"))["ldap"]
    _fails(run("user", "set", "ann", "--ldap", "--password-stdin", stdin=SECRET), "password: LDAP knows the password")
    password_file = tmp_path / "password"
    password_file.write_text("another secret\nignored\n")
    assert run("user", "set", "ann", "--password-file", str(password_file)).exit_code == 0
    assert not _json(run("user", "show", "ann", "--json"))["ldap"]
    assert run("user", "rm", "ann").exit_code == 0
    _fails(run("user", "show", "ann"), "there is no user ann")


def test_a_disabled_user_stays_so(run: Run) -> None:
    """A user that the API has disabled stays disabled through any other change."""
    with admin_client() as client:
        client.call("PUT", "users", "bob", body={"disabled": True})
    for change in (["--add-group", "dev", "--create-groups"], ["--admin"], ["--ldap"]):
        assert _json(run("user", "set", "bob", *change, "--json"))["disabled"]


def test_adding_what_exists_changes_nothing(run: Run) -> None:
    """`add` never replaces: a mistyped name must not reset somebody's password."""
    _fails(run("user", "add", "bob", "--admin", "--password-stdin", stdin=SECRET), "bob exists already")
    assert not _json(run("user", "show", "bob", "--json"))["admin"]
    assert run("group", "add", "dev").exit_code == 0
    _fails(run("group", "add", "dev"), "dev exists already")


def test_a_group_is_made_changed_and_removed(run: Run) -> None:
    """Members are added and removed by name; the removal of somebody who is no member is an error."""
    assert _json(run("group", "add", "dev", "--member", "bob", "--json")) == {"name": "dev", "members": ["bob"]}
    changed = _json(run("group", "set", "dev", "--add", "admin", "--remove", "bob", "--json"))
    assert changed["members"] == ["admin"]
    _fails(run("group", "set", "dev", "--remove", "bob"), "Not in group dev: bob", "group show dev")
    _fails(run("group", "set", "dev", "--add", "nobody"), "there is no user 'nobody'")
    assert _json(run("group", "list", "--json")) == [{"name": "dev", "members": ["admin"]}]
    assert "admin" in run("group", "show", "dev").stdout
    assert run("group", "rm", "dev").exit_code == 0
    assert "There are no groups." in run("group", "list").stderr


@pytest.mark.parametrize(("kind", "name"), [("user", "bob"), ("group", "dev"), ("robot", "ci")])
def test_grants_go_with_their_subject_only_after_a_question(run: Run, kind: str, name: str) -> None:
    """The question has the number of grants; "no" keeps everything; without grants there is no question."""
    if kind != "user":
        run(kind, "add", name)
    for repository in ("a", "b"):
        run("grant", "add", f"{kind}:{name}", repository, "pull")
    refused = run(kind, "rm", name)
    assert (refused.exit_code, f"Remove {kind} {name} with 2 grants?" in refused.stderr) == (1, True)
    assert len(_json(run("grant", "list", "--json"))) == 2
    removed = run(kind, "rm", name, "--yes")
    assert (removed.exit_code, removed.stderr) == (0, f"{kind.title()} {name} removed with 2 grants.\n")
    assert _json(run("grant", "list", "--json")) == []
    assert run("group", "add", "empty").exit_code == 0
    assert run("group", "rm", "empty").exit_code == 0


def test_a_user_changes_the_own_password(run: Run, environment: pytest.MonkeyPatch) -> None:
    """The login is the current password; the commands store the new one, and name the tokens that stay valid."""
    assert run("login", "--user", "bob", "--password-stdin", stdin=BOB[1]).exit_code == 0
    environment.delenv("REGISTRY_PROXY_ADMIN_USER", raising=False)
    environment.delenv("REGISTRY_PROXY_ADMIN_PASSWORD")
    assert run("login", "--user", "bob", "--password-stdin", stdin=BOB[1]).exit_code == 0
    _fails(run("password", "--password-stdin", stdin="short"), "new: expected 8 to")
    assert run("token", "add").exit_code == 0
    changed = run("password", "--password-stdin", stdin=SECRET).stderr
    assert "The password of bob is changed." in changed
    assert "1 personal token is still accepted" in changed
    me = _json(run("whoami", "--json"))
    assert me == {"subject": "user:bob", "admin": False, "groups": [], "grants": []}
    environment.setenv("REGISTRY_PROXY_ADMIN_USER", "bob")
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", BOB[1])
    _fails(run("whoami"), "wrong name or password")


def test_whoami_shows_what_one_may_do(run: Run, environment: pytest.MonkeyPatch) -> None:
    """It lists the user's own grants, those of their groups and of everyone; an administrator may do everything."""
    assert "An administrator may do everything." in run("whoami").stderr
    run("group", "add", "dev", "--member", "bob")
    for subject in ("user:bob", "group:dev", "anonymous", "group:other"):
        run("grant", "add", subject, "team/**", "pull")
    environment.setenv("REGISTRY_PROXY_ADMIN_USER", BOB[0])
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", BOB[1])
    me = _json(run("whoami", "--json"))
    assert (me["groups"], [grant["subject"] for grant in me["grants"]]) == (
        ["dev"],
        ["user:bob", "group:dev", "anonymous"],
    )


def test_effects_of_a_grant_beyond_its_words_are_printed(run: Run) -> None:
    """An equal grant is made once; warnings name strangers who may delete, and groups that a name creates."""
    first = _json(run("grant", "add", "user:bob", "team/**", "pull,push", "--json"))
    again = run("grant", "add", "user:bob", "team/**", "push,pull", "--json")
    assert _json(again)["id"] == first["id"]
    assert f"grant {first['id']} says the same already: no other was made" in again.stderr
    assert len(_json(run("grant", "list", "--json"))) == 1
    _fails(run("grant", "add", "user:bob", "team/**", "pull,pushh"), "actions: expected", "not 'pushh'")
    output = run("grant", "add", "anonymous", "pub/**", "pull,delete").stderr
    assert "warning: everyone, without any login, may delete in pub/**" in output
    assert "everyone" not in run("grant", "add", "anonymous", "pub/**", "pull").stderr
    run("group", "add", "developers")
    output = run("user", "set", "bob", "--add-group", "ops", "--add-group", "developers", "--create-groups").stderr
    assert "warning: there was no group ops: it is made" in output
    assert "there was no group developers" not in output


def test_a_mistyped_group_is_refused(run: Run) -> None:
    """A user is neither made nor changed for a group that does not exist, unless the command may create groups."""
    run("group", "add", "developers")
    mistyped = ["--group", "developers", "--group", "develpers"]
    fault = ("There is no group develpers; nothing was changed", "--create-groups")
    _fails(run("user", "add", "ann", "--ldap", *mistyped), *fault)
    _fails(run("user", "show", "ann"), "there is no user ann")
    _fails(run("user", "set", "bob", "--admin", "--add-group", "develpers"), *fault)
    assert not _json(run("user", "show", "bob", "--json"))["admin"]
    assert [group["name"] for group in _json(run("group", "list", "--json"))] == ["developers"]
    assert _json(run("user", "set", "bob", "--add-group", "developers", "--json"))["groups"] == ["developers"]


def test_nobody_is_asked_for_a_password_before_the_login_is_known(run: Run, environment: pytest.MonkeyPatch) -> None:
    """A missing or wrong login is reported first."""
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", "a wrong password")
    for command in (["user", "add", "ann"], ["user", "set", "bob", "--password"], ["password"]):
        _fails(run(*command), "wrong name or password")
    environment.delenv("REGISTRY_PROXY_ADMIN_PASSWORD")
    for command in (["user", "add", "ann"], ["user", "set", "bob", "--password"], ["password"]):
        _fails(run(*command), "Not logged in")


def test_a_grant_is_made_explained_and_removed(run: Run) -> None:
    """The id that `add` prints is the one that `explain` names and `rm` takes."""
    grant = _json(
        run("grant", "add", "user:bob", "team/**", "pull,push", "--expires-at", "2100-01-01T00:00:00Z", "--json")
    )
    assert (grant["actions"], grant["expires_at"]) == (["pull", "push"], "2100-01-01T00:00:00Z")
    decision = _json(run("explain", "user:bob", "team/app", "push", "--tag", "v1", "--json"))
    assert (decision["allowed"], decision["grant"]) == (True, grant["id"])
    assert _json(run("explain", "user:bob", "team/app:v1", "push", "--json")) == decision
    shown = run("explain", "user:bob", "other", "pull")
    assert shown.exit_code == 1, "no"
    assert shown.stdout.splitlines()[0].split() == ["grants", "allow", "no"]
    assert run("explain", "bob", "other", "pull").exit_code == 2, "neither yes nor no"
    assert _json(run("grant", "list", "--repository", "team/app", "--json")) == [grant]
    assert _json(run("grant", "list", "--subject", "user:ann", "--json")) == []
    assert grant["id"] in run("grant", "list").stdout
    changed = _json(run("grant", "set", grant["id"], "--actions", "pull", "--expires-at", "never", "--json"))
    assert changed == {**grant, "actions": ["pull"], "expires_at": None}
    assert _json(run("grant", "set", grant["id"], "--mode", "warn", "--json")) == {**changed, "mode": "warn"}
    _fails(run("grant", "set", grant["id"], "--expires-at", "tomorrow"), "expected a time with its zone", status=2)
    _fails(run("grant", "set", grant["id"], "--mode", "maybe"), "mode: expected enforce or warn")
    assert run("grant", "set", grant["id"]).exit_code == 2
    assert run("grant", "rm", grant["id"]).exit_code == 0
    _fails(run("grant", "rm", grant["id"]), f"there is no grant {grant['id']}")


def test_explain_takes_a_tag_behind_the_repository(run: Run) -> None:
    """A tag may stand where docker writes it; a second or invalid one is refused."""
    run("grant", "add", "user:bob", "team/**", "pull", "--tags", "v*")
    for tag, status in (("v1", 0), ("latest", 1)):
        result = run("explain", "user:bob", f"team/app:{tag}", "pull")
        assert result.exit_code == status
        assert result.stdout == run("explain", "user:bob", "team/app", "pull", "--tag", tag).stdout
    assert "names a tag already" in run("explain", "user:bob", "team/app:v1", "pull", "--tag", "v2").stderr
    for wrong in ("team/app:", "team/app:v1:v2", "registry.example.com:5000/team/app"):
        _fails(run("explain", "user:bob", wrong, "pull"), "tag: expected a tag", status=2)


def test_a_grant_or_member_without_effect_is_made_with_a_warning(run: Run) -> None:
    """The warning is on standard error, so that --json stays JSON, and no failure: the subject may be made later."""
    result = run("grant", "add", "user:zoe", "team/**", "pull", "--json")
    made = _json(result)
    assert result.stderr.splitlines() == [
        "warning: there is no user:zoe: until that changes, the grant allows nothing",
        f"Grant {made['id']} is in force.",
    ]
    changed = run("grant", "set", made["id"], "--expires-at", "2020-01-01T00:00:00Z")
    assert len([line for line in changed.stderr.splitlines() if line.startswith("warning: ")]) == 2
    late_grant = run("grant", "add", "user:bob", "old/**", "pull", "--expires-at", "2020-01-01T00:00:00Z")
    assert ("expired already" in late_grant.stderr, "in force" in late_grant.stderr) == (True, False)
    assert "warning: the grant has expired already" in changed.stderr
    for command in (["user", "add", "eve", "--ldap"], ["user", "set", "bob", "--ldap"]):
        assert "auth.ldap is not configured on this node" in run(*command).stderr
    late = run("robot", "add", "ci", "--expires-at", "2020-01-01T00:00:00Z")
    assert "warning: nobody can log in as robot$ci: it has expired" in late.stderr
    assert "warning" not in run("robot", "set", "ci", "--expires-at", "never").stderr
    assert "warning" not in run("grant", "add", "user:bob", "team/**", "pull").stderr
    _fails(run("grant", "list", "--subject", "bob"), "subject: expected user:NAME")
    for login in ("robot$ci", "robot:robot$ci"):
        _fails(run("explain", login, "team/app", "pull"), "expected robot:ci", status=2)
    _fails(run("grant", "add", "user:bob", "team/", "pull"), "write 'team/**'")


@pytest.mark.parametrize("actions", ["push", "create"])
def test_a_grant_to_push_without_pull_is_made_with_a_warning(run: Run, actions: str) -> None:
    """Clients send a HEAD for content before a push; another grant may allow that, so it is no failure."""
    made = run("grant", "add", "user:bob", "team/**", actions, "--json")
    warning = f"warning: clients also need pull to push: give pull,{actions}"
    assert (_json(made)["actions"], made.stderr.splitlines()[-1]) == ([actions], warning)
    changed = run("grant", "set", _json(made)["id"], "--actions", f"pull,{actions}")
    assert "warning" not in changed.stderr
    assert warning in run("grant", "set", _json(made)["id"], "--actions", actions).stderr


def test_a_new_robot_is_shown_with_the_next_step(run: Run) -> None:
    """The login has a dollar sign, which shells replace outside single quotes; standard output stays JSON."""
    made = run("robot", "add", "ci", "--json")
    assert _json(made)["name"] == "ci"
    assert "it logs in as 'robot$ci'" in made.stderr
    assert "registry-proxy robot secret add ci" in made.stderr


def test_a_new_token_is_shown_with_its_use(run: Run) -> None:
    """Only the secret is on standard output; a secret of a robot names the login of the robot."""
    made = run("token", "add")
    assert len(made.stdout.split()) == 1
    assert "as the password of your user in docker login" in made.stderr
    run("robot", "add", "ci")
    secret = run("robot", "secret", "add", "ci")
    assert len(secret.stdout.split()) == 1
    assert "docker login -u 'robot$ci'" in secret.stderr


def test_faults_are_reported_one_a_line(run: Run) -> None:
    """All faults are reported at once, each with its place."""
    result = run("grant", "add", "bob", "TEAM", "fly", "--mode", "maybe")
    _fails(result, "subject: expected user:NAME", "repository: expected", "actions: expected", "mode: expected")
    assert len(result.stderr.splitlines()) == 5
    _fails(run("user", "add", "a:b", "--password-stdin", stdin="short"), "password: expected", "name: expected")


def test_tokens_are_revoked(run: Run, environment: pytest.MonkeyPatch) -> None:
    """The output names what is revoked, what stays and how to end it; JSON has the new generation."""
    assert _json(run("token", "revoke", "user:bob", "--json"))["generation"] == 1
    environment.setenv("REGISTRY_PROXY_ADMIN_USER", BOB[0])
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", BOB[1])
    for label in ("one", "two"):
        assert run("token", "add", "--label", label).exit_code == 0
    environment.setenv("REGISTRY_PROXY_ADMIN_USER", ADMIN[0])
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", ADMIN[1])
    output = run("token", "revoke", "user:bob").stderr
    assert "The bearer and refresh tokens of user:bob are revoked." in output
    assert "2 personal tokens are still accepted: `registry-proxy token revoke user:bob --all`" in output
    assert "The password is still accepted: `registry-proxy user set bob --disable`" in output
    assert [token["state"] for token in _json(run("token", "list", "--user", "bob", "--json"))] == ["valid", "valid"]
    output = run("token", "revoke", "user:bob", "--all").stderr
    assert "2 personal tokens are deleted." in output
    assert "still accepted: `registry-proxy token" not in output
    assert _json(run("token", "list", "--user", "bob", "--json")) == []
    assert run("token", "revoke", "--id", "x", "--all").exit_code == 2
    _fails(run("token", "revoke", "bob"), "subject: expected")
    _fails(run("token", "revoke", "user:bbo"), "there is no user bbo")


def test_a_secret_is_refused_a_token_with_the_reason(environment: pytest.MonkeyPatch, run: Run) -> None:
    """Actions of users for themselves need no administrator, so the error does not ask for one."""
    secret = _json(run("token", "add", "--json"))["secret"]
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", secret)
    _fails(run("token", "add"), "needs the user's password")
    _fails(run("token", "list"), "log in with the password")


def test_replicas_are_listed(run: Run, listener: tuple[str, Node]) -> None:
    """Each replica is one line with state and latency, and without a password."""
    replica = listener[1].upstreams["main"].replicas[1]
    replica.state, replica.reason, replica.latency_seconds, replica.pending = ReplicaState.DOWN, "refused", None, 3
    lines = [line.split() for line in run("replica", "list").stdout.splitlines()]
    assert lines[0] == ["UPSTREAM", "REPLICA", "URL", "STATE", "LATENCY", "PENDING", "REASON"]
    assert lines[1] == ["main", "a", "http://127.0.0.1:5001", "up", "1.5", "ms", "0", "-"]
    assert lines[2] == ["main", "b", "http://[::1]:5002/", "down", "-", "3", "refused"]
    assert _json(run("replica", "list", "--json"))[0]["name"] == "main"


def test_the_cache_is_looked_at_verified_and_purged(run: Run, listener: tuple[str, Node], tmp_path: Path) -> None:
    """Sizes and ratios are printed for people and machines; rotten entries are named; a digest or all are removed."""
    good, bad = digest_of(b"good"), digest_of(b"bad")
    cache = listener[1].cache
    for digest, content in ((good, b"good"), (bad, b"bad")):
        _store(listener, digest, content)
    assert cache.stats()["entries"] == 2
    shown = run("cache", "stats").stdout
    assert "7 B of 1.0 MiB" in shown
    assert _json(run("cache", "stats", "--json"))["entries"] == 2
    (file,) = (tmp_path / "cache" / "blobs").rglob(bad.hex)
    file.chmod(0o600)
    file.write_bytes(b"BAD")
    file.chmod(0o444)
    verified = run("cache", "verify")
    assert (verified.exit_code, verified.stdout.strip()) == (0, str(bad))
    assert _json(run("cache", "verify", "--json")) == {"bad": []}
    assert _json(run("cache", "purge", str(good), "--json")) == {"removed": 1}
    _store(listener, good, b"good")
    listed = _json(run("cache", "ls", "--json"))
    assert [(blob["digest"], blob["size_bytes"], blob["protected"]) for blob in listed] == [(str(good), 4, False)]
    assert str(good) in run("cache", "ls").stdout
    assert "0 entries removed." in run("cache", "purge", "--repository", "team/app").stderr
    for wrong in ([], ["--all", "--repository", "team/app"]):
        assert run("cache", "purge", *wrong).exit_code == 2
    assert run("cache", "purge", "--all").exit_code == 1  # nobody confirms
    assert cache.stats()["entries"] == 1
    assert "1 entry removed." in run("cache", "purge", "--all", "--yes").stderr
    _fails(run("cache", "purge", "sha256:1"), "digest: ")
    _fails(run("cache", "warm", "127.0.0.1:5000/team/app:1"), "begins with the address", "Leave it out: team/app:1")


def _store(listener: tuple[str, Node], digest: Any, content: bytes) -> None:
    url, node = listener
    httpx.get(f"{url}/healthz").raise_for_status()
    asyncio.run_coroutine_threadsafe(node.cache.store(digest, content), node.loop).result(10)


def test_a_user_who_is_no_admin_logs_in_for_commands_of_users(
    environment: pytest.MonkeyPatch, listener: tuple[str, Node]
) -> None:
    """A user who makes personal tokens, or owns a namespace, logs in as an admin does; other commands are refused."""
    environment.setenv("REGISTRY_PROXY_ADMIN_URL", listener[0])
    runner = CliRunner()
    login = runner.invoke(app, ["login", "-u", "bob", "--password-stdin"], input=BOB[1])
    assert (login.exit_code, "bob is not an admin" in login.stderr) == (0, True), login.output
    for_users = ("whoami", "password", "token", "import", "grant", "explain")
    assert [name for name in for_users if f"`{name}`" not in login.stderr] == []
    assert runner.invoke(app, ["token", "add"]).exit_code == 0
    over = runner.invoke(app, ["token", "add", "--expires-at", "2020-01-31T00:00:00Z"])
    _fails(over, "expires_at: expected a time to come")
    _fails(runner.invoke(app, ["user", "list"]), f"bob is not an admin at {listener[0]}")


def test_login_keeps_the_credentials_for_its_owner_only(
    environment: pytest.MonkeyPatch, listener: tuple[str, Node], tmp_path: Path
) -> None:
    """A checked login is stored under its URL, in a file that nobody else can read; logout removes it."""
    environment.setenv("REGISTRY_PROXY_ADMIN_URL", listener[0])
    runner = CliRunner()
    _fails(runner.invoke(app, ["user", "list"]), f"Not logged in at {listener[0]}", "registry-proxy login")
    _fails(runner.invoke(app, ["login", "--password-stdin"], input="wrong password"), "refused the login of admin")
    kept = tmp_path / "config" / "registry-proxy" / "credentials.json"
    assert not kept.exists()
    result = runner.invoke(app, ["login", "--password-stdin"], input=ADMIN[1])
    assert result.exit_code == 0
    assert ADMIN[1] not in result.output
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert runner.invoke(app, ["user", "list"]).exit_code == 0
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", "the environment wins")
    _fails(runner.invoke(app, ["user", "list"]), "refused the login of admin")
    environment.delenv("REGISTRY_PROXY_ADMIN_PASSWORD")
    assert runner.invoke(app, ["logout"]).exit_code == 0
    _fails(runner.invoke(app, ["user", "list"]), "Not logged in")
    assert ADMIN[1] not in kept.read_text()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"http://127.0.0.1:5080": 7}', "[" * 100_000, "\x00"])
def test_a_broken_credentials_file_is_reported(environment: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    """The error names the file and the next step, without a traceback."""
    kept = tmp_path / "config" / "registry-proxy" / "credentials.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(content)
    result = CliRunner().invoke(app, ["user", "list"])
    _fails(result, "log")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (f"http://127.0.0.1:{free_port()}", "Cannot connect to"),
        ("http://ann:" + SECRET.replace(" ", "") + "@127.0.0.1:1", "holds credentials"),
        ("ftp://127.0.0.1", "not an http"),
        ("http://", "not an http"),
        ("http://[::1", "not a URL"),
        ("http://127.0.0.1:99999", "not a URL"),
    ],
    ids=["nobody", "credentials", "scheme", "empty", "bracket", "port"],
)
def test_an_unusable_url_is_reported(environment: pytest.MonkeyPatch, url: str, text: str) -> None:
    """The error names the URL and the way to set it, and never a secret in it."""
    environment.setenv("REGISTRY_PROXY_ADMIN_URL", url)
    environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", SECRET)
    result = CliRunner().invoke(app, ["user", "list"])
    _fails(result, text, "REGISTRY_PROXY_ADMIN_URL")
    assert SECRET.replace(" ", "") not in result.output


def test_a_url_without_scheme_is_http(run: Run, environment: pytest.MonkeyPatch, listener: tuple[str, Node]) -> None:
    """`127.0.0.1:5080`, as people write it, is a URL."""
    environment.setenv("REGISTRY_PROXY_ADMIN_URL", listener[0].removeprefix("http://") + "/")
    assert run("user", "list").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["user", "add", "ann"],
        ["user", "add"],
        ["user", "set", "bob"],
        ["group", "set", "dev"],
        ["grant", "add", "user:bob"],
        ["user", "add", "ann", "--password", SECRET],
        ["user", "add", "ann", "--password-stdin", "--password-file", "x"],
        ["explain", "user:bob"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_status_2(run: Run, arguments: list[str]) -> None:
    """A command line that makes no sense changes nothing; a password is never read from it."""
    result = run(*arguments, stdin=SECRET)
    _fails(result, status=2)
    assert [user["name"] for user in _json(run("user", "list", "--json"))] == ["admin", "bob"]


def test_a_password_that_cannot_be_read_is_reported(run: Run, tmp_path: Path) -> None:
    """An absent, empty, huge or binary source is an error with its name, and no part of its content."""
    _fails(run("user", "add", "ann", "--password-file", str(tmp_path / "none")), "cannot be read", "none")
    _fails(run("user", "add", "ann", "--password-stdin", stdin=""), "holds no password")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    _fails(run("user", "add", "ann", "--password-file", str(binary)), "not UTF-8")
    binary.write_bytes(b"x" * 100_000)
    _fails(run("user", "add", "ann", "--password-file", str(binary)), "too long")


def test_no_output_holds_a_password(run: Run) -> None:
    """Neither tables nor JSON nor errors show a given password."""
    for arguments in (["--json"], [], ["--group", "$"]):
        result = run("user", "add", "ann", "--password-stdin", *arguments, stdin=SECRET)
        assert SECRET not in result.output
        run("user", "rm", "ann")


def test_the_password_is_asked_for_on_a_terminal(run: Run) -> None:
    """With a terminal the password is prompted for twice, is not echoed, and is not in the arguments."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "registry_proxy", "user", "add", "ann"]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True) as process:
        os.close(terminal)
        try:
            shown = _answer_prompts(controller, [SECRET, SECRET])
            assert process.wait(30) == 0, shown
        finally:
            process.kill()
            os.close(controller)
    assert SECRET not in shown
    assert "User ann made." in shown


def _answer_prompts(controller: int, answers: list[str]) -> str:
    shown = ""
    while True:
        try:
            chunk = os.read(controller, 4096).decode()
        except OSError:  # the program closed the terminal
            return shown
        shown += chunk
        # The space comes after the echo was turned off; earlier input is discarded.
        if answers and shown.endswith(": "):
            os.write(controller, f"{answers.pop(0)}\n".encode())


def test_something_else_at_the_url_is_reported(environment: pytest.MonkeyPatch) -> None:
    """An answer of another server than the admin API never ends in a traceback."""
    bodies = [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"[" * 100_000),
        (200, b'{"items": 7, "next": null}'),
        (404, b"no"),
        (302, b""),
        (500, b"{}"),
        (200, b""),
    ]
    for status, body in bodies:
        with _answering(status, body) as url:
            environment.setenv("REGISTRY_PROXY_ADMIN_URL", url)
            environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", SECRET)
            _fails(CliRunner().invoke(app, ["user", "list"]), "error: ", "REGISTRY_PROXY_ADMIN_URL")


def test_plain_http_where_tls_was_expected_is_reported(environment: pytest.MonkeyPatch) -> None:
    """An https URL of the admin listener, which speaks plain HTTP, is answered with the right URL."""
    with _answering(200, b"[]") as url:
        environment.setenv("REGISTRY_PROXY_ADMIN_URL", url.replace("http:", "https:"))
        environment.setenv("REGISTRY_PROXY_ADMIN_PASSWORD", SECRET)
        _fails(CliRunner().invoke(app, ["user", "list"]), "error: ", "should begin with http://")


@contextmanager
def _answering(status: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_description_of_the_api_is_printed(run: Run) -> None:
    """`openapi` prints the document of the node, as JSON."""
    document = _json(run("openapi"))
    assert document["openapi"].startswith("3.1.")
    assert "/admin/v1/users/{name}" in document["paths"]


def test_repositories_are_listed_by_prefix(run: Run, listener: tuple[str, Node]) -> None:
    """`repository list` shows the known repositories, or says that there are none."""
    assert "No repository is known." in run("repository", "list").stderr
    loop, store = listener[1].loop, listener[1].store
    changes = [Change(Table.TAGS, f"main/{name}|v1", {}) for name in ("team/app", "other")]
    asyncio.run_coroutine_threadsafe(store.commit(changes), loop).result(20)
    (app_,) = _json(run("repository", "list", "--prefix", "team/", "--json"))
    assert (app_["name"], app_["tags_on_record"]) == ("team/app", 1)
    assert [line.split()[0] for line in run("repository", "list").stdout.splitlines()] == [
        "REPOSITORY",
        "other",
        "team/app",
    ]


class _Terminal(io.StringIO):
    """A terminal whose width the environment gives."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["20", "60", "200"])
def test_no_identifier_is_cut_at_any_width(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    """On a terminal that is too narrow for a table each value stands whole on its own line."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal := _Terminal())
    rows = [{"id": "sha256:" + "a" * 64, "at": "2026-11-30T00:00:00Z"}, {"id": "sha256:" + "b" * 64, "at": "never"}]
    print_table([("id", "DIGEST"), "at"], rows, empty="")
    assert all(value in terminal.getvalue() for row in rows for value in row.values())
