"""`registry-proxy key`."""

import typer

from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.output import JsonOption, print_result

key_app = typer.Typer(help="The key that signs tokens.", no_args_is_help=True)


@key_app.command("rotate")
def rotate_key(_json: JsonOption = False) -> None:
    """Make this node sign with a new key; tokens of the old key stay valid until they expire."""
    with admin_client() as admin:
        rotated = admin.call("POST", "keys", "rotate").document
        print_result(rotated, f"New tokens are signed with key {rotated['kid']}.")
