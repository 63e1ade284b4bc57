"""Commands that users, groups and robots have in common: list, show, change with others at work, remove with grants."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from registry_proxy.terminal.client import AdminClient, admin_client
from registry_proxy.terminal.output import (
    Columns,
    JsonOption,
    YesOption,
    confirm,
    counted,
    print_list,
    print_note,
    print_object,
)

_NAME = typer.Argument(help="The name.", show_default=False)
_ROBOT_NAME = typer.Argument(help="The name, without the robot$ of the login.", show_default=False)
Name = Annotated[str, _NAME]
RobotName = Annotated[str, _ROBOT_NAME]
ONLY_IF_NEW = {"If-None-Match": "*"}


def add_common_commands(app: typer.Typer, kind: str, columns: Columns, *, remove_help: str) -> None:
    """Add the commands ``list``, ``show`` and ``rm`` of a kind of subject, such as ``user``."""
    argument = _ROBOT_NAME if kind == "robot" else _NAME

    @app.command("list", help=f"List all {kind}s.")
    def list_subjects(_json: JsonOption = False) -> None:
        with admin_client() as admin:
            print_list(columns, admin.list_all(f"{kind}s"), empty=f"There are no {kind}s.")

    @app.command("show", help=f"Show one {kind}.")
    def show_subject(name: Annotated[str, argument], _json: JsonOption = False) -> None:
        with admin_client() as admin:
            print_object(admin.call("GET", f"{kind}s", name).document)

    @app.command("rm", help=remove_help)
    def remove_subject(name: Annotated[str, argument], yes: YesOption = False) -> None:
        with admin_client() as admin:
            grants = admin.list_all("grants", query={"subject": f"{kind}:{name}"})
            also = f" with {counted(len(grants), 'grant')}" if grants else ""
            if grants:
                confirm(f"Remove {kind} {name}{also}?", yes=yes)
            admin.call("DELETE", f"{kind}s", name)
            print_note(f"{kind.title()} {name} removed{also}.")


def change_subject(
    admin: AdminClient, kind: str, name: str, edit: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Change the fields that ``edit`` gives, unless another admin changed the object in between."""
    before = admin.call("GET", f"{kind}s", name)
    headers = {"If-Match": before.etag} if before.etag else {}
    changed = admin.call("PATCH", f"{kind}s", name, body=edit(before.document), headers=headers).document
    print_note(f"{kind.title()} {name} changed.")
    return changed


def edit_names(current: list[str], add: list[str] | None, remove: list[str] | None) -> list[str]:
    """Return a list of names with some added and others removed, sorted."""
    return sorted((set(current) | set(add or [])) - set(remove or []))
