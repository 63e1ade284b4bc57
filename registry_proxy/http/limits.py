"""Bounds of a request, and the status of one that was cut."""

import random

LINE_MAX_BYTES = 128 * 1024
"""The longest URL: a GET for a token with 200 scopes of 255 characters, each slash escaped."""

FIELD_MAX_BYTES = 16 * 1024
"""The longest header field: an ID token of 8 KB and more as the password of Basic."""

HEAD_MAX_BYTES = LINE_MAX_BYTES + 8 * FIELD_MAX_BYTES
"""A head that has not come whole yet; all its lines together."""

CLIENT_LEFT = 499
"""The status, in log and metrics, of a request whose answer was cut; nginx's number for a client that left."""


def scattered(seconds: float) -> float:
    """Return a time that is up to half as long again.

    Thousands of requests that are withheld from the same moment on would else end in the same turn of the loop, in
    which nobody else is served.
    """
    return seconds * random.uniform(1, 1.5)  # noqa: S311 - nobody gains by guessing it
