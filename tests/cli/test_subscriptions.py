"""`registry-proxy subscription` and `event` against a real admin listener."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from registry_proxy.events.delivery import Delivery, Lane, delivery_id
from registry_proxy.events.subscription import Subscription, subscription_of
from registry_proxy.ports.outbox import EventType, RegistryEvent
from registry_proxy.ports.store import Change, Record, Table
from tests.cli.conftest import Run
from tests.support.admin_bench import Node

URL = "https://ci.example/hooks/registry"
SECRETS = ("a secret that must not be seen", "another secret that must not be seen")

Put = Callable[..., list[str]]


@pytest.fixture
def put(listener: tuple[str, Node]) -> Put:
    """Return a function that puts deliveries of a subscription into a table; it returns their ids."""

    def put(table: Table, count: int = 1, subscription: str = "ci", first: int = 1, **fields: Any) -> list[str]:
        lane, changes = Lane(subscription, "team/app"), []
        for number in range(first, first + count):
            event = RegistryEvent(
                id=f"event-{number}", type=EventType.PUSH, at=1.5e9, repository=lane.repository, tag="1.2"
            )
            delivery = Delivery(event=event, queued_at=1.5e9, **fields)
            changes.append(Change(table, lane.key(number), delivery.stored()))
        asyncio.run_coroutine_threadsafe(listener[1].store.commit(changes), listener[1].loop).result(20)
        return [delivery_id(change.key) for change in changes]

    return put


@pytest.fixture
def records(listener: tuple[str, Node]) -> Callable[[Table], Sequence[Record]]:
    """Return a function that returns the records of a table."""
    node = listener[1]
    return lambda table: asyncio.run_coroutine_threadsafe(node.store.list(table), node.loop).result(20)


@pytest.fixture
def stored(records: Callable[[Table], Sequence[Record]]) -> Callable[[], Subscription]:
    """Return a function that returns the one stored subscription."""
    return lambda: subscription_of(records(Table.SUBSCRIPTIONS)[0])


def _json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _fails(result: Result, *texts: str, status: int = 1) -> None:
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    message = " ".join(result.stderr.replace("│", " ").split())
    for text in texts:
        assert text in message
    assert "Traceback" not in message


def test_a_subscription_is_made_changed_and_removed(run: Run) -> None:
    """Each command changes the fields that its options name and nothing else."""
    made = _json(run("subscription", "add", "ci", URL, "--repository", "team/**", "--json"))
    assert made == {
        "name": "ci",
        "url": URL,
        "secret_count": 0,
        "events": ["push", "delete"],
        "repository": "team/**",
        "tags": "*",
        "format": "cloudevents",
        "template": "",
        "header_names": [],
        "on_failure": "hold",
        "enabled": True,
        "disabled_reason": "",
    }
    assert _json(run("subscription", "show", "ci", "--json")) == made
    options = ["--event", "push", "--event", "manifest", "--tags", "v*", "--on-failure", "skip", "--disable"]
    expected = {**made, "events": ["push", "manifest"], "tags": "v*", "on_failure": "skip", "enabled": False}
    assert _json(run("subscription", "set", "ci", *options, "--json")) == expected
    other = _json(run("subscription", "set", "ci", "--url", f"{URL}/2", "--enable", "--json"))
    assert other == {**expected, "url": f"{URL}/2", "enabled": True}
    heading, row = run("subscription", "list").stdout.splitlines()
    assert heading.split() == ["NAME", "URL", "EVENTS", "REPOSITORY", "TAGS", "FORMAT", "ENABLED", "WHY"]
    assert row.split() == ["ci", f"{URL}/2", "push,", "manifest", "team/**", "v*", "cloudevents", "yes", "-"]
    assert _json(run("subscription", "list", "--json")) == [other]
    assert run("subscription", "rm", "ci").exit_code == 0
    assert "There are no subscriptions." in run("subscription", "list").stderr
    _fails(run("subscription", "rm", "ci"), "there is no subscription ci")
    assert not _json(run("subscription", "add", "later", URL, "--disabled", "--json"))["enabled"]


def test_a_receiver_that_events_never_reach_is_made_with_a_warning(run: Run) -> None:
    """A loopback or private address, or a name for one, is named at once with the setting that allows it."""
    for name, host, text in (
        ("one", "127.0.0.1", "list 127.0.0.1 in events.allowed_hosts"),
        ("two", "localhost", "list localhost in events.allowed_hosts"),
        ("three", "10.1.2.3", "set events.private, or list 10.1.2.3 in events.allowed_hosts"),
        ("four", "169.254.169.254", "no setting allows"),
    ):
        made = run("subscription", "add", name, f"http://{host}:8000/hook")
        assert f"warning: no event will reach {host}: " in made.stderr
        assert text in made.stderr
    long_label = run("subscription", "add", "five", f"http://{'a' * 64}.example/")
    assert (long_label.exit_code, "warning" in long_label.stderr) == (0, False)
    assert "warning" in run("subscription", "set", "one", "--url", "http://[::1]:8000/").stderr
    assert "warning" not in run("subscription", "set", "one", "--url", "https://198.41.0.4/", "--disable").stderr


def test_adding_a_subscription_replaces_none(run: Run) -> None:
    """`add` refuses an existing name and names the command that changes it."""
    assert run("subscription", "add", "ci", URL).exit_code == 0
    _fails(run("subscription", "add", "ci", "https://other.example/"), "ci exists already", "command `set`")
    assert _json(run("subscription", "show", "ci", "--json"))["url"] == URL


def test_secrets_and_headers_come_from_files_and_standard_input(
    run: Run, stored: Callable[[], Subscription], tmp_path: Path
) -> None:
    """Each line is a secret, the active one first, or a header; another change keeps them, and no output shows them."""
    secrets, headers = tmp_path / "secrets", tmp_path / "headers"
    secrets.write_text(f"{SECRETS[0]}\r\n\n{SECRETS[1]}\n")
    headers.write_text(f"Authorization: Bearer {SECRETS[0]}\nX-Team: a: b\n")
    shown = []
    made = run("subscription", "add", "ci", URL, "--secret-file", str(secrets), "--header-stdin", stdin="X-Team: c\n")
    shown.append(made)
    assert (tuple(stored().secrets), stored().headers) == (SECRETS, {"X-Team": "c"})
    shown.append(run("subscription", "set", "ci", "--secret-stdin", stdin=SECRETS[1]))
    assert (tuple(stored().secrets), stored().headers) == (SECRETS[1:], {"X-Team": "c"})
    shown.append(run("subscription", "set", "ci", "--header-file", str(headers), "--json"))
    assert stored().headers == {"Authorization": f"Bearer {SECRETS[0]}", "X-Team": "a: b"}
    assert (_json(shown[-1])["header_names"], _json(shown[-1])["secret_count"]) == (["Authorization", "X-Team"], 1)
    shown.append(run("subscription", "set", "ci", "--no-secrets", "--no-headers"))
    assert (tuple(stored().secrets), stored().headers) == ((), {})
    assert [each.exit_code for each in shown] == [0, 0, 0, 0]
    assert not any(secret in each.output for each in shown for secret in SECRETS)


def test_the_secret_is_asked_for_on_a_terminal(run: Run, stored: Callable[[], Subscription]) -> None:
    """`--secret` prompts twice without an echo; without a terminal the options that read one are named."""
    _fails(run("subscription", "add", "ci", URL, "--secret"), "--secret-stdin or --secret-file FILE", status=2)
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "registry_proxy", "subscription", "add", "ci", URL, "--secret"]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True) as process:
        os.close(terminal)
        try:
            shown = _answer_prompts(controller, [SECRETS[0], SECRETS[0]])
            assert process.wait(30) == 0, shown
        finally:
            process.kill()
            os.close(controller)
    assert SECRETS[0] not in shown
    assert tuple(stored().secrets) == SECRETS[:1]


def _answer_prompts(controller: int, answers: list[str]) -> str:
    shown = ""
    while True:
        try:
            chunk = os.read(controller, 4096).decode()
        except OSError:  # the program closed the terminal
            return shown
        shown += chunk
        if answers and shown.endswith(": "):
            os.write(controller, f"{answers.pop(0)}\n".encode())


def test_wrong_input_of_a_subscription_is_reported(run: Run, tmp_path: Path) -> None:
    """The fault and its field are named, nothing is made, and no part of a secret or header is shown."""
    file = tmp_path / "file"
    file.write_text(f"{SECRETS[0]}\n")
    add = ["subscription", "add", "ci", URL]
    _fails(run(*add, "--header-file", str(file)), "Line 1 of the headers has no colon", "Name: value")
    _fails(run(*add, "--secret-stdin", stdin="short"), "secrets: expected texts of 16 to")
    _fails(run(*add, "--secret-stdin", stdin="\n"), "Standard input holds no secret")
    _fails(run(*add, "--secret-file", str(tmp_path / "none")), "The secret file", "cannot be read")
    _fails(run(*add, "--template-file", str(tmp_path / "none")), "The template file", "cannot be read")
    _fails(run(*add, "--event", "pushes"), "events: expected at least one of push")
    _fails(run("subscription", "add", "ci", "ftp://ci.example/"), "url: expected the URL of a receiver")
    both = ["--secret-stdin", "--header-stdin"]
    _fails(run(*add, *both), "exclude each other", status=2)
    _fails(run(*add, "--secret", "--secret-file", str(file)), "give one of --secret", status=2)
    _fails(run("subscription", "set", "ci"), "nothing to change", status=2)
    _fails(run("subscription", "set", "ci", "--tags", "v*"), "there is no subscription ci")
    assert _json(run("subscription", "list", "--json")) == []


def test_queued_deliveries_go_with_their_subscription_only_after_a_question(run: Run, put: Put) -> None:
    """A "no" keeps the subscription; dead letters alone raise no question."""
    for name, table in (("ci", Table.DELIVERIES), ("old", Table.DEAD_LETTERS)):
        run("subscription", "add", name, URL)
        put(table, subscription=name)
    refused = run("subscription", "rm", "ci")
    assert (refused.exit_code, "with the deliveries that are queued for it?" in refused.stderr) == (1, True)
    assert run("subscription", "rm", "old").exit_code == 0
    assert [each["name"] for each in _json(run("subscription", "list", "--json"))] == ["ci"]
    assert run("subscription", "rm", "ci", "--yes").exit_code == 0


def test_deliveries_are_listed_and_shown(run: Run, put: Put) -> None:
    """The table has the event's repository and tag; filters are the state and the subscription."""
    run("subscription", "add", "ci", URL)
    run("subscription", "add", "other", URL)
    assert "There are no deliveries." in run("event", "list").stderr
    queued = put(Table.DELIVERIES, 12, attempts=3, last_status=503, last_answer="come later", next_attempt_at=1.6e9)
    (dead,) = put(Table.DEAD_LETTERS, subscription="other", ended_at=1.7e9)
    lines = run("event", "list", "--subscription", "ci", "--state", "queued").stdout.splitlines()
    headings = (
        "ID",
        "SUBSCRIPTION",
        "TYPE",
        "REPOSITORY",
        "TAG",
        "NUMBER",
        "STATE",
        "ATTEMPTS",
        "STATUS",
        "NEXT ATTEMPT",
        "REASON",
    )
    assert lines[0].split() == " ".join(headings).split()
    expected = ["ci", "push", "team/app", "1.2", "1", "queued", "3", "503", "2020-09-13T12:26:40Z", "come", "later"]
    assert lines[1].split() == [queued[0], *expected]
    assert [each["id"] for each in _json(run("event", "list", "--json"))] == [*queued, dead]
    assert [each["id"] for each in _json(run("event", "list", "--state", "dead", "--json"))] == [dead]
    facts = run("event", "show", queued[0]).stdout
    for text in ("event-1", "come later", "team/app", "2017-07-14T02:40:00Z"):
        assert text in facts
    (alone,) = put(Table.DEAD_LETTERS, first=50)
    assert run("event", "show", "event-50").stdout == run("event", "show", alone).stdout
    _fails(run("event", "show", "event-1"), "several deliveries", dead)
    run("subscription", "set", "ci", "--disable")
    assert run("event", "list", "--state", "queued").stdout.splitlines()[1].split()[9:] == ["-", "come", "later"]
    assert _json(run("event", "show", queued[0], "--json"))["event"]["id"] == "event-1"
    _fails(run("event", "list", "--state", "lost"), "state: expected one of queued, delivered, dead")
    _fails(run("event", "list", "--subscription", "cii"), "there is no subscription cii")
    _fails(run("event", "show", "none"), "there is no such delivery")


