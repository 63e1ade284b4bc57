"""`registry-proxy audit`: who did what on a node, and whether its log is what was written."""

import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from registry_proxy.terminal.client import AdminClient, admin_client, given
from registry_proxy.terminal.output import (
    JsonOption,
    YesOption,
    confirm,
    counted,
    format_value,
    print_json_line,
    print_note,
    print_result,
    print_table,
    printed_json,
    wants_json,
)
from registry_proxy.terminal.times import Since, Until

audit_app = typer.Typer(
    help="The audit log of a node: acts with their subject, rule and address.", no_args_is_help=True
)

_COLUMNS = ("time", "action", "outcome", "subject", "what", "address", "rule")
_CHAIN_COLUMNS = ("process", "lines", "removed", "signed_at", ("unsigned", "NOT YET SIGNED"), "state")
_FOLLOW_SECONDS = 1.0

_Subject = Annotated[str | None, typer.Option(help="Only events of this subject, such as user:ann.")]
_Repository = Annotated[str | None, typer.Option(help="Only in this repository.")]
_Action = Annotated[
    str | None,
    typer.Option(help="Only this action, such as login, push, grants.post; or grants for all changes of grants."),
]
_Outcome = Annotated[str | None, typer.Option(help="ok, refused, limited, denied or failed.")]


def _row(event: Mapping[str, Any]) -> dict[str, Any]:
    detail = event.get("detail", {})
    what = str(event.get("repository", ""))
    if event.get("tag"):
        what += f":{event['tag']}"
    if event.get("digest"):
        what += f"@{event['digest'][:19]}"
    if "folded" in detail:
        what = f"{what} {counted(detail['folded'], 'more event')} since {detail['since']}".strip()
    if "removed_lines" in detail:
        what = f"retention removed {counted(detail['removed_lines'], 'line')}, before {detail['removed_before']}"
    asked = detail.get("asked") or {}
    whom = asked.get("subject") or asked.get("token_id")  # of a grant, of a revocation
    row = dict(event)
    row["what"] = " ".join(text for text in (what or detail.get("path"), whom) if text) or None
    if event.get("outcome") == "failed" and "status" in detail:
        row["rule"] = f"answered {detail['status']}" + (f": {event['rule']}" if event.get("rule") else "")
    return row


def _print(events: Iterable[Mapping[str, Any]], *, headings: bool = True) -> None:
    if wants_json():
        for event in events:
            print_json_line(event)
    else:
        rows = [_row(event) for event in events]
        print_table(_COLUMNS, rows, empty="Nothing of that is in the audit log.", headings=headings)


def _follow(admin: AdminClient, query: Mapping[str, str], after: str) -> None:
    while True:
        time.sleep(_FOLLOW_SECONDS)
        events = admin.list_all("audit", query={**query, "after": after} if after else query)
        if events:
            _print(events, headings=not after)
            last = events[-1]
            after = f"{last['time']}/{last['process']}/{last['seq']:012d}"


@audit_app.command("tail")
def tail_audit(
    *,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="Number of events.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new events until Ctrl-C.")] = False,
    subject: _Subject = None,
    repository: _Repository = None,
    action: _Action = None,
    outcome: _Outcome = None,
    _json: JsonOption = False,
) -> None:
    """Show the newest events, oldest first; as JSON a line each."""
    query = given(subject=subject, repository=repository, action=action, outcome=outcome)
    with admin_client() as admin:
        page = admin.call("GET", "audit", query={**query, "last": str(lines)}).document
        _print(page["items"])
        if follow:
            _follow(admin, query, page["next"] or "")


