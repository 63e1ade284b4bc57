"""`registry-proxy cache`: the cache on the disk of a node."""

from typing import Annotated, Any

import typer

from registry_proxy.cli.warm import warm_cache
from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.output import (
    JsonOption,
    YesOption,
    confirm,
    counted,
    format_ratio,
    format_size,
    print_facts,
    print_note,
    print_result,
    print_table,
    printed_json,
    spinner,
)

cache_app = typer.Typer(help="The cache on the node's disk.", no_args_is_help=True)

_COLUMNS = ("digest", "size", ("used_at", "LAST USED"), "protected")
_PAGE_SIZE = 1000


@cache_app.command("stats")
def cache_stats(_json: JsonOption = False) -> None:
    """Show size, entries and hit ratios."""
    with admin_client() as admin:
        stats = admin.call("GET", "cache").document
        if printed_json(stats):
            return
        size, limit = stats["size_bytes"], stats["max_size_bytes"]
        print_facts(
            {
                "size": f"{format_size(size)} of {format_size(limit)}",
                "entries": stats["entries"],
                "being filled": format_size(stats["filling_bytes"]),
                "pinned": format_size(stats["pinned_bytes"]),
                **{f"{kind} hit ratio": format_ratio(ratio) for kind, ratio in stats["hit_ratios"].items()},
            }
        )


cache_app.command("warm")(warm_cache)


@cache_app.command("verify")
def verify_cache(_json: JsonOption = False) -> None:
    """Read the whole cache; content that does not match its digest goes to quarantine and is fetched anew."""
    with admin_client() as admin, spinner("Reading the cache"):
        result = admin.call("POST", "cache", "verify", patient=True).document
    if printed_json(result):
        return
    for digest in result["bad"]:
        typer.echo(digest)
    bad = counted(len(result["bad"]), "bad entry", plural="bad entries")
    print_note(f"{bad} put into quarantine." if result["bad"] else "Every entry is right.")


@cache_app.command("ls")
def list_cache(
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of contents.")] = 100,
    after: Annotated[str | None, typer.Option(help="Start after this digest.")] = None,
    _json: JsonOption = False,
) -> None:
    """List the cached contents by digest."""
    with admin_client() as admin:
        query = {"limit": str(min(limit, _PAGE_SIZE))} | ({"after": after} if after else {})
        blobs: list[dict[str, Any]] = []
        while len(blobs) < limit:
            page = admin.call("GET", "cache", "blobs", query=query).document
            blobs += page["items"]
            if page["next"] is None:
                break
            query["after"] = page["next"]
        blobs = blobs[:limit]
    if printed_json(blobs):
        return
    rows = [{**blob, "size": format_size(blob["size_bytes"])} for blob in blobs]
    print_table(_COLUMNS, rows, empty="Nothing is cached.")


@cache_app.command("purge")
def purge_cache(
    digest: Annotated[str | None, typer.Argument(help="Only this content.")] = None,
    repository: Annotated[str | None, typer.Option(help="The contents of this repository.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The whole cache of the node.")] = False,
    yes: YesOption = False,
    _json: JsonOption = False,
) -> None:
    """Remove content from the cache; pushes that some replica does not have yet stay."""
    if [digest is not None, repository is not None, everything].count(True) != 1:
        raise typer.BadParameter("name one of: a digest, --repository REPOSITORY, --all")
    if everything:
        confirm("Remove everything from the cache of this node?", yes=yes)
    body = {"digest": digest, "repository": repository}
    with admin_client() as admin:
        result = admin.call("POST", "cache", "purge", body=body, patient=True).document
        print_result(result, f"{counted(result['removed'], 'entry', plural='entries')} removed.")
