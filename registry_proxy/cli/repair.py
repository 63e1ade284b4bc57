"""`registry-proxy replica repair`: have replicas that missed writes brought up to date, and watch it."""

import sys
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from registry_proxy.cli.client import AdminClient, admin_client
from registry_proxy.cli.errors import CommandError
from registry_proxy.cli.output import JsonOption, print_json, print_note

_POLL_SECONDS = 0.5
_STUCK_SECONDS = 15.0
"""Without a key repaired for so long, by a node that has nothing under way, a repair counts as stuck."""

_ABLE = frozenset({"up", "behind"})


def repair_replicas(
    upstream: Annotated[str | None, typer.Argument(help="Only this upstream.")] = None, as_json: JsonOption = False
) -> None:
    """Try at once what replicas miss, and wait until they miss nothing; they are repaired without this command, too."""
    with admin_client() as admin:
        names = [upstream] if upstream else [document["name"] for document in admin.list_all("upstreams")]
        for name in names:
            admin.call("POST", "upstreams", name, "repair")
        documents = _follow(admin, names)
    if as_json:
        print_json(documents)
    else:
        print_note("Every replica has everything.")


def _follow(admin: AdminClient, names: list[str]) -> list[dict[str, Any]]:
    """Return the upstreams when nothing is pending. Raises CommandError when a replica cannot be repaired."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("keys", total=None)
        most, least, changed_at = 0, sys.maxsize, time.monotonic()
        while True:
            documents = [admin.call("GET", "upstreams", name).document for name in names]
            behind = [
                (document["name"], replica)
                for document in documents
                for replica in document["replicas"]
                if replica["pending"]
            ]
            pending = sum(replica["pending"] for _, replica in behind)
            most = max(most, pending)
            progress.update(bar, total=most, completed=most - pending)
            if not pending:
                return documents
            if pending < least or any(replica["repair"]["running"] for _, replica in behind):
                least, changed_at = min(pending, least), time.monotonic()
            is_stuck = time.monotonic() - changed_at > _STUCK_SECONDS
            faults = [f"{name}/{replica['name']}: {fault}" for name, replica in behind if (fault := _fault(replica))]
            if is_stuck or (faults and all(replica["state"] not in _ABLE for _, replica in behind)):
                raise CommandError(
                    f"{pending} keys are not repaired",
                    faults=faults,
                    hint="Bring these replicas back: what they miss is repaired as soon as they are up.",
                )
            time.sleep(_POLL_SECONDS)


def _fault(replica: dict[str, Any]) -> str:
    """Return what keeps a replica from being repaired; "" where nothing is known to."""
    if replica["state"] not in _ABLE:
        return f"it is {replica['state']}: {replica['reason']}"
    return str(replica["repair"]["error"])
