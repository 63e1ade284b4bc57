"""`registry-proxy replica`, `cache`, `reload` and `openapi`: the registries of a node, its disk, its settings."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer
from rich.console import Console

from registry_proxy.cli.client import admin_client
from registry_proxy.cli.exceptions import dismiss_exceptions, forget_lost, list_exceptions, print_lost
from registry_proxy.cli.maintenance import collect_garbage, pause_replica, resume_replica
from registry_proxy.cli.output import (
    JsonOption,
    YesOption,
    confirm,
    counted,
    format_ratio,
    format_size,
    print_facts,
    print_json,
    print_note,
    print_table,
)
from registry_proxy.cli.repair import repair_replicas, verify_replicas
from registry_proxy.cli.warm import warm_cache

replica_app = typer.Typer(help="The registries behind the proxy.", no_args_is_help=True)
cache_app = typer.Typer(help="The cache on the node's disk.", no_args_is_help=True)

_COLUMNS = {
    "upstream": "UPSTREAM",
    "name": "REPLICA",
    "url": "URL",
    "state": "STATE",
    "latency": "LATENCY",
    "pending": "PENDING",
    "reason": "REASON",
}

_BLOB_COLUMNS = {"digest": "DIGEST", "size": "SIZE", "used_at": "LAST USED", "protected": "PROTECTED"}
_PAGE_SIZE = 1000


def _reasons(replica: dict[str, Any]) -> Iterator[str]:
    if pause := replica["paused"]:
        yield f"paused by {pause['by']} since {pause['since']}: {pause['reason'] or 'no reason given'}"
    if replica["reason"]:
        yield replica["reason"]
    if replica["refused"]:
        yield f"cannot take {replica['refused']}"
    if replica["keeps_apart"] is False:
        yield "mixes repositories"


def _replica_row(upstream: str, replica: dict[str, Any]) -> dict[str, Any]:
    latency = replica["latency_seconds"]
    return {
        **replica,
        "upstream": upstream,
        "state": f"{replica['state']}, paused" if replica["paused"] else replica["state"],
        "reason": "; ".join(_reasons(replica)) or None,
        "latency": None if latency is None else f"{latency * 1000:.1f} ms",
    }


def _spinner(text: str) -> AbstractContextManager[object]:
    return Console(stderr=True).status(text) if sys.stderr.isatty() else nullcontext()


@replica_app.command("list")
def list_replicas(as_json: JsonOption = False) -> None:
    """List every replica with its state, latency and pending repairs."""
    with admin_client() as admin:
        upstreams = admin.list_all("upstreams")
        if as_json:
            print_json(upstreams)
            return
        rows = [_replica_row(upstream["name"], replica) for upstream in upstreams for replica in upstream["replicas"]]
        print_table(_COLUMNS, rows, empty="No upstream is configured.")
        for upstream in upstreams:
            print_lost(upstream)
            for warning in upstream["warnings"]:
                print_note(f"Warning: {warning}.")


replica_app.command("verify")(verify_replicas)
replica_app.command("repair")(repair_replicas)
replica_app.command("pause")(pause_replica)
replica_app.command("resume")(resume_replica)
replica_app.command("gc")(collect_garbage)
replica_app.command("exceptions")(list_exceptions)
replica_app.command("dismiss")(dismiss_exceptions)
replica_app.command("forget")(forget_lost)


@cache_app.command("stats")
def cache_stats(as_json: JsonOption = False) -> None:
    """Show size, entries and hit ratios."""
    with admin_client() as admin:
        stats = admin.call("GET", "cache").document
        if as_json:
            print_json(stats)
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
def verify_cache(as_json: JsonOption = False) -> None:
    """Read the whole cache; what is not what its digest says is put into quarantine, and fetched again when needed."""
    with admin_client() as admin, _spinner("Reading the cache"):
        result = admin.call("POST", "cache", "verify", patient=True).document
    if as_json:
        print_json(result)
        return
    for digest in result["bad"]:
        typer.echo(digest)
    bad = counted(len(result["bad"]), "bad entry", plural="bad entries")
    print_note(f"{bad} put into quarantine." if result["bad"] else "Every entry is right.")


@cache_app.command("ls")
def list_cache(
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(help="Go on after this digest.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List what is cached, by digest."""
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
    if as_json:
        print_json(blobs)
        return
    rows = [{**blob, "size": format_size(blob["size_bytes"])} for blob in blobs]
    print_table(_BLOB_COLUMNS, rows, empty="Nothing is cached.")


@cache_app.command("purge")
def purge_cache(
    digest: Annotated[str | None, typer.Argument(help="Only this content.")] = None,
    repository: Annotated[str | None, typer.Option(help="What this repository holds.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The whole cache of the node.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove content from the cache; pushes that some replica does not have yet stay."""
    if [digest is not None, repository is not None, everything].count(True) != 1:
        raise typer.BadParameter("name one of: a digest, --repository REPOSITORY, --all")
    if everything:
        confirm("Remove everything from the cache of this node?", yes=yes)
    body = {"digest": digest, "repository": repository}
    with admin_client() as admin:
        result = admin.call("POST", "cache", "purge", body=body, patient=True).document
        if as_json:
            print_json(result)
        else:
            print_note(f"{counted(result['removed'], 'entry', plural='entries')} removed.")


def reload_configuration(as_json: JsonOption = False) -> None:
    """Have the node read its configuration again; refused with every fault, and then nothing changes."""
    with admin_client() as admin, _spinner("Starting workers with the new configuration"):
        result = admin.call("POST", "reload", patient=True).document
    if as_json:
        print_json(result)
    else:
        print_note(f"Reloaded: generation {result['generation']} serves.")


def show_openapi() -> None:
    """Print the OpenAPI 3.1 document of the admin API, as the node has it."""
    with admin_client() as admin:
        print_json(admin.call("GET", "openapi.json").document)
