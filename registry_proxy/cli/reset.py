"""`registry-proxy admin reset`: a new password for an administrator, written into the store itself."""

import asyncio
import os
import secrets
from typing import Annotated

import typer

from registry_proxy.cli.backup import Config, told_offline
from registry_proxy.config.load import load_settings
from registry_proxy.offline.reset import reset_admin
from registry_proxy.terminal.credentials import FIRST_ADMIN, PasswordFile, PasswordStdin, read_password
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import print_lines, print_note

reset_app = typer.Typer(help="Administrators, without the admin API.", no_args_is_help=True)


@reset_app.command("reset")
def reset(
    config: Config,
    user: Annotated[str, typer.Option("--user", "-u", help="The administrator, created if missing.")] = FIRST_ADMIN,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
) -> None:
    """Give an administrator a new password when nobody can log in. Nodes may keep running.

    The user becomes an administrator, and is enabled. Without an option the password is generated, and printed.
    """
    with told_offline():
        given = read_password(from_stdin=password_stdin, file=password_file)
        password = given or secrets.token_urlsafe(18)
        settings = load_settings(config, os.environ)
        try:
            is_new = asyncio.run(reset_admin(settings.store_url, user, password))
        except ValueError as error:
            raise CommandError(f"{user} is not reset", faults=[str(error)]) from error
        where = settings.sqlite_path or "the store"
        print_note(f"{user} is {'made, ' if is_new else ''}an administrator with a new password in {where}.")
        if given is None:
            print_lines([password])
