"""Output of commands: JSON for machines, tables for people. Data to standard output, all else to standard error."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

from registry_proxy.terminal.errors import CommandError

_wants_json: ContextVar[bool] = ContextVar("wants_json", default=False)


def _obey(*, is_wanted: bool) -> bool:
    _wants_json.set(is_wanted)
    return is_wanted


JsonOption = Annotated[bool, typer.Option("--json", callback=_obey, help="Print JSON, for machines.")]
"""A command that has this option need not pass it on: the functions below obey it."""

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

Columns = Sequence[str | tuple[str, str]]
"""Columns of a table: the key of a value, with its heading where that is another word than the key."""

_PIPE_WIDTH = 400
_ANY_WIDTH = 100_000
_KIB = 1024
_ONE = {"are": "is", "were": "was"}
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]+Z")
_SECONDS_LENGTH = len("2030-01-31T00:00:00")


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # Into a pipe or file there is no width to fold names at: grep wants them whole.
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def wants_json() -> bool:
    """Tell whether the command was given ``--json``."""
    return _wants_json.get()


def _visible(text: str) -> str:
    """Return a text whose control characters are escaped: labels and reasons are foreign, and a terminal obeys them."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text
    )


def print_json(document: Any) -> None:
    """Print a document as JSON."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_json_line(document: Any) -> None:
    """Print a document as JSON on a line of its own, at once: somebody may follow."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def printed_json(document: Any) -> bool:
    """Print a document where the command was given ``--json``; tell whether it was."""
    if is_wanted := wants_json():
        print_json(document)
    return is_wanted


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as they are, whole."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


def print_note(text: str) -> None:
    """Print a sentence for a person on standard error: standard output is for data."""
    _console(stderr=True).print(Text(_visible(text)))


def print_error(error: CommandError) -> None:
    """Print an error: the message, each fault on a line of its own, and the next step."""
    console = _console(stderr=True)
    console.print(Text.assemble(("error: ", "bold red"), _visible(error.message)))
    for fault in error.faults:
        console.print(Text(f"  {_visible(fault)}"))
    if error.hint is not None:
        console.print(Text(_visible(error.hint)))


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is removed, unless ``yes``; end the command on a no."""
    if not yes:
        typer.confirm(f"{question} (--yes: without asking)", abort=True, err=True)


def counted(number: int, noun: str, rest: str = "", *, plural: str | None = None) -> str:
    """Return a number with its noun, ``1 grant`` or ``2 grants``.

    Args:
        number: of things.
        noun: for one of them.
        rest: follows; an ``are`` or ``were`` at its beginning becomes ``is`` or ``was`` for one.
        plural: of the noun, where that is more than an s.
    """
    if number == 1:
        verb, space, others = rest.partition(" ")
        return f"1 {noun} {_ONE.get(verb, verb)}{space}{others}".rstrip()
    return f"{number} {plural or f'{noun}s'} {rest}".rstrip()


def format_value(value: Any) -> str:
    """Return a JSON value as a person reads it; a time without parts of a second."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={format_value(item)}" for name, item in value.items())
    text = str(value)
    return f"{text[:_SECONDS_LENGTH]}Z" if _TIME.fullmatch(text) else text


def format_size(size_bytes: int) -> str:
    """Return a size with a binary unit, ``10.0 GiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIB:
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIB
    return f"{size:.1f} TiB"


def format_ratio(ratio: float | None) -> str:
    """Return a ratio from 0 to 1 as per cent."""
    return "-" if ratio is None else f"{ratio:.1%}"


def print_table(columns: Columns, rows: Sequence[Mapping[str, Any]], *, empty: str, headings: bool = True) -> None:
    """Print rows as a table.

    Args:
        columns: the keys of the values.
        rows: JSON objects.
        empty: said on standard error when there are no rows.
        headings: False for rows that go on with a table.
    """
    if not rows:
        print_note(empty)
        return
    console, named = _console(), dict(map(_named, columns))
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=headings)
    for heading in named.values():
        table.add_column(heading, no_wrap=True, overflow="ignore")
    for row in rows:
        table.add_row(*(Text(_visible(format_value(row.get(key)))) for key in named))
    # Not measured within the console: there it is never wider than that.
    if console.measure(table, options=console.options.update_width(_ANY_WIDTH)).maximum <= console.width:
        console.print(table)
        return
    # Identifiers, digests and times are there to be copied: what is too wide for the terminal goes below each other.
    for row in rows:
        print_facts({heading.lower(): row.get(key) for key, heading in named.items()})
        console.print()


def _named(column: str | tuple[str, str]) -> tuple[str, str]:
    """Return the key and the heading of a column."""
    if isinstance(column, tuple):
        return column
    return column, column.removesuffix("_at").replace("_", " ").upper()


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print one thing: a name and a value on each line, which is never folded here."""
    console, width = _console(), max(map(len, facts), default=0)
    for name, value in facts.items():
        lines = _visible(format_value(value)).replace("\n", f"\n{' ' * width}  ")
        line = Text.assemble((_visible(name).ljust(width), "bold"), "  ", lines)
        console.print(line, soft_wrap=True)


def print_list(columns: Columns, rows: Sequence[Mapping[str, Any]], *, empty: str) -> None:
    """Print a list: as JSON, or as ``print_table`` does."""
    if not printed_json(rows):
        print_table(columns, rows, empty=empty)


def print_object(document: Mapping[str, Any]) -> None:
    """Print one thing: as JSON, or as ``print_facts`` does."""
    if not printed_json(document):
        print_facts(document)


def print_result(document: Any, note: str) -> None:
    """Print the result of a command: as JSON, or as a note."""
    if not printed_json(document):
        print_note(note)


def spinner(text: str) -> AbstractContextManager[object]:
    """Show a person that a command waits; nothing into a pipe or file."""
    return Console(stderr=True).status(text) if sys.stderr.isatty() else nullcontext()


def progress_bars(*columns: ProgressColumn) -> Progress:
    """Return bars that show a person how far a command is; nothing into a pipe or file."""
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
