"""Times as texts."""

import math

import pytest

from registry_proxy.protocol.times import format_rfc3339, parse_retry_after

NOW = 1_700_000_000.0


def test_a_moment_is_written_in_utc() -> None:
    """Fractions are there where they are not 0, or as they are asked for."""
    assert format_rfc3339(NOW) == "2023-11-14T22:13:20Z"
    assert format_rfc3339(NOW + 0.5) == "2023-11-14T22:13:20.500000Z"
    assert format_rfc3339(NOW + 0.5, "seconds") == "2023-11-14T22:13:20Z"
    assert format_rfc3339(NOW, "microseconds") == "2023-11-14T22:13:20.000000Z"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:12:20 GMT", 0.0),
        ("9" * 400, math.inf),
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("²", None),
        ("Tue, 14 Nov 99999999 22:14:20 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms(text: str | None, seconds: float | None) -> None:
    """Seconds, or a date; a past one is now, and all else is no answer."""
    assert parse_retry_after(text, NOW) == seconds
