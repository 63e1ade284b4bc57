"""Times as texts: RFC 3339 for people and events, and Retry-After of HTTP (RFC 9110, 10.2.3)."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def format_rfc3339(moment: float, timespec: str = "auto") -> str:
    """Return Unix seconds as a text of RFC 3339, in UTC.

    Args:
        moment: Unix seconds.
        timespec: see ``datetime.isoformat``.
    """
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def parse_retry_after(text: str | None, now: float) -> float | None:
    """Return the seconds of a Retry-After in either form, from 0; None for one that is absent or wrong."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
