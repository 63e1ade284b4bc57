"""`registry-proxy login` and `logout`: credentials, kept for the other commands."""

from typing import Annotated

import typer

from registry_proxy.terminal.client import AdminClient
from registry_proxy.terminal.credentials import (
    FIRST_ADMIN,
    Credentials,
    PasswordFile,
    PasswordStdin,
    admin_url,
    ask_password,
    forget_credentials,
    read_password,
    store_credentials,
)
from registry_proxy.terminal.errors import NotAdminError
from registry_proxy.terminal.output import print_note


def login(
    user: Annotated[str, typer.Option("--user", "-u", help="The user to log in.")] = FIRST_ADMIN,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
) -> None:
    """Check a user's credentials and keep them, readable by you only, for the other commands."""
    url = admin_url()
    password = read_password(from_stdin=password_stdin, file=password_file)
    if password is None:
        password = ask_password(f"Password of {user} at {url}")
    credentials = Credentials(user, password)
    with AdminClient(url, credentials) as admin:
        is_admin = _is_admin(admin)
    path = store_credentials(url, credentials)
    print_note(f"Logged in at {url} as {user}; kept in {path}.")
    if not is_admin:
        print_note(
            f"{user} is not an admin. These commands work: `whoami`, `password`, `token`, `import`, `explain` "
            "about the user, and, in namespaces that the user owns, `grant` and `explain` about others."
        )


def _is_admin(admin: AdminClient) -> bool:
    """Tell whether the credentials are an admin's. Raises CommandError for wrong ones."""
    try:
        admin.call("GET", "users", query={"limit": "1"})
    except NotAdminError:
        return False
    return True


def logout() -> None:
    """Forget the credentials kept for this URL."""
    url = admin_url()
    kept = forget_credentials(url)
    print_note(f"Logged out of {url}." if kept else f"Nothing was kept for {url}.")
