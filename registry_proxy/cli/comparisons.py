"""`registry-proxy replica verify` and `repair`: compare replicas, have them brought up to date, and watch it."""

import sys
import time
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from registry_proxy.terminal.client import AdminClient, admin_client
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, counted, print_note, print_table, printed_json, progress_bars

_POLL_SECONDS = 0.5
_STUCK_SECONDS = 15.0
"""Without a key repaired for so long, by a node that has nothing under way, a repair counts as stuck."""

ABLE = frozenset({"up", "behind"})
"""The states of a replica that is there."""

_COLUMNS = ("repository", "kind", "name", "replica", "found", "wanted", ("holders", "HELD BY"))
_Upstream = Annotated[str | None, typer.Argument(help="Only this upstream.")]
_Prefer = Annotated[str | None, typer.Option(help="The replica that decides a tag when nothing else does.")]


def verify_replicas(upstream: _Upstream = None, _json: JsonOption = False) -> None:
    """Compare the replicas: their tags, the manifests on record, and all that these refer to. Changes nothing."""
    with admin_client() as admin:
        names = upstream_names(admin, upstream)
        comparisons = [compare_replicas(admin, name, {}) for name in names]
        _print_comparisons(comparisons)
        for name in names:
            _print_refused(admin.call("GET", "upstreams", name).document)
        fail_for(comparisons, "differences that are decided are repaired by `registry-proxy replica repair`")


def repair_replicas(upstream: _Upstream = None, prefer: _Prefer = None, _json: JsonOption = False) -> None:
    """Compare the replicas, and wait until each has its missing contents. Nothing is ever deleted.

    Writes that a replica missed while it was away are repaired without this command, too. Contents that a replica
    refused are tried once more.
    """
    with admin_client() as admin:
        names = upstream_names(admin, upstream)
        for name in names:
            admin.call("POST", "upstreams", name, "repair")
        comparisons = [compare_replicas(admin, name, {"repair": True, "prefer": prefer}) for name in names]
        documents = follow_repairs(admin, names)
        is_printed = printed_json(documents)
        fail_for(
            [{**one, "differing": one["undecided"], "lost": 0} for one in comparisons],
            "see `registry-proxy replica verify`; --prefer REPLICA decides about tags",
        )
        if not is_printed:
            _print_repaired(documents)


def _print_repaired(documents: list[dict[str, Any]]) -> None:
    lost = sum(document["lost"] for document in documents)
    refused = sum(replica["refused"] for document in documents for replica in document["replicas"])
    if lost or refused:
        print_note(
            f"Every replica has all that it can have, but for {counted(lost, 'lost content')} and {refused} that a "
            "replica refuses. See `registry-proxy replica exceptions`."
        )
    else:
        print_note("Every replica has everything.")


def _print_refused(document: dict[str, Any]) -> None:
    """Print the number of contents that were not compared, because a replica refuses them for good."""
    if refused := sum(replica["refused"] for replica in document["replicas"]):
        name = document["name"]
        contents = counted(refused, "content")
        print_note(f"{name}: {contents} that a replica refuses: see `registry-proxy replica exceptions {name}`.")


def upstream_names(admin: AdminClient, upstream: str | None) -> list[str]:
    """Return the upstream that a command was given, or all."""
    return [upstream] if upstream else [document["name"] for document in admin.list_all("upstreams")]


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return progress_bars(*columns)


def compare_replicas(admin: AdminClient, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """Have the replicas of an upstream compared; return the comparison when it has ended."""
    with _progress() as progress:
        bar = progress.add_task(f"{name}: repositories", total=None)
        comparison = admin.call("POST", "upstreams", name, "verify", body=body).document
        while not comparison["done"]:
            time.sleep(_POLL_SECONDS)
            comparison = admin.call("GET", "upstreams", name, "verify").document
            progress.update(bar, total=comparison["repositories"], completed=comparison["repositories_done"])
    return {"upstream": name, **comparison}


def _print_comparisons(comparisons: list[dict[str, Any]]) -> None:
    if printed_json(comparisons):
        return
    for comparison in comparisons:
        counts = f"{counted(comparison['manifests'], 'manifest')} and {counted(comparison['blobs'], 'blob')} compared"
        rows = [
            {**row, "wanted": row["wanted"] or "undecided", "replica": row["replica"] or "all: it is lost"}
            for row in comparison["differences"]
        ]
        if rows or not comparison["error"]:
            print_table(_COLUMNS, rows, empty=f"{comparison['upstream']}: {counts}, no difference found.")
        if (hidden := comparison["differing"] + comparison["lost"] - len(rows)) > 0:
            print_note(f"{counted(hidden, 'more difference', 'are not shown')}.")
        if comparison["sparse"]:
            children = counted(comparison["sparse"], "child of an index", "are", plural="children of indexes")
            print_note(
                f"{comparison['upstream']}: {children} at no replica, and not on record: the index was pushed without "
                "it, or it was deleted. This is no loss."
            )


def fail_for(comparisons: list[dict[str, Any]], hint: str) -> None:
    """Raise CommandError for what differs or is lost, or could not be compared."""
    failed = [f"{one['upstream']}: {one['error']}" for one in comparisons if one["error"]]
    failed += [
        f"{one['upstream']}: {failure['key']} is unknown at {failure['replica']}: {failure['reason']}"
        for one in comparisons
        for failure in one["failures"]
    ]
    differing = [f"{one['upstream']}: {_told(one)}" for one in comparisons if one["differing"] or one["lost"]]
    if any(one["differing"] for one in comparisons):
        raise CommandError("the replicas are not equal", faults=failed + differing, hint=hint)
    if failed:
        hint = "see `registry-proxy replica list`; compare again when all of them answer"
        raise CommandError("the replicas could not be compared", faults=failed + differing, hint=hint)
    if differing:
        hint = (
            "Deleted since the backup that was restored? `registry-proxy replica forget`. Else push it again, or "
            "dismiss it: `registry-proxy replica dismiss`."
        )
        raise CommandError("the replicas are equal, and contents are lost", faults=differing, hint=hint)


def _told(comparison: dict[str, Any]) -> str:
    return (
        f"{counted(comparison['differing'], 'difference')}, {comparison['undecided']} of them undecided (tags that the "
        f"replicas disagree about); {counted(comparison['lost'], 'content', 'lost')} (pushed or referred to, and at no "
        "replica)"
    )


def follow_repairs(admin: AdminClient, names: list[str]) -> list[dict[str, Any]]:
    """Return the upstreams when nothing is pending. Raises CommandError when a replica cannot be repaired."""
    with _progress() as progress:
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
            if is_stuck or (faults and all(replica["state"] not in ABLE for _, replica in behind)):
                raise CommandError(
                    counted(pending, "key", "are not repaired"),
                    faults=faults,
                    hint="Bring these replicas back: what they miss is repaired as soon as they are up.",
                )
            time.sleep(_POLL_SECONDS)


def _fault(replica: dict[str, Any]) -> str:
    """Return what keeps a replica from being repaired; "" where nothing is known to."""
    if replica["state"] not in ABLE:
        return f"it is {replica['state']}: {replica['reason']}"
    return str(replica["repair"]["error"])
