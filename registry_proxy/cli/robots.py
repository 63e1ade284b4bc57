"""`registry-proxy robot`: machines that log in with secrets."""

from typing import Annotated, Any

import typer

from registry_proxy.cli.client import admin_client
from registry_proxy.cli.output import JsonOption, YesOption, print_list, print_note, print_object
from registry_proxy.cli.subjects import ONLY_IF_NEW, remove_subject, show_subject
from registry_proxy.cli.tokens import SECRET_COLUMNS, Expires, Label, SecretId, show_secret

robot_app = typer.Typer(help="Robots: machines that log in with secrets.", no_args_is_help=True)
secret_app = typer.Typer(help="The secrets of a robot.", no_args_is_help=True)
robot_app.add_typer(secret_app, name="secret")

_Name = Annotated[str, typer.Argument(help="Name, without the robot$ of its login.", show_default=False)]
_COLUMNS = {"name": "NAME", "expires_at": "EXPIRES", "networks": "NETWORKS"}


@robot_app.command("add")
def add_robot(
    *,
    name: _Name,
    expires_at: Expires = None,
    network: Annotated[
        list[str] | None, typer.Option(help="Allowed network; may be repeated; any network by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a robot. It logs in as robot$NAME once it has a secret: `robot secret add NAME`."""
    body = {"expires_at": expires_at, "networks": network or []}
    with admin_client() as admin:
        made = admin.call("PUT", "robots", name, body=body, headers=ONLY_IF_NEW).document
        print_note(f"Robot {name} made: it logs in as 'robot${name}', in single quotes in a shell.")
        print_note(f"Next, its secret: registry-proxy robot secret add {name}")
        print_object(made, as_json=as_json)


@robot_app.command("set")
def set_robot(
    *,
    name: _Name,
    expires_at: Annotated[
        str | None, typer.Option(help="When it ends, such as 2030-01-31T00:00:00Z, or never.")
    ] = None,
    network: Annotated[list[str] | None, typer.Option(help="The allowed networks.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Change a robot; options that are not given keep their values."""
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
        print_list(_COLUMNS, robots, empty="There are no robots.", as_json=as_json)


@robot_app.command("show")
def show_robot(name: _Name, as_json: JsonOption = False) -> None:
    """Show one robot."""
    show_subject("robot", name, as_json=as_json)


@robot_app.command("rm")
def remove_robot(name: _Name, yes: YesOption = False) -> None:
    """Remove a robot with its secrets, tokens and grants, at once; asks first if there are grants."""
    remove_subject("robot", name, yes=yes)


@secret_app.command("add")
def add_secret(name: _Name, label: Label = "", expires_at: Expires = None, as_json: JsonOption = False) -> None:
    """Create a secret; the others stay valid, so that a secret can be replaced without a gap."""
    with admin_client() as admin:
        body = {"label": label, "expires_at": expires_at}
        made = admin.call("POST", "robots", name, "secrets", body=body).document
        show_secret(made, use=f"the password of docker login -u 'robot${name}'", as_json=as_json)


@secret_app.command("list")
def list_secrets(name: _Name, as_json: JsonOption = False) -> None:
    """List the secrets of a robot, which are never shown again."""
    with admin_client() as admin:
        secrets = admin.list_all("robots", name, "secrets")
        print_list(SECRET_COLUMNS, secrets, empty=f"Robot {name} has no secret.", as_json=as_json)


@secret_app.command("rm")
def remove_secret(name: _Name, secret_id: SecretId) -> None:
    """Remove a secret; tokens that were issued for it stop working at once."""
    with admin_client() as admin:
        admin.call("DELETE", "robots", name, "secrets", secret_id)
        print_note(f"Secret {secret_id} of robot {name} removed.")
