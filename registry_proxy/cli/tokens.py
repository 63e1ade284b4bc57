"""`registry-proxy token`: personal access tokens, and the revocation of tokens."""

from typing import Annotated, Any

import typer

from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.output import JsonOption, counted, print_lines, print_list, print_note, printed_json
from registry_proxy.terminal.times import Expires

token_app = typer.Typer(help="Personal access tokens, and issued tokens.", no_args_is_help=True)

Label = Annotated[str, typer.Option(help="Its purpose.")]
SecretId = Annotated[str, typer.Argument(metavar="ID", help="The id, from `token list`.", show_default=False)]
SECRET_COLUMNS = ("id", "kind", "label", "actions", "created_at", "expires_at", "state")

_User = Annotated[str | None, typer.Option(help="Of this user; without it, your own.")]


def show_secret(made: dict[str, Any], *, use: str) -> None:
    """Print a new secret, this once; ``use`` completes "Use it as"."""
    if not printed_json(made):
        print_note(f"Secret {made['id']} made. Use it as {use}. It is shown this once:")
        print_lines([made["secret"]])


@token_app.command("add")
def add_token(
    *,
    label: Label = "",
    expires_at: Expires = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Valid for pulls only.")] = False,
    _json: JsonOption = False,
) -> None:
    """Create a personal access token of yours, for logins instead of your password."""
    body = {"label": label, "expires_at": expires_at, "actions": ["pull"] if read_only else None}
    with admin_client() as admin:
        made = admin.call("POST", "me", "tokens", body=body).document
        show_secret(made, use="the password of your user in docker login")


def _tokens_of(user: str | None) -> tuple[str, ...]:
    return ("me", "tokens") if user is None else ("users", user, "tokens")


@token_app.command("list")
def list_tokens(user: _User = None, _json: JsonOption = False) -> None:
    """List personal access tokens and the refresh tokens of docker."""
    with admin_client() as admin:
        tokens = admin.list_all(*_tokens_of(user))
        print_list(SECRET_COLUMNS, tokens, empty="There are no tokens.")


@token_app.command("rm")
def remove_token(token_id: SecretId, user: _User = None) -> None:
    """Remove a personal access token or a refresh token; tokens issued for it stop working at once."""
    with admin_client() as admin:
        admin.call("DELETE", *_tokens_of(user), token_id)
        print_note(f"Token {token_id} removed.")


@token_app.command("revoke")
def revoke_tokens(
    subject: Annotated[
        str | None,
        typer.Argument(help="user:NAME, robot:NAME, oidc:ISSUER/RULE/NAME or anonymous.", show_default=False),
    ] = None,
    token_id: Annotated[str | None, typer.Option("--id", help="Only the token with this jti.")] = None,
    also_secrets: Annotated[
        bool, typer.Option("--all", help="Delete its personal tokens or robot secrets, too; its password stays.")
    ] = False,
    _json: JsonOption = False,
) -> None:
    """Revoke the bearer and refresh tokens of a subject, or one bearer token; with --all its secrets too."""
    if (subject is None) == (token_id is None):
        raise typer.BadParameter("name either a subject or --id ID")
    if also_secrets and subject is None:
        raise typer.BadParameter("--all goes with a subject")
    with admin_client() as admin:
        kind, _, name = (subject or "").partition(":")
        if kind in {"user", "robot"}:
            admin.call("GET", f"{kind}s", name)  # a name mistyped must not be reported as revoked
        body = {"token_id": token_id} if subject is None else {"subject": subject, "secrets": also_secrets}
        revocation = admin.call("POST", "revocations", body=body).document
        if subject is None:
            print_note(f"A token {token_id}, if there is one, is revoked.")
        else:
            _say_what_is_revoked(subject, revocation)
        printed_json(revocation)


def _say_what_is_revoked(subject: str, revocation: dict[str, Any]) -> None:
    print_note(f"The bearer and refresh tokens of {subject} are revoked.")
    kind, _, name = subject.partition(":")
    secret = "personal token" if kind == "user" else "secret"
    if deleted := revocation["secrets_deleted"]:
        print_note(f"{counted(deleted, secret, 'are deleted')}.")
    if left := revocation["secrets_left"]:
        remedy = f"`registry-proxy token revoke {subject} --all` deletes them"
        print_note(f"{counted(left, secret, 'are still accepted')}: {remedy}.")
    if kind == "user":
        print_note(f"The password is still accepted: `registry-proxy user set {name} --disable` refuses every login.")
