"""`registry-proxy robot`, `token` and `key`: what machines log in with, and what users make for themselves."""

import sys
from typing import Annotated, Any

import typer

from registry_proxy.cli.client import admin_client
from registry_proxy.cli.grants import confirm_removal
from registry_proxy.cli.output import JsonOption, YesOption, counted, print_json, print_list, print_note, print_object

robot_app = typer.Typer(help="Robots: machines that log in with secrets.", no_args_is_help=True)
secret_app = typer.Typer(help="The secrets of a robot.", no_args_is_help=True)
token_app = typer.Typer(help="Personal access tokens, and tokens that were given out.", no_args_is_help=True)
key_app = typer.Typer(help="The key that tokens are signed with.", no_args_is_help=True)
robot_app.add_typer(secret_app, name="secret")

_Name = Annotated[str, typer.Argument(help="Name, without the robot$ of its login.", show_default=False)]
_Expires = Annotated[str | None, typer.Option("--expires-at", help="When it ends, such as 2030-01-31T00:00:00Z.")]
_Label = Annotated[str, typer.Option(help="What it is for.")]
_SecretId = Annotated[str, typer.Argument(metavar="ID", help="As the list shows it.", show_default=False)]
_User = Annotated[str | None, typer.Option(help="Of this user; without it, your own.")]
_SECRET_COLUMNS = {
    "id": "ID",
    "kind": "KIND",
    "label": "LABEL",
    "actions": "ACTIONS",
    "created_at": "CREATED",
    "expires_at": "EXPIRES",
    "state": "STATE",
}
_ROBOT_COLUMNS = {"name": "NAME", "expires_at": "EXPIRES", "networks": "NETWORKS"}


def _show_secret(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    print_note(f"Secret {made['id']} made. It is shown this once:")
    sys.stdout.write(made["secret"] + "\n")


@robot_app.command("add")
def add_robot(
    *,
    name: _Name,
    expires_at: _Expires = None,
    network: Annotated[
        list[str] | None, typer.Option(help="Network it may log in from; may be repeated; without one, from any.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a robot. It logs in as robot$NAME once it has a secret: `robot secret add NAME`."""
    body = {"expires_at": expires_at, "networks": network or []}
    with admin_client() as admin:
        made = admin.call("PUT", "robots", name, body=body, headers={"If-None-Match": "*"}).document
        print_note(f"Robot {name} made: it logs in as robot${name}.")
        print_object(made, as_json=as_json)


@robot_app.command("set")
def set_robot(
    *,
    name: _Name,
    expires_at: Annotated[
        str | None, typer.Option(help="When it ends, such as 2030-01-31T00:00:00Z, or never.")
    ] = None,
    network: Annotated[list[str] | None, typer.Option(help="The networks it may log in from.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Change a robot; what no option names stays as it is."""
    if expires_at is None and network is None:
        raise typer.BadParameter("nothing to change: give --expires-at or --network")
    body: dict[str, Any] = {} if network is None else {"networks": network}
    if expires_at is not None:
        body["expires_at"] = None if expires_at == "never" else expires_at
    with admin_client() as admin:
        print_object(admin.call("PATCH", "robots", name, body=body).document, as_json=as_json)


@robot_app.command("list")
def list_robots(as_json: JsonOption = False) -> None:
    """List all robots."""
    with admin_client() as admin:
        robots = admin.list_all("robots")
        print_list(_ROBOT_COLUMNS, robots, empty="There are no robots.", as_json=as_json)


@robot_app.command("show")
def show_robot(name: _Name, as_json: JsonOption = False) -> None:
    """Show one robot."""
    with admin_client() as admin:
        print_object(admin.call("GET", "robots", name).document, as_json=as_json)


@robot_app.command("rm")
def remove_robot(name: _Name, yes: YesOption = False) -> None:
    """Remove a robot with its secrets, tokens and grants, at once; asks first where there are grants."""
    with admin_client() as admin:
        also = confirm_removal(admin, "robot", name, yes=yes)
        admin.call("DELETE", "robots", name)
        print_note(f"Robot {name} removed{also}.")


@secret_app.command("add")
def add_secret(name: _Name, label: _Label = "", expires_at: _Expires = None, as_json: JsonOption = False) -> None:
    """Make a secret; the others stay good, so that a secret can be replaced without a gap."""
    with admin_client() as admin:
        body = {"label": label, "expires_at": expires_at}
        made = admin.call("POST", "robots", name, "secrets", body=body).document
        _show_secret(made, as_json=as_json)


@secret_app.command("list")
def list_secrets(name: _Name, as_json: JsonOption = False) -> None:
    """List the secrets of a robot, which are never shown again."""
    with admin_client() as admin:
        secrets = admin.list_all("robots", name, "secrets")
        print_list(_SECRET_COLUMNS, secrets, empty=f"Robot {name} has no secret.", as_json=as_json)


@secret_app.command("rm")
def remove_secret(name: _Name, secret_id: _SecretId) -> None:
    """Remove a secret; tokens given for it stop working at once."""
    with admin_client() as admin:
        admin.call("DELETE", "robots", name, "secrets", secret_id)
        print_note(f"Secret {secret_id} of robot {name} removed.")


@token_app.command("add")
def add_token(
    *,
    label: _Label = "",
    expires_at: _Expires = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Good for pulls alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a personal access token of yours, to log in with instead of your password."""
    body = {"label": label, "expires_at": expires_at, "actions": ["pull"] if read_only else None}
    with admin_client() as admin:
        _show_secret(admin.call("POST", "me", "tokens", body=body).document, as_json=as_json)


def _tokens_of(user: str | None) -> tuple[str, ...]:
    return ("me", "tokens") if user is None else ("users", user, "tokens")


@token_app.command("list")
def list_tokens(user: _User = None, as_json: JsonOption = False) -> None:
    """List personal access tokens, and the refresh tokens that docker was given."""
    with admin_client() as admin:
        tokens = admin.list_all(*_tokens_of(user))
        print_list(_SECRET_COLUMNS, tokens, empty="There are no tokens.", as_json=as_json)


@token_app.command("rm")
def remove_token(token_id: _SecretId, user: _User = None) -> None:
    """Remove a personal access token or a refresh token; what was given for it stops working at once."""
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
    as_json: JsonOption = False,
) -> None:
    """Revoke the bearer and refresh tokens of a subject, or one bearer token; with --all also what it logs in with."""
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
        if as_json:
            print_json(revocation)


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


@key_app.command("rotate")
def rotate_key(as_json: JsonOption = False) -> None:
    """Have this node sign with a new key; tokens signed with the old one stay good to their end."""
    with admin_client() as admin:
        rotated = admin.call("POST", "keys", "rotate").document
        if as_json:
            print_json(rotated)
        else:
            print_note(f"New tokens are signed with key {rotated['kid']}.")
