"""`registry-proxy robot`: machines that log in with secrets."""

from typing import Annotated

import typer

from registry_proxy.cli.subjects import ONLY_IF_NEW, RobotName, add_common_commands
from registry_proxy.cli.tokens import SECRET_COLUMNS, Label, SecretId, show_secret
from registry_proxy.terminal.client import admin_client, given
from registry_proxy.terminal.output import JsonOption, print_list, print_note, print_object
from registry_proxy.terminal.times import Expires, NewExpires

robot_app = typer.Typer(help="Robots: machines that log in with secrets.", no_args_is_help=True)
secret_app = typer.Typer(help="The secrets of a robot.", no_args_is_help=True)
robot_app.add_typer(secret_app, name="secret")


@robot_app.command("add")
def add_robot(
    *,
    name: RobotName,
    expires_at: Expires = None,
    network: Annotated[
        list[str] | None, typer.Option(help="Allowed network; may be repeated; any network by default.")
    ] = None,
    _json: JsonOption = False,
) -> None:
    """Create a robot. It logs in as robot$NAME once it has a secret: `robot secret add NAME`."""
    body = {"expires_at": expires_at, "networks": network or []}
    with admin_client() as admin:
        made = admin.call("PUT", "robots", name, body=body, headers=ONLY_IF_NEW).document
        print_note(f"Robot {name} made: it logs in as 'robot${name}', in single quotes in a shell.")
        print_note(f"Next, its secret: registry-proxy robot secret add {name}")
        print_object(made)


@robot_app.command("set")
def set_robot(
    *,
    name: RobotName,
    expires_at: NewExpires = None,
    network: Annotated[list[str] | None, typer.Option(help="The allowed networks.")] = None,
    _json: JsonOption = False,
) -> None:
    """Change a robot; options that are not given keep their values."""
    body = given(networks=network, expires_at=expires_at)
    if not body:
        raise typer.BadParameter("nothing to change: give --expires-at or --network")
    if expires_at == "never":
        body["expires_at"] = None
    with admin_client() as admin:
        print_object(admin.call("PATCH", "robots", name, body=body).document)


add_common_commands(
    robot_app,
    "robot",
    ("name", "expires_at", "networks"),
    remove_help="Remove a robot with its secrets, tokens and grants, at once; asks first if there are grants.",
)


@secret_app.command("add")
def add_secret(name: RobotName, label: Label = "", expires_at: Expires = None, _json: JsonOption = False) -> None:
    """Create a secret; the others stay valid, so that a secret can be replaced without a gap."""
    with admin_client() as admin:
        body = {"label": label, "expires_at": expires_at}
        made = admin.call("POST", "robots", name, "secrets", body=body).document
        show_secret(made, use=f"the password of docker login -u 'robot${name}'")


@secret_app.command("list")
def list_secrets(name: RobotName, _json: JsonOption = False) -> None:
    """List the secrets of a robot, which are never shown again."""
    with admin_client() as admin:
        secrets = admin.list_all("robots", name, "secrets")
        print_list(SECRET_COLUMNS, secrets, empty=f"Robot {name} has no secret.")


@secret_app.command("rm")
def remove_secret(name: RobotName, secret_id: SecretId) -> None:
    """Remove a secret; tokens that were issued for it stop working at once."""
    with admin_client() as admin:
        admin.call("DELETE", "robots", name, "secrets", secret_id)
        print_note(f"Secret {secret_id} of robot {name} removed.")
