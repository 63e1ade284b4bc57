"""`registry-proxy access`: the policy, all groups, grants, subscriptions and rules, as a file for version control."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from registry_proxy.cli.grants import grant_text
from registry_proxy.cli.replay import print_replay
from registry_proxy.cli.rules import conditions_of
from registry_proxy.cli.subscriptions import read_headers
from registry_proxy.config.source import Source, format_path, read_yaml
from registry_proxy.terminal.client import AdminClient, admin_client, given
from registry_proxy.terminal.credentials import read_lines
from registry_proxy.terminal.errors import CommandError, failing_with
from registry_proxy.terminal.output import (
    JsonOption,
    YesOption,
    confirm,
    counted,
    print_lines,
    print_note,
    printed_json,
)

policy_app = typer.Typer(
    help="The policy, all groups, grants, subscriptions and rules, as a file for version control.", no_args_is_help=True
)

_POLICY_MAX_MIB = 8
_CREDENTIALS: Mapping[str, Callable[[Path], Any]] = {
    "secrets": lambda path: read_lines("secret", from_stdin=False, file=path),
    "headers": lambda path: read_headers(from_stdin=False, file=path),
}
_HEADER = """\
# The policy of registry-proxy: every group with its members, every grant, every subscription, and every rule of images.
# Entries that are not in here are removed by `registry-proxy access apply`; it touches no users, robots and secrets.
# Without the keys `subscriptions` and `rules` these stay as they are. A subscription gets new
# credentials by `secrets_file` and `headers_file`.
"""
_File = Annotated[
    Path, typer.Argument(metavar="FILE", help="The policy, as `access export` writes it; - for standard input.")
]


def _read_policy(file: Path) -> Source:
    """Return the policy in a file. Raises CommandError with every fault of the text."""
    try:
        text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror or error}") from error
    source = read_yaml(str(file), text, max_mib=_POLICY_MAX_MIB)
    faults = [str(fault) for fault in source.faults]
    try:
        json.dumps(source.tree, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # .nan, or half a character
        faults.append(f"{file}: {error}")
    if faults:
        raise CommandError(f"{file} is not a policy; nothing was changed", faults=faults)
    _read_credentials(source.tree, file)
    return source


def _read_credentials(tree: Any, file: Path) -> None:
    """Put into each subscription of a policy the contents of its secrets_file and headers_file.

    Paths are relative to the policy; to the working directory where that comes from standard input.
    """
    subscriptions = tree.get("subscriptions") if isinstance(tree, dict) else None
    for subscription in subscriptions.values() if isinstance(subscriptions, dict) else ():
        for field, read in _CREDENTIALS.items() if isinstance(subscription, dict) else ():
            if isinstance(named := subscription.pop(f"{field}_file", None), str):
                subscription[field] = read(file.parent / named)


def _locate(source: Source) -> Callable[[Sequence[str]], str]:
    """Return what names the line and the key for a place in the body."""

    def locate(pointer: Sequence[str]) -> str:
        path: tuple[str | int, ...] = ()
        inside: Any = source.tree
        for part in pointer:
            # A group may be called 7: only in a list is that a place.
            step = int(part) if isinstance(inside, list) and part.isdecimal() else part
            path += (step,)
            with suppress(LookupError, TypeError):
                inside = inside[step]
        where, line = source.place(path)
        return f"{where}:{line}: {format_path(path)}"

    return locate


def _send(admin: AdminClient, method: str, source: Source, *path: str, warns: bool = True) -> dict[str, Any]:
    answer = admin.call(method, *path, body=source.tree, patient=True, warns=warns, locate=_locate(source))
    return answer.document


def _difference_lines(difference: Mapping[str, Any]) -> list[str]:
    """Return a line for each thing that differs: + comes, - goes, ~ stays with other members or fields."""
    lines = []
    for sign, name in (("+", "groups_added"), ("-", "groups_removed")):
        lines += [f"{sign} group {group}: {', '.join(members) or '-'}" for group, members in difference[name].items()]
    for group, change in difference["groups_changed"].items():
        members = [f"+{member}" for member in change["added"]] + [f"-{member}" for member in change["removed"]]
        lines.append(f"~ group {group}: {' '.join(members)}")
    for sign, name in (("-", "grants_removed"), ("+", "grants_added")):
        lines += [f"{sign} {grant_text(grant)}" for grant in difference[name]]
    for sign, name in (("+", "subscriptions_added"), ("-", "subscriptions_removed")):
        lines += [
            f"{sign} subscription {each}: {', '.join(of['events'])} of {of['repository']} to {of['url']}"
            for each, of in difference[name].items()
        ]
    changed = difference["subscriptions_changed"]
    lines += [f"~ subscription {each}: {', '.join(names)}" for each, names in changed.items()]
    for sign, name in (("+", "rules_added"), ("-", "rules_removed")):
        lines += [
            f"{sign} rule {each}: {', '.join(conditions_of(of))} of {of['repository']}:{of['tags']}, {of['mode']}"
            for each, of in difference[name].items()
        ]
    lines += [f"~ rule {each}: {', '.join(names)}" for each, names in difference["rules_changed"].items()]
    return lines


def _replay(admin: AdminClient, source: Source, difference: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the policy in a file would have said to what the node was asked lately."""
    wanted = source.tree["groups"]
    changed = {group: wanted[group] for name in ("groups_added", "groups_changed") for group in difference[name]}
    body = {
        "add": difference["grants_added"],
        "remove": [grant["id"] for grant in difference["grants_removed"]],
        "groups": changed | {group: [] for group in difference["groups_removed"]},
    }
    return admin.call("POST", "policy", "replay", body=body, patient=True).document


