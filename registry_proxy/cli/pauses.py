"""`registry-proxy replica pause` and `resume`: a replica out of writes and repair."""

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from registry_proxy.terminal.client import AdminClient, admin_client
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, print_note, print_result, printed_json

_POLL_SECONDS = 0.5
_QUIET_SECONDS = 180.0
"""Writes that a node began before it died count as under way for a minute."""

_Upstream = Annotated[str, typer.Argument(help="The upstream.")]
_Replica = Annotated[str, typer.Argument(help="Its replica.")]


def pause_replica(
    upstream: _Upstream,
    replica: _Replica,
    reason: Annotated[str, typer.Option(help="The reason, shown in the list of replicas.")] = "",
    _json: JsonOption = False,
) -> None:
    """Take a replica out of writes and repair, on all nodes, and wait until nothing is being written to it.

    It still serves what it has. Pushes are recorded meanwhile, and repaired when it is resumed.
    """
    with admin_client() as admin:
        admin.call("POST", "upstreams", upstream, "pause", body={"replica": replica, "reason": reason})
        document = wait_until_quiet(admin, upstream, replica)
        if not printed_json(document):
            print_note(f"Replica {replica} of {upstream} is paused, and nothing is being written to it.")
            print_note(f"`registry-proxy replica resume {upstream} {replica}` ends that.")


def resume_replica(
    upstream: _Upstream,
    replica: _Replica,
    force: Annotated[bool, typer.Option(help="Resume even if the registry answers for blobs that are gone.")] = False,
    _json: JsonOption = False,
) -> None:
    """Write to a paused replica again; what it missed is repaired by itself.

    Refused for a registry that still answers for a blob that its garbage collection removed: restart it first.
    """
    with admin_client() as admin:
        document = resume(admin, upstream, replica, force=force)
        text = f"Replica {replica} of {upstream} is written to again. What it missed is being repaired."
        print_result(document, text)


class ResumedError(CommandError):
    """Somebody else ended the pause."""


def resume(admin: AdminClient, upstream: str, name: str, *, force: bool = False) -> dict[str, Any]:
    """End a pause. Raises CommandError where that is refused: the replica stays paused then."""
    body = {"replica": name, "force": force}
    return admin.call("POST", "upstreams", upstream, "resume", body=body).document


def wait_until_quiet(admin: AdminClient, upstream: str, name: str) -> dict[str, Any]:
    """Return the upstream's document once nothing is being written to its paused replica. Raises CommandError."""

    def is_quiet(one: dict[str, Any]) -> bool:
        if one["paused"] is None:
            raise ResumedError(
                f"Replica {name} of {upstream} was resumed by somebody else",
                hint="If its garbage is being collected, a push may have met that: collect it once more, then verify.",
            )
        return bool(one["paused"]["quiet"])

    failure = f"Something is still being written to replica {name} of {upstream} after {_QUIET_SECONDS:.0f} s"
    return wait_for(admin, upstream, name, is_quiet, _QUIET_SECONDS, failure)


def wait_for(  # noqa: PLR0917 - a question, and what to say when it is not answered
    admin: AdminClient,
    upstream: str,
    name: str,
    question: Callable[[dict[str, Any]], bool],
    seconds: float,
    failure: str,
) -> dict[str, Any]:
    """Return the upstream's document as soon as its replica is so. Raises CommandError with ``failure``."""
    deadline = time.monotonic() + seconds
    while True:
        document = admin.call("GET", "upstreams", upstream).document
        if any(one["name"] == name and question(one) for one in document["replicas"]):
            return document
        if time.monotonic() > deadline:
            raise CommandError(failure, hint="See `registry-proxy replica list`.")
        time.sleep(_POLL_SECONDS)