def test_events_are_replayed(run: Run, put: Put, records: Callable[[Table], Sequence[Record]]) -> None:
    """An event is replayed by its id, or all dead letters of a subscription; a queued one stays as it is."""
    for name in ("ci", "other"):
        run("subscription", "add", name, URL)
    (queued,) = put(Table.DELIVERIES)
    assert "still queued for ci" in run("event", "replay", queued).stderr
    assert records(Table.OUTBOX) == []
    (delivered,) = put(Table.DELIVERED, first=2)
    assert "queued again for ci, marked as a replay" in run("event", "replay", delivered).stderr
    (entry,) = records(Table.OUTBOX)
    assert (entry.value["subscription"], entry.value["is_replay"]) == ("ci", True)
    put(Table.DEAD_LETTERS, 3, subscription="other")
    put(Table.DEAD_LETTERS)
    replayed = run("event", "replay", "--all", "--subscription", "other")
    assert (replayed.exit_code, replayed.stderr) == (0, "3 dead letters are queued again for other.\n")
    assert [record.key.partition("/")[0] for record in records(Table.DEAD_LETTERS)] == ["ci"]
    assert len(records(Table.OUTBOX)) == 4
    again = _json(run("event", "replay", "--all", "--subscription", "other", "--json"))
    assert again == {"subscription": "other", "replayed": 0}
    _fails(run("event", "replay", "--all", "--subscription", "oter"), "there is no subscription oter")
    _fails(run("event", "replay", "none"), "there is no such delivery")
    for wrong in ([], ["--all"], ["--subscription", "ci"], [queued, "--all", "--subscription", "ci"]):
        _fails(run("event", "replay", *wrong), "--all --subscription NAME", status=2)


