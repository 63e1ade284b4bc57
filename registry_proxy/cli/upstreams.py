"""`registry-proxy replica`: the registries behind the proxy."""

from collections.abc import Iterator
from typing import Any

import typer

from registry_proxy.cli.comparisons import repair_replicas, verify_replicas
from registry_proxy.cli.exceptions import dismiss_exceptions, forget_lost, list_exceptions, print_lost
from registry_proxy.cli.garbage import collect_garbage
from registry_proxy.cli.pauses import pause_replica, resume_replica
from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.output import JsonOption, print_note, print_table, printed_json

replica_app = typer.Typer(help="The registries behind the proxy.", no_args_is_help=True)

_COLUMNS = ("upstream", ("name", "REPLICA"), "url", "state", "latency", "pending", "reason")


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


@replica_app.command("list")
def list_replicas(_json: JsonOption = False) -> None:
    """List every replica with its state, latency and pending repairs."""
    with admin_client() as admin:
        upstreams = admin.list_all("upstreams")
        if printed_json(upstreams):
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
