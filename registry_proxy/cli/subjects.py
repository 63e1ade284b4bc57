"""Commands that users, groups and robots have in common: show, change with others at work, remove with grants."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from registry_proxy.cli.client import AdminClient, admin_client
from registry_proxy.cli.output import confirm, counted, print_note, print_object

Name = Annotated[str, typer.Argument(help="Name.", show_default=False)]
ONLY_IF_NEW = {"If-None-Match": "*"}


def change_subject(
    admin: AdminClient, kind: str, name: str, edit: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Change the fields that ``edit`` gives, unless another admin changed the object in between."""
    before = admin.call("GET", f"{kind}s", name)
    headers = {"If-Match": before.etag} if before.etag else {}
    changed: dict[str, Any] = admin.call(
        "PATCH", f"{kind}s", name, body=edit(before.document), headers=headers
    ).document
    print_note(f"{kind.title()} {name} changed.")
    return changed


def edit_names(current: list[str], add: list[str] | None, remove: list[str] | None) -> list[str]:
    """Return a list of names with some added and others removed, sorted."""
    return sorted((set(current) | set(add or [])) - set(remove or []))


def show_subject(kind: str, name: str, *, as_json: bool) -> None:
    """Print one user, group or robot."""
    with admin_client() as admin:
        print_object(admin.call("GET", f"{kind}s", name).document, as_json=as_json)


def remove_subject(kind: str, name: str, *, yes: bool) -> None:
    """Remove a user, group or robot with its grants; ask first where there are some."""
    with admin_client() as admin:
        grants = admin.list_all("grants", query={"subject": f"{kind}:{name}"})
        also = f" with {counted(len(grants), 'grant')}" if grants else ""
        if grants:
            confirm(f"Remove {kind} {name}{also}?", yes=yes)
        admin.call("DELETE", f"{kind}s", name)
        print_note(f"{kind.title()} {name} removed{also}.")
