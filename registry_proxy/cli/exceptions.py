"""`registry-proxy replica exceptions`, `dismiss` and `forget`: contents that are lost, or that a replica refuses."""

from typing import Annotated, Any

import typer

from registry_proxy.cli.comparisons import upstream_names
from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.output import (
    JsonOption,
    YesOption,
    confirm,
    counted,
    print_note,
    print_result,
    print_table,
    printed_json,
)

_Upstream = Annotated[str, typer.Argument(help="The upstream.")]
_Repository = Annotated[str | None, typer.Option(help="Only this repository, as the upstream names it.")]
_Name = Annotated[str | None, typer.Option(help="Only this tag or digest.")]

_COLUMNS = ("upstream", "repository", "kind", "name", "replica", ("reason", "WHY"), "dismissed")


def _rows(upstream: str, one: dict[str, Any]) -> list[dict[str, Any]]:
    lost = [{"replica": "all", "reason": "lost: no replica has it"}] if one["lost"] else []
    refused = [{"replica": replica, "reason": reason} for replica, reason in one["refused"].items()]
    return [{**one, "upstream": upstream, **row} for row in lost + refused]


def list_exceptions(
    upstream: Annotated[str | None, typer.Argument(help="Only this upstream.")] = None, _json: JsonOption = False
) -> None:
    """List the contents that cannot be everywhere: lost, because no replica has them any more, or refused by some.

    None of them keeps a replica behind. `registry-proxy replica repair` tries what was refused once more.
    """
    with admin_client() as admin:
        found = {name: admin.list_all("upstreams", name, "exceptions") for name in upstream_names(admin, upstream)}
    if printed_json(found):
        return
    rows = [row for name, exceptions in found.items() for one in exceptions for row in _rows(name, one)]
    print_table(_COLUMNS, rows, empty="Nothing is lost, and no replica refuses anything.")


def _chosen(repository: str | None, name: str | None, *, everything: bool) -> dict[str, str | None]:
    """Return the body that names exceptions; all of an upstream only where ``--all`` says so."""
    if (repository is None and name is None) != everything:
        raise typer.BadParameter("name one of: --repository REPOSITORY, --name NAME or both, --all")
    return {"repository": repository, "name": name}


def dismiss_exceptions(
    upstream: _Upstream,
    repository: _Repository = None,
    name: _Name = None,
    everything: Annotated[bool, typer.Option("--all", help="All exceptions of the upstream.")] = False,
    _json: JsonOption = False,
) -> None:
    """Stop counting and reporting known exceptions. They stay in force until the content is pushed or deleted."""
    chosen = _chosen(repository, name, everything=everything)
    with admin_client() as admin:
        result = admin.call("POST", "upstreams", upstream, "dismiss", body=chosen).document
    print_result(result, f"{counted(result['dismissed'], 'exception')} dismissed.")


def forget_lost(
    *,
    upstream: _Upstream,
    repository: _Repository = None,
    name: _Name = None,
    everything: Annotated[bool, typer.Option("--all", help="All lost contents of the upstream.")] = False,
    yes: YesOption = False,
    _json: JsonOption = False,
) -> None:
    """Forget contents that are lost: images that were deleted after the backup that was restored, for example.

    They are deleted then, as far as the proxy is concerned: nothing counts them, and a comparison misses none of them.
    """
    chosen = _chosen(repository, name, everything=everything)
    with admin_client() as admin:
        if everything:
            lost = [one for one in admin.list_all("upstreams", upstream, "exceptions") if one["lost"]]
            confirm(f"Forget {counted(len(lost), 'lost content')} of {upstream}?", yes=yes)
        result = admin.call("POST", "upstreams", upstream, "forget", body=chosen).document
    print_result(result, f"{counted(result['forgotten'], 'lost content')} forgotten.")


def print_lost(upstream: dict[str, Any]) -> None:
    """Print the number of contents that an upstream has lost, where there are some."""
    if upstream["lost"]:
        name = upstream["name"]
        lost = counted(upstream["lost"], "content", "are lost")
        print_note(f"{name}: {lost}: see `registry-proxy replica exceptions {name}`.")
