"""`registry-proxy subscription`: the receivers of events."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from registry_proxy.cli.subjects import ONLY_IF_NEW, change_subject
from registry_proxy.ports.outbox import EventType
from registry_proxy.terminal.client import AdminClient, admin_client, given
from registry_proxy.terminal.credentials import ask_password, read_lines
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, YesOption, confirm, print_list, print_note, print_object

subscription_app = typer.Typer(help="Subscriptions: HTTP receivers of events.", no_args_is_help=True)

SubscriptionName = Annotated[str, typer.Argument(metavar="NAME", help="The subscription.", show_default=False)]
_COLUMNS = ("name", "url", "events", "repository", "tags", "format", "enabled", ("disabled_reason", "WHY"))

_TYPES = ", ".join(each.value for each in EventType if each is not EventType.GAP)
_Events = Annotated[list[str] | None, typer.Option("--event", help=f"Type of events: {_TYPES}; may be repeated.")]
_Repository = Annotated[str | None, typer.Option(help="Pattern of the repositories, such as 'team/**' (quote it).")]
_Tags = Annotated[str | None, typer.Option(help="Pattern of the tags; an event without a tag matches any.")]
_Format = Annotated[
    str | None, typer.Option("--format", help="The body: cloudevents, distribution, harbor or template.")
]
_TemplateFile = Annotated[
    Path | None, typer.Option(help="Read the template of the body from a file; for format template alone.")
]
_OnFailure = Annotated[
    str | None, typer.Option(help="hold: later events of a repository wait for one that fails; skip: they pass it.")
]
_Secret = Annotated[bool, typer.Option("--secret", help="Ask for the secret that signs deliveries.")]
_SecretStdin = Annotated[
    bool, typer.Option("--secret-stdin", help="Read the secrets from standard input, one a line, the active one first.")
]
_SecretFile = Annotated[
    Path | None, typer.Option("--secret-file", help="Read the secrets from a file, one a line, the active one first.")
]
_HeaderStdin = Annotated[
    bool, typer.Option("--header-stdin", help="Read headers of deliveries from standard input, 'Name: value' a line.")
]
_HeaderFile = Annotated[
    Path | None, typer.Option("--header-file", help="Read headers of deliveries from a file, 'Name: value' a line.")
]


@subscription_app.command("list")
def list_subscriptions(_json: JsonOption = False) -> None:
    """List all subscriptions."""
    with admin_client() as admin:
        print_list(_COLUMNS, admin.list_all("subscriptions"), empty="There are no subscriptions.")


@subscription_app.command("show")
def show_subscription(name: SubscriptionName, _json: JsonOption = False) -> None:
    """Show one subscription: the number of its secrets, and the names of its headers."""
    with admin_client() as admin:
        print_object(admin.call("GET", "subscriptions", name).document)


@subscription_app.command("add")
def add_subscription(
    *,
    name: SubscriptionName,
    url: Annotated[str, typer.Argument(help="The receiver, http or https.", show_default=False)],
    event: _Events = None,
    repository: _Repository = None,
    tags: _Tags = None,
    format_: _Format = None,
    template_file: _TemplateFile = None,
    on_failure: _OnFailure = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Take no events yet.")] = False,
    secret: _Secret = False,
    secret_stdin: _SecretStdin = False,
    secret_file: _SecretFile = None,
    header_stdin: _HeaderStdin = False,
    header_file: _HeaderFile = None,
    _json: JsonOption = False,
) -> None:
    """Create a subscription. Without further options it takes pushes and deletes of all repositories."""
    _check_stdin(secret_stdin, header_stdin)
    body = given(
        url=url,
        events=event,
        repository=repository,
        tags=tags,
        format=format_,
        template=_read_template(template_file),
        on_failure=on_failure,
        enabled=False if disabled else None,
        secrets=read_lines("secret", from_stdin=secret_stdin, file=secret_file),
        headers=read_headers(from_stdin=header_stdin, file=header_file),
    )
    with admin_client() as admin:
        if secret:
            body["secrets"] = _ask_secret(admin, name, body)
        made = admin.call("PUT", "subscriptions", name, body=body, headers=ONLY_IF_NEW).document
        print_note(f"Subscription {name} made.")
        print_note(f"Next, a test of its receiver: registry-proxy event test {name}")
        print_object(made)


@subscription_app.command("set")
def set_subscription(
    *,
    name: SubscriptionName,
    url: Annotated[str | None, typer.Option(help="The receiver, http or https.")] = None,
    event: _Events = None,
    repository: _Repository = None,
    tags: _Tags = None,
    format_: _Format = None,
    template_file: _TemplateFile = None,
    on_failure: _OnFailure = None,
    disable: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Take no more events, or take them again.")
    ] = None,
    secret: _Secret = False,
    secret_stdin: _SecretStdin = False,
    secret_file: _SecretFile = None,
    no_secrets: Annotated[bool, typer.Option("--no-secrets", help="Remove the secrets: sign no delivery.")] = False,
    header_stdin: _HeaderStdin = False,
    header_file: _HeaderFile = None,
    no_headers: Annotated[bool, typer.Option("--no-headers", help="Remove the headers.")] = False,
    _json: JsonOption = False,
) -> None:
    """Change a subscription; options that are not given keep their values. Headers are replaced as a whole."""
    _check_stdin(secret_stdin, header_stdin)
    changes = given(
        url=url,
        events=event,
        repository=repository,
        tags=tags,
        format=format_,
        template=_read_template(template_file),
        on_failure=on_failure,
        enabled=None if disable is None else not disable,
        secrets=[] if no_secrets else read_lines("secret", from_stdin=secret_stdin, file=secret_file),
        headers={} if no_headers else read_headers(from_stdin=header_stdin, file=header_file),
    )
    if not (changes or secret):
        raise typer.BadParameter("nothing to change: give --url, --event, --secret, --enable or another option")

    with admin_client() as admin:
        if secret:
            changes["secrets"] = _ask_secret(admin, name, changes)
        print_object(change_subject(admin, "subscription", name, lambda _: changes))


@subscription_app.command("rm")
def remove_subscription(name: SubscriptionName, yes: YesOption = False) -> None:
    """Remove a subscription and its deliveries; asks first if some are queued."""
    with admin_client() as admin:
        queued = {"subscription": name, "state": "queued", "limit": "1"}
        if admin.call("GET", "deliveries", query=queued).document["items"]:
            confirm(f"Remove subscription {name} with the deliveries that are queued for it?", yes=yes)
        admin.call("DELETE", "subscriptions", name)
        print_note(f"Subscription {name} removed.")


def _check_stdin(*asked: bool) -> None:
    if sum(asked) > 1:
        raise typer.BadParameter("--secret-stdin and --header-stdin exclude each other: read one of them from a file")


def _ask_secret(admin: AdminClient, name: str, body: dict[str, Any]) -> Sequence[str]:
    if "secrets" in body:
        raise typer.BadParameter("give one of --secret, --secret-stdin, --secret-file and --no-secrets")
    admin.check_login()
    return [ask_password(f"Secret of {name}", twice=True, noun="secret")]


def read_headers(*, from_stdin: bool, file: Path | None) -> dict[str, str] | None:
    """Return headers by name. Raises CommandError; no part of a line is repeated, which may be a credential."""
    lines = read_lines("header", from_stdin=from_stdin, file=file)
    if lines is None:
        return None
    headers = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if not colon:
            raise CommandError(
                f"Line {number} of the headers has no colon", hint="Write one header a line: Name: value"
            )
        headers[name.strip()] = value.strip()
    return headers


def _read_template(file: Path | None) -> str | None:
    try:
        return None if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise CommandError(f"The template file {file} cannot be read: {error}") from error
