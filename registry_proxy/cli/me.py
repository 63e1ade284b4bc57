"""`registry-proxy whoami` and `password`: the account that the commands log in with."""

from registry_proxy.cli.grants import print_grants
from registry_proxy.terminal.client import AdminClient, admin_client
from registry_proxy.terminal.credentials import (
    PASSWORD_VARIABLE,
    Credentials,
    PasswordFile,
    PasswordStdin,
    admin_url,
    ask_password,
    find_credentials,
    is_from_environment,
    read_password,
    store_credentials,
)
from registry_proxy.terminal.output import JsonOption, counted, print_facts, print_note, printed_json


def whoami(_json: JsonOption = False) -> None:
    """Show who you are logged in as, your groups, and what you may do."""
    with admin_client() as client:
        me = client.call("GET", "me").document
        if printed_json(me):
            return
        print_facts({"subject": me["subject"], "url": admin_url(), "admin": me["admin"], "groups": me["groups"]})
        if me["admin"]:
            print_note("An administrator may do everything.")
        else:
            print_grants(me["grants"], empty="There are no grants for you: you may do nothing.")


def change_password(password_stdin: PasswordStdin = False, password_file: PasswordFile = None) -> None:
    """Change your own password. The new one is asked for, unless an option says where it is.

    Your bearer and refresh tokens end; your personal tokens are still accepted, and their number is printed.
    """
    with admin_client() as client:
        url = admin_url()
        current = find_credentials(url)
        new = read_password(from_stdin=password_stdin, file=password_file)
        if new is None:
            client.check_login()
            new = ask_password(f"New password of {current.username} at {url}", twice=True)
        client.call("POST", "me", "password", body={"current": current.password, "new": new})
        print_note(f"The password of {current.username} is changed. Log in again where the old one is kept.")
        if is_from_environment():
            print_note(f"{PASSWORD_VARIABLE} still holds the old one: change it where it is set.")
        else:
            store_credentials(url, Credentials(current.username, new))
    _print_what_stays(url, Credentials(current.username, new))


def _print_what_stays(url: str, credentials: Credentials) -> None:
    with AdminClient(url, credentials) as client:
        tokens = client.list_all("me", "tokens")
    if left := sum(token["kind"] == "personal" and token["state"] == "valid" for token in tokens):
        accepted = counted(left, "personal token", "are still accepted")
        print_note(f"{accepted}: `registry-proxy token list` shows them, `token rm` deletes.")