@policy_app.command("export")
def export_policy(_json: JsonOption = False) -> None:
    """Print the policy as YAML; without passwords, secrets or tokens."""
    with admin_client() as admin:
        policy = admin.call("GET", "policy", patient=True).document
        if not printed_json(policy):
            sys.stdout.write(_HEADER + yaml.safe_dump(policy, sort_keys=False, allow_unicode=True, width=120))


@policy_app.command("diff")
@failing_with(2)
def diff_policy(
    file: _File,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also list recent requests to this node that it would newly deny.")
    ] = False,
    _json: JsonOption = False,
) -> None:
    """Show the changes of `access apply`: + added, - removed, ~ changed. Exits with 1 for a difference, 2 on errors."""
    source = _read_policy(file)
    with admin_client() as admin:
        difference = _send(admin, "POST", source, "policy", "diff")
        lines = _difference_lines(difference)
        replayed = _replay(admin, source, difference) if replay and lines else None
        if not printed_json({**difference, **given(replay=replayed)}):
            print_lines(lines)
            if replayed is not None:
                print_replay(replayed)
            elif not lines:
                print_note("No difference.")
        if lines:
            raise typer.Exit(1)


def _confirm(difference: Mapping[str, Any], source: Source) -> None:
    """Ask before a policy is applied that removes more than it keeps: it may be the wrong file, or half of it."""
    kinds = [kind for kind in ("groups", "grants", "subscriptions", "rules") if source.tree.get(kind) is not None]
    removed = {kind: len(difference[f"{kind}_removed"]) for kind in kinds}
    kept = {kind: len(source.tree[kind]) - len(difference[f"{kind}_added"]) for kind in kinds}
    if sum(removed.values()) > sum(kept.values()):
        for line in _difference_lines(difference):
            print_note(line)
        goes, stays = (_counts(numbers) for numbers in (removed, kept))
        confirm(f"Remove {goes}, and keep {stays}?", yes=False)


def _counts(numbers: Mapping[str, int]) -> str:
    return " and ".join(counted(number, kind.removesuffix("s")) for kind, number in numbers.items())


@policy_app.command("apply")
def apply_policy(
    file: _File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the changes without making them.")] = False,
    yes: YesOption = False,
    _json: JsonOption = False,
) -> None:
    """Replace the policy in force by the one in FILE; any fault in FILE prevents all of it.

    Asks first if it removes more groups and grants than it keeps.
    """
    source = _read_policy(file)
    with admin_client() as admin:
        if not dry_run and not yes:
            _confirm(_send(admin, "POST", source, "policy", "diff", warns=False), source)
        method, path = ("POST", ("policy", "diff")) if dry_run else ("PUT", ("policy",))
        difference = _send(admin, method, source, *path)
        lines = _difference_lines(difference)
        if not printed_json(difference):
            print_lines(lines)
        done = "would be made; nothing was changed" if dry_run else "made, in force now"
        print_note(f"{counted(len(lines), 'change')} {done}." if lines else "No difference: nothing was changed.")
