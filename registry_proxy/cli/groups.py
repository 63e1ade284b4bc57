"""`registry-proxy group`."""

from typing import Annotated, Any

import typer

from registry_proxy.cli.subjects import ONLY_IF_NEW, Name, add_common_commands, change_subject, edit_names
from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, print_note, print_object

group_app = typer.Typer(help="Groups of users: subjects of grants.", no_args_is_help=True)


@group_app.command("add")
def add_group(
    name: Name,
    member: Annotated[list[str] | None, typer.Option(help="Member; may be repeated.")] = None,
    _json: JsonOption = False,
) -> None:
    """Create a group."""
    with admin_client() as client:
        made = client.call("PUT", "groups", name, body={"members": member or []}, headers=ONLY_IF_NEW).document
        print_note(f"Group {name} made.")
        print_object(made)


@group_app.command("set")
def set_group(
    name: Name,
    add: Annotated[list[str] | None, typer.Option(help="User to add; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="User to remove; may be repeated.")] = None,
    _json: JsonOption = False,
) -> None:
    """Change the members of a group."""
    if not add and not remove:
        raise typer.BadParameter("nothing to change: give --add USER or --remove USER")

    def edit(group: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(remove or []) - set(group["members"])):
            raise CommandError(
                f"Not in group {name}: {', '.join(unknown)}", hint=f"`registry-proxy group show {name}` says who is."
            )
        return {"members": edit_names(group["members"], add, remove)}

    with admin_client() as client:
        print_object(change_subject(client, "group", name, edit))


add_common_commands(
    group_app,
    "group",
    ("name", "members"),
    remove_help="Remove a group with its grants; its members stay. Asks first if there are grants.",
)
