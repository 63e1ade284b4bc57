"""Failures that cross from one room into another."""

from typing import Literal


class UpstreamUnavailableError(Exception):
    """No replica could answer: down, or behind where a current one is needed. Becomes a 503, never a 404."""


class UpstreamLimitError(UpstreamUnavailableError):
    """A registry asked us to wait (429), and no other one could answer. Becomes a 429, at once.

    Args:
        reason: for the log, with the replica's name.
        words: what the registry said to people, "" for nothing.
        retry_after_seconds: how long it asked us to wait.
    """

    outcome: Literal["429"] = "429"

    def __init__(self, reason: str, words: str, retry_after_seconds: float) -> None:
        super().__init__(reason)
        self.words = words
        self.retry_after_seconds = retry_after_seconds


class AbsenceUnknownError(UpstreamUnavailableError):
    """The replicas that answered do not hold it, the others could not be asked: neither a 404 nor its contrary.

    Where a false "absent" costs no more than an upload (HEAD before a push), it counts as one.
    """


class CacheUnavailableError(Exception):
    """The cache cannot take this content (no space, too big, read-only disk, I/O error): pass it through instead."""


class FillFailedError(Exception):
    """A fill ended without its content. The cause is the ``__cause__``; readers of it must not complete their body."""


class FillLostError(FillFailedError):
    """A fill ended, or a file cannot be read, for a reason of this node's disk: the rest may be had from upstream."""


class WrongContentError(FillFailedError):
    """The bytes of a source are not the content asked for: other length, or other digest.

    It is raised inside the source's context, where ``sender`` ("upstream/replica") is filled in.

    Args:
        reason: for the log and the detail of a 502.
        is_proven: all of it came from this one source, complete as announced: nobody else can be to blame.
    """

    def __init__(self, reason: str, *, is_proven: bool) -> None:
        super().__init__(reason)
        self.is_proven = is_proven
        self.sender: str | None = None


class StoreUnavailableError(Exception):
    """The store cannot be reached, or used. Becomes a 503 wherever the store is needed."""


class ConflictError(Exception):
    """A precondition of a ``Store.commit`` does not hold; nothing was changed."""
