"""`registry-proxy grant replay`: the answers of other grants to the latest questions of a node."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.output import JsonOption, counted, format_value, print_note, print_table, printed_json

_COLUMNS = ("subject", "repository", "tag", "action", ("count", "ASKED"), "last_at", "reason")


def replay_grants(
    add: Annotated[
        list[str] | None,
        typer.Option(help="'SUBJECT REPOSITORY ACTIONS [TAGS]', such as 'group:dev team/** pull,push'; several times."),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(help="The id of a current grant; may be repeated.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Without all current grants.")] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of distinct questions, the latest first.")
    ] = 10_000,
    _json: JsonOption = False,
) -> None:
    """Try other grants on what this node was asked lately: who would newly be refused, who newly allowed."""
    body = {"add": [_proposed(text) for text in add or []], "remove": remove or [], "replace": replace, "limit": limit}
    with admin_client() as admin:
        result = admin.call("POST", "policy", "replay", body=body, patient=True).document
        if not printed_json(result):
            print_replay(result)


def print_replay(result: Mapping[str, Any]) -> None:
    """Print the questions that a proposed policy newly denies and allows."""
    for name, title in (("newly_denied", "Newly denied"), ("newly_allowed", "Newly allowed")):
        subjects = result[f"subjects_{name}"]
        print_note(", ".join([f"{title}: {counted(len(subjects), 'subject')}", *subjects]))
        if result[name]:
            print_table(_COLUMNS, result[name], empty="")
    questions = counted(result["decisions"], "different question")
    since = format_value(result["since"]) if result["since"] else "never"
    print_note(f"Tried on {questions} since {since}.")


def _proposed(text: str) -> dict[str, Any]:
    words = text.split()
    if not 3 <= len(words) <= 4:
        raise typer.BadParameter(f"expected 'SUBJECT REPOSITORY ACTIONS [TAGS]', got {text!r}", param_hint="--add")
    subject, repository, actions, *tags = words
    proposed = {"subject": subject, "repository": repository, "actions": actions.split(",")}
    return proposed | ({"tags": tags[0]} if tags else {})