def test_dead_letters_are_dismissed(run: Run, put: Put, records: Callable[[Table], Sequence[Record]]) -> None:
    """One by its id, or all of a subscription after a question; nothing is sent again, and others stay."""
    for name in ("ci", "other"):
        run("subscription", "add", name, URL)
    first, _, _ = put(Table.DEAD_LETTERS, 3)
    put(Table.DEAD_LETTERS, subscription="other")
    assert "is dismissed" in run("event", "dismiss", first).stderr
    _fails(run("event", "dismiss", first), "there is no such delivery")
    _fails(run("event", "dismiss", *put(Table.DELIVERIES)), "set ci --on-failure skip")
    _fails(run("event", "dismiss", "--all"), "--all --subscription NAME", status=2)
    everything = ("event", "dismiss", "--all", "--subscription", "ci")
    assert run(*everything).exit_code != 0
    dismissed = run(*everything, "--yes", "--json")
    assert _json(dismissed) == {"subscription": "ci", "dismissed": 2}
    assert [record.key.partition("/")[0] for record in records(Table.DEAD_LETTERS)] == ["other"]
    assert records(Table.OUTBOX) == []


def test_a_receiver_is_tested(run: Run, records: Callable[[Table], Sequence[Record]]) -> None:
    """A test is in the outbox, its id is printed, and the next command is named; a disabled receiver waits."""
    run("subscription", "add", "ci", URL)
    tested = run("event", "test", "ci", "--json")
    (entry,) = records(Table.OUTBOX)
    assert (entry.value["subscription"], entry.value["event"]["id"]) == ("ci", _json(tested)["event"])
    assert (entry.value["event"]["actor"]["host"], entry.value["event"]["actor"]["scheme"]) == (
        "registry.example",
        "https",
    )
    assert "registry-proxy event list --subscription ci" in tested.stderr
    assert "disabled" not in tested.stderr
    run("subscription", "set", "ci", "--disable")
    assert "ci is disabled, so the test waits" in run("event", "test", "ci").stderr
    _fails(run("event", "test", "cii"), "there is no subscription cii")
