"""The files in which the workers of a node share their metrics; apart from them, for code that only removes some."""

import contextlib
import os

KINDS = ("counter", "gauge_mostrecent", "histogram")
"""What the library puts before the identity of the process in a file's name."""


def sample_file(directory: str, kind: str, process: str) -> str:
    """Return the path of one process's file of a kind."""
    return os.path.join(directory, f"{kind}_{process}.db")


def forget_gauges(directory: str, process: str) -> None:
    """Remove what a process that has ended said of now; what it counted stays, and its successor counts on."""
    with contextlib.suppress(OSError):
        os.unlink(sample_file(directory, "gauge_mostrecent", process))
