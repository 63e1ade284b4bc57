"""`registry-proxy repository`: which repositories there are."""

from typing import Annotated

import typer

from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.output import JsonOption, print_list

repository_app = typer.Typer(help="Repositories.", no_args_is_help=True)

_COLUMNS = (("name", "REPOSITORY"), "upstream", ("tags_on_record", "TAGS"), "cached")


@repository_app.command("list")
def list_repositories(
    prefix: Annotated[str, typer.Option(help="Only names with this prefix, such as team/.")] = "",
    _json: JsonOption = False,
) -> None:
    """List repositories that were pushed through the proxy or are in this node's cache, without asking a registry."""
    with admin_client() as admin:
        repositories = admin.list_all("repositories", query={"prefix": prefix} if prefix else None)
        print_list(_COLUMNS, repositories, empty="No repository is known.")
