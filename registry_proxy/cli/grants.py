"""`registry-proxy grant` and `explain`: who may do what, and why."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from registry_proxy.cli.replay import replay_grants
from registry_proxy.terminal.client import admin_client, given
from registry_proxy.terminal.errors import failing_with
from registry_proxy.terminal.output import JsonOption, print_facts, print_list, print_note, print_table, printed_json
from registry_proxy.terminal.times import Expires, NewExpires

grant_app = typer.Typer(help="Grants: actions that subjects may do in repositories.", no_args_is_help=True)

_Subject = Annotated[
    str,
    typer.Argument(help="user:NAME, group:NAME, robot:NAME, oidc:ISSUER/RULE/NAME or anonymous.", show_default=False),
]
_GrantId = Annotated[str, typer.Argument(metavar="ID", help="The id, from `grant list`.", show_default=False)]
_COLUMNS = ("id", "subject", "repository", "tags", "actions", "mode", "expires_at")


def print_grants(grants: Sequence[Mapping[str, Any]], *, empty: str) -> None:
    """Print grants as a table; ``empty`` is said where there are none."""
    print_table(_COLUMNS, grants, empty=empty)


def grant_text(grant: Mapping[str, Any]) -> str:
    """Return a grant as a line of text."""
    tags = "" if grant["tags"] == "*" else f" tags {grant['tags']}"
    mode = "" if grant["mode"] == "enforce" else f" ({grant['mode']})"
    until = "" if grant["expires_at"] is None else f" until {grant['expires_at']}"
    known = f" [{grant['id']}]" if "id" in grant else ""
    return f"grant {grant['subject']} {grant['repository']} {','.join(grant['actions'])}{tags}{mode}{until}{known}"


def _print(grant: dict[str, Any]) -> None:
    actions = set(grant["actions"])
    if "pull" not in actions and (pushes := sorted(actions & {"push", "create"})):
        print_note(f"warning: clients also need pull to push: give pull,{','.join(pushes)}")
    if not printed_json(grant):
        print_grants([grant], empty="")


def _has_expired(grant: Mapping[str, Any]) -> bool:
    until = grant["expires_at"]
    return until is not None and datetime.fromisoformat(until) <= datetime.now(UTC)


def _split(actions: str) -> list[str]:
    return [action.strip() for action in actions.split(",")]


@grant_app.command("add")
def add_grant(
    *,
    subject: _Subject,
    repository: Annotated[str, typer.Argument(help="Pattern, such as 'team/**' (quote it).", show_default=False)],
    actions: Annotated[
        str, typer.Argument(help="pull, push, create, delete, manage; several with commas.", show_default=False)
    ],
    tags: Annotated[str, typer.Option(help="Pattern of the tags.")] = "*",
    mode: Annotated[str, typer.Option(help="enforce, or warn: allow, and count what would be denied.")] = "enforce",
    expires_at: Expires = None,
    _json: JsonOption = False,
) -> None:
    """Add a grant."""
    body: dict[str, Any] = {
        "subject": subject,
        "repository": repository,
        "tags": tags,
        "actions": _split(actions),
        "mode": mode,
        "expires_at": expires_at,
    }
    with admin_client() as admin:
        made = admin.call("POST", "grants", body=body).document
        if not _has_expired(made):
            print_note(f"Grant {made['id']} is in force.")
        _print(made)


@grant_app.command("set")
def set_grant(
    *,
    grant_id: _GrantId,
    actions: Annotated[
        str | None, typer.Option(help="pull, push, create, delete, manage; several with commas.")
    ] = None,
    tags: Annotated[str | None, typer.Option(help="Pattern of the tags.")] = None,
    mode: Annotated[str | None, typer.Option(help="enforce, or warn.")] = None,
    expires_at: NewExpires = None,
    _json: JsonOption = False,
) -> None:
    """Change a grant; options that are not given keep their values."""
    body = given(actions=actions and _split(actions), tags=tags, mode=mode, expires_at=expires_at)
    if not body:
        raise typer.BadParameter("nothing to change: give --actions, --tags, --mode or --expires-at")
    if expires_at == "never":
        body["expires_at"] = None
    with admin_client() as admin:
        changed = admin.call("PATCH", "grants", grant_id, body=body).document
        print_note(f"Grant {grant_id} changed.")
        _print(changed)


@grant_app.command("list")
def list_grants(
    subject: Annotated[str | None, typer.Option(help="Only those of this subject, such as user:ann.")] = None,
    repository: Annotated[str | None, typer.Option(help="Only those that cover this repository.")] = None,
    _json: JsonOption = False,
) -> None:
    """List grants."""
    with admin_client() as admin:
        grants = admin.list_all("grants", query=given(subject=subject, repository=repository))
        print_list(_COLUMNS, grants, empty="No grants.")


@grant_app.command("rm")
def remove_grant(grant_id: _GrantId) -> None:
    """Remove a grant."""
    with admin_client() as admin:
        admin.call("DELETE", "grants", grant_id)
        print_note(f"Grant {grant_id} removed.")


grant_app.command("replay")(replay_grants)


_CONDITIONS = {
    "labels": "labels",
    "max_size_bytes": "size",
    "max_layers": "number of layers",
    "media_types": "media types",
    "platforms": "platform",
    "not_root": "user of the image, who must not be root",
    "max_age_seconds": "age",
    "bases": "base",
    "max_floors": "number of floors",
    "immutable": "tags that stay as they are",
}
"""The conditions of rules in words; one of a later release has its own name."""


def _print_decision(decision: Mapping[str, Any]) -> None:
    """Print what the grants say, and each rule of images that may refuse all the same."""
    hidden = {"allowed", "rules", *(() if decision["would_deny"] else ("would_deny",))}
    facts = {name: value for name, value in decision.items() if name not in hidden}
    rules = {f"rule {rule['name']}": _rule_text(rule) for rule in decision["rules"]}
    print_facts({"grants allow": decision["allowed"], **facts, **rules})


def _rule_text(rule: Mapping[str, Any]) -> str:
    effect = "only warns" if rule["mode"] == "warn" else "may refuse"
    return f"{effect} ({rule['mode']}): {', '.join(_CONDITIONS.get(each, each) for each in rule['conditions'])}"


def explain(
    subject: _Subject,
    repository: Annotated[
        str,
        typer.Argument(
            help="The repository, as clients write it, such as team/app or team/app:1.2.", show_default=False
        ),
    ],
    action: Annotated[str, typer.Argument(help="pull, push, create, delete or manage.", show_default=False)],
    tag: Annotated[str | None, typer.Option(help="For a particular tag.")] = None,
    _json: JsonOption = False,
) -> None:
    """Say whether somebody may do something, and why: ends with 0 for yes, 1 for no, 2 when it cannot be known."""
    name, colon, tag_of_name = repository.partition(":")
    if colon and tag is not None:
        raise typer.BadParameter(f"{repository} names a tag already", param_hint="--tag")
    body = {"subject": subject, "repository": name, "tag": tag_of_name if colon else tag, "action": action}
    with failing_with(2), admin_client() as admin:
        decision = admin.call("POST", "explain", body=body).document
        if not printed_json(decision):
            _print_decision(decision)
        if not decision["allowed"]:
            raise typer.Exit(1)