@audit_app.command("search")
def search_audit(
    *,
    since: Since = None,
    until: Until = None,
    subject: _Subject = None,
    repository: _Repository = None,
    action: _Action = None,
    outcome: _Outcome = None,
    request_id: Annotated[str | None, typer.Option(help="Only the request with this X-Request-ID.")] = None,
    last: Annotated[int | None, typer.Option(min=1, max=1000, help="Only this number of the newest events.")] = None,
    _json: JsonOption = False,
) -> None:
    """Find events, oldest first; as JSON a line each."""
    query = given(
        since=since,
        until=until,
        subject=subject,
        repository=repository,
        action=action,
        outcome=outcome,
        request_id=request_id,
    )
    with admin_client() as admin:
        if last is None:
            found = admin.list_all("audit", query=query)
        else:
            found = admin.call("GET", "audit", query={**query, "last": str(last)}).document["items"]
        _print(found)


@audit_app.command("verify")
def verify_audit(_json: JsonOption = False) -> None:
    """Compare the whole log with its hashes and signatures; exit status 1 when any of it was changed or is missing.

    Removals by retention are shown and are no faults; a fault that `audit accept` has recorded is no longer one.
    """
    with admin_client() as admin:
        result = admin.call("POST", "audit", "verify", patient=True).document
    if not printed_json(result):
        _print_verification(result)
    if not result["intact"]:
        print_note("The log is not what was written: keep a copy of it, and of what the other sinks have.")
        print_note("You know why, as after a restore? `registry-proxy audit accept --reason TEXT`.")
        raise typer.Exit(1)


@audit_app.command("accept")
def accept_faults(
    reason: Annotated[str, typer.Option(help="The cause, for later readers.", show_default=False)],
    yes: YesOption = False,
    _json: JsonOption = False,
) -> None:
    """Accept the faults that `audit verify` finds now, after a restore for example.

    The log records them with the reason and your name, and `audit verify` shows them from then on. Its exit status is 0
    again until there is another fault.
    """
    with admin_client() as admin:
        found = admin.call("POST", "audit", "verify", patient=True).document
        if number := sum(len(chain["faults"]) for chain in found["processes"]):
            _print_faults(found)
            confirm(f"Accept {counted(number, 'fault')}?", yes=yes)
        result = admin.call("POST", "audit", "accept", body={"reason": reason}, patient=True).document
    text = f"Accepted {counted(number, 'fault')}: `registry-proxy audit verify` lists it as accepted."
    print_result(result, text)


def _print_verification(result: Mapping[str, Any]) -> None:
    rows = [
        {**chain, "lines": _lines(chain), "removed": _removed(chain), "state": _state(chain)}
        for chain in result["processes"]
    ]
    print_table(_CHAIN_COLUMNS, rows, empty="The audit log is empty.")
    _print_faults(result)
    for chain in result["processes"]:
        for each in chain["accepted"]:
            known = f"accepted by {each['by']} at {format_value(each['at'])}: {each['reason']}"
            print_note(f"{_place(chain, each)}: {each['text']} ({known})")
    for node in result["elsewhere"]:
        signed_at = format_value(node["signed_at"])
        print_note(f"Not compared: the log of node {node['node']}, last signed {signed_at}. Verify it there.")


def _print_faults(result: Mapping[str, Any]) -> None:
    for chain in result["processes"]:
        for fault in chain["faults"]:
            print_note(f"{_place(chain, fault)}: {fault['text']}")


def _place(chain: Mapping[str, Any], fault: Mapping[str, Any]) -> str:
    return f"{fault['file']}:{fault['line']}" if fault["file"] else f"process {chain['process']}"


def _lines(chain: Mapping[str, Any]) -> str | None:
    return f"{chain['first']} to {chain['last']}" if chain["last"] else None


def _removed(chain: Mapping[str, Any]) -> str | None:
    """Return what retention has removed of a chain."""
    return (
        f"{counted(chain['removed'], 'line')} before {format_value(chain['begins_at'])}" if chain["removed"] else None
    )


def _state(chain: Mapping[str, Any]) -> str:
    if chain["faults"]:
        return counted(len(chain["faults"]), "fault")
    return f"{counted(len(chain['accepted']), 'fault')} accepted" if chain["accepted"] else "as written"
