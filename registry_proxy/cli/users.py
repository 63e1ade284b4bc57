"""`registry-proxy user`."""

from typing import Annotated, Any

import typer

from registry_proxy.cli.subjects import ONLY_IF_NEW, Name, add_common_commands, change_subject, edit_names
from registry_proxy.terminal.client import AdminClient, admin_client, given
from registry_proxy.terminal.credentials import PasswordFile, PasswordStdin, ask_password, read_password
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, print_note, print_object

user_app = typer.Typer(help="Users.", no_args_is_help=True)

_CreateGroups = Annotated[bool, typer.Option("--create-groups", help="Create the named groups that are missing.")]
_Ldap = Annotated[bool, typer.Option("--ldap", help="The password is in LDAP: see auth.ldap.")]


@user_app.command("add")
def add_user(
    *,
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="May do everything, and manage the proxy.")] = False,
    group: Annotated[list[str] | None, typer.Option(help="Group to be in; may be repeated.")] = None,
    create_groups: _CreateGroups = False,
    ldap: _Ldap = False,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    _json: JsonOption = False,
) -> None:
    """Create a user. Asks for the password, unless an option names its source."""
    password = read_password(from_stdin=password_stdin, file=password_file)
    with admin_client() as client:
        _check_groups(client, group, creates=create_groups)
        if password is None and not ldap:
            client.check_login()
            password = ask_password(f"Password of {name}", twice=True)
        body = {"password": password, "ldap": ldap, "admin": admin, "groups": group or []}
        made = client.call("PUT", "users", name, body=body, headers=ONLY_IF_NEW).document
        print_note(f"User {name} made.")
        print_object(made)


@user_app.command("set")
def set_user(
    *,
    name: Name,
    admin: Annotated[bool | None, typer.Option("--admin/--no-admin", help="Give or take administrator rights.")] = None,
    disable: Annotated[
        bool | None,
        typer.Option("--disable/--enable", help="Refuse the user's logins and tokens, or accept them again."),
    ] = None,
    add_group: Annotated[list[str] | None, typer.Option(help="Group to join; may be repeated.")] = None,
    create_groups: _CreateGroups = False,
    remove_group: Annotated[list[str] | None, typer.Option(help="Group to leave.")] = None,
    ldap: _Ldap = False,
    password: Annotated[bool, typer.Option("--password", help="Ask for a new password.")] = False,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    _json: JsonOption = False,
) -> None:
    """Change a user; options that are not given keep their values."""
    secret = read_password(from_stdin=password_stdin, file=password_file)
    changes = given(password=secret, ldap=ldap or None, admin=admin, disabled=disable)
    if not (changes or password or add_group or remove_group):
        raise typer.BadParameter(
            "nothing to change: give --admin, --disable, --add-group, --remove-group, --password or --ldap"
        )

    def edit(user: dict[str, Any]) -> dict[str, Any]:
        return {**changes, "groups": edit_names(user["groups"], add_group, remove_group)}

    with admin_client() as client:
        _check_groups(client, add_group, creates=create_groups)
        if secret is None and password:
            client.check_login()
            changes["password"] = ask_password(f"New password of {name}", twice=True)
        print_object(change_subject(client, "user", name, edit))


def _check_groups(client: AdminClient, groups: list[str] | None, *, creates: bool) -> None:
    """Refuse groups that do not exist: the API would create those of a mistyped name. Raises CommandError."""
    if not groups or creates:
        return
    known = {group["name"] for group in client.list_all("groups")}
    if unknown := [group for group in groups if group not in known]:
        raise CommandError(
            f"There is no group {', '.join(unknown)}; nothing was changed",
            hint="`registry-proxy group list` shows the groups; --create-groups creates missing ones.",
        )


add_common_commands(
    user_app,
    "user",
    ("name", "admin", "disabled", "ldap", "groups"),
    remove_help="Remove a user with its grants and tokens, which stop working at once; asks first if there are grants.",
)
