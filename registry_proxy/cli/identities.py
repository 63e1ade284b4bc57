"""`registry-proxy user` and `registry-proxy group`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from registry_proxy.cli.client import AdminClient, admin_client, told_to_the_user
from registry_proxy.cli.credentials import ask_password, read_password
from registry_proxy.cli.errors import CommandError
from registry_proxy.cli.grants import confirm_removal
from registry_proxy.cli.output import JsonOption, YesOption, print_list, print_note, print_object

user_app = typer.Typer(help="Users: who may log in.", no_args_is_help=True)
group_app = typer.Typer(help="Groups of users: subjects of grants.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="Name.", show_default=False)]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="Read the password from the first line of a file.")
]
_Ldap = Annotated[bool, typer.Option("--ldap", help="LDAP knows the password: see auth.ldap.")]
_ONLY_IF_NEW = {"If-None-Match": "*"}


def _change(admin: AdminClient, kind: str, name: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Change the fields that ``edit`` gives, unless another admin changed the object in between."""
    before = admin.call("GET", kind, name)
    headers = {"If-Match": before.etag} if before.etag else {}
    return admin.call("PATCH", kind, name, body=edit(before.document), headers=headers).document


def _edited(current: list[str], add: list[str], remove: list[str]) -> list[str]:
    return sorted((set(current) | set(add)) - set(remove))


@user_app.command("add")
def add_user(
    *,
    name: _Name,
    admin: Annotated[bool, typer.Option("--admin", help="May do everything, and manage the proxy.")] = False,
    group: Annotated[list[str] | None, typer.Option(help="Group to be in; may be repeated.")] = None,
    ldap: _Ldap = False,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    as_json: JsonOption = False,
) -> None:
    """Make a user. The password is asked for, unless an option says where it is."""
    with told_to_the_user():
        password = read_password(from_stdin=password_stdin, file=password_file)
    with admin_client() as client:
        if password is None and not ldap:
            client.check_login()
            password = ask_password(f"Password of {name}", twice=True)
        body = {"password": password, "ldap": ldap, "admin": admin, "groups": group or []}
        made = client.call("PUT", "users", name, body=body, headers=_ONLY_IF_NEW).document
        print_note(f"User {name} made.")
        print_object(made, as_json=as_json)


@user_app.command("set")
def set_user(
    *,
    name: _Name,
    admin: Annotated[bool | None, typer.Option("--admin/--no-admin", help="Give or take the admin's rights.")] = None,
    disable: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Refuse its logins and tokens, or take them again.")
    ] = None,
    add_group: Annotated[list[str] | None, typer.Option(help="Group to put the user into; may be repeated.")] = None,
    remove_group: Annotated[list[str] | None, typer.Option(help="Group to take the user out of.")] = None,
    ldap: _Ldap = False,
    password: Annotated[bool, typer.Option("--password", help="Ask for a new password.")] = False,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    as_json: JsonOption = False,
) -> None:
    """Change a user; what no option names stays as it is."""
    with told_to_the_user():
        secret = read_password(from_stdin=password_stdin, file=password_file)
    sets_password = password or secret is not None
    if not sets_password and admin is None and disable is None and not add_group and not remove_group and not ldap:
        raise typer.BadParameter(
            "nothing to change: give --admin, --disable, --add-group, --remove-group, --password or --ldap"
        )

    def edit(user: dict[str, Any]) -> dict[str, Any]:
        changes: dict[str, Any] = {"groups": _edited(user["groups"], add_group or [], remove_group or [])}
        if secret is not None:
            changes["password"] = secret
        if ldap:
            changes["ldap"] = True
        if admin is not None:
            changes["admin"] = admin
        if disable is not None:
            changes["disabled"] = disable
        return changes

    with admin_client() as client:
        if secret is None and password:
            client.check_login()
            secret = ask_password(f"New password of {name}", twice=True)
        changed = _change(client, "users", name, edit)
        print_note(f"User {name} changed.")
        print_object(changed, as_json=as_json)


@user_app.command("list")
def list_users(as_json: JsonOption = False) -> None:
    """List all users."""
    with admin_client() as client:
        columns = {"name": "NAME", "admin": "ADMIN", "disabled": "DISABLED", "ldap": "LDAP", "groups": "GROUPS"}
        print_list(columns, client.list_all("users"), empty="There are no users.", as_json=as_json)


@user_app.command("show")
def show_user(name: _Name, as_json: JsonOption = False) -> None:
    """Show one user."""
    with admin_client() as client:
        print_object(client.call("GET", "users", name).document, as_json=as_json)


@user_app.command("rm")
def remove_user(name: _Name, yes: YesOption = False) -> None:
    """Remove a user with its grants and tokens, which stop working at once; asks first where there are grants."""
    with admin_client() as client:
        also = confirm_removal(client, "user", name, yes=yes)
        client.call("DELETE", "users", name)
        print_note(f"User {name} removed{also}.")


@group_app.command("add")
def add_group(
    name: _Name,
    member: Annotated[list[str] | None, typer.Option(help="User in it; may be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a group."""
    with admin_client() as client:
        made = client.call("PUT", "groups", name, body={"members": member or []}, headers=_ONLY_IF_NEW).document
        print_note(f"Group {name} made.")
        print_object(made, as_json=as_json)


@group_app.command("set")
def set_group(
    name: _Name,
    add: Annotated[list[str] | None, typer.Option(help="User to put in; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="User to take out; may be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Change who is in a group."""
    if not add and not remove:
        raise typer.BadParameter("nothing to change: give --add USER or --remove USER")

    def edit(group: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(remove or []) - set(group["members"])):
            raise CommandError(
                f"Not in group {name}: {', '.join(unknown)}", hint=f"`registry-proxy group show {name}` says who is."
            )
        return {"members": _edited(group["members"], add or [], remove or [])}

    with admin_client() as client:
        changed = _change(client, "groups", name, edit)
        print_note(f"Group {name} changed.")
        print_object(changed, as_json=as_json)


@group_app.command("list")
def list_groups(as_json: JsonOption = False) -> None:
    """List all groups."""
    with admin_client() as client:
        columns = {"name": "NAME", "members": "MEMBERS"}
        print_list(columns, client.list_all("groups"), empty="There are no groups.", as_json=as_json)


@group_app.command("show")
def show_group(name: _Name, as_json: JsonOption = False) -> None:
    """Show one group."""
    with admin_client() as client:
        print_object(client.call("GET", "groups", name).document, as_json=as_json)


@group_app.command("rm")
def remove_group(name: _Name, yes: YesOption = False) -> None:
    """Remove a group with its grants; its members stay. Asks first where there are grants."""
    with admin_client() as client:
        also = confirm_removal(client, "group", name, yes=yes)
        client.call("DELETE", "groups", name)
        print_note(f"Group {name} removed{also}.")
