"""Times as options: a moment, or how long from now."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from registry_proxy.config.types import parse_duration

_MOMENT = "such as 2030-01-31T00:00:00Z"


def _moment(text: str | None, *, sign: int) -> str | None:
    """Return the moment that a text means or a duration leads to. Raises typer.BadParameter for other texts."""
    if text is None or _is_moment(text):
        return text
    try:
        distance = timedelta(seconds=parse_duration("" if text.isdecimal() else text))
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"expected a time with its zone, {_MOMENT}, or a duration such as 30d") from None
    try:
        moment = datetime.now(UTC) + sign * distance
    except OverflowError:
        raise typer.BadParameter(f"{text} leads out of the calendar") from None
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _in_future_or_never(value: str | None) -> str | None:
    return value if value == "never" else _in_future(value)


def _in_future(value: str | None) -> str | None:
    return _moment(value, sign=1)


def _in_past(value: str | None) -> str | None:
    return _moment(value, sign=-1)


_ENDS = f"When it ends, {_MOMENT}, or how long it lasts, such as 30d"
Expires = Annotated[str | None, typer.Option("--expires-at", callback=_in_future, help=f"{_ENDS}.")]
NewExpires = Annotated[
    str | None, typer.Option("--expires-at", callback=_in_future_or_never, help=f"{_ENDS}; or never.")
]
Since = Annotated[
    str | None, typer.Option(callback=_in_past, help=f"From this time, {_MOMENT}, or this long ago, such as 1h.")
]
Until = Annotated[str | None, typer.Option(callback=_in_past, help="Before this time, or this long ago.")]
PastMoment = Annotated[
    str | None, typer.Option("--at", callback=_in_past, help=f"When, {_MOMENT}, or how long ago, such as 5m; else now.")
]
