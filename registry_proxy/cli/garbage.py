"""`registry-proxy replica gc`: the registries' own garbage collection, one replica at a time."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from registry_proxy.cli.comparisons import ABLE, compare_replicas, fail_for, follow_repairs
from registry_proxy.cli.pauses import ResumedError, resume, wait_for, wait_until_quiet
from registry_proxy.terminal.client import AdminClient, admin_client
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, counted, print_note, print_result, wants_json

_UP_SECONDS = 120.0
_SHELL = "/bin/sh"
_COMPARISONS = 3
"""A tag that is pushed again and again may look different while it is compared."""

_Upstream = Annotated[str, typer.Argument(help="The upstream.")]
_Replica = Annotated[str, typer.Argument(help="Its replica.")]


def collect_garbage(
    upstream: _Upstream,
    replica: Annotated[str | None, typer.Option(help="Only this replica.")] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Command for /bin/sh, with REPLICA and REPLICA_URL. Without it, you collect by hand.",
        ),
    ] = None,
    _json: JsonOption = False,
) -> None:
    """Run the registries' own garbage collection, one replica at a time, while clients push and pull.

    Each replica is paused, COMMAND is run, the replica is resumed, repaired and compared with the others: only then the
    next one follows. COMMAND has to restart a registry that remembers blobs (`storage.cache` of distribution). When it
    fails, the replica stays paused.
    """
    with admin_client() as admin:
        chosen = _choose(admin, upstream, replica)
        _make_equal(admin, upstream)
        done = [_collect(admin, upstream, one, run) for one in chosen]
        collected = counted(len(done), "replica", f"of {upstream} collected")
        print_result(done, f"{collected}; all replicas hold the same.")


def _choose(admin: AdminClient, upstream: str, replica: str | None) -> list[dict[str, Any]]:
    replicas: list[dict[str, Any]] = admin.call("GET", "upstreams", upstream).document["replicas"]
    for one in replicas:
        if one["paused"]:
            raise CommandError(
                f"Replica {one['name']} of {upstream} is paused already, by {one['paused']['by']}",
                hint=f"Resume it first: `registry-proxy replica resume {upstream} {one['name']}`.",
            )
    chosen = [one for one in replicas if replica in {None, one["name"]}]
    if not chosen:
        names = ", ".join(one["name"] for one in replicas)
        raise CommandError(f"Upstream {upstream} has no replica {replica}", hint=f"It has: {names}.")
    return chosen


def _collect(admin: AdminClient, upstream: str, replica: dict[str, Any], command: str | None) -> dict[str, Any]:
    """Collect the garbage of one replica; return the report."""
    name, began_at = replica["name"], time.monotonic()
    body = {"replica": name, "reason": "garbage collection"}
    admin.call("POST", "upstreams", upstream, "pause", body=body)
    with _resumed_when_interrupted(admin, upstream, name):
        wait_until_quiet(admin, upstream, name)
        if command is None:
            status = _wait_for_the_operator(name, replica["url"])
        else:
            status = _run(command, {"REPLICA": name, "REPLICA_URL": replica["url"]})
    if status:
        raise _still_paused(upstream, name, f"The command for replica {name} of {upstream} ended with {status}")
    wait_until_quiet(admin, upstream, name)  # as it was, unless somebody has resumed it
    resume(admin, upstream, name)
    failure = f"Replica {name} of {upstream} is resumed, and is not up after {_UP_SECONDS:.0f} s"
    wait_for(admin, upstream, name, lambda one: one["state"] in ABLE, _UP_SECONDS, failure)
    returned, seconds = _make_equal(admin, upstream), time.monotonic() - began_at
    if not wants_json():
        back = counted(returned, "content")
        print_note(f"Replica {name}: collected in {seconds:.0f} s; {back} came back from the others.")
    return {"replica": name, "seconds": round(seconds, 1), "returned": returned}


def _still_paused(upstream: str, name: str, message: str) -> CommandError:
    return CommandError(
        f"{message}: the replica stays paused",
        hint=f"Nothing is written to it. When it is well, `registry-proxy replica resume {upstream} {name}`.",
    )


@contextmanager
def _resumed_when_interrupted(admin: AdminClient, upstream: str, name: str) -> Iterator[None]:
    """Resume a replica when what is done meanwhile is interrupted, or fails otherwise than by its command."""
    try:
        yield
    except _StillRunningError as error:
        raise _still_paused(upstream, name, str(error)) from None
    except KeyboardInterrupt:
        resume(admin, upstream, name)
        raise CommandError(
            f"Interrupted; replica {name} of {upstream} is written to again",
            hint="If its garbage collection goes on elsewhere, end it now, or pause the replica again.",
        ) from None
    except ResumedError:
        raise
    except BaseException:
        resume(admin, upstream, name)
        raise


class _StillRunningError(Exception):
    """A command was interrupted twice, and may go on."""


def _run(command: str, environment: dict[str, str]) -> int:
    """Run a command of the operator's; return its exit status.

    Raises:
        KeyboardInterrupt: it was interrupted, and has ended.
        _StillRunningError: it was interrupted twice, and may go on.
    """
    output = [(os.POSIX_SPAWN_DUP2, 2, 1)] if wants_json() else []  # ours is for machines then
    with _counted_interrupts() as interrupts:
        pid = os.posix_spawn(_SHELL, [_SHELL, "-c", command], {**os.environ, **environment}, file_actions=output)
        try:
            _, status = os.waitpid(pid, 0)
        except KeyboardInterrupt:
            raise _StillRunningError(f"The command (process {pid}) was left running") from None
    if interrupts:
        raise KeyboardInterrupt
    return os.waitstatus_to_exitcode(status)


@contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """Give the interrupts so far: the first one is only noted, a second one is raised."""
    interrupts: list[int] = []

    def note(number: int, _: object) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            raise KeyboardInterrupt
        print_note("Waiting for the command to end. Interrupt again to leave it running, and the replica paused.")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _wait_for_the_operator(name: str, url: str) -> int:
    print_note(f"Replica {name} ({url}) is paused, and nothing is being written to it.")
    print_note("Run its garbage collection now, restart it if it remembers blobs, then press Enter.")
    try:
        input()
    except EOFError:
        raise CommandError("There is nobody to press Enter", hint="Give --run COMMAND.") from None
    return 0


def _make_equal(admin: AdminClient, upstream: str) -> int:
    """Have the replicas repaired and compared until they hold the same; return how many contents that brought."""
    follow_repairs(admin, [upstream])
    returned, tries = 0, _COMPARISONS
    while True:
        comparison = compare_replicas(admin, upstream, {"repair": True})
        follow_repairs(admin, [upstream])
        returned += int(comparison["repaired"])
        tries -= 1
        if not tries or not any(comparison[fault] for fault in ("undecided", "lost", "failed", "error")):
            fail_for([{**comparison, "differing": comparison["undecided"]}], "see `registry-proxy replica verify`")
            return returned
